import gc
import tarfile
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from numpy import ndarray as Array
from timm.data.readers.reader_wds import ReaderWds

from kernels.labels import uniform_plain
from pipeline.builder import build, plan_build
from pipeline.dataset import decode, dilute
from pipeline.formats.tar import Record, Written, write_file, write_shard
from pipeline.manifest import INDEX_DTYPE, hash_file
from pipeline.order import balanced_order
from pipeline.sources import Source
from pipeline.sources.synthetic import synthetic
from pipeline.sources.types import ArraySplit, Item

K = 7


def records(sizes: list[int], alpha: int, first: int) -> Iterator[Record]:
    generator = np.random.default_rng(0)
    for row, size in enumerate(sizes):
        noisy = generator.integers(0, 65_536, alpha, dtype=np.uint16)
        yield Record(first + row, generator.bytes(size), "jpg", row * 9_000, noisy, 2**32 - 1 - row)


# ---- what tarfile, NumPy and plain arithmetic make of a shard ----


@given(
    st.lists(st.integers(0, 2_000), min_size=1, max_size=5),
    st.integers(0, 300),
    st.integers(0, 10**9 - 6),
)
def test_tarfile_reads_back_every_member(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], alpha: int, first: int
) -> None:
    path = tmp_path_factory.mktemp("shard") / "train-000000.tar"
    written = write_shard(path, records(sizes, alpha, first), alpha=alpha)
    wanted = list(records(sizes, alpha, first))
    with tarfile.open(path, "r:") as archive:
        members = archive.getmembers()
        content = [(member.name, archive.extractfile(member).read()) for member in members]  # type: ignore[union-attr]
    suffixes = ["jpg", "cls", "labels.npy"][: 3 if alpha else 2]
    assert [name for name, _ in content] == [f"{r.image_id:09d}.{suffix}" for r in wanted for suffix in suffixes]
    data = dict(content)
    for record in wanted:
        key = f"{record.image_id:09d}"
        assert data[f"{key}.jpg"] == record.data
        assert data[f"{key}.cls"] == str(record.label).encode()
        if alpha:
            labels = np.load(BytesIO(data[f"{key}.labels.npy"]), allow_pickle=False)
            assert labels.dtype == np.uint16
            assert np.array_equal(labels, record.noisy)
    for member in members:
        assert (member.mode, member.uid, member.gid, member.mtime, member.uname) == (0o644, 0, 0, 0, "")
        assert member.isreg()
        assert member.offset_data % 512 == 0  # what DALI's index asks for
    check_description(path, written, members, wanted, len(suffixes))


def check_description(
    path: Path, written: Written, members: list[tarfile.TarInfo], wanted: list[Record], num_members: int
) -> None:
    """Compare what `write_shard` says of its files with the files."""
    shard = written.shard
    assert (shard.name, shard.first, shard.count) == (path.name, wanted[0].image_id, len(wanted))
    index = path.with_suffix(".idx")
    for file, there in ((shard, path), (written.dali_index, index)):
        assert (file.name, file.num_bytes, file.sha256) == (
            (found := hash_file(there)).name,
            found.num_bytes,
            found.sha256,
        )
    assert written.records.dtype == INDEX_DTYPE
    assert written.records.tolist() == [
        (member.offset_data, len(record.data), zlib.crc32(record.data), record.label, record.source)
        for member, record in zip(members[::num_members], wanted, strict=True)
    ]
    rows = [
        " ".join(f"{m.name.split('.', 1)[1]} {m.offset_data} {m.size}" for m in members[at : at + num_members])
        for at in range(0, len(members), num_members)
    ]
    assert index.read_text() == "\n".join([f"v1.1 {len(rows)}", *rows, ""])


def test_a_shard_larger_than_the_write_buffer_is_whole(tmp_path: Path) -> None:
    sizes = [3 << 20, 3 << 20, 5]  # the buffer holds 4 MiB
    written = write_shard(tmp_path / "a.tar", records(sizes, 3, 0), alpha=3)
    with tarfile.open(tmp_path / "a.tar") as archive:
        members = archive.getmembers()
    check_description(tmp_path / "a.tar", written, members, list(records(sizes, 3, 0)), 3)


def test_only_finished_files_have_their_names(tmp_path: Path) -> None:
    def interrupted() -> Iterator[Record]:
        yield from records([10, 5_000_000], 2, 0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path / "a.tar", interrupted(), alpha=2)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.part"]
    write_shard(tmp_path / "a.tar", records([10], 2, 0), alpha=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.idx", "a.tar"]


def test_a_small_file_replaces_the_one_that_was_there(tmp_path: Path) -> None:
    write_file(tmp_path / "a", b"a long text")
    write_file(tmp_path / "a", b"short")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"short"}


# ---- what the stock readers make of a data set ----


class Truth:
    """A data set computed from its source alone, without shards, manifest or compiled kernels."""

    def __init__(self, source: Source, split: str, alpha: int, noise_seed: int) -> None:
        clean = source.train if split == "train" else source.test
        assert isinstance(clean, ArraySplit)
        self.order = balanced_order(clean.labels, K)
        self.images = clean.images[self.order]
        self.labels = clean.labels[self.order]
        self.noisy = np.array(
            [[uniform_plain(noise_seed, i, copy, K) for copy in range(1, alpha + 1)] for i in range(len(clean))]
        )


