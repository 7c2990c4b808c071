"""Stage labels: drawing noisy labels, uniform and from a table."""

from __future__ import annotations

import numpy as np

from benchmarks.measure import Settings, Variant
from kernels.jit import num_threads
from kernels.labels import alias_rows, alias_table, uniform_rows

NUM_IMAGES, ALPHA, NUM_CHOICES = 400_000, 50, 2_000_000


def variants(settings: Settings) -> list[Variant]:
    """Compare our kernels with NumPy's generators, K = 10 and K = 1000."""
    rng = np.random.default_rng(0)
    found = []
    for num_classes in (10, 1000):
        found += _of(num_classes, rng, settings.threads)
    return found


def _of(num_classes: int, rng: np.random.Generator, threads: int) -> list[Variant]:
    ids = np.arange(NUM_IMAGES)
    matrix = rng.dirichlet(np.ones(num_classes), num_classes)
    table, classes = alias_table(matrix), rng.integers(0, num_classes, NUM_IMAGES, dtype=np.uint16)

    def uniform() -> float:
        with num_threads(threads):
            return uniform_rows(0, ids, num_classes=num_classes, alpha=ALPHA).size

    def integers() -> float:
        return rng.integers(0, num_classes, (NUM_IMAGES, ALPHA), dtype=np.uint16).size

    def alias() -> float:
        with num_threads(threads):
            return alias_rows(0, ids, classes, table=table, alpha=ALPHA).size

    def choice() -> float:
        return rng.choice(num_classes, NUM_CHOICES, p=matrix[0]).size

    def label(name: str) -> str:
        return f"{name}-K{num_classes}"

    return [
        Variant(label("ours/uniform"), "labels/s", uniform, against=label("peer/numpy-integers")),
        Variant(label("peer/numpy-integers"), "labels/s", integers),
        Variant(label("ours/alias"), "labels/s", alias, against=label("peer/numpy-choice")),
        Variant(label("peer/numpy-choice"), "labels/s", choice),
    ]
