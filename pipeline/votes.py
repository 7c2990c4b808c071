"""The null baseline: how often a vote over an image's 1 + α labels finds its class, without looking at the image."""

from __future__ import annotations

import math

import numpy as np
from numpy import ndarray as Array


def vote_baseline(num_classes: int, alpha: int) -> float:
    """Return the expected share of images whose most frequent label is right, ties broken at random.

    Under the uniform law, the true label and the α drawn ones are exchangeable once the true class is unknown: α + 1
    balls in K boxes, and the vote is right when a ball picked at random lies in the fullest box. So the share is
    E[largest count] / (α + 1).

    Args:
        num_classes: K, at least 1.
        alpha: Noisy labels an image, at least 0.

    Source: derived here. Its values for K = 10 are 0.335 at α = 5, 0.217 at 20, 0.151 at 100.
    """
    balls = alpha + 1
    mean = balls / num_classes
    # P(no box holds more than m) = [x^balls] (sum of the first m terms of a Poisson(mean))^K / Poisson(balls; balls)
    whole = math.exp(balls * math.log(balls) - balls - math.lgamma(balls + 1))
    expected_largest, largest = 0.0, 0
    terms = [math.exp(-mean)]
    while True:
        at_most = _power(np.array(terms), num_classes, balls + 1)
        beyond = 1 - (at_most[balls] if len(at_most) > balls else 0.0) / whole
        if largest == balls or beyond < 1e-9:
            return expected_largest / balls
        expected_largest += beyond
        largest += 1
        terms.append(terms[-1] * mean / largest)


def _power(polynomial: Array, exponent: int, length: int) -> Array:
    """Return the first coefficients of a polynomial's power, by repeated squaring."""
    result = np.ones(1)
    while exponent:
        if exponent & 1:
            result = np.convolve(result, polynomial)[:length]
        polynomial = np.convolve(polynomial, polynomial)[:length]
        exponent >>= 1
    return result
