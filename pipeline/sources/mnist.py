"""MNIST from the user's own IDX files."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pipeline.errors import UserError
from pipeline.fetch import fetched
from pipeline.sources.idx import open_idx
from pipeline.sources.types import Augmentation, Source

DIGITS: Final = tuple("0123456789")
AUGMENTATION: Final = Augmentation("shift", shift_px=2)


def open_mnist(path: Path | None = None) -> Source:
    """Open the 60,000 + 10,000 digits of MNIST.

    Args:
        path: The folder of the four IDX files; by default where `tools/fetch mnist` puts them.

    Raises:
        UserError: If there is no folder, or a file is missing or wrong.
    """
    folder = path or fetched("mnist")
    if folder is None:
        raise UserError(
            "mnist needs --source DIR, the folder of train-images-idx3-ubyte[.gz] and its 3 companions, or "
            "`tools/fetch mnist`; mnist5k is embedded and needs none"
        )
    return open_idx("mnist", folder, classes=DIGITS, augmentation=AUGMENTATION)