class Built:
    """A small data set on disk: 23 images in shards of 10, and 5 test images."""

    def __init__(self, folder: Path, channels: int) -> None:
        source = synthetic(num_train=23, num_test=5, height=9, width=13, channels=channels, num_classes=K)
        self.folder = folder
        self.channels = channels
        self.manifest = build(plan_build(source, dilute(source, alpha=4, noise_seed=5), shard_images=10), folder)
        self.truth = {name: Truth(source, name, 4, 5) for name in ("train", "test")}

    def paths(self, split: str, suffix: str) -> list[str]:
        return [str(path) for path in sorted(self.folder.glob(f"{split}-*.{suffix}"))]


@pytest.fixture(scope="module", params=[1, 3], ids=["grey", "colour"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return Built(tmp_path_factory.mktemp("built"), request.param)


@contextmanager
def unclosed_files_of_webdataset() -> Iterator[None]:
    """Let pass that webdataset leaves its files to the garbage collector."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "unclosed file", ResourceWarning)
        yield
        gc.collect()


def samples(built: Built, split: str) -> list[dict[str, Any]]:
    mode = "l8" if built.channels == 1 else "rgb8"
    with unclosed_files_of_webdataset():
        return list(webdataset.WebDataset(built.paths(split, "tar"), shardshuffle=False).decode(mode))


def test_stock_webdataset_reads_every_image_and_label(built: Built) -> None:
    found, truth = samples(built, "train"), built.truth["train"]
    assert [sample["__key__"] for sample in found] == [f"{image_id:09d}" for image_id in range(23)]
    assert np.array_equal(np.stack([sample["png"] for sample in found]).reshape(truth.images.shape), truth.images)
    assert [sample["cls"] for sample in found] == truth.labels.tolist()
    assert np.array_equal(np.stack([sample["labels.npy"] for sample in found]), truth.noisy)


def test_stock_webdataset_reads_the_test_split_without_noise(built: Built) -> None:
    found, truth = samples(built, "test"), built.truth["test"]
    assert np.array_equal(np.stack([sample["png"] for sample in found]).reshape(truth.images.shape), truth.images)
    assert [sample["cls"] for sample in found] == truth.labels.tolist()
    assert not any("labels.npy" in sample for sample in found)


def dali_epoch(built: Built, split: str, parts: list[str], count: int) -> list[tuple[Array, ...]]:
    dali = pytest.importorskip("nvidia.dali")
    pipe = dali.Pipeline(batch_size=1, num_threads=1, device_id=None, seed=0)
    with pipe:
        data = dali.fn.readers.webdataset(
            paths=built.paths(split, "tar"),
            index_paths=built.paths(split, "idx"),
            ext=parts,
            missing_component_behavior="error",
            dtypes=[dali.types.UINT8] * len(parts),
            name="reader",
        )
        colours = dali.types.GRAY if built.channels == 1 else dali.types.RGB
        pipe.set_outputs(dali.fn.decoders.image(data[0], device="cpu", output_type=colours), *data[1:])
    pipe.build()
    assert pipe.epoch_size("reader") == count
    return [tuple(np.array(out.at(0)) for out in pipe.run()) for _ in range(count)]


def test_stock_dali_reads_every_image_and_label_through_its_index(built: Built) -> None:
    rows, truth = dali_epoch(built, "train", ["png", "cls", "labels.npy"], 23), built.truth["train"]
    assert np.array_equal(np.stack([image for image, *_ in rows]), truth.images)
    assert [int(label.tobytes()) for _, label, _ in rows] == truth.labels.tolist()
    assert np.array_equal(np.stack([np.load(BytesIO(labels.tobytes())) for *_, labels in rows]), truth.noisy)


def test_stock_dali_reads_the_test_split_through_its_index(built: Built) -> None:
    rows, truth = dali_epoch(built, "test", ["png", "cls"], 5), built.truth["test"]
    assert np.array_equal(np.stack([image for image, _ in rows]), truth.images)
    assert [int(label.tobytes()) for _, label in rows] == truth.labels.tolist()


@pytest.mark.parametrize(("split", "count"), [("train", 23), ("test", 5)])
def test_timm_finds_the_splits_and_reads_every_image_and_label(built: Built, split: str, count: int) -> None:
    reader = ReaderWds(str(built.folder), split=split, input_img_mode="L" if built.channels == 1 else "RGB")
    truth = built.truth[split]
    with unclosed_files_of_webdataset():
        found = list(reader)
    assert len(reader) == len(found) == count
    assert np.array_equal(np.stack([np.asarray(image) for image, _ in found]).reshape(truth.images.shape), truth.images)
    assert [label for _, label in found] == truth.labels.tolist()


def test_the_index_file_points_at_every_image_and_its_origin(built: Built) -> None:
    for files, name in ((built.manifest.train, "train"), (built.manifest.test, "test")):
        truth = built.truth[name]
        index = np.load(built.folder / files.index.name)
        assert np.array_equal(index["source"], truth.order)
        assert np.array_equal(index["label"], truth.labels)
        for shard in files.shards:
            data = (built.folder / shard.name).read_bytes()
            for image_id in range(shard.first, shard.first + shard.count):
                start, size = int(index[image_id]["offset"]), int(index[image_id]["size"])
                image = decode(Item(data[start : start + size], "png"))
                assert np.array_equal(image, truth.images[image_id])
