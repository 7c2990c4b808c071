"""The order of examples: position → example, a pure function of (seed, epoch, position).

Positions run on for ever: epoch = position // N, and a batch may straddle epochs. Nothing is stored, so the place
of a run in its data is one integer, and position 60,000,000 costs what position 0 costs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray as Array

from kernels.permutation import Permutation, permutation
from kernels.philox import COPY_ORDER, DRAW, ORDER, blocks
from pipeline.errors import UserError


class Places(NamedTuple):
    """Where some positions of a stream lie.

    Args:
        epochs: Which pass over the data.
        image_ids: The image to show.
        copies: Which of its labels; 0 for a stream of images.
    """

    epochs: Int64[Array, " b"]
    image_ids: Int64[Array, " b"]
    copies: Int64[Array, " b"]


@dataclass(frozen=True)
class Stream:
    """Order `full`: in every epoch a new seeded permutation of all examples.

    Args:
        images: The image ids that are streamed (a held-out part is left out of the range).
        num_copies: 1 + α, or 1 for a stream of images.
        seed: 64 bits; the run's seed, not the noise seed.
    """

    images: range
    num_copies: int
    seed: int

    def __len__(self) -> int:
        """Return the number of examples in an epoch."""
        return len(self.images) * self.num_copies

    def at(self, positions: Int64[Array, " b"]) -> Places:
        """Find the examples at some positions, in any order and at any distance."""
        epochs, index = permuted(positions, len(self), self.seed)
        copies, ranks = np.divmod(index, len(self.images))
        return Places(epochs, ranks + self.images.start, copies)


@dataclass(frozen=True)
class Subset:
    """Order `full` of a part of the examples: in every epoch a new seeded permutation of their sorted ids.

    Args:
        example_ids: The part, ascending (copy · n + image id).
        num_images: n of the whole data set.
        seed: 64 bits; the run's seed, not the noise seed.
    """

    example_ids: Int64[Array, " e"]
    num_images: int
    seed: int

    def __len__(self) -> int:
        """Return the number of examples in an epoch."""
        return len(self.example_ids)

    def at(self, positions: Int64[Array, " b"]) -> Places:
        """Find the examples at some positions, in any order and at any distance."""
        epochs, index = permuted(positions, len(self), self.seed)
        copies, image_ids = np.divmod(self.example_ids[index], self.num_images)
        return Places(epochs, image_ids, copies)


@dataclass(frozen=True)
class Rest:
    """What is shown beside the examples of a selection, and how often each of those is drawn.

    Args:
        weights: Of the selected examples, above 0: how often one is drawn, against the others.
        example_ids: The examples that are not selected, ascending.
        views: How many times one of them is shown, each time augmented anew.
    """

    weights: Float64[Array, " e"]
    example_ids: Int64[Array, " o"]
    views: int


@dataclass(frozen=True)
class Draws:
    """Each position draws one of the selected examples, with replacement, and shows views of one of the others.

    A position has 1 + `views` places, in this order. The others come in a new seeded permutation in every pass over
    them. What is shown twice is augmented differently each time: `Places.epochs` is the position of a draw, and counts
    the passes of the others view by view.

    Args:
        example_ids: The selected ones, ascending (copy · n + image id).
        rest: The others, and how often each of the selected ones is drawn.
        num_images: n of the whole data set.
        seed: 64 bits; the run's seed, not the noise seed.
    """

    example_ids: Int64[Array, " e"]
    rest: Rest
    num_images: int
    seed: int

    def __len__(self) -> int:
        """Return the number of positions in an epoch: as many draws as examples are selected."""
        return len(self.example_ids)

    @cached_property
    def _shares_up_to(self) -> Float64[Array, " e"]:
        sums = np.cumsum(self.rest.weights)
        shares: Float64[Array, " e"] = sums / sums[-1]  # the last one is 1, above every draw
        return shares

    def at(self, positions: Int64[Array, " b"]) -> Places:
        """Find the examples at some positions, in any order and at any distance."""
        words = blocks(self.seed, DRAW, positions.astype(np.uint64)).astype(np.uint64)
        uniform = (words[:, 0] << np.uint64(21) | words[:, 1] >> np.uint64(11)) * 2.0**-53
        drawn = self.example_ids[np.searchsorted(self._shares_up_to, uniform, side="right")]
        passes, index = permuted(positions, len(self.rest.example_ids), self.seed)
        views = np.arange(self.rest.views)[:, None]
        epochs = np.vstack([positions, passes * self.rest.views + views]).T.ravel() % 2**32
        example_ids = np.vstack([drawn, np.tile(self.rest.example_ids[index], (self.rest.views, 1))]).T.ravel()
        copies, image_ids = np.divmod(example_ids, self.num_images)
        return Places(epochs, image_ids, copies)


class Late(NamedTuple):
    """Examples that join a part of the data set while it is trained on.

    Args:
        example_ids: Ascending; none of the part's own.
        rows: Of a batch that are theirs, fewer than all.
        start: Index of the first batch that holds them.
    """

    example_ids: Int64[Array, " l"]
    rows: int
    start: int


@dataclass(frozen=True)
class Joined:
    """Order of a part of the examples that others join at some batch and for good; each part's own order goes on.

    The others' rows are spread over a batch, so that all equal pieces of it hold as many, give or take one. An epoch
    is as long as one of the part alone; what joined it has epochs of its own.

    Args:
        part: What is shown from the beginning.
        late: What joins it, fewer rows of a batch than all.
        batch: Positions of a batch.
    """

    part: Subset
    late: Late
    batch: int

    def __len__(self) -> int:
        """Return the number of examples in an epoch of the part."""
        return len(self.part)

    def at(self, positions: Int64[Array, " b"]) -> Places:
        """Find the examples at some positions, in any order and at any distance."""
        example_ids, rows, start = self.late
        batches, row = np.divmod(positions, self.batch)
        begun = batches >= start
        before = np.where(begun, (batches - start) * rows + row * rows // self.batch, 0)
        is_late = begun & ((row + 1) * rows // self.batch > row * rows // self.batch)
        places = np.empty((3, len(positions)), dtype=np.int64)
        places[:, is_late] = replace(self.part, example_ids=example_ids).at(before[is_late])
        places[:, ~is_late] = self.part.at((positions - before)[~is_late])
        return Places(*places)


def permuted(positions: Int64[Array, " b"], size: int, seed: int) -> tuple[Int64[Array, " b"], Int64[Array, " b"]]:
    """Return the epoch of some positions, and where each lies in that epoch's permutation of 0 to `size`."""
    epochs, offsets = np.divmod(positions, size)
    index = np.empty_like(positions)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        index[here] = _order(size, seed, int(epoch))(offsets[here])
    return epochs, index


