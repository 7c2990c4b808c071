"""`dataset.json`: what a data set is and the hash of each of its files; no dates, no absolute paths."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy import ndarray as Array

from pipeline.errors import UserError
from pipeline.laws import Formula, law_from_json, law_to_json
from pipeline.sources.types import Augmentation, Encoding
from pipeline.storage import Folder, open_folder

FILE_NAME: Final = "dataset.json"
LAW_FILE: Final = "law.npy"
FORMAT_VERSION: Final = 2
_SEAL: Final = ',\n "sha256": '  # the last field is the hash of all the text before it

# One record per stored image, memory-mapped: where its bytes lie in its shard, their checksum, where it came from
# (source label and index), and what it decodes to (0 where nobody looked, see `--check none`).
INDEX_DTYPE: Final = np.dtype(
    [
        ("offset", "<u8"),
        ("size", "<u4"),
        ("crc32", "<u4"),
        ("source", "<u4"),
        ("label", "<u2"),
        ("height", "<u2"),
        ("width", "<u2"),
        ("channels", "u1"),
        ("encoding", "u1"),
    ]
)
ENCODINGS: Final[tuple[Encoding, ...]] = ("raw", "jpg", "png", "webp")  # what the numbers in `encoding` stand for


@dataclass(frozen=True)
class File:
    """A file of the data set and what it must hash to."""

    name: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Shard(File):
    """A file of rows `first` to `first + count - 1` of the split's index."""

    first: int
    count: int


@dataclass(frozen=True)
class SplitFiles:
    """The files of one split: its shards in the order of their images, and the index over all of them.

    Args:
        num_images: Images in it.
        index: One record per stored image; row i is image i. In layout "expanded" all images follow again and again,
            once for each noisy label.
        shards: In the order of the index's rows.
        extras: Index files of stock readers, which lie beside the shards.
    """

    num_images: int
    index: File
    shards: tuple[Shard, ...]
    extras: tuple[File, ...] = ()

    @property
    def num_rows(self) -> int:
        """Rows of the index: stored images."""
        return sum(shard.count for shard in self.shards)


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
        info: timm's description of the shards; None for a format that timm does not read.
        build: What the bytes were made from, as `Plan.describe` has it: two builds that agree in it are equal.
        encodings: Stored images of each encoding, over both splits.
        foreign: Images that noisy examples show in place of the clean ones, where the law has such.
        format: "webdataset" or "ffcv".
        layout: "shared" stores an image's bytes once, "expanded" once an example.
        rows: "images" or "examples": what a stock reader of the format sees one row of.
        law_array: The file of the array among the law's parameters; None if it has none.
        encoder: Name and version of the library that encoded images anew; None if none was.
        quarantine: Source images that were left out: split, index in the source, name and reason.
        observed: Whether the source labels of training images are as they were found in the world: some are wrong,
            nobody knows which, and `num_right` and `counts` compare with them and not with the truth.
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
    info: File | None
    build: dict[str, Any]
    encodings: dict[str, int]
    foreign: SplitFiles | None = None
    format: str = "webdataset"
    layout: str = "shared"
    rows: str = "images"
    law_array: File | None = None
    encoder: str | None = None
    quarantine: tuple[dict[str, Any], ...] = field(default=())
    observed: bool = False

    def files(self) -> list[File]:
        """List every file that the manifest vouches for."""
        alone = [file for file in (self.counts, self.info, self.law_array) if file]
        return [*alone, *(f for files in self.splits.values() for f in (files.index, *files.shards, *files.extras))]

    @property
    def splits(self) -> dict[str, SplitFiles]:
        """The splits by the name that their files begin with."""
        foreign = {} if self.foreign is None else {"foreign": self.foreign}
        return {"train": self.train, "test": self.test, **foreign}


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
    if version != FORMAT_VERSION:
        raise UserError(
            f"{where} has format version {version}; this Dilute reads {FORMAT_VERSION}: "
            "use the version of Dilute that wrote it, or build the data set again with --force"
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
        for split in ("train", "test", "foreign"):
            if (files := fields[split]) is not None:
                fields[split] = SplitFiles(
                    files["num_images"],
                    File(**files["index"]),
                    tuple(Shard(**shard) for shard in files["shards"]),
                    tuple(File(**extra) for extra in files["extras"]),
                )
        for name in ("counts", "info", "law_array"):
            if (file := fields[name]) is not None:
                fields[name] = File(**file)
        fields["augmentation"] = Augmentation(**fields["augmentation"])
        for name in ("classes", "mean", "std", "quarantine"):
            fields[name] = tuple(fields[name])
        fields["image_shape"] = fields["image_shape"] and tuple(fields["image_shape"])
        return Manifest(**fields)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{where} is damaged ({error!r}); build the data set again with --force") from None


def read_manifest(where: Folder | str | Path) -> Manifest:
    """Read the manifest of a folder of shards.

    Raises:
        UserError: If there is none (the data set is unfinished, or the folder is no data set).
    """
    folder = where if isinstance(where, Folder) else open_folder(where)
    path = f"{folder}/{FILE_NAME}"
    try:
        text = folder.read(FILE_NAME).decode()  # as text, a line feed that became a carriage return would be mended
    except FileNotFoundError:
        raise UserError(
            f"{folder} holds no finished data set ({FILE_NAME} is missing); "
            "give a folder that tools/build_shards wrote, or run it again to finish"
        ) from None
    except NotADirectoryError:
        raise UserError(f"{folder} is a file; give the folder of a data set, as tools/build_shards wrote it") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; give a folder whose files can be read") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} cannot be read ({error}); build the data set again with --force") from None
    try:
        with_array = json.loads(text)["law_array"] is not None
    except (ValueError, KeyError, TypeError):
        with_array = False  # `from_json` says what is wrong
    return from_json(text, where=path, law_array=_read_law_array(folder) if with_array else None)


def _read_law_array(folder: Folder) -> Array | None:
    """Read what may be there; whether it is the right array, its hash in the manifest tells."""
    try:
        array = np.load(BytesIO(folder.read(LAW_FILE)), allow_pickle=False)
    except FileNotFoundError:
        return None
    except Exception as error:  # NumPy raises ValueError, EOFError, MemoryError, TokenError … on a bad header
        raise UserError(
            f"{folder}/{LAW_FILE} cannot be read ({error}); build the data set again with --force"
        ) from None
    return array if isinstance(array, Array) else None
