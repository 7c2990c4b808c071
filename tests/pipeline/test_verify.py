import dataclasses
import hashlib
import io
import shutil
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy import ndarray as Array

from pipeline.builder import build
from pipeline.dataset import dilute
from pipeline.errors import UserError
from pipeline.manifest import FILE_NAME, File, Manifest, Shard, SplitFiles, read_manifest, to_json
from pipeline.plan import Options, plan_build
from pipeline.sources.synthetic import synthetic
from pipeline.verify import Problem, verify

NAMES = [
    *(f"train-00000{number}.{suffix}" for number in range(3) for suffix in ("tar", "idx")),
    *("test-000000.tar", "test-000000.idx", "train.index.npy", "test.index.npy", "counts.npz", "_info.json"),
]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build 14 images and 4 labels each in shards of 5, and 3 test images."""
    folder = tmp_path_factory.mktemp("pristine")
    source = synthetic(num_train=14, num_test=3, height=5, width=6, channels=1)
    build(plan_build(source, dilute(source, alpha=4, noise_seed=3), Options(shard_images=5)), folder)
    return folder


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    """Return a copy to damage."""
    return shutil.copytree(pristine, tmp_path / "copy")


@pytest.mark.parametrize("alpha", [0, 1, 20])
@pytest.mark.parametrize("num_classes", [1, 10, 101])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_the_builder_wrote_is_accepted(tmp_path: Path, alpha: int, num_classes: int, channels: int) -> None:
    source = synthetic(num_train=14, num_test=3, height=4, width=4, channels=channels, num_classes=num_classes)
    build(plan_build(source, dilute(source, alpha=alpha, noise_seed=1), Options(shard_images=5)), tmp_path)
    seen: list[tuple[int, int]] = []
    assert verify(tmp_path, progress=lambda images, num_bytes: seen.append((images, num_bytes))) == []
    assert [images for images, _ in seen] == [5, 5, 4, 3]
    assert sum(num_bytes for _, num_bytes in seen) == sum(
        int(np.load(tmp_path / f"{split}.index.npy")["size"].sum()) for split in ("train", "test")
    )


def test_every_file_of_the_set_is_known_to_these_tests(pristine: Path) -> None:
    assert {path.name for path in pristine.iterdir()} == {*NAMES, FILE_NAME}


# ---- any one byte ----


def files_named(problems: list[Problem]) -> set[str]:
    return {problem.file for problem in problems}


@pytest.mark.parametrize("name", NAMES)
@given(place=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255))
def test_any_changed_byte_is_found_and_its_file_named(pristine: Path, name: str, place: float, change: int) -> None:
    # The byte is changed where it lies and put back: hypothesis gives a test one folder for all its examples.
    path = pristine / name
    data = path.read_bytes()
    at = int(place * len(data))
    path.write_bytes(data[:at] + bytes([data[at] ^ change]) + data[at + 1 :])
    try:
        problems = verify(pristine)
    finally:
        path.write_bytes(data)
    assert name in files_named(problems)
    allowed = {name, name.replace(".tar", ".idx")}  # a shard whose headers are unreadable does not fit its index
    assert files_named(problems) <= allowed


@given(place=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255))
def test_any_changed_byte_of_the_manifest_is_refused(pristine: Path, place: float, change: int) -> None:
    path = pristine / FILE_NAME
    data = path.read_bytes()
    at = int(place * len(data))
    path.write_bytes(data[:at] + bytes([data[at] ^ change]) + data[at + 1 :])
    try:
        with pytest.raises(UserError, match=r"dataset\.json"):
            verify(pristine)
    finally:
        path.write_bytes(data)


@pytest.mark.parametrize("name", ["train-000000.tar", "train-000001.tar", "test-000000.tar"])
@given(data=st.data())
def test_a_changed_byte_of_an_image_or_label_is_found_and_the_image_named(
    pristine: Path, name: str, data: st.DataObject
) -> None:
    path = pristine / name
    before = path.read_bytes()
    with tarfile.open(path) as archive:
        member = data.draw(st.sampled_from(archive.getmembers()).filter(lambda member: member.size))
    at = member.offset_data + data.draw(st.integers(0, member.size - 1))
    path.write_bytes(before[:at] + bytes([before[at] ^ data.draw(st.integers(1, 255))]) + before[at + 1 :])
    try:
        problems = verify(pristine)
    finally:
        path.write_bytes(before)
    assert (
        [(problem.file, problem.image_id) for problem in problems]
        == [
            (name, None),  # its sha256
            (name, int(member.name[:9])),
        ]
    )
    assert str(problems[1]).startswith(f"{name}: image {int(member.name[:9])}: ")


@pytest.mark.parametrize(
    ("at", "change"), [(8, 64), (21, 16), (26, 66)], ids=["TokenError", "SyntaxError", "TypeError"]
)
def test_a_header_on_which_numpy_stumbles_is_a_problem_like_others(folder: Path, at: int, change: int) -> None:
    shard = folder / "train-000000.tar"
    start, data = members(shard)["000000003.labels.npy"]
    overwrite(shard, start + at, bytes([data[at] ^ change]))
    problems = verify(folder)
    assert [(problem.file, problem.image_id) for problem in problems] == [(shard.name, None), (shard.name, 3)]
    assert problems[1].reason.startswith("its noisy labels cannot be read: ")


# ---- whole files ----


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert verify(folder) == [Problem(name, None, "is missing")]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("left", [0.0, 0.5, 0.999])
def test_a_truncated_file_is_named(folder: Path, name: str, left: float) -> None:
    data = (folder / name).read_bytes()
    size = int(left * len(data))
    (folder / name).write_bytes(data[:size])
    problems = verify(folder)
    assert Problem(name, None, f"has {size:,} bytes, not {len(data):,}") in problems
    assert files_named(problems) == {name}


@pytest.mark.parametrize("name", NAMES)
def test_a_file_with_something_behind_it_is_named(folder: Path, name: str) -> None:
    with (folder / name).open("ab") as file:
        file.write(b"\0" * 512)
    assert files_named(verify(folder)) == {name}


def test_two_swapped_shards_are_both_named(folder: Path) -> None:
    one, other = folder / "train-000000.tar", folder / "train-000001.tar"
    one_data, other_data = one.read_bytes(), other.read_bytes()
    assert len(one_data) == len(other_data)
    one.write_bytes(other_data)
    other.write_bytes(one_data)
    problems = verify(folder)
    assert files_named(problems) == {one.name, other.name}
    assert {(problem.file, problem.image_id) for problem in problems} >= {(one.name, 0), (other.name, 5)}


def test_a_folder_without_a_manifest_is_refused(folder: Path) -> None:
    (folder / FILE_NAME).unlink()
    with pytest.raises(UserError, match="holds no finished data set"):
        verify(folder)


# ---- what is written consistently, hashes and all, is found by computing it again ----


def reseal(folder: Path, **changes: Any) -> None:
    """Write a manifest that vouches for the files as they are now."""
    manifest = read_manifest(folder)

    def again(file: File) -> File:
        data = (folder / file.name).read_bytes()
        return dataclasses.replace(file, num_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    def split(files: SplitFiles) -> SplitFiles:
        shards = tuple(shard for shard in map(again, files.shards) if isinstance(shard, Shard))
        return SplitFiles(files.num_images, again(files.index), shards, tuple(map(again, files.extras)))

    fields: dict[str, Any] = {
        "train": split(manifest.train),
        "test": split(manifest.test),
        "counts": again(manifest.counts),
        "info": manifest.info and again(manifest.info),
        **changes,
    }
    (folder / FILE_NAME).write_text(to_json(dataclasses.replace(manifest, **fields)))


def members(path: Path) -> dict[str, tuple[int, bytes]]:
    """Map the name of each member to its place and content."""
    with tarfile.open(path) as archive:
        return {m.name: (m.offset_data, archive.extractfile(m).read()) for m in archive}  # type: ignore[union-attr]


def overwrite(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def change_index(folder: Path, name: str, change: Callable[[Array], None]) -> Array:
    index = np.load(folder / name)
    change(index)
    np.save(folder / name, index)
    return index


def test_resealing_alone_changes_nothing(folder: Path) -> None:
    before = (folder / FILE_NAME).read_bytes()
    reseal(folder)
    assert (folder / FILE_NAME).read_bytes() == before
    assert verify(folder) == []


def test_a_wrong_noisy_label_is_found_by_computing_it_again(folder: Path) -> None:
    shard = folder / "train-000001.tar"
    at, data = members(shard)["000000007.labels.npy"]
    labels = np.load(io.BytesIO(data))
    right = int(labels[2])
    wrong = (right + 1) % 10
    overwrite(shard, at + len(data) - 4, wrong.to_bytes(2, "little"))  # the last but one of four
    reseal(folder)
    assert verify(folder) == [
        Problem(shard.name, 7, f"the label of copy 3 is {wrong}; the formula gives {right}"),
    ]


@pytest.mark.parametrize("labels", [np.zeros(3, np.uint16), np.zeros((4, 1), np.uint16), np.zeros(4, np.int16)])
def test_noisy_labels_of_another_shape_or_type_are_found(folder: Path, labels: Array) -> None:
    shard = folder / "train-000001.tar"
    at, data = members(shard)["000000007.labels.npy"]
    stream = io.BytesIO()
    np.save(stream, labels)
    overwrite(shard, at, stream.getvalue().ljust(len(data), b"\0")[: len(data)])
    reseal(folder)
    (problem,) = verify(folder)
    assert (problem.file, problem.image_id) == (shard.name, 7)


def test_a_wrong_source_label_is_found(folder: Path) -> None:
    shard = folder / "test-000000.tar"
    at, data = members(shard)["000000001.cls"]
    overwrite(shard, at, b"%d" % ((int(data) + 1) % 10))
    reseal(folder)
    (problem,) = verify(folder)
    assert (problem.file, problem.image_id) == (shard.name, 1)
    assert "the index says" in problem.reason


def test_a_source_label_that_is_wrong_everywhere_is_found_by_counting(folder: Path) -> None:
    shard = folder / "train-000000.tar"
    at, data = members(shard)["000000002.cls"]
    wrong = (int(data) + 1) % 10
    overwrite(shard, at, b"%d" % wrong)

    def change(index: Array) -> None:
        index["label"][2] = wrong

    change_index(folder, "train.index.npy", change)
    reseal(folder)
    assert "counts.npz" in files_named(verify(folder))


def test_a_label_that_is_no_class_is_found(folder: Path) -> None:
    def change(index: Array) -> None:
        index["label"][2] = 10

    change_index(folder, "train.index.npy", change)
    reseal(folder)
    assert Problem("train.index.npy", 2, "its label is none of the classes") in verify(folder)


def test_wrong_pixels_are_found_by_the_index(folder: Path) -> None:
    shard = folder / "train-000002.tar"
    at, data = members(shard)["000000011.png"]
    overwrite(shard, at + len(data) - 30, bytes([data[-30] ^ 1]))
    reseal(folder)
    assert verify(folder) == [Problem(shard.name, 11, "its size or crc32 differs from the index")]


def test_an_image_that_does_not_decode_is_found(folder: Path) -> None:
    shard = folder / "train-000002.tar"
    at, data = members(shard)["000000011.png"]
    damaged = data[:20] + b"\xff" + data[21:]
    overwrite(shard, at, damaged)

    def change(index: Array) -> None:
        index["crc32"][11] = zlib.crc32(damaged)

    change_index(folder, "train.index.npy", change)
    reseal(folder)
    (problem,) = verify(folder)
    assert (problem.file, problem.image_id) == (shard.name, 11)
    assert problem.reason.startswith("does not decode")


def test_a_wrong_dali_index_is_found(folder: Path) -> None:
    path = folder / "train-000001.idx"
    path.write_text(path.read_text().replace("png 512 ", "png 1024 "))
    reseal(folder)
    assert verify(folder) == [Problem(path.name, None, "does not describe train-000001.tar")]


def test_where_a_shard_cannot_be_followed_further_the_rest_is_said_not_to_be_checked(folder: Path) -> None:
    shard = folder / "train-000001.tar"
    with tarfile.open(shard) as archive:
        kept = [(member, archive.extractfile(member).read()) for member in archive]  # type: ignore[union-attr]
    with tarfile.open(shard, "w", format=tarfile.USTAR_FORMAT) as archive:
        for member, data in kept:
            if member.name != "000000007.cls":
                archive.addfile(member, io.BytesIO(data))
    reseal(folder)
    found = "'000000007.labels.npy' stands where its .cls should"
    assert verify(folder)[0] == Problem(shard.name, 7, f"{found}; the rest of the shard was not checked")


def test_a_record_too_many_is_found(folder: Path) -> None:
    path = folder / "test-000000.tar"
    with tarfile.open(path, "a", format=tarfile.USTAR_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("000000003.png"))
    reseal(folder)
    assert verify(folder) == [
        Problem(path.name, None, "holds '000000003.png', which the manifest does not know"),
    ]


def test_a_wrong_number_of_right_labels_is_found(folder: Path) -> None:
    right = read_manifest(folder).num_right
    reseal(folder, num_right=right + 1)
    assert verify(folder) == [Problem(FILE_NAME, None, f"says {right + 1} right labels; there are {right}")]


def test_wrong_counts_are_found(folder: Path) -> None:
    counts = np.load(folder / "counts.npz")["counts"]
    counts[0, 0] += 1
    np.savez(folder / "counts.npz", counts=counts)
    reseal(folder)
    assert verify(folder) == [Problem("counts.npz", None, "differs from the counts of the labels")]


def without_the_second_shard(manifest: Manifest) -> SplitFiles:
    train = manifest.train
    return dataclasses.replace(train, shards=train.shards[::2], extras=train.extras[::2])


def without_the_last_shard(manifest: Manifest) -> SplitFiles:
    train = manifest.train
    return dataclasses.replace(train, shards=train.shards[:2], extras=train.extras[:2])


@pytest.mark.parametrize(
    ("cut", "file", "image_id"),
    [(without_the_second_shard, "train-000002.tar", 10), (without_the_last_shard, "train.index.npy", 10)],
)
def test_images_that_are_in_no_shard_are_found(
    folder: Path, cut: Callable[[Manifest], SplitFiles], file: str, image_id: int
) -> None:
    reseal(folder, train=cut(read_manifest(folder)))
    assert (file, image_id) in [(problem.file, problem.image_id) for problem in verify(folder)]


def test_another_alpha_law_or_seed_than_the_labels_were_drawn_with_is_found(folder: Path) -> None:
    formula = read_manifest(folder).formula
    for other in (dataclasses.replace(formula, noise_seed=4), dataclasses.replace(formula, alpha=5)):
        reseal(folder, formula=other)
        named = {problem.image_id for problem in verify(folder)}
        assert len(named - {None}) >= 12  # 4 labels of ten classes agree by chance once in 10,000
