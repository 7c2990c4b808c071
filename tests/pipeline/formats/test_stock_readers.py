"""What readers that know nothing of Dilute see in its shards, compared with the source and the formula."""

import gc
import importlib.util
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from numpy import ndarray as Array
from photos import ODD, write_tree
from timm.data import create_dataset

from kernels.labels import uniform_plain
from pipeline.builder import build
from pipeline.dataset import decode, dilute
from pipeline.laws import Law, Symmetric
from pipeline.order import balanced_order
from pipeline.plan import Options, plan_build
from pipeline.sources import Source, open_source
from pipeline.sources.synthetic import synthetic
from pipeline.sources.types import Item
from pipeline.stream import copies_in_pass

K, ALPHA, SEED = 7, 4, 5


class Truth:
    """A split computed from its source, without shards or manifest; the uniform law by its plain twin."""

    def __init__(self, source: Source, split: str, alpha: int, law: Law | None) -> None:
        clean = source.train if split == "train" else source.test
        num_classes = len(source.classes)
        order = balanced_order(clean.labels, num_classes)
        self.items = [clean.item(index) for index in order.tolist()]
        self.source_labels = clean.labels[order]
        self.labels = self.source_labels[:, None]  # one column a copy
        if split == "train":
            noisy = [
                [uniform_plain(SEED, i, copy, num_classes) for copy in range(1, alpha + 1)] for i in range(len(clean))
            ]
            self.labels = np.concatenate([self.labels, np.array(noisy, np.uint16).reshape(len(clean), alpha)], axis=1)
            if law:
                ids = np.arange(len(clean))
                self.labels = law.at(
                    SEED, ids, np.zeros_like(ids), self.source_labels, num_classes=num_classes, alpha=0
                )[:, None]

    def examples(self) -> list[tuple[int, int]]:
        """List (image id, label) of every example in the order of layout `expanded`: pass after pass."""
        ids = np.arange(len(self.items))
        copies = [copies_in_pass(t, ids, num_copies=self.labels.shape[1]) for t in range(self.labels.shape[1])]
        return [(i, int(self.labels[i, copy])) for shown in copies for i, copy in enumerate(shown)]


class Built:
    """A small data set on disk, in shards of 10 images."""

    def __init__(self, folder: Path, source: Source, options: Options, alpha: int = ALPHA, law: Law | None = None):
        self.folder = folder
        self.source = source
        self.manifest = build(
            plan_build(source, dilute(source, alpha=alpha, law=law, noise_seed=SEED), options), folder
        )
        self.truth = {name: Truth(source, name, alpha, law) for name in ("train", "test")}

    def paths(self, split: str, suffix: str) -> list[str]:
        return [str(path) for path in sorted(self.folder.glob(f"{split}-??????.{suffix}"))]


def arrays(channels: int) -> Source:
    return synthetic(num_train=23, num_test=5, height=9, width=13, channels=channels, num_classes=K)


MADE = {
    "grey": lambda folder: Built(folder / "out", arrays(1), Options(shard_images=10)),
    "colour": lambda folder: Built(folder / "out", arrays(3), Options(shard_images=10)),
    "examples": lambda folder: Built(folder / "out", arrays(3), Options(shard_images=10, index="examples")),
    "expanded": lambda folder: Built(folder / "out", arrays(3), Options(shard_images=10, layout="expanded")),
    "flipped": lambda folder: Built(folder / "out", arrays(3), Options(shard_images=10), 0, Symmetric(0.6)),
}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Built]:
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in MADE.items()}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """JPEGs of different sizes, and files of every odd kind."""
    folder = tmp_path_factory.mktemp("photos")
    more = {f"train/{'ab'[number % 2]}/{name}": data for number, (name, (data, *_)) in enumerate(ODD.items())}
    source = open_source("folder", write_tree(folder / "in", more=more))
    return Built(folder / "out", source, Options(shard_images=10, index="examples"))


def pixels(items: list[Item]) -> Array:
    return np.stack([decode(item) for item in items])


# ---- webdataset ----


