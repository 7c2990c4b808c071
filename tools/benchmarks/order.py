"""Stage order: the order of an ImageNet of α = 50, and of the size that walks most."""

from __future__ import annotations

import numpy as np

from benchmarks.measure import Settings, Variant
from kernels.jit import num_threads
from kernels.permutation import permutation
from kernels.philox import ORDER

IMAGENET = 1_281_167 * 51
WORST = 2**26 + 1  # just above a domain's size: a value walks four times on average
NUM_POSITIONS = 8_000_000


def variants(settings: Settings) -> list[Variant]:
    """Compare random access into our permutation with NumPy's whole one, per index."""
    rng = np.random.default_rng(0)
    positions = rng.integers(0, IMAGENET, NUM_POSITIONS)

    def ours(size: int) -> float:
        with num_threads(settings.threads):
            return permutation(size, seed=0, domain=ORDER)(positions).size

    def numpy() -> float:
        return rng.permutation(IMAGENET).size

    return [
        Variant("ours/feistel", "indices/s", lambda: ours(IMAGENET), against="peer/numpy-permutation"),
        Variant("ours/feistel-worst-size", "indices/s", lambda: ours(WORST), against="peer/numpy-permutation"),
        Variant("peer/numpy-permutation", "indices/s", numpy),
    ]
