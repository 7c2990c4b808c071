"""Which data a run trains on: shards, another formula over them, or a set diluted in memory."""

from __future__ import annotations

import dataclasses
import zlib
from pathlib import Path
from typing import Any, Final

from pipeline.claim import STATE
from pipeline.dataset import DilutedSet, ShardSplit, dilute, open_shards, view
from pipeline.errors import UserError
from pipeline.laws import Law, law_to_json
from pipeline.manifest import FILE_NAME
from pipeline.sources import SOURCES, Source, open_source
from train.recipes import check_choice
from train.select.task import Part

SHARDS: Final = Path("shards")  # where tools/build_shards writes
IN_MEMORY_ALPHA: Final = {"mnist5k": 20}  # sets that need neither shards nor --alpha
_OBSERVED: Final = ("webvision", "mini_webvision", "clothing1m")  # sets whose labels are noisy as they come
_OWN_FILES: Final = ("imagenet", *_OBSERVED, "folder")  # sets that no tool fetches: their users say where they lie


def open_data(
    name: str,
    *,
    shards: str | Path | None = None,
    alpha: int | None = None,
    law: Law | None = None,
    noise_seed: int | None = None,
    clean: int | None = None,
    source: Path | None = None,
    foreign: Source | None = None,
    size: int | None = None,
    augment: bool = True,
    check_reads: bool = True,
) -> DilutedSet:
    """Open the data of a run.

    With neither `shards` nor `alpha`, the only folder shards/NAME-alpha* is taken; `alpha` alone dilutes in memory.

    Args:
        name: The clean set's name.
        shards: Folder of shards, or its address; alpha, law, noise seed and clean are then a view of it.
        alpha: Noisy labels a clean one.
        law: Where noisy labels come from; a law that flips labels goes with alpha 0.
        noise_seed: Draws the labels.
        clean: Use the first so many images.
        source: The user's own files, where there are no shards.
        foreign: The set whose images law foreign shows, if they do not lie in the shards.
        size: Height and width in a batch of images that differ in size; their own default if None.
        augment: Whether training sees images as the set is usually augmented, or as evaluation does.
        check_reads: Whether to check every image of shards against its checksum as it is read.

    Raises:
        UserError: If there is no such data, or it is not clear which.
    """
    if shards is None and alpha is None and source is None:
        shards = only_shards(name)
    if shards is not None:
        if source is not None:
            raise UserError(f"--shards {shards} and --source {source}: the images come from one of them, leave one out")
        if "://" not in str(shards):
            _check_finished(Path(shards), name)
        dataset = open_shards(shards, check_reads=check_reads)
        if dataset.name != name:
            raise UserError(f"{shards} holds {dataset.name}, not {name}; give its own shards, or train {dataset.name}")
        dataset = view(dataset, alpha=alpha, law=law, noise_seed=noise_seed, clean=clean, foreign=foreign)
        return _shown(dataset, size, augment)
    check_choice("data set", name, SOURCES)
    try:
        clean_set = open_source(name, source)
    except UserError as error:
        found = shards_of(name)
        if source is not None or not found:
            raise
        raise UserError(f"{error}; or give --shards {found[0]}, which shows any alpha") from None
    if alpha is None:
        none_added = clean_set.observed or (law is not None and law.replaces)
        alpha = 0 if none_added else IN_MEMORY_ALPHA.get(name)
    if alpha is None:
        raise UserError(f"no --alpha for {name}; give the number of noisy labels per clean one, 0 or more")
    made = dilute(clean_set, alpha=alpha, law=law, noise_seed=noise_seed or 0, clean=clean, foreign=foreign)
    return _shown(made, size, augment)


def _check_finished(shards: Path, name: str) -> None:
    if (shards / FILE_NAME).exists():
        return
    if shards.is_file():
        raise UserError(f"{shards} is a file; give --shards a folder that tools/build_shards wrote")
    if (shards / STATE).is_dir():
        raise UserError(
            f"{shards} holds no finished data set: a build was begun there and is not finished; the same "
            "tools/build_shards command goes on with it, or give another --shards"
        )
    build = f"{build_command(name)} --out {shards}"
    raise UserError(f"{shards} holds no finished data set; '{build}' builds it, or give another --shards")


def _shown(dataset: DilutedSet, size: int | None, augment: bool) -> DilutedSet:
    shown = dataset.augmentation if augment else dataset.augmentation.for_evaluation()
    if size is not None:
        if dataset.augmentation.kind != "window":
            raise UserError(f"--size {size}: the images of {dataset.name} have one size of their own; leave --size out")
        shown = dataclasses.replace(shown, size_px=size)
    return dataclasses.replace(dataset, augmentation=shown)


def only_shards(name: str) -> Path | None:
    """Return the only folder of shards of a clean set.

    Returns:
        None for a set that is diluted in memory when there are no shards.

    Raises:
        UserError: If there are several, or none.
    """
    found = shards_of(name)
    if len(found) > 1:
        raise UserError(f"several shards of {name}: {', '.join(map(str, found))}; choose one with --shards")
    if found:
        return found[0]
    if name in IN_MEMORY_ALPHA:
        return None
    files = " --source DIR" if name in _OWN_FILES else ""
    raise UserError(
        f"there are no shards of {name} in {SHARDS}; build them with '{build_command(name)}', "
        f"or give --shards DIR, or{files} --alpha A to dilute in memory"
    )


def shards_of(name: str) -> list[Path]:
    """List the finished folders of shards of a clean set that lie where they are looked for."""
    return sorted(path for path in SHARDS.glob(f"{name}-alpha*") if (path / FILE_NAME).exists())


def build_command(name: str) -> str:
    """Return the command that builds shards of a clean set.

    Raises:
        UserError: If there is no such set.
    """
    check_choice("data set", name, SOURCES)
    files = " --source DIR" if name in _OWN_FILES else ""
    return f"tools/build_shards {name}{files} --alpha {0 if name in _OBSERVED else 20}"


def facts(dataset: DilutedSet) -> dict[str, Any]:
    """Return what a run depends on, wherever the data lies."""
    formula = dataset.formula
    return {
        "name": dataset.name,
        "num_images": formula.num_images,
        "num_test_images": dataset.test.num_images,
        "num_classes": formula.num_classes,
        "alpha": formula.alpha,
        "law": law_to_json(formula.law),
        "noise_seed": formula.noise_seed,
        "image_shape": dataset.image_shape,
        "mean": dataset.mean,
        "std": dataset.std,
        "augmentation": dataclasses.asdict(dataset.augmentation),
        **({"observed_labels": True} if dataset.observed else {}),
        "source_labels_crc32": zlib.crc32(dataset.train.source_labels.astype("<u2").tobytes()),
    }


def checks_reads(dataset: DilutedSet) -> bool | None:
    """Say whether images are checked against their checksums as they are read; None where there are no shards."""
    return dataset.train.check_reads if isinstance(dataset.train, ShardSplit) else None


def facts_of_part(part: Part) -> dict[str, Any]:
    """Return what tells a part of the data from others; nothing of all of it."""
    ids = {"train_ids_crc32": part.train, "noisy_val_ids_crc32": part.noisy_val}
    return {name: zlib.crc32(each.astype("<i8").tobytes()) for name, each in ids.items() if each is not None}
