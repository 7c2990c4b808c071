"""Checkpoints: written atomically, read without running code."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from pipeline.atomic import replacing
from pipeline.errors import UserError


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


def load_state(path: Path, device: torch.device) -> dict[str, Any]:
    """Read what `save_state` wrote; nothing in the file can run code.

    Raises:
        UserError: If the file is damaged.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} cannot be read ({error}); give another --out to start again") from error
    return state
