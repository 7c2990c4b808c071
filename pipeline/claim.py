"""Whose folder is it? One build at a time, or the parts of one build, and never over anything else.

Locks are for local folders. On other storage two builds of one plan write the same bytes, whole files at a time, and a
build of another plan is refused by what it finds there.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from pipeline.errors import UserError
from pipeline.manifest import FILE_NAME, Manifest, read_manifest
from pipeline.storage import Folder

STATE: Final = ".dilute-build"  # a folder; its name is ours alone, because it is removed whole
_LOCK: Final = ".dilute-build.lock"
_TURN: Final = ".dilute-build-turn.lock"
_PLAN: Final = f"{STATE}/plan.json"
_SPLITS: Final = "(train|test|foreign)"
_OURS: Final = re.compile(
    rf"({_SPLITS}-\d{{6}}\.(tar|idx|diluted\.idx)|{_SPLITS}\.(index\.npy|beton)|counts\.npz|law\.npy|_info\.json"
    r"|dataset\.json)(\.part)?"
)


@contextmanager
def claimed(
    folder: Folder, wanted: dict[str, Any], *, part: tuple[int, int] | None, force: bool
) -> Iterator[Manifest | None]:
    """Take a folder for the block's time; yields its manifest if what is wanted lies there already, finished.

    Args:
        folder: Where to build.
        wanted: What to build, as `Plan.describe` has it.
        part: Which part of a build this is; None for a whole one, which no other may join.
        force: Whether to replace another data set that lies there.

    Raises:
        UserError: If the folder is a file, another build works in it, it holds another data set, one that lacks files,
            or files that are no data set's, and `force` is not given.
    """
    if folder.local and folder.local.exists() and not folder.local.is_dir():
        raise UserError(f"{folder} is a file; give --out a folder")
    with ExitStack() as locks:
        if folder.local:
            folder.local.mkdir(parents=True, exist_ok=True)
            locks.enter_context(_lock(folder.local / _LOCK, alone=part is None))
            if part:
                name = f".dilute-build-{part[0]}-of-{part[1]}.lock"
                locks.enter_context(_lock(folder.local / name, alone=True))
        with turn(folder):
            finished = _claim(folder, json.loads(json.dumps(wanted)), force=force)
        yield finished


@contextmanager
def turn(folder: Folder) -> Iterator[None]:
    """Let one part of a build pass at a time, where all of them write the same files; the others wait."""
    if folder.local is None:
        yield
        return
    path = folder.local / _TURN
    while True:
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_nlink == 0:  # the one we waited for removed it: another may hold a new one
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


@contextmanager
def _lock(path: Path, *, alone: bool) -> Iterator[None]:
    """Keep a second builder out of a folder; the lock goes with the process, however it ends."""
    busy = UserError(f"another build is working in {path.parent}; wait for it, or give another --out")
    with path.open("w") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy from None
        if os.fstat(file.fileno()).st_nlink == 0:  # locked just after its owner removed it: another may hold a new one
            raise busy
        try:
            yield
        finally:
            if alone or (path.parent / FILE_NAME).exists():  # other parts hold a shared one until all is there
                path.unlink(missing_ok=True)


def _claim(folder: Folder, wanted: dict[str, Any], *, force: bool) -> Manifest | None:
    present = [name for name in folder.names() if not name.startswith(".dilute-build")]
    finished = FILE_NAME in present
    begun = folder.names(STATE)  # looked for before the plan, which is written first: what has no plan is left over
    if finished and not force:
        manifest = read_manifest(folder)
        _refuse_other(manifest.build, wanted, folder)
        _refuse_incomplete(manifest, folder)
        folder.remove_folder(STATE)  # is there if a build was killed after its last file
        return manifest
    if not finished and folder.size(_PLAN) is not None:
        earlier = json.loads(folder.read(_PLAN))
        if earlier == wanted:
            return None
        if present and not force:
            _refuse_other(earlier, wanted, folder)
    if present and not force:
        raise UserError(
            f"{folder} is not empty (it holds {present[0]}) and no data set of ours; "
            "give another --out, or --force to replace a data set that lies there"
        )
    if present or begun:
        folder.remove(FILE_NAME)  # first: what is left if we are killed here must not look finished
        for name in filter(_OURS.fullmatch, present):
            folder.remove(name)
        folder.remove_folder(STATE)
    folder.write(_PLAN, json.dumps(wanted).encode())
    return None


def _refuse_incomplete(manifest: Manifest, folder: Folder) -> None:
    for file in manifest.files():
        if folder.size(file.name) != file.num_bytes:
            raise UserError(
                f"{folder}/{file.name} is missing or has another size than {FILE_NAME} says; "
                "build it again with --force"
            )


def _refuse_other(found: dict[str, Any], wanted: dict[str, Any], folder: Folder) -> None:
    differences = [
        f"{key} is {found.get(key)!r}, asked for is {value!r}"
        for key, value in wanted.items()
        if found.get(key) != value
    ]
    if differences:
        raise UserError(
            f"{folder} holds another data set: {'; '.join(differences)}; give another --out, or --force to replace it"
        )
