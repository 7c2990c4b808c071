"""Files that are hashed while they are written."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from io import RawIOBase
from typing import BinaryIO, Final

from pipeline.manifest import File
from pipeline.storage import Folder

_WRITE_BYTES: Final = 4 << 20


class HashedFile:
    """A file under its way into storage; made by `hashed_file`.

    Args:
        name: What it will be called.
        stream: Where the bytes go.
    """

    def __init__(self, name: str, stream: BinaryIO | RawIOBase) -> None:
        self.name = name
        self.num_bytes = 0
        self._stream = stream
        self._digest = hashlib.sha256()
        self._pending: list[bytes] = []
        self._num_pending = 0

    def write(self, pieces: Collection[bytes]) -> None:
        """Add some pieces; they are joined to large ones before they are hashed and written."""
        size = sum(map(len, pieces))
        self._pending.extend(pieces)
        self._num_pending += size
        self.num_bytes += size
        if self._num_pending >= _WRITE_BYTES:
            self._flush()

    def finish(self) -> File:
        """Write what is pending; say what the file is."""
        self._flush()
        return File(self.name, self.num_bytes, self._digest.hexdigest())

    def _flush(self) -> None:
        chunk = b"".join(self._pending)
        self._digest.update(chunk)
        self._stream.write(chunk)
        self._pending.clear()
        self._num_pending = 0


@contextmanager
def hashed_file(folder: Folder, name: str) -> Iterator[HashedFile]:
    """Open a new file, which is published when the block ends, or not at all; call `finish` last."""
    with folder.replacing(name) as stream:
        yield HashedFile(name, stream)


def write_hashed(folder: Folder, name: str, data: bytes) -> File:
    """Write a small file and say what it is."""
    folder.write(name, data)
    return File(name, len(data), hashlib.sha256(data).hexdigest())
