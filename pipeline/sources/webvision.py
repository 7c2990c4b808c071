"""WebVision 1.0: photos that a search engine found for ImageNet's 1,000 classes; nobody checked the training labels.

    train    info/train_filelist_google.txt   `google/q0001/NAME.jpg 0`, images as google_resized_256.tar unpacks
    test     info/val_filelist.txt            `val000001.jpg 0`, images in val_images_256/, labelled by people
    names    info/synsets.txt                 `n01440764 tench, Tinca tinca`, if there; else classes are numbers

`mini_webvision` is its first 50 classes: 65,944 and 2,500 images.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pipeline.errors import UserError
from pipeline.sources.folder import AUGMENTATION
from pipeline.sources.lists import class_names, open_list, read_labels
from pipeline.sources.types import Source

NUM_CLASSES: Final = 1_000
MINI_CLASSES: Final = 50
TRAIN_LIST: Final = "info/train_filelist_google.txt"
VAL_LIST: Final = "info/val_filelist.txt"
SYNSETS: Final = "info/synsets.txt"


def open_webvision(path: Path | None = None) -> Source:
    """Open all classes of WebVision 1.0.

    Args:
        path: The folder that holds info/, google/ and val_images_256/.

    Raises:
        UserError: Without a path, or if a list or an image of one is missing or wrong.

    Source: Li et al. 2017 (arXiv 1708.02862).
    Deviates: the half of the training images that came from Flickr is left out, as it is in mini-WebVision.
    """
    return _open("webvision", path, NUM_CLASSES)


def open_mini_webvision(path: Path | None = None) -> Source:
    """Open the first 50 classes of WebVision 1.0; the images of the others need not be there.

    Args:
        path: As of `open_webvision`.

    Raises:
        UserError: As `open_webvision`.

    Source: Jiang et al. 2018, MentorNet (arXiv 1712.05055), and Chen et al. 2019, INCV (arXiv 1905.05040).
    """
    return _open("mini_webvision", path, MINI_CLASSES)


def _open(name: str, path: Path | None, num_classes: int) -> Source:
    if path is None:
        raise UserError(f"{name} needs --source DIR, a folder that holds {TRAIN_LIST}, google/ and val_images_256/")
    if not path.is_dir():
        raise UserError(f"{name}: no folder {path}; --source names the folder that holds info/ and google/")
    splits = [
        open_list(
            path, folder, path / listed, read_labels(path / listed, NUM_CLASSES), num_classes=num_classes, archive=tar
        )
        for listed, folder, tar in (
            (TRAIN_LIST, "", "google_resized_256.tar"),
            (VAL_LIST, "val_images_256", "val_images_256.tar"),
        )
    ]
    classes = class_names(path / SYNSETS, NUM_CLASSES)[:num_classes]
    return Source(name, classes, splits[0], splits[1], AUGMENTATION, observed=True)
