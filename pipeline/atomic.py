"""Files that are either the old ones or the new ones, whatever happens in between."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO, cast

from pipeline.direct import DirectFile


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Write a file, from start to end, that takes the place of `path` when the block ends, on disk and at once."""
    part = path.with_name(path.name + ".part")
    with DirectFile(part) as file:
        yield cast(BinaryIO, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)


def write_file(path: Path, data: bytes) -> None:
    """Write a small file so that it is there whole or not at all."""
    with replacing(path) as file:
        file.write(data)


def check_writable(folder: Path) -> None:
    """Find out whether files can be written in a folder, or where it is to be made; nothing is left behind.

    Raises:
        OSError: If they cannot.
    """
    try:
        folder.stat()
    except FileNotFoundError:
        check_writable(folder.parent)
    else:
        with TemporaryFile(dir=folder):
            pass
