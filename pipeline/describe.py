"""What a data set is, in numbers that a user wants to see."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.table import Table

from pipeline.dataset import from_manifest
from pipeline.formats.tar import BLOCK_BYTES
from pipeline.laws import Law, law_to_json, noisy_share
from pipeline.manifest import Manifest, Shard
from pipeline.votes import expected_vote


def bytes_on_disk(manifest: Manifest, folder: Path) -> int:
    """Return the size of all files of the training split, the manifest's own hashes and indexes included."""
    files = [manifest.train.index, *manifest.train.shards, *manifest.train.extras]
    return sum((folder / file.name).stat().st_size for file in files)


def expanded_bytes(manifest: Manifest, folder: Path) -> int:
    """Compute the size of tar shards that hold every example as a record of its own (image and .cls)."""
    index = np.load(folder / manifest.train.index.name, mmap_mode="r")
    blocks = -(-index["size"].astype(np.int64) // BLOCK_BYTES) + 3  # header, image; header, label
    ends = 2 * BLOCK_BYTES * len(manifest.train.shards) * (1 + manifest.formula.alpha)
    return int(blocks.sum()) * BLOCK_BYTES * (1 + manifest.formula.alpha) + ends


def summary_table(manifest: Manifest, folder: Path) -> Table:
    """Lay out what was built: n, N, noise, realised beside expected right labels, and sizes."""
    dataset = from_manifest(manifest, folder)
    formula, source_labels = dataset.formula, dataset.train.source_labels
    shared, expanded = bytes_on_disk(manifest, folder), expanded_bytes(manifest, folder)
    right, expected = manifest.num_right / formula.num_examples, formula.right_share(source_labels)
    noisy = [] if formula.law.replaces else [("labels drawn at random r", f"{noisy_share(formula.alpha):.4f}")]
    rows = [
        (
            "data set",
            f"{manifest.name}: {formula.num_classes} classes, {manifest.test.num_images:,} test images",
        ),
        ("clean images n", f"{formula.num_images:,}"),
        (
            "labelled examples N = n(1+α)",
            f"{formula.num_examples:,} (α = {formula.alpha}, {law_words(formula.law)})",
        ),
        *noisy,
        ("wrong labels η", f"{1 - right:.4f} (expected {1 - expected:.4f})"),
        ("right labels", f"{right:.4f} (expected {expected:.4f})"),
        ("vote over an image's labels is right", f"{expected_vote(formula, source_labels):.3f}"),
        ("training split on disk", f"{shared / 1e6:,.1f} MB in {num_files(manifest.train.shards)}"),
        ("every example stored apart", f"{expanded / 1e6:,.1f} MB ({expanded / shared:.1f} ×)"),
        ("folder", str(folder)),
    ]
    table = Table(show_header=False, box=None)
    for name, value in rows:
        table.add_row(name, value)
    return table


def law_words(law: Law) -> str:
    """Say what a law is: its name, and those of its parameters that are no arrays."""
    parameters = law_to_json(law)
    name = parameters.pop("name")
    return ", ".join(
        [name, *(f"{key} {value}" for key, value in parameters.items() if isinstance(value, str | int | float))]
    )


def num_files(shards: tuple[Shard, ...]) -> str:
    """Say how many shards there are."""
    return f"{len(shards)} shard{'' if len(shards) == 1 else 's'}"
