"""Stage open: what it costs to begin at any position.

A data set of ImageNet's size at α = 50 is opened and asked for one example; every loader makes the first batch of
synthetic photos with so many labels each that a pass has 60,000,000 examples, from shards that are opened anew.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.load import build_ours, installed
from benchmarks.measure import Settings, Variant
from pipeline.dataset import open_shards, view
from pipeline.laws import Formula
from pipeline.loaders import open_batches
from pipeline.manifest import FILE_NAME, INDEX_DTYPE, File, Manifest, Shard, SplitFiles, to_json
from pipeline.sources.synthetic_imagenet import write_synthetic_imagenet
from pipeline.sources.types import Augmentation
from pipeline.stream import Stream

NUM_IMAGES, NUM_TEST, NUM_CLASSES, ALPHA, SHARD_IMAGES, IMAGE_BYTES = 1_281_167, 50_000, 1000, 50, 2048, 110_000

FAR, PHOTOS, BATCH = 60_000_000, 256, 128


def variants(settings: Settings) -> list[Variant]:
    """Open and ask for position 0 and 60,000,000."""
    folder = Path(tempfile.mkdtemp(prefix="dilute-bench-"))
    atexit.register(shutil.rmtree, folder)
    _imagenet_size(folder)

    def ask(position: int) -> float:
        dataset = open_shards(folder)
        formula = dataset.formula
        places = Stream(range(formula.num_images), 1 + formula.alpha, 0).at(np.array([position]))
        labels = formula.labels(places.image_ids, places.copies, dataset.train.source_labels[places.image_ids])
        return float(len(labels))

    found = [
        Variant("ours/position-0", "ms", lambda: ask(0)),
        Variant(f"ours/position-{FAR}", "ms", lambda: ask(FAR), against="ours/position-0"),
    ]
    write_synthetic_imagenet(folder / "tree", num_images=PHOTOS, num_classes=4)
    tar, beton = build_ours(folder / "tree", folder)
    for loader, shards in (("dali", tar), ("webdataset", tar), ("ffcv", beton)):
        if loader != "ffcv" or installed("ffcv"):
            name = f"ours/{loader}-first-batch-at"
            found += [
                Variant(f"{name}-0", "ms", partial(first_batch, shards, loader, 0)),
                Variant(f"{name}-{FAR}", "ms", partial(first_batch, shards, loader, FAR), against=f"{name}-0"),
            ]
    return found


def first_batch(shards: Path, loader: str, position: int) -> float:
    """Open shards at a position and make a batch of 224 px, as a resumed run does."""
    dataset = view(open_shards(shards), alpha=FAR // PHOTOS)
    batches = open_batches(dataset, batch=BATCH, start=position // BATCH * BATCH, loader=loader)
    labels = next(batches).labels
    batches.close()
    return float(len(labels))


def _imagenet_size(folder: Path) -> None:
    """Lay out a data set of ImageNet's size: a real index and manifest over shards that are holes on the disk."""
    splits = {}
    for name, num_images in (("train", NUM_IMAGES), ("test", NUM_TEST)):
        index = np.zeros(num_images, dtype=INDEX_DTYPE)
        index["label"] = np.arange(num_images) % NUM_CLASSES
        np.save(folder / f"{name}.index.npy", index)
        shards, extras = [], []
        for number, first in enumerate(range(0, num_images, SHARD_IMAGES)):
            count = min(SHARD_IMAGES, num_images - first)
            path = folder / f"{name}-{number:06d}.tar"
            with path.open("wb") as file:
                file.truncate(count * IMAGE_BYTES)
            shards.append(Shard(path.name, count * IMAGE_BYTES, "0" * 64, first, count))
            extras.append(File(path.with_suffix(".idx").name, 0, "0" * 64))
        index_file = File(f"{name}.index.npy", (folder / f"{name}.index.npy").stat().st_size, "0" * 64)
        splits[name] = SplitFiles(num_images, index_file, tuple(shards), tuple(extras))
    manifest = Manifest(
        name="imagenet",
        classes=tuple(f"n{number:08d}" for number in range(NUM_CLASSES)),
        formula=Formula(NUM_IMAGES, NUM_CLASSES, ALPHA),
        image_shape=None,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        augmentation=Augmentation("window", flip=True, size_px=224),
        num_right=0,
        counts=File("counts.npz", 0, "0" * 64),
        info=File("_info.json", 0, "0" * 64),
        build={},
        encodings={"jpg": NUM_IMAGES + NUM_TEST},
        **splits,
    )
    (folder / FILE_NAME).write_text(to_json(manifest))
