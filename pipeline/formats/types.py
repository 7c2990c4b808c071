"""What a shard is made from, and what comes out of writing one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy import ndarray as Array

from pipeline.manifest import ENCODINGS, INDEX_DTYPE, File, Shard
from pipeline.sources.types import Item

CODES: Final = {encoding: code for code, encoding in enumerate(ENCODINGS)}


class Record(NamedTuple):
    """One image on its way into a shard.

    Args:
        key: Its name in the archive, without dots.
        item: Its file, or raw pixels where the format stores those.
        source: Its index in the source's own order.
        source_label: Its label there.
        as_it_was: Whether `item` holds the very bytes that the source does.
    """

    key: str
    item: Item
    source: int
    source_label: int
    as_it_was: bool = True


@dataclass(frozen=True)
class Written:
    """What came out of writing one shard.

    Args:
        shard: Its file.
        extras: Index files of stock readers, beside it.
        index: INDEX_DTYPE [count], one row a record.
    """

    shard: Shard
    extras: tuple[File, ...]
    index: Array


def index_row(record: Record, offset: int, crc32: int) -> tuple[int, ...]:
    """Return an image's row of the index (`INDEX_DTYPE`)."""
    item = record.item
    return (
        offset,
        len(item.data),
        crc32,
        record.source,
        record.source_label,
        item.height,
        item.width,
        item.channels,
        CODES[item.encoding],
    )


def index_of(rows: list[tuple[int, ...]]) -> Array:
    """Turn rows into an index."""
    return np.array(rows, dtype=INDEX_DTYPE)
