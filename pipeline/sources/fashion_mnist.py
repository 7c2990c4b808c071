"""Fashion-MNIST from IDX files: the user's own, or those of Debian's package."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pipeline.errors import UserError
from pipeline.fetch import fetched
from pipeline.sources.idx import open_idx
from pipeline.sources.types import Augmentation, Source

CLASSES: Final = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
DEBIAN_FOLDER: Final = Path("/usr/share/datasets/fashion-mnist")


def open_fashion_mnist(path: Path | None = None) -> Source:
    """Open the 60,000 + 10,000 pieces of clothing of Fashion-MNIST.

    Args:
        path: The folder of the four IDX files; by default where Debian's dataset-fashion-mnist puts them, or else
            `tools/fetch fashion_mnist`.

    Raises:
        UserError: If the folder or a file is missing or wrong.
    """
    folder = path or (DEBIAN_FOLDER if DEBIAN_FOLDER.is_dir() else fetched("fashion_mnist"))
    if folder is None:
        raise UserError(
            f"fashion_mnist: no folder {DEBIAN_FOLDER}; run `apt-get install dataset-fashion-mnist` or "
            "`tools/fetch fashion_mnist`, or pass --source DIR with the four IDX files"
        )
    augmentation = Augmentation("shift", shift_px=2, flip=True)
    return open_idx("fashion_mnist", folder, classes=CLASSES, augmentation=augmentation)