@contextmanager
def unclosed_files_of_webdataset() -> Iterator[None]:
    """Let pass that webdataset leaves its files to the garbage collector."""
    gc.freeze()  # what is there already need not be looked through
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "unclosed file", ResourceWarning)
        yield
        gc.collect()
    gc.unfreeze()


def samples(built: Built, split: str, mode: str | None = "rgb8") -> list[dict[str, Any]]:
    with unclosed_files_of_webdataset():
        reader = webdataset.WebDataset(built.paths(split, "tar"), shardshuffle=False)
        return list(reader.decode(mode) if mode else reader)


@pytest.mark.parametrize("name", ["grey", "colour", "examples", "flipped"])
def test_stock_webdataset_reads_every_image_and_label(sets: dict[str, Built], name: str) -> None:
    truth, found = sets[name].truth["train"], samples(sets[name], "train", "l8" if name == "grey" else "rgb8")
    assert [sample["__key__"] for sample in found] == [f"{image_id:09d}" for image_id in range(23)]
    wanted = pixels(truth.items)
    assert np.array_equal(np.stack([sample["png"] for sample in found]).reshape(wanted.shape), wanted)
    assert [sample["cls"] for sample in found] == truth.labels[:, 0].tolist()
    if name == "flipped":
        assert not any("labels.npy" in sample for sample in found)
        assert 5 < (truth.labels[:, 0] != truth.source_labels).sum() < 23  # `.cls` is the noisy label
    else:
        assert np.array_equal(np.stack([sample["labels.npy"] for sample in found]), truth.labels[:, 1:])


@pytest.mark.parametrize("name", MADE)
def test_stock_webdataset_reads_the_test_split_without_noise(sets: dict[str, Built], name: str) -> None:
    truth, found = sets[name].truth["test"], samples(sets[name], "test", "l8" if name == "grey" else "rgb8")
    wanted = pixels(truth.items)
    assert np.array_equal(np.stack([sample["png"] for sample in found]).reshape(wanted.shape), wanted)
    assert [sample["cls"] for sample in found] == truth.source_labels.tolist()
    assert not any("labels.npy" in sample for sample in found)


def test_stock_webdataset_reads_every_example_of_the_expanded_layout(sets: dict[str, Built]) -> None:
    truth, found = sets["expanded"].truth["train"], samples(sets["expanded"], "train")
    assert [(int(sample["__key__"]) % 23, sample["cls"]) for sample in found] == truth.examples()
    assert sorted(int(sample["__key__"]) for sample in found) == list(range(23 * (1 + ALPHA)))
    for sample in found:
        copy, image_id = divmod(int(sample["__key__"]), 23)
        assert sample["cls"] == truth.labels[image_id, copy]
        assert np.array_equal(sample["png"], decode(truth.items[image_id]))


def test_stock_webdataset_finds_the_bytes_of_encoded_files_untouched(photos: Built) -> None:
    truth, found = photos.truth["train"], samples(photos, "train", None)
    for sample, item, label in zip(found, truth.items, truth.source_labels, strict=True):
        assert sample[item.encoding] == item.data
        assert sample["cls"] == b"%d" % label
    assert Counter(item.encoding for item in truth.items) == {"jpg": 13, "png": 2, "webp": 1}


# ---- DALI ----


def dali_rows(
    built: Built, split: str, parts: list[str], count: int, *, suffix: str = "idx"
) -> list[tuple[bytes, ...]]:
    """Read a split once through an index, as bytes."""
    dali = pytest.importorskip("nvidia.dali")
    pipe = dali.Pipeline(batch_size=1, num_threads=1, device_id=None, seed=0)
    with pipe:
        data = dali.fn.readers.webdataset(
            paths=built.paths(split, "tar"),
            index_paths=built.paths(split, suffix),
            ext=parts,
            missing_component_behavior="error",
            dtypes=[dali.types.UINT8] * len(parts),
            name="reader",
        )
        pipe.set_outputs(*data)
    pipe.build()
    assert pipe.epoch_size("reader") == count
    return [tuple(np.array(out.at(0)).tobytes() for out in pipe.run()) for _ in range(count)]


def png_pixels(data: list[bytes]) -> Array:
    return pixels([Item(file, "png") for file in data])


