"""The class-balanced order of a split's images, from which image ids come."""

from __future__ import annotations

from typing import Final

import numpy as np
from jaxtyping import Int64, UInt16
from numpy import ndarray as Array

from kernels import philox

# A constant of the format: another seed would renumber the images of every data set.
IMAGE_ORDER_SEED: Final = 0


def balanced_order(labels: UInt16[Array, " n"], num_classes: int) -> Int64[Array, " n"]:
    """Shuffle images so that every prefix holds each class in its share of the whole.

    The members of a class are shuffled; the j-th of n_c of them stands at place (j + u) / n_c of the way, u
    in [0, 1) drawn for each, and the order is that of the places. A prefix of p images holds p n_c / n of
    class c, give or take 1 + (k - 2) n_c / n for k classes with images. Where all classes have the same
    number of images, a prefix of m k images holds exactly m of each.

    Args:
        labels: The class of each image, in the source's order; all below `num_classes`.
        num_classes: K.

    Returns:
        Source indices: `order[image_id]` is where the source keeps that image.
    """
    words = philox.blocks(IMAGE_ORDER_SEED, philox.IMAGE_ORDER, np.arange(len(labels), dtype=np.uint64))
    shuffle = words[:, 0].astype(np.uint64) | words[:, 1].astype(np.uint64) << np.uint64(32)
    by_class = np.lexsort((shuffle, labels))  # stable: ties keep the source's order
    counts = np.bincount(labels, minlength=num_classes)
    firsts = np.cumsum(counts) - counts
    rank = np.empty(len(labels), dtype=np.int64)
    rank[by_class] = np.arange(len(labels)) - np.repeat(firsts, counts)
    # j + u is exact while a class has at most 2^21 images, and IEEE division is the same everywhere.
    place = (rank + words[:, 2] * 2.0**-32) / counts[labels]
    return np.argsort(place, kind="stable")
