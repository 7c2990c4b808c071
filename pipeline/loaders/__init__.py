"""Loaders: from a stream's positions to batches on the device. The choice changes speed, never the experiment.

A loader makes images for places and says which it could not read; this module does the rest: positions, labels,
replacement, and exact evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from numpy import ndarray as Array
from torch import Tensor

from pipeline.dataset import DilutedSet
from pipeline.errors import UserError
from pipeline.loaders.replace import stand_ins
from pipeline.loaders.resident import Resident
from pipeline.sources.types import Augmentation
from pipeline.stream import Places, Stream, check_batch, rank_positions
from pipeline.types import Batch


@runtime_checkable
class Loader(Protocol):
    """Makes the images of batches."""

    def bad(self, places: Places) -> Bool[Array, " b"]:
        """Say which images could not be read."""

    def images(self, places: Places, example_ids: Int64[Array, " b"]) -> Float32[Tensor, "b c h w"]:
        """Make a batch of the images at some places."""

    def close(self) -> None:
        """End whatever runs in the background."""


LOADERS: dict[str, Callable[..., Loader]] = {"resident": Resident}


class Batches(Iterator[Batch]):
    """An endless iterator of training batches; made by `open_batches`.

    Attributes:
        position: First position of the next global batch: all there is to save for a resume.
        num_examples: Length of one epoch.
        num_replaced: Images replaced so far, because they could not be read.
    """

    def __init__(
        self,
        dataset: DilutedSet,
        stream: Stream,
        loader: Loader,
        *,
        every_copy: bool,
        batch: int,
        start: int,
        rank: int,
        world_size: int,
    ) -> None:
        self.dataset = dataset
        self.stream = stream
        self.every_copy = every_copy  # a row carries the labels of all copies of its image
        self.loader = loader
        self.batch = batch
        self.position = start
        self.rank = rank
        self.world_size = world_size
        self.num_replaced = 0

    @property
    def num_examples(self) -> int:
        """Length of one epoch: examples, or images for a stream of images."""
        return len(self.stream)

    def rows_at(self, start: int) -> Int64[Array, " b"]:
        """Return the example ids of the batch that begins at position `start`, without reading an image."""
        places = self.stream.at(rank_positions(start, self.batch, rank=self.rank, world_size=self.world_size))
        return self._example_ids(places)

    def __next__(self) -> Batch:
        """Make the batch at `position` and move on."""
        positions = rank_positions(self.position, self.batch, rank=self.rank, world_size=self.world_size)
        places = self.stream.at(positions)
        bad = self.loader.bad(places)
        if bad.any():
            fill = stand_ins(bad)
            places = Places(places.epochs[fill], places.image_ids[fill], places.copies[fill])
            self.num_replaced += int(bad.sum())
        example_ids = self._example_ids(places)
        self.position += self.batch
        images = self.loader.images(places, example_ids)
        return Batch(
            images,
            self._labels(places).to(images.device, non_blocking=True),
            torch.from_numpy(example_ids),
            torch.from_numpy(np.flatnonzero(bad)),
        )

    def __iter__(self) -> Batches:
        return self

    def close(self) -> None:
        """End whatever the loader runs in the background."""
        self.loader.close()

    def _example_ids(self, places: Places) -> Int64[Array, " b"]:
        ids: Int64[Array, " b"] = places.copies * self.dataset.formula.num_images + places.image_ids
        return ids

    def _labels(self, places: Places) -> Int64[Tensor, " b"] | Int64[Tensor, "b a"]:
        formula = self.dataset.formula
        source = self.dataset.train.source_labels[places.image_ids]
        if self.every_copy:
            labels = formula.all_labels(places.image_ids, source)
        else:
            labels = formula.labels(places.image_ids, places.copies, source)
        return torch.from_numpy(labels.astype(np.int64))


def open_batches(
    dataset: DilutedSet,
    *,
    batch: int,
    seed: int = 0,
    start: int = 0,
    stream: Literal["examples", "images"] = "examples",
    images: range | None = None,
    loader: str = "auto",
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
        loader: One of `LOADERS`, or "auto".
        device: Where batches are made.
        rank: This process, in [0, world_size).
        world_size: Number of processes that share each batch.

    Raises:
        UserError: If the loader is unknown or does not fit the data, the batch does not fit, or images are to carry
            labels that are not theirs.
    """
    if stream == "images" and dataset.formula.law.adds_images:
        raise UserError(
            f"law {dataset.formula.law.name} shows other images as noise: no image has several labels to train on "
            "at once; give --method plain"
        )
    images = range(dataset.formula.num_images) if images is None else images
    order = Stream(images, 1 + dataset.formula.alpha if stream == "examples" else 1, seed)
    check_batch(batch, num_examples=len(order), world_size=world_size)
    made = _open(loader, dataset, train=True, seed=seed, augmentation=dataset.augmentation, device=device)
    return Batches(
        dataset,
        order,
        made,
        every_copy=stream == "images",
        batch=batch,
        start=start,
        rank=rank,
        world_size=world_size,
    )


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
        positions: range,
        batch: int,
    ) -> None:
        self.source_labels = (dataset.train if train else dataset.test).source_labels
        self.formula = dataset.formula
        self.loader = loader
        self.own_labels = own_labels  # those of the examples, not the source labels of images
        self.images = images
        self.positions = positions
        self.batch = batch

    def __len__(self) -> int:
        """Return the number of images (examples) that this rank sees."""
        return len(self.positions)

    def __iter__(self) -> Iterator[Batch]:
        for first in range(self.positions.start, self.positions.stop, self.batch):
            positions = np.arange(first, min(first + self.batch, self.positions.stop), dtype=np.int64)
            copies, ranks = np.divmod(positions, len(self.images))
            places = Places(np.zeros_like(copies), ranks + self.images.start, copies)
            rows = copies * self.formula.num_images + places.image_ids
            bad = self.loader.bad(places)
            # What cannot be read is left out and stands in `replaced`: no other is counted twice.
            good = Places(*(each[~bad] for each in places))
            labels = self.source_labels[good.image_ids]
            if self.own_labels:
                labels = self.formula.labels(good.image_ids, good.copies, labels)
            yield Batch(
                self.loader.images(good, rows[~bad]),
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
    loader: str = "auto",
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
        loader: One of `LOADERS`, or "auto".
        device: Where batches are made.
        rank: This process, in [0, world_size).
        world_size: Number of processes that share the images.

    Raises:
        UserError: If the loader is unknown or does not fit the data.
    """
    train = split == "train"
    part = dataset.train if train else dataset.test
    images = range(part.num_images) if images is None else images
    positions = range(len(images) * (1 if stream == "images" else 1 + dataset.formula.alpha))
    share = positions[len(positions) * rank // world_size : len(positions) * (rank + 1) // world_size]
    made = _open(loader, dataset, train=train, seed=0, augmentation=Augmentation("none"), device=device)
    return Evaluation(
        dataset, train, made, own_labels=stream == "examples", images=images, positions=share, batch=batch
    )


def _open(
    name: str,
    dataset: DilutedSet,
    *,
    train: bool,
    seed: int,
    augmentation: Augmentation,
    device: str | torch.device,
) -> Loader:
    if name == "auto":
        name = "resident"
    if name not in LOADERS:
        raise UserError(f"unknown loader '{name}'; the loaders are: auto, {', '.join(LOADERS)}")
    split = dataset.train if train else dataset.test
    return LOADERS[name](dataset, split, seed=seed, augmentation=augmentation, device=torch.device(device))
