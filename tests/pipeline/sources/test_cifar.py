"""CIFAR's files in both versions, written here byte for byte as its author's programs wrote them."""

import hashlib
import io
import pickle
import struct
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy import ndarray as Array

from pipeline.errors import UserError
from pipeline.sources import Augmentation, open_source
from pipeline.sources.cifar import Official, Version, open_cifar
from pipeline.sources.cifar10 import CIFAR10
from pipeline.sources.cifar100 import CIFAR100
from pipeline.sources.types import ArraySplit

NAMES = {"cifar10": [f"class {i}" for i in range(10)], "cifar100": [f"fine {i}" for i in range(100)]}
CIFARS = {"cifar10": CIFAR10, "cifar100": CIFAR100}
VERSIONS = [(name, version) for name, cifar in CIFARS.items() for version in cifar.versions]


def python2_pickle(value: Any) -> bytes:
    """Pickle as Python 2.7's cPickle with protocol 2 did: str as byte strings, NumPy 1's names."""
    return b"\x80\x02" + _opcodes(value) + b"."


def _opcodes(value: Any) -> bytes:
    if isinstance(value, dict):
        return b"}(" + b"".join(_opcodes(x) for pair in value.items() for x in pair) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(_opcodes, value)) + b"e"
    if isinstance(value, int):
        return b"K" + bytes([value])
    if isinstance(value, str):
        value = value.encode("latin1")
    if isinstance(value, bytes):
        short = len(value) < 256
        return (b"U" + bytes([len(value)]) if short else b"T" + struct.pack("<i", len(value))) + value
    shape = b"".join(b"M" + struct.pack("<H", size) for size in value.shape)
    dtype = b"cnumpy\ndtype\n" + _opcodes("u1") + b"K\0K\1\x87R(K\3" + _opcodes("|") + b"NNNJ" + b"\xff" * 4
    dtype += b"J" + b"\xff" * 4 + b"K\0tb"
    return (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85" + _opcodes("b") + b"\x87R(K\1("
        + shape + b"t" + dtype + b"\x89" + _opcodes(value.tobytes()) + b"tb"
    )  # fmt: skip


def planes(count: int, seed: int) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (count, 3_072), dtype=np.uint8)


def files_of(name: str, version: Version, *, num_each: int = 12) -> tuple[dict[str, bytes], Array, Array]:
    """Return the files of a small set in one version, and all its training rows and labels."""
    num_classes = len(NAMES[name])
    files, rows, labels = {}, [], []
    for seed, file in enumerate((*version.train, version.test)):
        images = planes(num_each, seed)
        fine = (np.arange(num_each) * 7 + seed) % num_classes
        coarse = fine // 5
        if version.label_bytes:
            columns = [fine[:, None]] if version.label_bytes == 1 else [coarse[:, None], fine[:, None]]
            files[file] = np.hstack([*columns, images]).astype(np.uint8).tobytes()
        else:
            batch = {"batch_label": f"batch {seed}", version.label_key: fine.tolist(), "data": images}
            batch |= {"filenames": [f"{i}.png" for i in range(num_each)]}
            if name == "cifar100":
                batch["coarse_labels"] = coarse.tolist()
            files[file] = python2_pickle(batch)
        if file != version.test:
            rows.append(images)
            labels.append(fine)
    if version.label_bytes:
        files[version.meta] = ("\n".join(NAMES[name]) + "\n\n").encode()  # batches.meta.txt ends in an empty line
    else:
        files[version.meta] = python2_pickle({"num_vis": 32, version.names_key: NAMES[name]})
    return files, np.concatenate(rows), np.concatenate(labels)


def write_folder(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


def write_archive(path: Path, files: dict[str, bytes], folder: str) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in {"readme.html": b"<html>", **files}.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def place(kind: str, tmp_path: Path, version: Version, files: dict[str, bytes]) -> Path:
    """Put a set where users have it and return what they pass as --source."""
    if kind == "archive":
        write_archive(tmp_path / version.archive, files, version.folder)
        return tmp_path / version.archive
    if kind == "renamed archive":
        write_archive(tmp_path / "mine.tgz", files, version.folder)
        return tmp_path / "mine.tgz"
    if kind == "folder of the archive":
        write_archive(tmp_path / version.archive, files, version.folder)
        return tmp_path
    write_folder(tmp_path / version.folder, files)
    return tmp_path if kind == "folder above" else tmp_path / version.folder


@pytest.mark.parametrize(("name", "version"), VERSIONS)
@pytest.mark.parametrize("kind", ["archive", "renamed archive", "folder of the archive", "folder", "folder above"])
def test_a_set_reads_back_as_written(name: str, version: Version, kind: str, tmp_path: Path) -> None:
    files, rows, labels = files_of(name, version)
    source = open_source(name, place(kind, tmp_path, version, files))
    assert source.name == name
    assert source.classes == tuple(NAMES[name])
    assert source.augmentation == Augmentation("shift", shift_px=4, flip=True)
    assert isinstance(source.train, ArraySplit)
    assert source.train.images.shape == (len(rows), 32, 32, 3)
    assert source.train.images.flags.writeable
    assert np.array_equal(source.train.labels, labels)
    assert len(source.test) == 12
    for index in (0, len(rows) - 1):  # h w c from planes of red, green and blue
        assert np.array_equal(source.train.images[index, 5, 7], rows[index].reshape(3, 32, 32)[:, 5, 7])


@pytest.mark.parametrize("name", CIFARS)
def test_both_versions_give_the_same_set(name: str, tmp_path: Path) -> None:
    sources = []
    for version in CIFARS[name].versions:
        sources.append(open_source(name, place("folder", tmp_path, version, files_of(name, version)[0])))
    one, other = (source.train for source in sources)
    assert isinstance(one, ArraySplit)
    assert isinstance(other, ArraySplit)
    assert np.array_equal(one.images, other.images)
    assert np.array_equal(one.labels, other.labels)
    assert sources[0].classes == sources[1].classes


@pytest.mark.parametrize(("name", "version"), VERSIONS)
def test_without_the_meta_file_classes_are_numbers(name: str, version: Version, tmp_path: Path) -> None:
    files, _, _ = files_of(name, version)
    del files[version.meta]
    source = open_source(name, place("folder", tmp_path, version, files))
    assert source.classes == tuple(map(str, range(len(NAMES[name]))))


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("keys", [str, str.encode])
def test_files_that_python_3_pickled_are_read(protocol: int, keys: Any, tmp_path: Path) -> None:
    version = CIFAR10.versions[0]
    files, rows, labels = files_of("cifar10", version)
    for file in version.train:
        images = planes(12, version.train.index(file))
        batch = {keys("labels"): labels[:12].tolist(), keys("data"): images}
        files[file] = pickle.dumps(batch, protocol=protocol)
    source = open_source("cifar10", place("folder", tmp_path, version, files))
    assert isinstance(source.train, ArraySplit)
    assert np.array_equal(source.train.images[3, 0, 0], rows[3].reshape(3, -1)[:, 0])


def test_arrays_stored_by_columns_are_read(tmp_path: Path) -> None:
    version = CIFAR10.versions[0]
    files, _, _ = files_of("cifar10", version)
    for protocol in (2, 5):
        files["test_batch"] = pickle.dumps({"labels": [0] * 3, "data": np.asfortranarray(planes(3, 5))}, protocol)
        source = open_source("cifar10", place("folder", tmp_path, version, files))
        assert isinstance(source.test, ArraySplit)
        assert np.array_equal(source.test.images[2, 1, 4], planes(3, 5)[2].reshape(3, 32, 32)[:, 1, 4])


def test_a_type_that_would_end_the_process_in_numpy_s_hands_is_refused(tmp_path: Path) -> None:
    version = CIFAR10.versions[0]
    files, _, _ = files_of("cifar10", version)
    for old, new in ((b"u1", b"O8"), (b"u1", b"V9"), (b"\x87R(K\1(", b"\x87R(K\1(J\xff\xff\xff\x7f")):
        damaged = dict(files, data_batch_1=files["data_batch_1"].replace(old, new))
        with pytest.raises(UserError, match="data_batch_1: 'data' must be a uint8 array"):
            open_source("cifar10", place("folder", tmp_path, version, damaged))


def test_a_place_that_would_need_a_huge_table_is_refused(tmp_path: Path) -> None:
    version = CIFAR10.versions[0]
    files, _, _ = files_of("cifar10", version)
    files["test_batch"] = files["test_batch"][:3] + b"r" + struct.pack("<I", 2_000_000) + files["test_batch"][3:]
    with pytest.raises(UserError, match=r"test_batch: no intact pickle \(ValueError\)"):
        open_source("cifar10", place("folder", tmp_path, version, files))


def official_copy(files: dict[str, bytes]) -> dict[str, Official]:
    return {name: Official(len(data), hashlib.md5(data).hexdigest()) for name, data in files.items()}


@pytest.mark.parametrize("kind", ["archive", "folder"])
def test_an_official_file_with_another_md5_is_refused(kind: str, tmp_path: Path) -> None:
    version = CIFAR10.versions[0]
    files, _, _ = files_of("cifar10", version)
    path = place(kind, tmp_path, version, files)
    official_file = path if kind == "archive" else path / "data_batch_3"
    cifar = replace(CIFAR10, official=official_copy({official_file.name: official_file.read_bytes()}))
    open_cifar(cifar, path)
    data = bytearray(official_file.read_bytes())
    data[len(data) // 2] ^= 1
    official_file.write_bytes(data)
    with pytest.raises(UserError, match=f"{official_file} is as long as the official file, but its MD5 is .*fetch"):
        open_cifar(cifar, path)


def test_the_official_sizes_are_those_of_real_files_only(tmp_path: Path) -> None:
    assert min(official.num_bytes for cifar in CIFARS.values() for official in cifar.official.values()) > 30_000_000
    known = {file for cifar in CIFARS.values() for v in cifar.versions for file in (v.archive, *v.train, v.test)}
    assert {file for cifar in CIFARS.values() for file in cifar.official} <= known


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('ran')",)


@pytest.mark.parametrize("victim", ["data_batch_1", "batches.meta"])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pickle.dumps({"data": Harmful()}), "asks for builtins.exec, which a file of arrays does not need; nothing"),
        (b"cos\nsystem\n(S'touch ran'\ntR.", "asks for os.system"),
        (b"\x80\x02cnumpy.core.multiarray\nscalar\n.", "asks for numpy.core.multiarray.scalar"),
        (b"\x80\x02cnumpy\nload\n.", "asks for numpy.load"),
        (b"\x80\x04\x8c\x05numpy\x8c\x11ndarray.__class__\x93.", "asks for numpy.ndarray.__class__"),
        (pickle.dumps([1, 2]), "holds a list, not a dictionary"),
        (b"no pickle", "no intact pickle"),
        (b"", "no intact pickle"),
    ],
)
def test_a_pickle_of_anything_but_arrays_is_refused_and_runs_nothing(
    victim: str, data: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    version = CIFAR10.versions[0]
    files, _, _ = files_of("cifar10", version)
    files[victim] = data
    path = place("folder", tmp_path, version, files)
    with pytest.raises(UserError, match=f"{victim}: {message}"):
        open_source("cifar10", path)
    assert not (tmp_path / "ran").exists()


@settings(max_examples=300)
@given(data=st.data())
def test_a_damaged_pickle_is_refused_or_reads_as_some_batch(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    version = CIFAR10.versions[0]
    files, _, _ = files_of("cifar10", version, num_each=2)
    whole = bytearray(files["data_batch_2"])
    head = whole.index(planes(2, 1).tobytes())
    whole[data.draw(st.integers(0, head))] ^= data.draw(st.integers(1, 255))
    files["data_batch_2"] = bytes(whole)
    path = place("folder", tmp_path_factory.mktemp("cifar"), version, files)
    try:
        assert len(open_source("cifar10", path).train) == 10
    except UserError as error:
        assert str(path) in str(error)  # noqa: PT017 - most flips in labels and names are not detectable


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"labels": [1, 2]}, "'data' must be a uint8 array of n × 3,072"),
        ({"labels": [1], "data": np.zeros((1, 3_071), np.uint8)}, "'data' must be a uint8 array"),
        ({"labels": [1], "data": np.zeros((1, 3_072), np.float32)}, "'data' must be a uint8 array"),
        ({"labels": [1], "data": np.zeros((1, 3_072), np.int8)}, "'data' must be a uint8 array"),
        ({"labels": [1], "data": np.zeros((1, 3_072), object)}, "'data' must be a uint8 array"),
        ({"labels": [1], "data": np.zeros(3_072, np.uint8)}, "'data' must be a uint8 array"),
        ({"data": np.zeros((1, 3_072), np.uint8)}, "'labels' must be a list of class ids"),
        ({"labels": ["a"], "data": np.zeros((1, 3_072), np.uint8)}, "'labels' must be a list of class ids"),
        ({"labels": [1 << 70], "data": np.zeros((1, 3_072), np.uint8)}, "'labels' must be a list of class ids"),
        ({"labels": [-1], "data": np.zeros((1, 3_072), np.uint8)}, "'labels' must be a list of class ids"),
        ({"labels": [1, 2], "data": np.zeros((1, 3_072), np.uint8)}, "2 labels for 1 images"),
    ],
)
def test_a_batch_of_another_form_is_refused(batch: dict[str, Any], message: str, tmp_path: Path) -> None:
    version = CIFAR10.versions[0]
    files, _, _ = files_of("cifar10", version)
    files["data_batch_5"] = pickle.dumps(batch)
    with pytest.raises(UserError, match=f"data_batch_5: {message}"):
        open_source("cifar10", place("folder", tmp_path, version, files))


