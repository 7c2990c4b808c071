"""Shards as USTAR archives that stock WebDataset and DALI readers see as (image, source label, noisy labels).

Layout `shared`, per image: ``000000123.png`` (or jpg, untouched), ``000000123.cls`` (ASCII label of copy 0) and
``000000123.labels.npy`` (uint16 [α], the labels of copies 1..α; left out at α = 0). Fixed times and owners, so that
the same data give the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from jaxtyping import UInt16
from numpy import ndarray as Array

from pipeline.atomic import replacing, write_file
from pipeline.manifest import INDEX_DTYPE, File, Shard

BLOCK_BYTES: Final = 512
_WRITE_BYTES: Final = 4 << 20


class Record(NamedTuple):
    """One image with all its labels, as a shard stores it.

    Args:
        image_id: Its place in the data set.
        data: The encoded image.
        encoding: Its file name extension.
        label: The label of copy 0.
        noisy: The labels of copies 1..α.
        source: Its index in the source's own order.
    """

    image_id: int
    data: bytes
    encoding: str
    label: int
    noisy: UInt16[Array, " a"]
    source: int


class Written(NamedTuple):
    """What came out of writing one shard."""

    shard: Shard
    dali_index: File
    records: Array  # INDEX_DTYPE [count]


def _header(name: bytes, size: int) -> bytes:
    """Write a USTAR header: regular file, mode 644, owner 0, time 0."""
    length = b"%011o" % size
    checksum = _HEADER_SUM + sum(name) + sum(length)
    return b"".join(
        (name, bytes(100 - len(name)), _MODE_OWNER, length, b"\0", _TIME, b"%06o\0 " % checksum, _HEADER_END)
    )


_MODE_OWNER: Final = b"0000644\0" + b"0000000\0" * 2
_TIME: Final = b"0" * 11 + b"\0"
_HEADER_END: Final = b"0" + bytes(100) + b"ustar\x0000" + bytes(64) + b"0000000\0" * 2 + bytes(155 + 12)
_HEADER_SUM: Final = sum(_MODE_OWNER) + sum(_TIME) + sum(_HEADER_END) + 8 * ord(" ")


def npy_header(alpha: int) -> bytes:
    """Return the header of a .npy file of uint16 [alpha]."""
    stream = io.BytesIO()
    fields: dict[str, Any] = {"descr": "<u2", "fortran_order": False, "shape": (alpha,)}
    np.lib.format.write_array_header_1_0(stream, fields)
    return stream.getvalue()


def write_shard(path: Path, records: Iterable[Record], *, alpha: int) -> Written:
    """Write one shard and its DALI index; both appear under their names only when they are whole and on disk.

    Args:
        path: The shard, ``NAME.tar``; the index lies beside it as ``NAME.idx``.
        records: In the order of their image ids, without gaps in the order of writing.
        alpha: Noisy labels a record.

    Raises:
        OSError: If the disk refuses; nothing is published then.
    """
    labels_header = npy_header(alpha)
    rows: list[tuple[int, int, int, int, int]] = []
    dali_rows: list[str] = []
    digest = hashlib.sha256()
    first = -1
    offset = 0
    pending: list[bytes] = []
    pending_bytes = 0
    with replacing(path) as file:

        def flush() -> None:
            nonlocal pending_bytes
            chunk = b"".join(pending)
            digest.update(chunk)
            file.write(chunk)
            pending.clear()
            pending_bytes = 0

        for record in records:
            first = record.image_id if first < 0 else first
            members = [(record.encoding, record.data), ("cls", b"%d" % record.label)]
            if alpha:
                members.append(("labels.npy", labels_header + record.noisy.astype("<u2").tobytes()))
            dali_row = []
            for extension, data in members:
                name = f"{record.image_id:09d}.{extension}".encode()
                padded = (_header(name, len(data)), data, bytes(-len(data) % BLOCK_BYTES))
                if extension == record.encoding:
                    start = offset + BLOCK_BYTES
                    rows.append((start, len(data), zlib.crc32(data), record.label, record.source))
                dali_row.append(f"{extension} {offset + BLOCK_BYTES} {len(data)}")
                pending.extend(padded)
                size = sum(map(len, padded))
                offset += size
                pending_bytes += size
            dali_rows.append(" ".join(dali_row))
            if pending_bytes >= _WRITE_BYTES:
                flush()
        pending.append(bytes(2 * BLOCK_BYTES))
        offset += 2 * BLOCK_BYTES
        flush()
    dali_index = path.with_suffix(".idx")
    text = f"v1.1 {len(dali_rows)}\n" + "".join(row + "\n" for row in dali_rows)
    write_file(dali_index, text.encode())
    return Written(
        Shard(path.name, offset, digest.hexdigest(), first, len(rows)),
        File(dali_index.name, len(text), hashlib.sha256(text.encode()).hexdigest()),
        np.array(rows, dtype=INDEX_DTYPE),
    )
