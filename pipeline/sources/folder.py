"""Any tree of image files, one folder a class, as torchvision's ImageFolder reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pipeline.errors import UserError
from pipeline.sources.files import check_classes, class_folders, open_tree
from pipeline.sources.types import Augmentation, Source

AUGMENTATION: Final = Augmentation("window", flip=True, size_px=224)
_TESTS: Final = ("test", "val")


def open_folder(path: Path | None = None) -> Source:
    """Open `train/CLASS/...` and `test/CLASS/...` (or `val/CLASS/...`) below a folder.

    Class indices are the ranks of the sorted folder names in train/. Files that end in .jpg, .jpeg, .png or .webp are
    images, at any depth; what they are is read from their bytes. test/ is taken before val/, if it has class folders.

    Args:
        path: The folder that holds train/ and test/ or val/.

    Raises:
        UserError: Without a path, or if the tree is not as described.
    """
    if path is None:
        raise UserError("folder needs --source DIR, a folder that holds train/CLASS/*.jpg and test/ or val/ likewise")
    if not (path / "train").is_dir():
        raise UserError(f"folder: no folder {path / 'train'}; --source names the folder that holds train/ and test/")
    test = next((part for part in _TESTS if (path / part).is_dir() and class_folders(path / part)), None)
    if test is None:
        raise UserError(
            f"folder: neither {path / 'test'} nor {path / 'val'} holds class folders; "
            "a test split is needed: put one folder of images a class there"
        )
    classes = class_folders(path / "train")
    check_classes(classes, path / "train")
    return Source("folder", classes, open_tree(path, "train", classes), open_tree(path, test, classes), AUGMENTATION)
