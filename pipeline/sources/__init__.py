"""Clean sets, one file each; this is the menu."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from pipeline.errors import UserError
from pipeline.sources.cifar10 import open_cifar10
from pipeline.sources.cifar100 import open_cifar100
from pipeline.sources.clothing1m import open_clothing1m
from pipeline.sources.fashion_mnist import open_fashion_mnist
from pipeline.sources.folder import open_folder
from pipeline.sources.imagenet import open_imagenet
from pipeline.sources.mnist import open_mnist
from pipeline.sources.mnist5k import open_mnist5k
from pipeline.sources.synthetic import open_synthetic
from pipeline.sources.types import ArraySplit, Augmentation, Source, Split
from pipeline.sources.webvision import open_mini_webvision, open_webvision

__all__ = ["SOURCES", "ArraySplit", "Augmentation", "Source", "Split", "name_of_set", "open_source"]

SOURCES: dict[str, Callable[[Path | None], Source]] = {
    "mnist5k": open_mnist5k,
    "mnist": open_mnist,
    "fashion_mnist": open_fashion_mnist,
    "cifar10": open_cifar10,
    "cifar100": open_cifar100,
    "imagenet": open_imagenet,
    "webvision": open_webvision,
    "mini_webvision": open_mini_webvision,
    "clothing1m": open_clothing1m,
    "folder": open_folder,
    "synthetic": open_synthetic,
}

_MINI: Final = {"webvision": "mini_webvision"}


def name_of_set(name: str, *, mini: bool) -> str:
    """Return the name on the menu of what a command line asks for.

    The mini version of a set is a set of its own, so that manifests, folders and recipes cannot mix the two up.

    Args:
        name: The data set.
        mini: `--mini`.

    Raises:
        UserError: If there is no mini version of it.
    """
    if mini and name not in _MINI:
        raise UserError(f"--mini is for {', '.join(_MINI)}, and {name} has no such part; leave it out")
    return _MINI[name] if mini else name


def open_source(name: str, path: Path | None = None) -> Source:
    """Open a clean set by its name.

    Args:
        name: One of `SOURCES`.
        path: The user's own files, for the sets that are not embedded.

    Raises:
        UserError: If the name is not on the menu, or the set cannot be opened.
    """
    if name not in SOURCES:
        raise UserError(f"no data set {name!r}: choose one of {', '.join(SOURCES)}")
    return SOURCES[name](path)
