"""The limit of whole decoding: libjpeg-turbo through simplejpeg, from files in the page cache, in threads."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import simplejpeg
from one_run import one_run, parser

args = parser().parse_args()


def decode(path: Path) -> Any:
    """Read and decode a file."""
    return simplejpeg.decode_jpeg(path.read_bytes(), "RGB")


def batches() -> Iterator[Any]:
    """Decode all files, again and again."""
    files = cycle(sorted(args.data.glob("train/*/*")))
    with ThreadPoolExecutor(args.threads) as threads:
        while True:
            yield list(threads.map(decode, islice(files, args.batch)))


one_run(batches, args.batch, args.batches)
