"""Small diluted sets of every kind that loaders read, in memory and in shards."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from photos import ODD, encode, write_tree

from pipeline import loaders, passes
from pipeline.builder import build
from pipeline.dataset import DilutedSet, dilute, open_shards
from pipeline.laws import Foreign, White
from pipeline.loaders import webdataset
from pipeline.plan import Options, plan_build
from pipeline.sources import Source, open_source
from pipeline.sources.synthetic import synthetic
from pipeline.sources.types import Augmentation

SIZE_PX = 24
ALPHA = 3
BLOCK = 8  # images, so that a small set has many blocks
WITHOUT_FFCV = pytest.mark.skipif(importlib.util.find_spec("ffcv") is None, reason="FFCV is not installed")
NAMES = ["resident", "dali", pytest.param("ffcv", marks=WITHOUT_FFCV), "webdataset"]
ORDERS: dict[str, dict[str, Any]] = {
    "full": {},
    "passes": {"order": "passes", "window": 2},
    "reuse": {"order": "passes", "window": 2, "reuse": 3},
}


def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `passes` permute blocks of a few images."""
    for module in (passes, loaders, webdataset):
        monkeypatch.setattr(module, "BLOCK_IMAGES", BLOCK)
    monkeypatch.setattr(loaders, "_EVERY", 1)


def photos(root: Path, *, num_train: int = 31, more: Mapping[str, bytes] | None = None) -> Source:
    """A tree of JPEGs of differing sizes, and others of `more`."""
    source = open_source("folder", write_tree(root, num_train=num_train, num_test=7, height=41, more=more))
    return dataclasses.replace(source, augmentation=Augmentation("window", flip=True, size_px=SIZE_PX))


def odd_photos(root: Path) -> Source:
    """The same with whatever else is found in real data: a PNG named .JPEG, grey, CMYK, EXIF, palettes, WebP, 1 px."""
    files = {name: data for name, (data, _, _) in ODD.items()}
    files |= {"grey.png": encode(11, "PNG", "L"), "dot.png": encode(12, "PNG", width=1, height=1)}
    files |= {"long.jpg": encode(13, width=150, height=3), "progressive.jpg": encode(14, width=90, progressive=True)}
    return photos(
        root,
        more={
            f"{part}/{'ab'[n % 2]}/{name}": files[name] for part in ("train", "test") for n, name in enumerate(files)
        },
    )


def _grey(seed: int = 0, num_train: int = 37) -> Source:
    source = synthetic(num_train=num_train, num_test=11, height=9, width=7, channels=1, seed=seed)
    return dataclasses.replace(source, augmentation=Augmentation("shift", shift_px=2, flip=True))


def _shards(source: Source, dataset: DilutedSet, folder: Path, options: Mapping[str, Any]) -> DilutedSet:
    build(plan_build(source, dataset, Options(**{"shard_images": 2 * BLOCK} | dict(options))), folder)
    return open_shards(folder)


WHERE: dict[str, dict[str, Any] | None] = {
    "memory": None,
    "tar": {},
    "odd-shards": {"shard_images": 11, "check": "none"},  # no multiple of a block; shapes are not in the index
    "expanded": {"layout": "expanded"},
    "beton": {"format": "ffcv"},
    "examples": {"format": "ffcv", "index": "examples"},
}


class Sets:
    """The sets of a test module, made when they are asked for.

    Args:
        root: An empty folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self.get = cache(self._make)
        self._source = cache(self._make_source)

    def _make_source(self, kind: str) -> tuple[Source, DilutedSet]:
        if kind == "photos":
            source = odd_photos(self._root / "tree")
            return source, dilute(source, alpha=ALPHA, noise_seed=3)
        source = _grey()
        if kind == "grey":
            return source, dilute(source, alpha=ALPHA, noise_seed=3)
        if kind == "white":
            return source, dilute(source, alpha=ALPHA, law=White(), noise_seed=3)
        other = dataclasses.replace(_grey(seed=5, num_train=23), name="other")
        return source, dilute(source, alpha=ALPHA, law=Foreign("other", 23), noise_seed=3, foreign=other)

    def _make(self, kind: str, where: str) -> DilutedSet:
        source, dataset = self._source(kind)
        options = WHERE[where]
        return dataset if options is None else _shards(source, dataset, self._root / f"{kind}-{where}", options)
