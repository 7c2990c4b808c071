"""Clothing1M: a million shop photos in 14 classes, whose labels were read off the text around them.

    train    noisy_train_key_list.txt   `images/0/1234.jpg`, with the class from noisy_label_kv.txt
    test     clean_test_key_list.txt    likewise from clean_label_kv.txt, which people made
    names    category_names_eng.txt     if there; else classes are called by their numbers

A line of the two files of labels is `images/0/1234.jpg 5`. The files lie beside images/, or in annotations/ there. The
clean lists of training and validation are read only to see that none of their images is among the noisy ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pipeline.errors import UserError
from pipeline.sources.folder import AUGMENTATION
from pipeline.sources.lists import ListedSplit, class_names, open_list, read_keys, read_labels
from pipeline.sources.types import Source

NUM_CLASSES: Final = 14
TRAIN_LIST: Final = "noisy_train_key_list.txt"
TRAIN_LABELS: Final = "noisy_label_kv.txt"
TEST_LIST: Final = "clean_test_key_list.txt"
TEST_LABELS: Final = "clean_label_kv.txt"
CLEAN_LISTS: Final = ("clean_train_key_list.txt", "clean_val_key_list.txt", TEST_LIST)
NAMES: Final = "category_names_eng.txt"


def open_clothing1m(path: Path | None = None) -> Source:
    """Open Clothing1M: its noisy images for training, its clean test images.

    Args:
        path: The folder that holds images/ and the lists.

    Raises:
        UserError: Without a path, or if a list or an image of one is missing or wrong, or an image is in a clean list
            and in the noisy one.

    Source: Xiao et al. 2015, "Learning from massive noisy labeled data for image classification".
    """
    if path is None:
        raise UserError(f"clothing1m needs --source DIR, a folder that holds images/ and {TRAIN_LIST}")
    if not path.is_dir():
        raise UserError(f"clothing1m: no folder {path}; --source names the folder that holds images/")
    lists = path if (path / TRAIN_LIST).exists() else path / "annotations"
    if not lists.is_dir():
        raise UserError(f"{path / TRAIN_LIST} is missing; put the data set's original file there")
    noisy = read_keys(lists / TRAIN_LIST)
    clean = {name: read_keys(lists / name) for name in CLEAN_LISTS}
    line_of = {key: number for number, key in enumerate(noisy, 1)}
    for name, keys in clean.items():
        for number, key in enumerate(keys, 1):
            if key in line_of:
                raise UserError(
                    f"{lists / name}: line {number} names {key}, as line {line_of[key]} of {TRAIN_LIST} does; no clean "
                    "image may be trained on: get the original files"
                )
    train = _open_split(path, lists, TRAIN_LIST, noisy, TRAIN_LABELS)
    test = _open_split(path, lists, TEST_LIST, clean[TEST_LIST], TEST_LABELS)
    return Source("clothing1m", class_names(lists / NAMES, NUM_CLASSES), train, test, AUGMENTATION, observed=True)


def _open_split(path: Path, lists: Path, listed: str, keys: list[str], labelled: str) -> ListedSplit:
    labels = read_labels(lists / labelled, NUM_CLASSES)
    for number, key in enumerate(keys, 1):
        if key not in labels:
            raise UserError(
                f"{lists / listed}: line {number} names {key}, which {labelled} gives no class; get the original files"
            )
    label_of = {key: labels[key] for key in keys}
    return open_list(path, "", lists / listed, label_of, num_classes=NUM_CLASSES, archive="images/ (0.tar to 9.tar)")
