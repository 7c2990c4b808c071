"""ImageNet (ILSVRC2012) as its users have it: trees of files, the original tar archives, Kaggle's layout.

Classes are the sorted WordNet ids, as in torchvision. Both splits are listed class by class and by name, whatever
the layout, so a data set is the same from the original archives as from an unpacked tree.

    train    train/n01440764/*.JPEG, or ILSVRC2012_img_train.tar (a tar of one tar a class, read in place)
    test     val/n01440764/*.JPEG, or val/*.JPEG or ILSVRC2012_img_val.tar with one of
                 LOC_val_solution.csv                     Kaggle's answers
                 ILSVRC2012_devkit_t12[.tar.gz]           the development kit: ground truth and meta.mat
    names    LOC_synset_mapping.txt or the development kit, if there; else classes are called by their ids

Kaggle's archive unpacks to ILSVRC/Data/CLS-LOC/train and val; --source may name the folder above ILSVRC. Members of
archives with absolute paths, with '..', and links are refused when the archive is opened, before anything is read.
"""

from __future__ import annotations

import csv
import io
import os
import re
import tarfile
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from pipeline.errors import UserError
from pipeline.formats.tar_members import Member, members
from pipeline.sources.files import (
    SUFFIXES,
    FileSplit,
    TarSplit,
    check_classes,
    class_folders,
    image_names,
    open_tree,
)
from pipeline.sources.folder import AUGMENTATION
from pipeline.sources.types import Source, Split

TRAIN_TAR: Final = "ILSVRC2012_img_train.tar"
VAL_TAR: Final = "ILSVRC2012_img_val.tar"
DEVKIT: Final = "ILSVRC2012_devkit_t12"
ANSWERS_CSV: Final = "LOC_val_solution.csv"
ANSWERS_TXT: Final = "ILSVRC2012_validation_ground_truth.txt"
MAPPING: Final = "LOC_synset_mapping.txt"

