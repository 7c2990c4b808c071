"""Tar shards in other storage, read block by block into a bounded local cache, ahead of where they are shown.

A block of 1,024 images lies in one piece in its shard, so that each is one range of bytes to ask for. Local shards are
read where they are. DALI decodes.
"""

from __future__ import annotations

import os
import tempfile
import threading
import weakref
import zlib
from collections import OrderedDict
from concurrent.futures import Future
from queue import SimpleQueue
from typing import IO, TypeAlias

from jaxtyping import Int64, Integer, UInt16
from numpy import ndarray as Array

from pipeline.dataset import DilutedSet, ImageSplit, ShardSplit
from pipeline.errors import DamagedImageError, UserError
from pipeline.loaders.augmented import Augmented
from pipeline.loaders.dali import DaliPixels
from pipeline.loaders.kept import Kept
from pipeline.loaders.types import How, Loader, Shown
from pipeline.manifest import ENCODINGS
from pipeline.passes import BLOCK_IMAGES
from pipeline.sources.types import Item

_THREADS = 4  # blocks that are on their way at a time
_Block: TypeAlias = tuple[IO[bytes], dict[int, int]]  # a file, and per shard what to add to an offset in it
_Tasks: TypeAlias = "SimpleQueue[tuple[Future[_Block], int] | None]"


def open_webdataset(dataset: DilutedSet, split: ImageSplit, how: How) -> Loader:
    """Open a split of tar shards, wherever they lie.

    Raises:
        UserError: If the images do not lie in shards, or shards in other storage are not read in order.
    """
    if not isinstance(split, ShardSplit):
        raise UserError("--loader webdataset reads shards; give --shards, or another --loader")
    shown = Shown(dataset, split)
    if split.folder.local is None:
        if not how.blocks:
            raise UserError(
                f"{split.folder}: shards in other storage are read block by block; give --order passes, "
                "or copy them to a disk"
            )
        # A window that is shown, one that comes after it, and between them the shorter one that may end a pass.
        shown.split = CachedSplit(split, 3 * how.blocks)
    pixels = DaliPixels(shown, channels=1 if dataset.image_shape and dataset.image_shape[2] == 1 else 3)
    return Augmented(Kept(pixels, how.keep) if how.keep else pixels, dataset, split, how)


class CachedSplit:
    """The images of shards in other storage; whole blocks of them come to local files, the oldest ones go.

    The files have no names, so that nothing is left of them however the process ends.

    Args:
        split: The shards.
        num_blocks: Blocks to hold.
    """

    def __init__(self, split: ShardSplit, num_blocks: int) -> None:
        self._split, self._num_blocks = split, num_blocks
        self._blocks: OrderedDict[int, Future[_Block]] = OrderedDict()
        self._tasks: _Tasks = SimpleQueue()
        threads = [threading.Thread(target=_work, args=(split, self._tasks), daemon=True) for _ in range(_THREADS)]
        for thread in threads:
            thread.start()
        self.close = weakref.finalize(self, _close, self._blocks, self._tasks, threads)

    @property
    def num_images(self) -> int:
        """Number of images."""
        return self._split.num_images

    @property
    def source_ids(self) -> Integer[Array, " n"]:
        """Where the source keeps every image."""
        return self._split.source_ids

    @property
    def source_labels(self) -> UInt16[Array, " n"]:
        """The source label of every image."""
        return self._split.source_labels

    def shape(self, image_id: int) -> tuple[int, int] | None:
        """Return an image's height and width, if they were looked at when it was stored."""
        return self._split.shape(image_id)

    def prefix(self, num_images: int) -> ImageSplit:
        """Return the split of the first `num_images` images, without a cache."""
        return self._split.prefix(num_images)

    def expect(self, image_ids: Int64[Array, " b"]) -> None:
        """Send for the blocks of images that will soon be asked for."""
        for image_id in image_ids.tolist():
            self._block(image_id)

    def item(self, image_id: int) -> Item:
        """Return an image as it is stored."""
        try:
            file, shifts = self._block(image_id).result()
        except DamagedImageError:  # the shard is cut short: some images of the block may still be there
            return self._split.item(image_id)
        row = self._split.index[image_id]
        data = os.pread(file.fileno(), int(row["size"]), int(row["offset"]) + shifts[self._split.shard_of(image_id)])
        if self._split.check_reads and zlib.crc32(data) != row["crc32"]:
            raise DamagedImageError(f"{self._split.folder}: image {image_id} does not match its crc32")
        return Item(data, ENCODINGS[row["encoding"]], int(row["height"]), int(row["width"]), int(row["channels"]))

    def _block(self, image_id: int) -> Future[_Block]:
        if not self.close.alive:
            raise RuntimeError("the images are closed")
        block = image_id // BLOCK_IMAGES
        if block not in self._blocks:
            self._blocks[block] = Future()
            self._tasks.put((self._blocks[block], block))
            while len(self._blocks) > self._num_blocks:
                _drop(self._blocks.popitem(last=False)[1])
        self._blocks.move_to_end(block)
        return self._blocks[block]


def _work(split: ShardSplit, tasks: _Tasks) -> None:
    while (task := tasks.get()) is not None:
        future, block = task
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(_fetch(split, block))
            except BaseException as error:
                future.set_exception(error)


def _fetch(split: ShardSplit, block: int) -> _Block:
    first, end = block * BLOCK_IMAGES, min((block + 1) * BLOCK_IMAGES, split.num_images)
    data, shifts = bytearray(), {}
    while first < end:  # one piece, but where shards are no multiple of a block
        number = split.shard_of(first)
        shard = split.files.shards[number]
        last = min(end, shard.first + shard.count) - 1
        start = int(split.index["offset"][first])
        size = int(split.index["offset"][last]) + int(split.index["size"][last]) - start
        shifts[number] = len(data) - start
        data += split.folder.read_range(shard.name, start, size)
        first = last + 1
    file = tempfile.TemporaryFile()  # noqa: SIM115 - _drop closes it
    file.write(data)
    file.flush()
    return file, shifts


def _drop(future: Future[_Block]) -> None:
    """Remove a block; one that is on its way is waited for."""
    if not future.cancel() and not future.exception():  # cancel() says no to what is done
        future.result()[0].close()


def _close(blocks: OrderedDict[int, Future[_Block]], tasks: _Tasks, threads: list[threading.Thread]) -> None:
    for future in blocks.values():
        future.cancel()
    for _ in threads:
        tasks.put(None)
    for thread in threads:
        if thread is not threading.current_thread():  # a collection of garbage may run anywhere
            thread.join()
    for future in blocks.values():
        _drop(future)
