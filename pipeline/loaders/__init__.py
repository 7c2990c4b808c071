"""Loaders: from a stream's positions to batches on the device. The choice changes speed, never the experiment.

A loader makes images for places and says which it could not read; this module does the rest: positions, labels,
replacement, and exact evaluation.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from typing import Final, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Int64
from numpy import ndarray as Array
from torch import Tensor

from pipeline.dataset import DilutedSet, ImageSplit, ShardSplit
from pipeline.errors import UserError
from pipeline.loaders.ahead import Ahead
from pipeline.loaders.dali import open_dali
from pipeline.loaders.ffcv import open_ffcv
from pipeline.loaders.replace import stand_ins
from pipeline.loaders.resident import open_resident
from pipeline.loaders.types import How, Loader
from pipeline.loaders.webdataset import open_webdataset
from pipeline.passes import BLOCK_IMAGES, DEFAULT_WINDOW, Passes
from pipeline.stream import Draws, Joined, Late, Places, Rest, Stream, Subset, check_batch, images_of, rank_positions
from pipeline.types import Batch

LOADERS: Final[dict[str, Callable[[DilutedSet, ImageSplit, How], Loader]]] = {
    "resident": open_resident,
    "dali": open_dali,
    "ffcv": open_ffcv,
    "webdataset": open_webdataset,
}
ORDERS: Final = ("full", "passes")
RESIZES: Final = ("antialias", "linear")
RESIDENT_BYTES: Final = 4 << 30  # of pixels: what "auto" still holds in memory
_AHEAD: Final = 2  # batches that wait, of loaders that decode
_EVERY: Final = 64  # of the places that lie ahead, one in so many is looked at: a block is 1,024 of them


@runtime_checkable
class Order(Protocol):
    """Position → example, or as many of them as each position has."""

    def __len__(self) -> int: ...

    def at(self, positions: Int64[Array, " b"]) -> Places:
        """Find the examples at some positions."""


class _Maker:
    """Makes the batch at any position; knows nothing of who asks, so that a thread may hold it."""

    def __init__(
        self,
        dataset: DilutedSet,
        order: Order,
        loader: Loader,
        *,
        every_copy: bool,
        left_out: Bool[Array, " e"] | None,
        batch: int,
        rank: int,
        world_size: int,
    ) -> None:
        self.dataset, self.order, self.loader = dataset, order, loader
        self.every_copy = every_copy  # a row carries the labels of all copies of its image
        self.left_out = left_out  # those of them, by example id, that are -1 instead
        self.batch, self.rank, self.world_size = batch, rank, world_size
        self._far_away = isinstance(dataset.train, ShardSplit) and dataset.train.folder.local is None
        self._lock = threading.Lock()  # a thread that an interrupt cut off at its start may still be at work

    def places(self, start: int) -> Places:
        """Return what this rank shows of the global batch that begins at position `start`."""
        return self.order.at(rank_positions(start, self.batch, rank=self.rank, world_size=self.world_size))

    def rows(self, places: Places) -> Int64[Array, " b"]:
        """Return example ids."""
        ids: Int64[Array, " b"] = places.copies * self.dataset.formula.num_images + places.image_ids
        return ids

    def make(self, start: int) -> Batch:
        """Make the batch that begins at position `start`."""
        with self._lock:
            return self._make(start)

    def _make(self, start: int) -> Batch:
        places = self.places(start)
        if self._far_away and isinstance(self.order, Passes):  # a few places of a window's length from here on
            length = min(self.order.window * BLOCK_IMAGES, len(self.order.images)) * self.order.reuse
            self.loader.expect(self.order.at(np.arange(start, start + length, _EVERY)))
        images, bad = self.loader.images(places, self.rows(places))
        if bad.any():
            fill = stand_ins(bad, together=len(bad) * self.world_size // self.batch)
            places = Places(*(each[fill] for each in places))
            images = images[torch.from_numpy(fill).to(images.device)]
        return Batch(
            images,
            self._labels(places).to(images.device, non_blocking=True),
            torch.from_numpy(self.rows(places)),
            torch.from_numpy(np.flatnonzero(bad)),
        )

    def _labels(self, places: Places) -> Int64[Tensor, " b"] | Int64[Tensor, "b a"]:
        formula = self.dataset.formula
        source = self.dataset.train.source_labels[places.image_ids]
        if not self.every_copy:
            return torch.from_numpy(formula.labels(places.image_ids, places.copies, source).astype(np.int64))
        labels = formula.all_labels(places.image_ids, source).astype(np.int64)
        if self.left_out is not None:
            labels[self.left_out.reshape(-1, formula.num_images)[:, places.image_ids].T] = -1
        return torch.from_numpy(labels)


class Batches(Iterator[Batch]):
    """An endless iterator of training batches; made by `open_batches`.

    Attributes:
        num_examples: Length of one epoch: examples, or images for a stream of images.
        num_replaced: Images replaced so far, because they could not be read.
        loader: The name of the loader.
        why: Why it was chosen.
    """

    def __init__(self, maker: _Maker, *, start: int, ahead: int, loader: str, why: str) -> None:
        self.batch = maker.batch
        self.num_examples = len(maker.order)
        self.num_replaced = 0
        self.loader, self.why = loader, why
        self._maker = maker
        self._position, self._ahead = start, ahead
        self._made: Ahead[Batch] | None = None

    @property
    def position(self) -> int:
        """First position of the next global batch: all there is to save for a resume."""
        return self._position

    @position.setter
    def position(self, start: int) -> None:
        if self._made:
            self._made.close()
        self._position, self._made = start, None

    def rows_at(self, start: int) -> Int64[Array, " b"]:
        """Return the example ids of the batch that begins at `start`, of all ranks, without reading an image."""
        return self.rows_between(start, start + self.batch)

    def rows_between(self, start: int, end: int) -> Int64[Array, " b"]:
        """Return the example ids at some positions."""
        return self._maker.rows(self._maker.order.at(np.arange(start, end)))

    def __next__(self) -> Batch:
        """Return the batch at `position` and move on."""
        try:
            if self._ahead and self._made is None:
                maker, start = self._maker, self._position  # the thread must not hold on to this object
                self._made = Ahead(lambda number: maker.make(start + number * maker.batch), self._ahead)
            batch = next(self._made) if self._made else self._maker.make(self._position)
            num_replaced = len(batch.replaced)
        except KeyboardInterrupt:  # the batch may be lost: who goes on, as a notebook does, gets it made again
            self.position = self._position
            raise
        self._position += self.batch
        self.num_replaced += num_replaced
        return batch

    def __iter__(self) -> Batches:
        return self

    def close(self) -> None:
        """End whatever runs in the background."""
        if self._made:
            self._made.close()
        self._maker.loader.close()


def open_batches(
    dataset: DilutedSet,
    *,
    batch: int,
    seed: int = 0,
    start: int = 0,
    stream: Literal["examples", "images"] = "examples",
    images: range | None = None,
    example_ids: Int64[Array, " e"] | None = None,
    rest: Rest | None = None,
    late: Late | None = None,
    order: str = "full",
    window: int | None = None,
    reuse: int = 1,
    loader: str = "auto",
    resize: str = "antialias",
    device: str | torch.device = "cpu",
    rank: int = 0,
    world_size: int = 1,
) -> Batches:
    """Open the training batches of a diluted data set.

    Args:
        dataset: What to read.
        batch: Examples a step over all ranks, a multiple of `world_size`.
        seed: Draws order and augmentation.
        start: Position to begin at; the batches from there on are those of an uninterrupted run.
        stream: "examples" shows every copy with its label; "images" shows every image with all its labels.
        images: Image ids to train on; all by default.
        example_ids: Examples to train on, ascending, in place of all copies of `images`. A stream of images shows
            those that any of them belongs to, with -1 in place of the labels of all others.
        rest: Shown beside them: each example of a batch is a draw from `example_ids`, and brings views of another one.
        late: Examples that join those.
        order: "full" shuffles all examples; "passes" goes over the images again and again, see `pipeline.passes`.
        window: Blocks that "passes" mixes with each other; by default 16, and 1 with a reuse, which keeps a window's
            images decoded (ImageNet's: some 600 MB a block).
        reuse: Labels that "passes" shows of an image for which it is decoded once.
        loader: One of `LOADERS`, or "auto".
        resize: "antialias", or "linear", which is faster.
        device: Where batches are made.
        rank: This process, in [0, world_size).
        world_size: Number of processes that share each batch.

    Raises:
        UserError: If a name is unknown, the loader does not fit the data or the order, the batch does not fit, or
            images are to carry labels that are not theirs.
    """
    law = dataset.formula.law
    if stream == "images" and law.adds_images:
        raise UserError(
            f"law {law.name} shows other images as noise: no image has several labels to train on "
            "at once; give --method plain"
        )
    if order not in ORDERS:
        raise UserError(f"--order {order}: choose one of {', '.join(ORDERS)}")
    if order == "passes" and law.adds_images:
        raise UserError(f"law {law.name} shows other images as noise, which have no place in passes; give --order full")
    if order == "full" and reuse != 1:
        raise UserError(f"--reuse {reuse} is for --order passes, which shows an image's labels close to each other")
    if example_ids is not None and order == "passes":
        raise UserError("--order passes goes over whole images, and a selection keeps single examples; give another")
    images = range(dataset.formula.num_images) if images is None else images
    copies = 1 + dataset.formula.alpha if stream == "examples" else 1
    if window is None:
        window = DEFAULT_WINDOW if reuse == 1 else 1
    num_images, left_out = dataset.formula.num_images, None
    made: Order
    if example_ids is not None and stream == "images":
        left_out = np.ones(dataset.formula.num_examples, dtype=np.bool_)
        left_out[example_ids] = False
        made = Subset(images_of(example_ids, num_images), num_images, seed)
    elif example_ids is not None and rest is not None:
        made = Draws(example_ids, rest, num_images, seed)
    elif example_ids is not None:
        part = Subset(example_ids, num_images, seed)
        made = part if late is None else Joined(part, late, batch)
    elif order == "full":
        made = Stream(images, copies, seed)
    else:
        made = Passes(images, copies, seed, window, reuse)
    check_batch(batch, num_examples=len(made), world_size=world_size)
    name, why = choose(loader, dataset)
    how = How(dataset.augmentation, torch.device(device), seed=seed, keep=_kept(made), blocks=_blocks(made))
    opened = _open(name, dataset, dataset.train, resize, how)
    maker = _Maker(
        dataset,
        made,
        opened,
        every_copy=stream == "images",
        left_out=left_out,
        batch=batch,
        rank=rank,
        world_size=world_size,
    )
    return Batches(maker, start=start, ahead=batches_ahead(name), loader=name, why=why)


def _kept(order: Order) -> int:
    """Say how many decoded images are worth keeping: those of a window that is swept over again and again."""
    return order.window * BLOCK_IMAGES if isinstance(order, Passes) and order.reuse > 1 else 0


def _blocks(order: Order) -> int:
    return order.window if isinstance(order, Passes) else 0


def batches_ahead(loader: str) -> int:
    """Return how many batches wait to be trained on, besides the one that a loader is making."""
    return 0 if loader == "resident" else _AHEAD


def choose(name: str, dataset: DilutedSet) -> tuple[str, str]:
    """Choose a loader for a data set.

    Args:
        name: One of `LOADERS`, or "auto".
        dataset: What to read.

    Returns:
        Its name and the reason.

    Raises:
        UserError: If there is no such loader.
    """
    if name != "auto":
        if name not in LOADERS:
            raise UserError(f"unknown loader '{name}'; the loaders are: auto, {', '.join(LOADERS)}")
        return name, "asked for"
    shape = dataset.image_shape
    num_images = dataset.train.num_images + dataset.test.num_images
    if shape is not None and num_images * int(np.prod(shape)) <= RESIDENT_BYTES:
        return "resident", "all pixels fit into memory"
    if isinstance(dataset.train, ShardSplit) and dataset.train.folder.local is None:
        return "webdataset", "the shards lie in other storage"
    if isinstance(dataset.train, ShardSplit) and dataset.train.files.shards[0].name.endswith(".beton"):
        return "ffcv", "the data lie in a beton"
    return "dali", "the images are files"


class Evaluation:
    """Every image or example of a split once, in order and without augmentation; made by `open_evaluation`.

    Iterate over it as often as needed. Rank r of W sees its own contiguous part: nothing is padded or doubled.
    """

    def __init__(
        self,
        dataset: DilutedSet,
        train: bool,
        loader: Loader,
        *,
        own_labels: bool,
        images: range,
        example_ids: Int64[Array, " e"] | None,
        positions: range,
        batch: int,
    ) -> None:
        self.source_labels = (dataset.train if train else dataset.test).source_labels
        self.formula = dataset.formula
        self.loader = loader
        self.own_labels = own_labels  # those of the examples, not the source labels of images
        self.images = images
        self.example_ids = example_ids
        self.positions = positions
        self.batch = batch

    def __len__(self) -> int:
        """Return the number of images (examples) that this rank sees."""
        return len(self.positions)

    def _places(self, positions: Int64[Array, " b"]) -> Places:
        if self.example_ids is not None:
            copies, image_ids = np.divmod(self.example_ids[positions], self.formula.num_images)
            return Places(np.zeros_like(copies), image_ids, copies)
        copies, ranks = np.divmod(positions, len(self.images))
        return Places(np.zeros_like(copies), ranks + self.images.start, copies)

    def __iter__(self) -> Iterator[Batch]:
        for first in range(self.positions.start, self.positions.stop, self.batch):
            end = min(first + self.batch, self.positions.stop)
            ahead = np.arange(first, min(end + BLOCK_IMAGES, self.positions.stop), _EVERY, dtype=np.int64)
            self.loader.expect(self._places(ahead))
            places = self._places(np.arange(first, end, dtype=np.int64))
            rows = places.copies * self.formula.num_images + places.image_ids
            images, bad = self.loader.images(places, rows)
            if bad.any():  # what cannot be read is left out and stands in `replaced`: no other is counted twice
                images = images[torch.from_numpy(~bad).to(images.device)]
            good = Places(*(each[~bad] for each in places))
            labels = self.source_labels[good.image_ids]
            if self.own_labels:
                labels = self.formula.labels(good.image_ids, good.copies, labels)
            yield Batch(
                images,
                torch.from_numpy(labels.astype(np.int64)),
                torch.from_numpy(rows[~bad]),
                torch.from_numpy(rows[bad]),
            )


def open_evaluation(
    dataset: DilutedSet,
    split: Literal["train", "test"] = "test",
    *,
    batch: int = 1000,
    stream: Literal["examples", "images"] = "images",
    images: range | None = None,
    example_ids: Int64[Array, " e"] | None = None,
    loader: str = "auto",
    resize: str = "antialias",
    device: str | torch.device = "cpu",
    rank: int = 0,
    world_size: int = 1,
) -> Evaluation:
    """Open a split for evaluation.

    Args:
        dataset: What to read.
        split: "test", or "train" for the held-out part of the training images.
        batch: Images a batch.
        stream: "images" shows every image with its source label, rows are image ids; "examples", of split "train",
            shows every copy with its own label, rows are example ids.
        images: Image ids to see; all by default.
        example_ids: Of stream "examples": those to see, ascending, in place of all copies of `images`.
        loader: One of `LOADERS`, or "auto".
        resize: "antialias", or "linear", which is faster.
        device: Where batches are made.
        rank: This process, in [0, world_size).
        world_size: Number of processes that share the images.

    Raises:
        UserError: If the loader is unknown or does not fit the data.
    """
    train = split == "train"
    part = dataset.train if train else dataset.test
    images = range(part.num_images) if images is None else images
    whole = len(images) * (1 if stream == "images" else 1 + dataset.formula.alpha)
    positions = range(whole if example_ids is None else len(example_ids))
    share = positions[len(positions) * rank // world_size : len(positions) * (rank + 1) // world_size]
    how = How(dataset.augmentation.for_evaluation(), torch.device(device), blocks=1)
    made = _open(choose(loader, dataset)[0], dataset, part, resize, how)
    return Evaluation(
        dataset,
        train,
        made,
        own_labels=stream == "examples",
        images=images,
        example_ids=example_ids,
        positions=share,
        batch=batch,
    )


def _open(name: str, dataset: DilutedSet, split: ImageSplit, resize: str, how: How) -> Loader:
    if resize not in RESIZES:
        raise UserError(f"--resize {resize}: choose one of {', '.join(RESIZES)}")
    return LOADERS[name](dataset, split, dataclasses.replace(how, antialias=resize == "antialias"))