@lru_cache(maxsize=4)
def _order(size: int, seed: int, epoch: int) -> Permutation:
    return permutation(size, seed=seed, domain=ORDER, a=epoch)


def copies_in_pass(
    number: int | Int64[Array, " n"], image_ids: Int64[Array, " n"], *, num_copies: int, seed: int = 0, epoch: int = 0
) -> Int64[Array, " n"]:
    """Say which copy of each image a pass over the images shows.

    Over `num_copies` passes every image shows each of its copies once, beginning at a random one, so that every pass
    has its share of source labels.

    Args:
        number: Of the pass, from 0; one for all images, or one for each.
        image_ids: The images.
        num_copies: 1 + α.
        seed: 64 bits; 0 for what lies on disk.
        epoch: Of a stream; each begins at copies of its own.
    """
    first = blocks(seed, COPY_ORDER, image_ids.astype(np.uint64), epoch)[:, 0].astype(np.uint64) * np.uint64(num_copies)
    copies: Int64[Array, " n"] = ((first >> np.uint64(32)).astype(np.int64) + number) % num_copies
    return copies


def expanded_rows(
    first: int, count: int, *, num_images: int, num_copies: int
) -> tuple[Int64[Array, " n"], Int64[Array, " n"]]:
    """Return image id and copy of some rows of layout `expanded`, which holds pass after pass over all images."""
    passes, image_ids = np.divmod(np.arange(first, first + count), num_images)
    return image_ids, copies_in_pass(passes, image_ids, num_copies=num_copies)


def images_of(example_ids: Int64[Array, " e"], num_images: int) -> Int64[Array, " i"]:
    """Return the ids of the images that some examples show, ascending.

    Args:
        example_ids: Copy · n + image id.
        num_images: n.
    """
    return np.unique(example_ids % num_images)


def check_batch(batch: int, *, num_examples: int, world_size: int = 1) -> None:
    """Refuse a batch that cannot be cut into equal parts or that is larger than the data.

    Raises:
        UserError: With what is allowed.
    """
    if batch < 1 or batch % world_size:
        raise UserError(f"batch {batch}; give a positive multiple of the number of processes, {world_size}")
    if batch > num_examples:
        raise UserError(f"batch {batch} is larger than the data, {num_examples} examples; lower --batch")


def rank_positions(start: int, batch: int, *, rank: int = 0, world_size: int = 1) -> Int64[Array, " r"]:
    """Cut rank r's part out of the global batch that covers positions [start, start + batch).

    Args:
        start: First position of the global batch.
        batch: Its size over all ranks, a multiple of world_size.
        rank: In [0, world_size).
        world_size: W.
    """
    size = batch // world_size
    return np.arange(start + rank * size, start + (rank + 1) * size, dtype=np.int64)
