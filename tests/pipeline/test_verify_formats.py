"""What is found in every format and layout: any changed byte, and what is wrong under hashes that are right."""

import dataclasses
import hashlib
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from photos import ODD, write_tree

from pipeline.builder import build
from pipeline.dataset import dilute
from pipeline.errors import UserError
from pipeline.formats.beton_reader import read_beton
from pipeline.laws import Law, Matrix, StoredArray, Symmetric, Uniform
from pipeline.manifest import FILE_NAME, LAW_FILE, File, Shard, SplitFiles, read_manifest, to_json
from pipeline.plan import Options, plan_build
from pipeline.sources import open_source
from pipeline.verify import Problem, verify

T = Matrix(StoredArray(np.array([[0.5, 0.5], [0.2, 0.8]])))
MADE: dict[str, tuple[dict[str, Any], int, Law]] = {
    "examples": ({"index": "examples"}, 3, Uniform()),
    "expanded": ({"layout": "expanded"}, 3, Uniform()),
    "flipped": ({}, 0, Symmetric(0.4)),
    "matrix": ({}, 0, T),
    "shrunk": ({"max_side": 22, "quality": 80}, 3, Uniform()),
    "unchecked": ({"check": "none"}, 3, Uniform()),
    "ffcv": ({"format": "ffcv"}, 3, Uniform()),
    "ffcv of examples": ({"format": "ffcv", "index": "examples"}, 3, Uniform()),
    "ffcv of a flip": ({"format": "ffcv"}, 0, Symmetric(0.4)),
}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Build 14 images of every odd kind in shards of 5, and 4 test images, in every format."""
    root = tmp_path_factory.mktemp("sets")
    more = {f"train/{'ab'[number % 2]}/{name}": data for number, (name, (data, *_)) in enumerate(ODD.items())}
    source = open_source("folder", write_tree(root / "in", num_train=8, more=more))
    for name, (options, alpha, law) in MADE.items():
        dataset = dilute(source, alpha=alpha, law=law, noise_seed=3)
        build(plan_build(source, dataset, Options(shard_images=5, **options)), root / name)
    return {name: root / name for name in MADE}


@pytest.fixture
def copy(sets: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """Return a maker of copies to damage."""
    return lambda name: shutil.copytree(sets[name], tmp_path / "copy")


@pytest.mark.parametrize("name", MADE)
def test_what_the_builder_wrote_is_accepted(sets: dict[str, Path], name: str) -> None:
    seen: list[int] = []
    assert verify(sets[name], progress=lambda images, num_bytes: seen.append(images)) == []
    assert sum(seen) == sum(files.num_rows for files in read_manifest(sets[name]).splits.values())


# ---- any one byte ----


def changed(path: Path, at: int, change: int) -> bytes:
    data = path.read_bytes()
    return data[:at] + bytes([data[at] ^ change]) + data[at + 1 :]


def problems_with(path: Path, data: bytes) -> list[Problem]:
    """Verify with other bytes where a file lies, and put it back: hypothesis gives a test one folder."""
    before = path.read_bytes()
    path.write_bytes(data)
    try:
        return verify(path.parent)
    except UserError as error:
        assert path.name in (LAW_FILE, FILE_NAME)  # without which nothing is known of the others
        return [Problem(path.name, None, str(error))]
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("name", MADE)
@given(data=st.data(), place=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255))
def test_any_changed_byte_is_found_and_its_file_named(
    sets: dict[str, Path], name: str, data: st.DataObject, place: float, change: int
) -> None:
    path = data.draw(st.sampled_from(sorted(sets[name].iterdir())))
    problems = problems_with(path, changed(path, int(place * path.stat().st_size), change))
    named = {problem.file for problem in problems}
    assert path.name in named
    # A shard whose headers are unreadable does not fit the indices of stock readers.
    assert named <= {path.name, f"{path.stem}.idx", f"{path.stem}.diluted.idx"}


@pytest.mark.parametrize("name", MADE)
@settings(max_examples=25)
@given(data=st.data(), change=st.integers(1, 255))
def test_a_changed_byte_of_an_image_is_found_and_the_image_named(
    sets: dict[str, Path], name: str, data: st.DataObject, change: int
) -> None:
    manifest = read_manifest(sets[name])
    split = data.draw(st.sampled_from(["train", "test"]))
    shard = data.draw(st.sampled_from(manifest.splits[split].shards))
    row = shard.first + data.draw(st.integers(0, shard.count - 1))
    record = np.load(sets[name] / f"{split}.index.npy")[row]
    at = int(record["offset"]) + data.draw(st.integers(0, int(record["size"]) - 1))
    path = sets[name] / shard.name
    assert problems_with(path, changed(path, at, change)) == [
        Problem(shard.name, None, "its sha256 differs from the manifest's"),
        Problem(shard.name, row, "its size or crc32 differs from the index"),
    ]


@pytest.mark.parametrize("name", ["ffcv", "ffcv of examples"])
@pytest.mark.parametrize("left", [0, 1, 100, 5_000, -5_000, -1])
def test_a_beton_that_was_cut_short_is_named(copy: Callable[[str], Path], name: str, left: int) -> None:
    folder = copy(name)
    data = (folder / "train.beton").read_bytes()
    (folder / "train.beton").write_bytes(data[:left])
    problems = verify(folder)
    assert Problem("train.beton", None, f"has {len(data[:left]):,} bytes, not {len(data):,}") in problems
    assert {problem.file for problem in problems} == {"train.beton"}


def test_a_missing_beton_is_named(copy: Callable[[str], Path]) -> None:
    folder = copy("ffcv")
    (folder / "test.beton").unlink()
    assert verify(folder) == [Problem("test.beton", None, "is missing")]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["expanded", "ffcv of examples"])
def test_workers_find_what_one_process_finds(copy: Callable[[str], Path], name: str) -> None:
    folder = copy(name)
    for path in folder.iterdir():
        if path.suffix in (".tar", ".beton", ".idx"):
            at = max(path.stat().st_size // 3, path.stat().st_size - 3_000)  # in an image, or in a row
            path.write_bytes(changed(path, at, 1))
    (folder / "counts.npz").unlink()
    found = verify(folder)
    assert len(found) > 4
    assert verify(folder, workers=2) == found


# ---- under hashes that are right ----


def reseal(folder: Path) -> None:
    """Write a manifest that vouches for the files as they are now."""
    manifest = read_manifest(folder)

    def again(file: File) -> File:
        data = (folder / file.name).read_bytes()
        return dataclasses.replace(file, num_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    def split(files: SplitFiles) -> SplitFiles:
        shards = tuple(shard for shard in map(again, files.shards) if isinstance(shard, Shard))
        return SplitFiles(files.num_images, again(files.index), shards, tuple(map(again, files.extras)))

    new = dataclasses.replace(manifest, train=split(manifest.train), test=split(manifest.test))
    (folder / FILE_NAME).write_text(to_json(new))


def member(path: Path, name: str) -> tuple[int, int]:
    with tarfile.open(path) as archive:
        found = archive.getmember(name)
    return found.offset_data, found.size


def overwrite(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def test_a_wrong_label_of_an_expanded_example_is_found(copy: Callable[[str], Path]) -> None:
    folder = copy("expanded")
    path = folder / "train-000004.tar"
    row = read_manifest(folder).train.shards[4].first + 2
    with tarfile.open(path) as archive:
        label = archive.getmembers()[2 * 2 + 1]
    assert label.name.endswith(".cls")
    right = path.read_bytes()[label.offset_data] - ord("0")
    overwrite(path, label.offset_data, b"%d" % (1 - right))
    reseal(folder)
    (problem,) = verify(folder)
    assert (problem.file, problem.image_id) == (path.name, row)
    assert problem.reason.startswith(f"its label is b'{1 - right}'; ")


def test_a_row_of_the_diluted_index_with_another_label_is_found(copy: Callable[[str], Path]) -> None:
    folder = copy("examples")
    path = folder / "train-000001.diluted.idx"
    lines = path.read_text().splitlines()
    one, two = " lbl 512 4", " lbl 1536 4"
    lines[7] = lines[7].replace(one, "?").replace(two, one).replace("?", two)
    path.write_text("\n".join([*lines, ""]))
    reseal(folder)
    assert verify(folder) == [Problem(path.name, None, "does not describe train-000001.tar")]


def test_a_dictionary_with_a_wrong_label_is_found(copy: Callable[[str], Path]) -> None:
    folder = copy("examples")
    path = folder / "train-000001.tar"
    overwrite(path, member(path, "__labels__/0001.lbl")[0], b"\0")
    reseal(folder)
    assert verify(folder) == [
        Problem(path.name, None, "its dictionary of labels lacks class 1; the rest of the shard was not checked")
    ]


@pytest.mark.parametrize("name", ["ffcv", "ffcv of examples", "ffcv of a flip"])
def test_a_wrong_row_of_a_beton_is_found(copy: Callable[[str], Path], name: str) -> None:
    folder = copy(name)
    path = folder / "train.beton"
    beton = read_beton(path)
    rows_at = beton.header.nbytes + beton.descriptors.nbytes
    last, size = len(beton.rows) - 1, beton.rows.dtype.itemsize
    label = beton.rows.dtype.fields["label"][1]  # type: ignore[index]
    right = int(beton.rows["label"][last])
    overwrite(path, rows_at + last * size + label, bytes([1 - right]))
    reseal(folder)
    assert verify(folder) == [Problem(path.name, 13, f"the label of row {last} is {1 - right}, not {right}")]


def test_a_row_of_a_beton_that_shows_another_image_is_found(copy: Callable[[str], Path]) -> None:
    folder = copy("ffcv of examples")
    path = folder / "train.beton"
    beton = read_beton(path)
    rows_at, size = beton.header.nbytes + beton.descriptors.nbytes, beton.rows.dtype.itemsize
    other = beton.rows[3].tobytes()
    wrong = np.frombuffer(other, beton.rows.dtype).copy()
    wrong["label"] = beton.rows["label"][30]
    overwrite(path, rows_at + 30 * size, wrong.tobytes())
    reseal(folder)
    found = verify(folder)
    assert {(problem.file, problem.image_id) for problem in found} == {(path.name, 30 % 14)}
    assert any("data_ptr of row 30" in problem.reason for problem in found)


def test_a_wrong_noisy_label_beside_an_image_of_a_beton_is_found(copy: Callable[[str], Path]) -> None:
    folder = copy("ffcv")
    path = folder / "train.beton"
    record = np.load(folder / "train.index.npy")[9]
    at = int(record["offset"]) + int(record["size"]) + 2 * 1  # of copy 2
    right = path.read_bytes()[at]
    overwrite(path, at, bytes([1 - right]))
    reseal(folder)
    assert verify(folder) == [Problem(path.name, 9, f"the label of copy 2 is {1 - right}; the formula gives {right}")]
