"""`dataset.json`: what a data set is and the hash of each of its files; no dates, no absolute paths."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy import ndarray as Array

from pipeline.errors import UserError
from pipeline.laws import Formula, law_from_json, law_to_json
from pipeline.sources.types import Augmentation

FILE_NAME: Final = "dataset.json"
LAW_FILE: Final = "law.npy"
FORMAT_VERSION: Final = 1
_SEAL: Final = ',\n "sha256": '  # the last field is the hash of all the text before it

# One record per image, memory-mapped: where its bytes lie in its shard, their checksum, and where it came from.
INDEX_DTYPE: Final = np.dtype(
    [("offset", "<u8"), ("size", "<u4"), ("crc32", "<u4"), ("label", "<u2"), ("source", "<u4")]
)


@dataclass(frozen=True)
class File:
    """A file of the data set and what it must hash to."""

    name: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Shard(File):
    """A file of images `first` to `first + count - 1`."""

    first: int
    count: int


@dataclass(frozen=True)
class SplitFiles:
    """The files of one split: its shards in the order of their images, and the index over all of them."""

    num_images: int
    index: File
    shards: tuple[Shard, ...]
    extras: tuple[File, ...] = ()  # index files of stock readers


@dataclass(frozen=True)
class Manifest:
    """All that a reader needs to know of a data set.

    Args:
        name: The clean set's name.
        classes: Class names; K of them.
        formula: n, K, alpha, law and noise seed of the training split.
        train: The diluted split.
        test: The clean test split.
        image_shape: (h, w, c) where all images have one shape, else None.
        mean: Per channel, of the source's whole training split, in units of full scale.
        std: Likewise.
        augmentation: How to augment it in training.
        num_right: Realised number of labels, copy 0 included, that equal the source label.
        counts: The file of the realised K×K counts.
        layout: "shared": an image's bytes are stored once.
        encoding: The image files' type, as their file name extension.
        info: timm's description of the shards.
        source_sha256: Hash of the source, which tells others of the same name apart (see `plan_build`).
        shard_images: Images a shard.
        law_array: The file of the array among the law's parameters; None if it has none.
        quarantine: Source images that were left out, with the reason.
    """

    name: str
    classes: tuple[str, ...]
    formula: Formula
    train: SplitFiles
    test: SplitFiles
    image_shape: tuple[int, int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation
    num_right: int
    counts: File
    info: File
    source_sha256: str
    shard_images: int
    law_array: File | None = None
    layout: str = "shared"
    encoding: str = "png"
    quarantine: tuple[dict[str, Any], ...] = field(default=())

    def files(self) -> list[File]:
        """List every file that the manifest vouches for."""
        splits = (self.train, self.test)
        law = [self.law_array] if self.law_array else []
        return [self.counts, self.info, *law, *(f for s in splits for f in (s.index, *s.shards, *s.extras))]


def to_json(manifest: Manifest) -> str:
    """Write a manifest as JSON text, the same text for the same data set."""
    fields = dataclasses.asdict(manifest)
    formula = manifest.formula
    fields["formula"] = {
        "num_images": formula.num_images,
        "num_classes": formula.num_classes,
        "alpha": formula.alpha,
        "law": law_to_json(formula.law),
        "noise_seed": formula.noise_seed,
    }
    body = json.dumps({"format_version": FORMAT_VERSION, **fields}, indent=1, ensure_ascii=False)[:-2]
    return f'{body}{_SEAL}"{hashlib.sha256(body.encode()).hexdigest()}"\n}}\n'


def from_json(text: str, *, where: str, law_array: Array | None = None) -> Manifest:
    """Read a manifest.

    Args:
        text: The content of dataset.json.
        where: Its path, for messages.
        law_array: The array among the law's parameters, if there is one.

    Raises:
        UserError: If it is no manifest, or one of a newer version.
    """
    try:
        fields = json.loads(text)
        version = fields.pop("format_version")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{where} is no data set manifest ({error!r}); build the data set again with --force") from None
    if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
        raise UserError(
            f"{where} has format version {version}; this Dilute reads up to {FORMAT_VERSION}: "
            "use the version of Dilute that wrote it, or a newer one"
        )
    body, _, seal = text.rpartition(_SEAL)
    if seal != f'"{hashlib.sha256(body.encode()).hexdigest()}"\n}}\n':
        raise UserError(
            f"{where} was changed after it was written (its own sha256 differs); build the data set again with --force"
        )
    del fields["sha256"]
    try:
        law = law_from_json(fields["formula"].pop("law"), law_array)
        fields["formula"] = Formula(law=law, **fields["formula"])
        for split in ("train", "test"):
            files = fields[split]
            fields[split] = SplitFiles(
                files["num_images"],
                File(**files["index"]),
                tuple(Shard(**shard) for shard in files["shards"]),
                tuple(File(**extra) for extra in files["extras"]),
            )
        fields["counts"], fields["info"] = File(**fields["counts"]), File(**fields["info"])
        if law_array_file := fields.get("law_array"):  # not in the manifests of the first builders
            fields["law_array"] = File(**law_array_file)
        fields["augmentation"] = Augmentation(**fields["augmentation"])
        for name in ("classes", "mean", "std", "quarantine"):
            fields[name] = tuple(fields[name])
        fields["image_shape"] = fields["image_shape"] and tuple(fields["image_shape"])
        return Manifest(**fields)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{where} is damaged ({error!r}); build the data set again with --force") from None


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a folder of shards.

    Raises:
        UserError: If there is none (the data set is unfinished, or the folder is no data set).
    """
    path = folder / FILE_NAME
    try:
        text = path.read_bytes().decode()  # read_text would mend a line feed that became a carriage return
    except FileNotFoundError:
        raise UserError(
            f"{folder} holds no finished data set ({FILE_NAME} is missing); "
            "give a folder that tools/build_shards wrote, or run it again to finish"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); build the data set again with --force") from None
    return from_json(text, where=str(path), law_array=_read_law_array(folder / LAW_FILE))


def _read_law_array(path: Path) -> Array | None:
    """Read what may be there; whether it is the right array, its hash in the manifest tells."""
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        return None
    except Exception as error:  # NumPy raises ValueError, EOFError, MemoryError, TokenError … on a bad header
        raise UserError(f"{path} cannot be read ({error}); build the data set again with --force") from None
    return array if isinstance(array, Array) else None


def hash_file(path: Path, name: str | None = None) -> File:
    """Hash a file in pieces."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256")
    return File(name or path.name, path.stat().st_size, digest.hexdigest())