@pytest.mark.parametrize("name", CIFARS)
def test_a_label_beyond_the_classes_is_refused(name: str, tmp_path: Path) -> None:
    version = CIFARS[name].versions[1]
    files, _, _ = files_of(name, version)
    data = bytearray(files[version.test])
    data[version.label_bytes - 1] = 200
    files[version.test] = bytes(data)
    with pytest.raises(UserError, match=rf"{version.test}: label 200 of image 0 .*allowed are 0 to"):
        open_source(name, place("folder", tmp_path, version, files))


@pytest.mark.parametrize("cut", [1, 3_072, 3_073 * 12])
def test_a_truncated_binary_file_is_refused(cut: int, tmp_path: Path) -> None:
    version = CIFAR10.versions[1]
    files, _, _ = files_of("cifar10", version)
    files["data_batch_2.bin"] = files["data_batch_2.bin"][:-cut]
    with pytest.raises(UserError, match=r"data_batch_2\.bin: [\d,]+ bytes, not a multiple of 3,073"):
        open_source("cifar10", place("folder", tmp_path, version, files))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_archive_is_refused(share: float, tmp_path: Path) -> None:
    version = CIFAR10.versions[0]
    path = place("archive", tmp_path, version, files_of("cifar10", version)[0])
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError, match=f"{path}: no intact .tar.gz"):
        open_source("cifar10", path)