_WNID: Final = re.compile(r"n\d{8}")
_WNID_TAR: Final = re.compile(r"n\d{8}\.tar")
_DATA_FOLDERS: Final = (".", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")


class _Devkit(NamedTuple):
    """What the development kit says.

    Args:
        wnids: WordNet id of each ILSVRC2012 id.
        words: Words of each WordNet id.
        truth: ILSVRC2012 id of each validation image, in the order of their numbers.
    """

    wnids: dict[int, str]
    words: dict[str, str]
    truth: list[int]


def open_imagenet(path: Path | None = None) -> Source:
    """Open ImageNet, or a part of it with fewer classes, or a tree that `tools/fetch synthetic-imagenet` wrote.

    Args:
        path: The folder that holds what this module's head describes.

    Raises:
        UserError: Without a path, or if a split is missing or not as described.
    """
    if path is None:
        raise UserError(
            f"imagenet needs --source DIR, a folder with train/n*/*.JPEG or {TRAIN_TAR}, and val/; "
            "for a smoke run make one: tools/fetch synthetic-imagenet --out DIR"
        )
    if not path.is_dir():
        raise UserError(f"imagenet: no folder {path}; --source names the folder that holds train/ and val/")
    wnids, train = _open_train(path)
    devkit = _read_devkit(path)
    test = _open_test(path, wnids, devkit)
    words = _read_mapping(path) or (devkit.words if devkit else {})
    classes = tuple(f"{wnid} {words[wnid]}" if wnid in words else wnid for wnid in wnids)
    return Source("imagenet", classes, train, test, AUGMENTATION)


def _open_train(path: Path) -> tuple[tuple[str, ...], Split]:
    if tree := _first(path, "train", Path.is_dir):
        wnids = class_folders(path / tree)
        _check_wnids(wnids, path / tree)
        return wnids, open_tree(path, tree, wnids)
    if archive := _first(path, TRAIN_TAR, Path.is_file):
        return _open_train_tar(path / archive)
    raise UserError(
        f"imagenet: {path} holds neither train/ nor {TRAIN_TAR}; --source names the folder with one of them"
    )


def _open_train_tar(path: Path) -> tuple[tuple[str, ...], TarSplit]:
    """List a tar of tars: one small read an image."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        outer = sorted(members(file, 0, os.fstat(file).st_size, archive=str(path)))
        for member, following in pairwise([*outer, Member("", 0, 0)]):
            if not _WNID_TAR.fullmatch(member.name) or member.name == following.name:
                raise UserError(f"{path}: member {member.name!r}; it must hold one n01234567.tar a class, each once")
        wnids = tuple(member.name.removesuffix(".tar") for member in outer)
        check_classes(wnids, path)
        return wnids, TarSplit(path, [member.name for member in outer], (_inside(file, path, each) for each in outer))
    finally:
        os.close(file)


def _inside(file: int, path: Path, outer: Member) -> list[Member]:
    """List the images of one class's archive, which lies in the archive of all."""
    name = f"{path}/{outer.name}"
    return _images(members(file, outer.offset, outer.size, archive=name), name)


def _images(listed: Iterable[Member], archive: str) -> list[Member]:
    """Sort the images of an archive by name, as torchvision lists them once they are unpacked."""
    places = sorted(member for member in listed if os.path.splitext(member.name)[1].lower() in SUFFIXES)
    if not places:
        raise UserError(f"{archive} holds no image; get the original file")
    for member, following in pairwise(places):
        if member.name == following.name:
            raise UserError(f"{archive} holds {member.name!r} twice; get the original file")
    return places


def _open_test(path: Path, wnids: tuple[str, ...], devkit: _Devkit | None) -> Split:
    tree = _first(path, "val", Path.is_dir)
    if tree and class_folders(path / tree):
        return open_tree(path, tree, wnids)
    if tree and (names := image_names(path / tree)):
        label_of = _answers(path, names, wnids, devkit)
        by_class = _by_class(names, label_of, len(wnids))
        return FileSplit(path, [tree] * len(wnids), by_class)
    if archive := _first(path, VAL_TAR, Path.is_file):
        file = os.open(path / archive, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(file).st_size
            places = _images(members(file, 0, size, archive=str(path / archive)), str(path / archive))
        finally:
            os.close(file)
        label_of = _answers(path, [place.name for place in places], wnids, devkit)
        return TarSplit(path / archive, [""] * len(wnids), _by_class(places, label_of, len(wnids)))
    raise UserError(
        f"imagenet: {path} holds neither val/ with images or class folders nor {VAL_TAR}; the validation images are "
        "the test split: put them there"
    )


def _by_class(rows: list[Any], label_of: list[int], num_classes: int) -> list[list[Any]]:
    grouped: list[list[Any]] = [[] for _ in range(num_classes)]
    for row, label in zip(rows, label_of, strict=True):
        grouped[label].append(row)
    return grouped


def _answers(path: Path, names: list[str], wnids: tuple[str, ...], devkit: _Devkit | None) -> list[int]:
    """Return the class of each validation image, from Kaggle's answers or the development kit.

    Raises:
        UserError: If there are no answers, or they and the images do not belong together.
    """
    stems = [os.path.splitext(os.path.basename(name))[0] for name in names]
    if answers := _first(path, ANSWERS_CSV, Path.is_file, "ILSVRC"):
        where, wnid_of = str(path / answers), _read_csv(path / answers)
    elif devkit is not None:
        where = f"{path / DEVKIT} ({ANSWERS_TXT})"
        wnid_of = {
            f"ILSVRC2012_val_{number:08d}": devkit.wnids.get(label, f"ILSVRC2012 id {label}")
            for number, label in enumerate(devkit.truth, 1)
        }
    else:
        raise UserError(
            f"imagenet: the validation images of {path} lie flat, and neither {ANSWERS_CSV} nor {DEVKIT}[.tar.gz] "
            "lies beside them; add one of them, or sort the images into val/n01234567/"
        )
    if surplus := sorted(set(stems) - wnid_of.keys()):
        raise UserError(
            f"{where} has no answer for {surplus[0]} (and {len(surplus) - 1:,} more); get the file that has"
        )
    if missing := sorted(wnid_of.keys() - set(stems)):
        raise UserError(
            f"{where} has {len(wnid_of):,} answers for {len(stems):,} images: {missing[0]} (and {len(missing) - 1:,} "
            "more) is missing; get all the images"
        )
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    for stem in stems:
        if wnid_of[stem] not in label_of:
            raise UserError(
                f"{where}: {stem} is of class {wnid_of[stem]}, which the training split does not have; "
                "give both splits the same classes"
            )
    return [label_of[wnid_of[stem]] for stem in stems]


def _read_csv(path: Path) -> dict[str, str]:
    """Read Kaggle's answers: the image, then its boxes, each a WordNet id and four numbers."""
    rows = list(csv.reader(io.StringIO(_read_text(path))))
    if not rows or rows[0][:2] != ["ImageId", "PredictionString"]:
        raise UserError(f"{path}: must begin with the line ImageId,PredictionString; get Kaggle's {ANSWERS_CSV}")
    wnid_of = {}
    for number, row in enumerate(rows[1:], 2):
        wnid = row[1].split()[0] if len(row) == 2 and row[1].split() else ""
        if not _WNID.fullmatch(wnid):
            raise UserError(f"{path}: line {number} is no image and its WordNet id; get Kaggle's {ANSWERS_CSV}")
        wnid_of[row[0]] = wnid
    return wnid_of


def _read_mapping(path: Path) -> dict[str, str]:
    """Read Kaggle's words of each WordNet id: `n01440764 tench, Tinca tinca`."""
    found = _first(path, MAPPING, Path.is_file, "ILSVRC")
    lines = _read_text(path / found).splitlines() if found else []
    return {wnid: words for wnid, _, words in (line.partition(" ") for line in lines) if words}


def _read_devkit(path: Path) -> _Devkit | None:
    """Read the development kit, unpacked or not, if it is there."""
    places = [path / DEVKIT / "data", path / "data", path]
    folder = next((place for place in places if (place / "meta.mat").is_file()), None)
    if folder is not None:
        try:
            return _parse_devkit((folder / "meta.mat").read_bytes(), (folder / ANSWERS_TXT).read_bytes(), str(folder))
        except OSError as error:
            raise UserError(f"{error.filename}: cannot be read: {error.strerror}; give the whole kit") from None
    archive = path / f"{DEVKIT}.tar.gz"
    if not archive.is_file():
        return None
    wanted: dict[str, bytes] = {}
    try:
        with tarfile.open(archive) as tar:  # 2.5 MB; read in memory, never unpacked
            for member in tar:
                name = os.path.basename(member.name)
                if member.isreg() and name in ("meta.mat", ANSWERS_TXT):
                    wanted[name] = tar.extractfile(member).read()  # type: ignore[union-attr]
        return _parse_devkit(wanted["meta.mat"], wanted[ANSWERS_TXT], str(archive))
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"{archive}: cannot be read ({error}); get the original file") from None
    except KeyError as error:
        raise UserError(f"{archive} does not hold {error}; get the original file") from None


def _parse_devkit(meta: bytes, truth: bytes, where: str) -> _Devkit:
    from scipy.io import loadmat  # takes 0.1 s that the other layouts need not wait

    try:
        synsets = np.atleast_1d(loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"])
        wnids = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
        words = {str(row["WNID"]): str(row["words"]) for row in synsets}
    except Exception as error:  # a damaged file raises whatever scipy's parser stumbles over
        raise UserError(f"{where}: meta.mat cannot be read ({error}); get the original file") from None
    try:
        return _Devkit(wnids, words, [int(line) for line in truth.split()])
    except ValueError:
        raise UserError(f"{where}: {ANSWERS_TXT} must hold one number a line; get the original file") from None


def _check_wnids(wnids: tuple[str, ...], where: Path) -> None:
    check_classes(wnids, where)
    for wnid in wnids:
        if not _WNID.fullmatch(wnid):
            raise UserError(
                f"{where / wnid}: not a WordNet id such as n01440764; remove it, or use the data set `folder` for "
                "trees with other names"
            )


def _first(path: Path, name: str, there: Any, *more: str) -> str | None:
    """Return where a file or folder lies below `path`: there itself, or where Kaggle's archives put it."""
    places = (os.path.normpath(os.path.join(folder, name)) for folder in (*_DATA_FOLDERS, *more))
    return next((place for place in places if there(path / place)), None)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); get the original file") from None