@pytest.mark.parametrize("name", ["grey", "colour", "examples"])
def test_stock_dali_reads_every_image_and_label_through_its_index(sets: dict[str, Built], name: str) -> None:
    truth = sets[name].truth["train"]
    rows = dali_rows(sets[name], "train", ["png", "cls", "labels.npy"], 23)
    assert np.array_equal(png_pixels([image for image, *_ in rows]), pixels(truth.items))
    assert [int(label) for _, label, _ in rows] == truth.source_labels.tolist()
    assert np.array_equal(np.stack([np.load(BytesIO(labels)) for *_, labels in rows]), truth.labels[:, 1:])


@pytest.mark.parametrize("name", ["flipped", "expanded"])
def test_stock_dali_reads_the_noisy_label_of_every_record(sets: dict[str, Built], name: str) -> None:
    truth = sets[name].truth["train"]
    wanted = truth.examples()
    rows = dali_rows(sets[name], "train", ["png", "cls"], len(wanted))
    assert np.array_equal(png_pixels([image for image, _ in rows]), pixels([truth.items[i] for i, _ in wanted]))
    assert [int(label) for _, label in rows] == [label for _, label in wanted]


@pytest.mark.parametrize("name", MADE)
def test_stock_dali_reads_the_test_split_through_its_index(sets: dict[str, Built], name: str) -> None:
    rows, truth = dali_rows(sets[name], "test", ["png", "cls"], 5), sets[name].truth["test"]
    assert np.array_equal(png_pixels([image for image, _ in rows]), pixels(truth.items))
    assert [int(label) for _, label in rows] == truth.source_labels.tolist()


def test_stock_dali_reads_every_example_of_images_that_are_stored_once(sets: dict[str, Built]) -> None:
    truth = sets["examples"].truth["train"]
    rows = dali_rows(sets["examples"], "train", ["png", "lbl"], 23 * (1 + ALPHA), suffix="diluted.idx")
    found, wanted = [(image, int.from_bytes(label, "little")) for image, label in rows], []
    for first, end in ((0, 10), (10, 20), (20, 23)):  # a shard after the other, each in passes over its images
        shown = (copies_in_pass(t, np.arange(first, end), num_copies=1 + ALPHA) for t in range(1 + ALPHA))
        wanted += [
            (first + row, int(truth.labels[first + row, copy])) for copies in shown for row, copy in enumerate(copies)
        ]
    assert [label for _, label in found] == [label for _, label in wanted]
    assert np.array_equal(png_pixels([image for image, _ in found]), pixels([truth.items[i] for i, _ in wanted]))
    assert Counter(wanted) == Counter((i, label) for i, row in enumerate(truth.labels.tolist()) for label in row)


def test_stock_dali_finds_the_bytes_of_encoded_files_untouched(photos: Built) -> None:
    """DALI wants the same components of every sample: files of several kinds are named as alternatives."""
    truth = photos.truth["train"]
    rows = dali_rows(photos, "train", ["jpg;png;webp", "cls"], 16)
    assert [row[0] for row in rows] == [item.data for item in truth.items]
    assert [int(label) for _, label in rows] == truth.source_labels.tolist()
    rows = dali_rows(photos, "train", ["jpg;png;webp", "lbl"], 16 * (1 + ALPHA), suffix="diluted.idx")
    found = Counter((image, int.from_bytes(label, "little")) for image, label in rows)
    assert found == Counter((truth.items[i].data, label) for i, label in truth.examples())


# ---- timm ----


@pytest.mark.parametrize(("split", "name"), [*(("train", name) for name in MADE), ("test", "colour")])
def test_timm_finds_the_splits_and_reads_every_image_and_label(sets: dict[str, Built], split: str, name: str) -> None:
    built = sets[name]
    truth = built.truth[split]
    wanted = truth.examples() if name == "expanded" else [(i, int(row[0])) for i, row in enumerate(truth.labels)]
    mode = "L" if name == "grey" else "RGB"
    data = create_dataset("wds/", root=str(built.folder), split=split, input_img_mode=mode)
    with unclosed_files_of_webdataset():
        found = list(data)
    assert len(data) == len(found) == len(wanted)
    images = pixels([truth.items[i] for i, _ in wanted])
    assert np.array_equal(np.stack([np.asarray(image) for image, _ in found]).reshape(images.shape), images)
    assert [label for _, label in found] == [label for _, label in wanted]


