"""What a data set is, in numbers that a user wants to see."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.table import Table

from pipeline.dataset import DilutedSet, from_manifest, read_index
from pipeline.formats.tar import BLOCK_BYTES
from pipeline.laws import Law, law_to_json, noisy_share
from pipeline.manifest import ENCODINGS, Manifest, Shard, SplitFiles
from pipeline.storage import Folder, open_folder
from pipeline.votes import known_vote


def bytes_stored(manifest: Manifest) -> int:
    """Return the size of all files of the training split, indexes included, and of the images that noise shows."""
    return sum(
        file.num_bytes for files in _for_training(manifest) for file in (files.index, *files.shards, *files.extras)
    )


def _for_training(manifest: Manifest) -> list[SplitFiles]:
    return [files for name, files in manifest.splits.items() if name != "test"]


def expanded_bytes(manifest: Manifest, folder: Folder) -> int:
    """Compute the size of tar shards that hold every example as a record of its own (image and .cls)."""
    sizes = read_index(folder, manifest.train.index.name)["size"][: manifest.train.num_images].astype(np.int64)
    blocks = -(-sizes // BLOCK_BYTES) + 3  # header, image; header, label
    ends = 2 * BLOCK_BYTES * len(manifest.train.shards) * (1 + manifest.formula.alpha)
    return int(blocks.sum()) * BLOCK_BYTES * (1 + manifest.formula.alpha) + ends


def summary_table(manifest: Manifest, where: str | Path) -> Table:
    """Lay out what was built: n, N, noise, realised beside expected right labels, and sizes."""
    folder = open_folder(where)
    dataset = from_manifest(manifest, folder)
    formula = dataset.formula
    stored = bytes_stored(manifest)
    kind = f"({manifest.format}, {manifest.layout})"
    noisy = [] if formula.law.replaces else [("labels drawn at random r", f"{noisy_share(formula.alpha):.4f}")]
    shards = num_files(tuple(shard for files in _for_training(manifest) for shard in files.shards))
    rows = [
        ("data set", f"{manifest.name}: {formula.num_classes} classes, {manifest.test.num_images:,} test images"),
        ("images n" if dataset.observed else "clean images n", f"{formula.num_images:,}"),
        ("labelled examples N = n(1+α)", f"{formula.num_examples:,} (α = {formula.alpha}, {law_words(formula.law)})"),
        *noisy,
        *_truth(manifest, dataset),
        ("stored for training", f"{stored / 1e6:,.1f} MB in {shards}, {encodings_words(manifest, folder)} {kind}"),
    ]
    if manifest.layout == "shared":
        expanded = expanded_bytes(manifest, folder)
        rows.append(("every example stored apart", f"{expanded / 1e6:,.1f} MB ({expanded / stored:.1f} ×)"))
    if manifest.quarantine:
        bad = manifest.quarantine[0]
        rows.append(("left out", f"{len(manifest.quarantine):,} bad images: {bad['name']} ({bad['reason']}), …"))
    rows.append(("folder", str(folder)))
    table = Table(show_header=False, box=None)
    for name, value in rows:
        table.add_row(name, value)
    return table


def _truth(manifest: Manifest, dataset: DilutedSet) -> list[tuple[str, str]]:
    """Say how many labels are right, or what is known in place of that."""
    formula = dataset.formula
    right = manifest.num_right / formula.num_examples
    expected = formula.right_share(dataset.train.source_labels)
    if dataset.observed:
        return [
            ("wrong labels η", "unknown: training images have the labels they were found with"),
            ("labels that equal the observed one", f"{right:.4f} (expected {expected:.4f})"),
        ]
    vote = known_vote(dataset)
    return [
        ("wrong labels η", f"{1 - right:.4f} (expected {1 - expected:.4f})"),
        ("right labels", f"{right:.4f} (expected {expected:.4f})"),
        (
            "vote over an image's labels is right",
            "not defined: noisy labels belong to other images" if vote is None else f"{vote:.3f}",
        ),
    ]


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


def encodings_words(manifest: Manifest, folder: Folder) -> str:
    """Say how many images are stored for training of each encoding."""
    tests = read_index(folder, manifest.test.index.name)["encoding"]  # the shorter index: the others may be long
    of_tests = dict(zip(ENCODINGS, np.bincount(tests, minlength=len(ENCODINGS)).tolist(), strict=True))
    left = {name: number - of_tests[name] for name, number in manifest.encodings.items()}
    return " + ".join(f"{number:,} {name}" for name, number in left.items() if number)
