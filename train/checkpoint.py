"""Checkpoints: written atomically, read without running code, the latest ones kept.

The newest is checkpoint.pt, the one before it checkpoint-1.pt, and so on.
"""

from __future__ import annotations

import os
import pickle
import zipfile
import zlib
from pathlib import Path
from typing import Any, Final

import torch

from pipeline.atomic import replacing
from pipeline.console import console
from pipeline.errors import UserError

# What readers of zip files and of pickles say of bytes that they did not expect.
_DAMAGE: Final = (
    *(OSError, RuntimeError, EOFError, ValueError, KeyError),
    *(zipfile.BadZipFile, zlib.error, pickle.UnpicklingError),
)


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values, atomically.

    Raises:
        UserError: If the disk refuses; the earlier file is still there.
    """
    try:
        with replacing(path) as file:
            torch.save(state, file)
    except (OSError, RuntimeError) as error:  # torch's zip writer reports a full disk as a RuntimeError
        raise UserError(f"cannot write {path}: {error}; make room, then go on with --resume") from error


def load_state(
    path: Path, device: torch.device, *, otherwise: str = "give another --out to start again"
) -> dict[str, Any]:
    """Read what `save_state` wrote; nothing in the file can run code.

    Args:
        path: The file.
        device: Where the tensors go.
        otherwise: What the user can do if it is damaged.

    Raises:
        UserError: If the file is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch looks at no checksum: a flipped bit would be another weight
        if damaged is not None:
            raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except _DAMAGE as error:
        raise UserError(f"{path} cannot be read ({error}); {otherwise}") from error
    return state


def save_checkpoint(folder: Path, state: dict[str, Any], *, keep: int) -> None:
    """Write a run's newest checkpoint and drop the oldest, so that `keep` of them are left.

    Raises:
        UserError: If the disk refuses; the earlier ones are still there.
    """
    new = folder / "checkpoint-new.pt"
    save_state(new, state)
    for number in range(keep - 1, 0, -1):  # killed in between, the run goes on from the one before
        if _path(folder, number - 1).exists():
            os.replace(_path(folder, number - 1), _path(folder, number))
    os.replace(new, _path(folder, 0))
    for number in _numbers(folder):
        if number >= keep:  # an earlier process kept more
            _path(folder, number).unlink()


def load_checkpoint(folder: Path, device: torch.device) -> dict[str, Any] | None:
    """Read the newest checkpoint of a run that is not damaged, and say so if it is not the newest of all.

    Returns:
        None if there is none.

    Raises:
        UserError: If all are damaged.
    """
    damaged: list[UserError] = []
    for number in [0, *_numbers(folder)]:
        path = _path(folder, number)
        try:
            state = load_state(path, device) if path.exists() else None
        except UserError as error:
            damaged.append(error)
            continue
        if state is not None:
            for reason in damaged:
                console.print(f"{reason}", soft_wrap=True, highlight=False)
            if damaged:
                console.print(f"going on from {path.name} instead, at example {state['clock']['examples']:,}")
            return state
    if damaged:
        raise damaged[0]
    return None


def _numbers(folder: Path) -> list[int]:
    found = [path.stem.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*.pt")]
    return sorted(int(number) for number in found if number.isdigit())


def _path(folder: Path, number: int) -> Path:
    return folder / (f"checkpoint-{number}.pt" if number else "checkpoint.pt")