# ---- FFCV ----

FFCV = """
import sys
import numpy as np
import torch
from ffcv.fields.decoders import IntDecoder, NDArrayDecoder, SimpleRGBImageDecoder
from ffcv.loader import Loader, OrderOption

for path in sys.argv[1:]:
    pipelines = {"image": [SimpleRGBImageDecoder()], "label": [IntDecoder()]}
    if path.endswith("arrays/train.beton"):
        pipelines["labels"] = [NDArrayDecoder()]
    loader = Loader(path, 4, num_workers=1, os_cache=True, order=OrderOption.SEQUENTIAL, drop_last=False,
                    pipelines=pipelines)
    found = [[torch.as_tensor(column).clone().numpy() for column in batch] for batch in loader]
    np.savez(path + ".npz", *(np.concatenate(columns) for columns in zip(*found)))
"""


@pytest.fixture(scope="module")
def betons(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Built]:
    """Let stock FFCV read two data sets, in a process of its own: it changes numba's and torch's threads for good."""
    if importlib.util.find_spec("ffcv") is None:
        pytest.skip("FFCV is not installed: it needs Debian's libopencv-dev, libturbojpeg0-dev, pkg-config and g++")
    folder = tmp_path_factory.mktemp("betons")
    more = {f"train/{'ab'[number % 2]}/{name}": data for number, (name, (data, *_)) in enumerate(ODD.items())}
    photos = open_source("folder", write_tree(folder / "in", more=more, width=24))  # of one size: this decoder asks it
    built = {
        "arrays": Built(folder / "arrays", arrays(3), Options(format="ffcv", index="images", shard_images=10)),
        "photos": Built(folder / "photos", photos, Options(format="ffcv", index="examples", shard_images=10)),
    }
    paths = [folder / name / f"{split}.beton" for name in built for split in ("train", "test")]
    subprocess.run([sys.executable, "-W", "ignore", "-c", FFCV, *paths], check=True, capture_output=True, timeout=300)
    return built


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("name", ["arrays", "photos"])
def test_stock_ffcv_reads_every_image_and_label(betons: dict[str, Built], name: str, split: str) -> None:
    built = betons[name]
    truth = built.truth[split]
    wanted = truth.examples() if name == "photos" else [(i, int(row[0])) for i, row in enumerate(truth.labels)]
    with np.load(built.folder / f"{split}.beton.npz") as file:
        images, labels, *noisy = file.values()
    assert labels.reshape(-1).tolist() == [label for _, label in wanted]
    assert len(noisy) == (name == "arrays" and split == "train")
    assert all(np.array_equal(found, truth.labels[:, 1:]) for found in noisy)
    for image, (image_id, _) in zip(images, wanted, strict=True):
        away = np.abs(image.astype(int) - decode(truth.items[image_id]))  # grey is shown as RGB
        assert away.max() == 0 or (truth.items[image_id].encoding == "jpg" and away.mean() < 3)  # two JPEG decoders


# ---- the manifest's own index ----


@pytest.mark.parametrize("name", MADE)
def test_the_index_file_points_at_every_image_and_its_origin(sets: dict[str, Built], name: str) -> None:
    built = sets[name]
    for split, files in built.manifest.splits.items():
        truth = built.truth[split]
        clean = built.source.train if split == "train" else built.source.test
        index = np.load(built.folder / files.index.name)
        for shard in files.shards:
            data = (built.folder / shard.name).read_bytes()
            for row in range(shard.first, shard.first + shard.count):
                image_id, record = row % len(truth.items), index[row]
                assert record["label"] == truth.source_labels[image_id]
                assert clean.item(int(record["source"])).data == truth.items[image_id].data
                image = decode(Item(data[int(record["offset"]) :][: int(record["size"])], "png"))
                assert np.array_equal(image, decode(truth.items[image_id]))
                assert (record["height"], record["width"], record["channels"]) == image.shape
