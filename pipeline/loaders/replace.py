"""What stands in a batch for an image that could not be read."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int64
from numpy import ndarray as Array

from pipeline.dataset import DamagedImageError


def stand_ins(bad: Bool[Array, " b"], together: int = 1) -> Int64[Array, " b"]:
    """Say which row of a slice fills each row: its own, or the previous good one (at the start the next good one).

    Args:
        bad: Rows whose image could not be read.
        together: Rows that belong to one position: all are filled, from another one, where one of them is bad.

    Raises:
        DamagedImageError: If no row of the slice is good.
    """
    if together > 1:
        first = stand_ins(np.logical_or.reduce(bad.reshape(-1, together), axis=1)) * together
        return np.repeat(first, together) + np.tile(np.arange(together), len(first))
    rows = np.arange(len(bad))
    if not bad.any():
        return rows
    if bad.all():
        raise DamagedImageError(f"none of the {len(bad)} images of this batch can be read: run tools/verify_shards")
    filled = np.maximum.accumulate(np.where(bad, -1, rows))
    return np.where(filled < 0, np.flatnonzero(~bad)[0], filled)
