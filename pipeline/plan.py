"""What to build: everything that the bytes of a data set depend on, and nothing else."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from pipeline.dataset import DilutedSet, ImageSplit, MemorySplit
from pipeline.encode import DEFAULT_QUALITY, encoder_version, for_ffcv, for_webdataset, shrink
from pipeline.errors import UserError
from pipeline.images import CHECKS, check_item
from pipeline.laws import Foreign, law_to_json
from pipeline.sources.types import Item, Source

SHARD_IMAGES: Final = 2_048  # a multiple of the 1,024 images that `passes` permutes; 225 MB of ImageNet
_STORED: Final = {"webdataset": for_webdataset, "ffcv": for_ffcv}
_ALLOWED: Final = {
    "format": tuple(_STORED),
    "layout": ("shared", "expanded"),
    "index": ("images", "examples"),
    "check": tuple(CHECKS),
    "on_bad": ("error", "skip"),
}


@dataclass(frozen=True)
class Options:
    """How a data set is laid out, and how its images are checked.

    Args:
        format: "webdataset" tars, or one "ffcv" beton a split.
        layout: "shared" stores an image once, "expanded" (WebDataset only) once for each of its labels.
        index: What a stock reader sees a row of: "images", or "examples" (WebDataset: beside the rows of images).
        check: How to look at every image first: "decode", "header" or "none".
        on_bad: What a bad image does: an "error" ends the build; "skip" leaves the image out, after a look at all.
        max_side: Shrink larger images to this many px and encode them as JPEG; None keeps every byte.
        quality: Of those JPEGs, 1 to 100.
        shard_images: Images a shard.

    Raises:
        UserError: If a choice is not on its menu, or two do not go together.
    """

    format: str = "webdataset"
    layout: str = "shared"
    index: str = "images"
    check: str = "decode"
    on_bad: str = "error"
    max_side: int | None = None
    quality: int | None = None
    shard_images: int = SHARD_IMAGES

    def __post_init__(self) -> None:
        for name, allowed in _ALLOWED.items():
            if (value := getattr(self, name)) not in allowed:
                raise UserError(f"--{name.replace('_', '-')} {value}: choose one of {', '.join(allowed)}")
        if self.layout == "expanded" and self.format == "ffcv":
            raise UserError(
                "--layout expanded is for --format webdataset; FFCV reads every example from shared images "
                "with --index examples"
            )
        if self.layout == "expanded" and self.index == "examples":
            raise UserError("--layout expanded has a record for every example already; leave --index examples out")
        if self.on_bad == "skip" and self.check == "none":
            raise UserError("--on-bad skip needs a check to find bad images: give --check decode or header")
        if self.max_side is not None and self.max_side < 1:
            raise UserError(f"--max-side {self.max_side}; give at least 1 px")
        if self.quality is not None and self.max_side is None:
            raise UserError("--quality is for images that --max-side shrinks; give both, or none to keep every byte")
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise UserError(f"--quality {self.quality}; give 1 to 100")
        if self.shard_images < 1:
            raise UserError(f"{self.shard_images} images a shard; give at least 1")


@dataclass(frozen=True)
class Plan:
    """Everything that the bytes of a data set depend on; two builds with equal plans write equal files.

    Args:
        dataset: The diluted set, in memory.
        source_sha256: Hash of the source, which tells others of the same name apart (see `plan_build`).
        options: Layout and checks.
        quarantine: Images that were left out of `dataset`.
    """

    dataset: DilutedSet
    source_sha256: str
    options: Options = field(default_factory=Options)
    quarantine: tuple[dict[str, Any], ...] = ()

    def describe(self) -> dict[str, Any]:
        """Return the plan as JSON, to compare it with what lies in a folder."""
        formula = self.dataset.formula
        return {
            "name": self.dataset.name,
            "num_images": formula.num_images,
            "num_test_images": self.dataset.test.num_images,
            "num_classes": formula.num_classes,
            "alpha": formula.alpha,
            "law": law_to_json(formula.law),
            "noise_seed": formula.noise_seed,
            "source_sha256": self.source_sha256,
            **dataclasses.asdict(self.options),
            "encoder": self.encoder,
        }

    @property
    def encoder(self) -> str | None:
        """What encodes images anew, if anything does."""
        return None if self.options.max_side is None else encoder_version()

    @property
    def splits(self) -> dict[str, ImageSplit]:
        """The splits that are stored, by the name that their files begin with."""
        foreign = {} if self.dataset.foreign is None else {"foreign": self.dataset.foreign}
        return {"train": self.dataset.train, "test": self.dataset.test, **foreign}

    def num_labels(self, split: str) -> int:
        """Count the labels that are stored beside an image; those of noise that shows other images are not."""
        formula = self.dataset.formula
        return 1 + formula.alpha if split == "train" and not formula.law.adds_images else 1

    def num_rows(self, split: str) -> int:
        """Count the images that are stored of a split: one an example in layout `expanded`."""
        expanded = split == "train" and self.options.layout == "expanded"
        return self.splits[split].num_images * (1 + self.dataset.formula.alpha if expanded else 1)

    @property
    def num_stored(self) -> int:
        """Count all images that are stored."""
        return sum(map(self.num_rows, self.splits))

    def stored(self, item: Item) -> Item:
        """Check an image and return what is stored of it.

        Raises:
            DamagedImageError: If it is refused.
        """
        options = self.options
        # An image that was looked at before others were left out need not be decoded twice.
        item = check_item(item, "header" if options.on_bad == "skip" else options.check)
        if options.max_side is not None:
            item = shrink(item, options.max_side, options.quality or DEFAULT_QUALITY)
        return _STORED[options.format](item)

    def without(self, bad: dict[str, list[tuple[int, str]]]) -> Plan:
        """Return the plan for the images that are left: the order is the same, with the bad ones taken out.

        Args:
            bad: For each split its bad images, (image id, reason), in any order.

        Raises:
            UserError: If a split has no image left.
        """
        splits: dict[str, ImageSplit] = {}
        quarantine = []
        for name, split in self.splits.items():
            found = sorted(bad.get(name, []))
            if len(found) == split.num_images:
                raise UserError(f"all {len(found):,} images of the {name} split are bad; the first: {found[0][1]}")
            for image_id, reason in found:
                quarantine.append({"split": name, **name_image(split, image_id), "reason": reason})
            splits[name] = _left(split, [image_id for image_id, _ in found])
        law = self.dataset.formula.law
        if isinstance(law, Foreign):
            law = dataclasses.replace(law, num_foreign=splits["foreign"].num_images)
        formula = dataclasses.replace(self.dataset.formula, num_images=splits["train"].num_images, law=law)
        dataset = dataclasses.replace(
            self.dataset,
            train=splits["train"],
            test=splits["test"],
            foreign=splits.get("foreign"),
            formula=formula.bind(splits["train"]),
        )
        return dataclasses.replace(self, dataset=dataset, quarantine=tuple(quarantine))


def name_image(split: ImageSplit, image_id: int) -> dict[str, Any]:
    """Say where the source keeps an image, as the quarantine list has it."""
    source = int(split.source_ids[image_id])
    name = split.split.name_of(source) if isinstance(split, MemorySplit) else f"image {source}"
    return {"source": source, "name": name.encode(errors="backslashreplace").decode()}  # a manifest is text


def _left(split: ImageSplit, bad: list[int]) -> ImageSplit:
    if not bad:
        return split
    if not isinstance(split, MemorySplit):
        raise TypeError("images are left out of a source, not of shards")
    return MemorySplit(split.split, np.delete(split.order, bad))


def plan_build(
    source: Source, dataset: DilutedSet, options: Options | None = None, *, foreign: Source | None = None
) -> Plan:
    """Plan the shards of a set that was diluted in memory.

    The source is hashed: its classes and labels, and what its splits say of their images (`Split.fingerprint`).

    Args:
        source: The clean set.
        dataset: The same, diluted.
        options: Layout and checks.
        foreign: Where the noisy images come from, if the law shows any.

    Raises:
        UserError: If the source cannot be read, or the law does not go with the options.
    """
    options, law = options or Options(), dataset.formula.law
    if law.adds_images and (options.layout == "expanded" or options.index == "examples"):
        raise UserError(
            f"law {law.name} shows other images as noise, which the formula finds, not a stock reader; "
            "leave --layout and --index out"
        )
    digest = hashlib.sha256(json.dumps(source.classes).encode())
    for split in (source.train, source.test, *([foreign.train] if foreign else [])):
        digest.update(len(split).to_bytes(8, "little") + split.labels.astype("<u2").tobytes())
        split.fingerprint(digest.update)
    return Plan(dataset, digest.hexdigest(), options)