@pytest.mark.parametrize("member", ["../data_batch_1", "/tmp/data_batch_1", "a/../../data_batch_1"])
def test_a_member_that_leads_out_of_the_archive_is_refused(member: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo(member))
    with pytest.raises(UserError, match=r"has an absolute path or one with '\.\.'"):
        open_source("cifar10", tmp_path / "x.tar.gz")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    version = CIFAR10.versions[0]
    files, _, _ = files_of("cifar10", version)
    del files["data_batch_4"]
    for kind in ("folder", "archive"):
        with pytest.raises(UserError, match="holds no data_batch_4; give all files of cifar-10-python"):
            open_source("cifar10", place(kind, tmp_path, version, files))


def test_names_that_are_too_few_are_refused(tmp_path: Path) -> None:
    version = CIFAR100.versions[1]
    files, _, _ = files_of("cifar100", version)
    files[version.meta] = b"apple\nbaby\n"
    with pytest.raises(UserError, match=r"fine_label_names\.txt: 2 class names where cifar100 has 100"):
        open_source("cifar100", place("folder", tmp_path, version, files))


def test_a_place_that_holds_none_of_it_says_what_it_looks_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no cifar-10-python.tar.gz or cifar-10-binary.tar.gz and no cifar-10-b"):
        open_source("cifar10", tmp_path)
    write_archive(tmp_path / "x.tar.gz", {}, "other")
    with pytest.raises(UserError, match="holds neither version of cifar100"):
        open_source("cifar100", tmp_path / "x.tar.gz")


@pytest.mark.parametrize("name", CIFARS)
def test_without_a_path_the_cache_is_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DILUTE_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=f"{name} needs its files: run `tools/fetch {name}`, or pass --source"):
        open_source(name)
    version = CIFARS[name].versions[0]
    (tmp_path / name).mkdir()
    place("archive", tmp_path / name, version, files_of(name, version)[0])
    assert len(open_source(name).test) == 12


def test_an_image_is_named_by_its_file(tmp_path: Path) -> None:
    version = CIFAR100.versions[0]
    source = open_source("cifar100", place("folder", tmp_path, version, files_of("cifar100", version)[0]))
    assert source.test.name_of(3) == f"{tmp_path}/cifar-100-python/test image 3"
