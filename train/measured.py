"""How batch size and learning rate should move with α, as it was measured: what `--batch auto --lr auto` take."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final, NamedTuple


class Best(NamedTuple):
    """The learning rate with the lowest loss of a batch size.

    Args:
        lr: The rate.
        loss: Its loss on noisy validation labels, in nats.
    """

    lr: float
    loss: float


MEASURED: Final[dict[int, dict[int, Best]]] = {}


def best_batch(alpha: int) -> int:
    """Return the batch size with the lowest noisy validation loss at the measured α that is nearest.

    Args:
        alpha: Noisy labels a clean one.
    """
    found = MEASURED[nearest(MEASURED, alpha)]
    return min(found, key=lambda batch: found[batch].loss)


def best_rate(alpha: int, batch: int) -> float:
    """Return the learning rate with the lowest noisy validation loss at the measured α and batch that are nearest.

    Args:
        alpha: Noisy labels a clean one.
        batch: Examples a step.
    """
    found = MEASURED[nearest(MEASURED, alpha)]
    return found[nearest(found, batch)].lr


def nearest(measured: Iterable[int], wanted: int) -> int:
    """Return the number whose ratio to the wanted one, both plus one, is nearest to 1; the lower one of equals."""
    return min(sorted(measured), key=lambda number: abs(math.log((1 + number) / (1 + wanted))))
