"""The null baseline: how often a vote over an image's 1 + α labels finds its class, without looking at the image."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from jaxtyping import UInt16
from numpy import ndarray as Array

from pipeline.dataset import DilutedSet
from pipeline.errors import UserError
from pipeline.laws import Formula, Uniform

_SAMPLE_IMAGES: Final = 10_000  # a share of them has a standard error of at most 0.005
_CHUNK_IMAGES: Final = 1_000  # of so many, the counts of 4,096 classes take 33 MB


def known_vote(dataset: DilutedSet) -> float | None:
    """Return `expected_vote` of a data set; None where there is no vote, or nobody knows which labels are right."""
    if dataset.observed or dataset.formula.law.adds_images:
        return None
    return expected_vote(dataset.formula, dataset.train.source_labels)


def expected_vote(formula: Formula, source_labels: UInt16[Array, " n"]) -> float:
    """Return the share of images whose most frequent label is right, ties broken at random.

    `vote_baseline` under the uniform law; the share of right labels where an image has one label; else what the first
    10,000 images have.

    Args:
        formula: Bound to the images.
        source_labels: Of all images, by image id.

    Raises:
        UserError: If the law shows other images as noise: then no image has several labels.
    """
    if formula.law.adds_images:
        raise UserError(f"law {formula.law.name} shows other images as noise: an image has one label, there is no vote")
    if not formula.alpha:
        return formula.right_share(source_labels)
    if isinstance(formula.law, Uniform):
        return vote_baseline(formula.num_classes, formula.alpha)
    num_images, right = min(_SAMPLE_IMAGES, len(source_labels)), 0.0
    for first in range(0, num_images, _CHUNK_IMAGES):
        ids = np.arange(first, min(first + _CHUNK_IMAGES, num_images))
        true = source_labels[ids]
        votes = np.zeros((len(ids), formula.num_classes), dtype=np.int64)
        np.add.at(votes, (np.arange(len(ids))[:, None], formula.all_labels(ids, true)), 1)
        winners = votes == votes.max(axis=1, keepdims=True)
        right += float((winners[np.arange(len(ids)), true] / winners.sum(axis=1)).sum())
    return right / num_images


def vote_baseline(num_classes: int, alpha: int) -> float:
    """Return the expected share of images whose most frequent label is right, ties broken at random.

    Under the uniform law, the true label and the α drawn ones are exchangeable once the true class is unknown: α + 1
    balls in K boxes, and the vote is right when a ball picked at random lies in the fullest box. So the share is
    E[largest count] / (α + 1).

    Args:
        num_classes: K, at least 1.
        alpha: Noisy labels an image, at least 0.

    Source: derived here. Its values for K = 10 are 0.337 at α = 5, 0.217 at 20, 0.151 at 100.
    """
    balls = alpha + 1
    mean = balls / num_classes
    counts = np.arange(1, balls + 1)
    # Logarithms, because e^-mean is 0 as a float from mean = 746 on.
    factorials = np.concatenate([[0.0], np.cumsum(np.log(counts))])
    poisson = np.exp(np.arange(balls + 1) * math.log(mean) - mean - factorials)
    whole = math.exp(balls * math.log(balls) - balls - factorials[balls])
    # P(no box holds more than m) = [x^balls] (sum of the first m + 1 Poisson(mean) terms)^K / Poisson(balls; balls)
    largest = -(-balls // num_classes)  # some box holds as many
    expected_largest = float(largest)
    while largest < balls:
        top = largest * num_classes
        length = 1 << max(balls, top - balls).bit_length()  # a shorter transform would fold other powers onto x^balls
        at_most = np.fft.irfft(np.fft.rfft(poisson[: largest + 1], length) ** num_classes, length)[balls]
        beyond = 1 - at_most / whole
        if beyond < 1e-6:  # of one ball; rounding stays below that for any α up to a million
            break
        expected_largest += beyond
        largest += 1
    return expected_largest / balls
