import hashlib
import importlib.util
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy import ndarray as Array
from PIL import Image

from pipeline.errors import UserError
from pipeline.formats import beton
from pipeline.formats.beton import PAGE_BYTES, Rows, write_beton
from pipeline.formats.beton_reader import read_beton, verify_beton
from pipeline.manifest import ENCODINGS, INDEX_DTYPE, File
from pipeline.stream import copies_in_pass

RAW, JPG = ENCODINGS.index("raw"), ENCODINGS.index("jpg")
HEIGHT, WIDTH = 20, 16


@dataclass
class Stored:
    """Images as workers leave them, and the labels that they are to have."""

    data: list[bytes]
    index: Array
    num_copies: int

    def labels(self, image_ids: Array) -> Array:
        return ((image_ids[:, None] * 769 + np.arange(self.num_copies) * 40503) % 65521).astype(np.uint16)

    def stored(self, images: range) -> list[bytes]:
        return self.data[images.start : images.stop]

    def write(self, path: Path, rows: Rows) -> tuple[File, Array]:
        return write_beton(path, self.index, self.stored, self.labels, num_copies=self.num_copies, rows=rows)

    def problems(self, path: Path, index: Array, rows: Rows) -> list[tuple[int | None, str]]:
        return list(verify_beton(path, index, self.labels, num_copies=self.num_copies, rows=rows))


def stored(sizes: list[int], num_copies: int) -> Stored:
    """Make images of random bytes: raw ones of 1 × (size / 3) pixels where that goes, else what passes as JPEG."""
    rng = np.random.default_rng(0)
    index = np.zeros(len(sizes), INDEX_DTYPE)
    index["size"] = sizes
    index["encoding"] = [JPG if size % 3 else RAW for size in sizes]
    index["channels"] = [size % 3 if size % 3 == 1 else 3 for size in sizes]
    index["height"], index["width"] = [1 if size % 3 == 0 else 7 for size in sizes], [size // 3 or 1 for size in sizes]
    return Stored([rng.bytes(size) for size in sizes], index, num_copies)


def with_a_large_one(images: Stored) -> Stored:
    """Make the second image a raw one of 8.4 MB, which is more than FFCV's pages hold."""
    images.index[1] = (0, 8_400_000, 0, 0, 0, 1_400, 2_000, 3, RAW)
    images.data[1] = np.random.default_rng(2).bytes(8_400_000)
    return images


@contextmanager
def small_blocks() -> Iterator[None]:
    """Let every seam between blocks, and many pages, lie within a few hundred rows."""
    with patch.multiple(beton, PAGE_BYTES=1 << 10, _BLOCK_ROWS=5, _BLOCK_LABELS=12, _HELD_LABELS=40):
        yield


@given(
    sizes=st.lists(st.integers(1, 700), min_size=1, max_size=30),
    num_copies=st.integers(1, 6),
    rows=st.sampled_from(["images", "examples"]),
)
def test_a_beton_holds_every_image_once_and_every_label(sizes: list[int], num_copies: int, rows: Rows) -> None:
    images = stored(sizes, num_copies)
    n = len(sizes)
    with TemporaryDirectory() as folder, small_blocks():
        path = Path(folder) / "a.beton"
        file, index = images.write(path, rows)
        assert [there.name for there in Path(folder).iterdir()] == ["a.beton"]
        assert images.problems(path, index, rows) == []
        found = read_beton(path)
        data = path.read_bytes()
    assert file == File("a.beton", len(data), hashlib.sha256(data).hexdigest())
    for name in set(INDEX_DTYPE.names or ()) - {"offset"}:
        assert np.array_equal(index[name], images.index[name])
    labels = images.labels(np.arange(n))
    arrays = rows == "images" and num_copies > 1
    assert found.rows.dtype.names == (("image", "label", "labels") if arrays else ("image", "label"))
    assert len(found.rows) == (n if rows == "images" else n * num_copies)
    page_bytes = int(found.header["page_size"][0])
    sizes_by_ptr = dict(found.allocations[["ptr", "size"]].tolist())
    shown = {(sample, ptr) for sample, ptr, _ in found.allocations.tolist()}
    wanted = set()
    for row, there in enumerate(found.rows):
        number, i = divmod(row, n)
        copy = 0 if rows == "images" else int(copies_in_pass(number, np.array([i]), num_copies=num_copies)[0])
        mode, width, height, start = there["image"].tolist()
        end = start + len(images.data[i])
        assert (mode, width, height) == (int(index[i]["encoding"] == RAW), index[i]["width"], index[i]["height"])
        assert start == index[i]["offset"]
        assert data[start:end] == images.data[i]
        assert sizes_by_ptr[start] == len(images.data[i])
        assert there["label"] == labels[i, copy]
        wanted.add((row, start))
        if arrays:
            assert there["labels"] == end
            assert sizes_by_ptr[end] == 2 * (num_copies - 1)
            wanted.add((row, end))
            end += 2 * (num_copies - 1)
            assert np.array_equal(np.frombuffer(data[there["labels"] : end], "<u2"), labels[i, 1:])
        assert start // page_bytes == (end - 1) // page_bytes
        assert start // page_bytes * page_bytes >= found.rows.nbytes  # no page begins before the rows end
    assert shown == wanted  # FFCV's process cache asks the table which pages a row needs
    assert len(found.allocations) == len(wanted)
    assert rows == "images" or sorted(found.rows["label"].tolist()) == sorted(labels.ravel().tolist())


def test_all_that_is_no_image_label_or_table_is_zero(tmp_path: Path) -> None:
    images = stored([900, 800, 700, 600, 550], 4)  # a page each, with less and less in it
    with small_blocks():
        _, index = images.write(tmp_path / "a.beton", "images")
    found = read_beton(tmp_path / "a.beton")
    data = bytearray((tmp_path / "a.beton").read_bytes())
    for _, start, size in found.allocations.tolist():
        data[start : start + size] = bytes(size)
    rows_end = 24 + 3 * 1041 + 5 * 32
    assert found.rows.tobytes() in data[:rows_end]
    assert not any(data[rows_end : int(found.header["alloc_table_ptr"][0])])
    assert int(index["offset"][0]) == -(-rows_end // 1024) * 1024


def test_a_page_is_filled_to_its_last_byte_and_no_further(tmp_path: Path) -> None:
    images = stored([500, 524, 500, 525, 1], 1)
    with small_blocks():
        _, index = images.write(tmp_path / "a.beton", "images")
    assert (index["offset"] - index["offset"][0]).tolist() == [0, 500, 1024, 2048, 2573]


@pytest.fixture(scope="module", params=["images", "examples"])
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Stored, Path, Array, Rows]:
    images = stored([30, 1, 50, 70, 2, 3] * 3, 4)
    path = tmp_path_factory.mktemp("small") / "a.beton"
    with patch.object(beton, "PAGE_BYTES", 1 << 10):
        _, index = images.write(path, request.param)
    return images, path, index, request.param


@settings(max_examples=200)
@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255), region=st.integers(0, 4))
def test_every_flipped_byte_is_found(
    small: tuple[Stored, Path, Array, Rows], place: float, flip: int, region: int
) -> None:
    images, path, index, rows = small
    found = read_beton(path)
    data = bytearray(path.read_bytes())
    table = int(found.header["alloc_table_ptr"][0])
    rows_start = 24 + found.descriptors.nbytes
    noisy = [start for _, start, size in found.allocations.tolist() if size == 6 and start not in index["offset"]]
    first, size = [
        (0, 24),
        (24, found.descriptors.nbytes),
        (rows_start, found.rows.nbytes),
        (table, len(data) - table),
        (noisy[int(place * len(noisy))] if noisy else 0, 6),
    ][region]
    at = first + int(place * size)
    data[at] ^= flip
    damaged = path.with_name("damaged.beton")
    damaged.write_bytes(data)
    with patch.object(beton, "PAGE_BYTES", 1 << 10):
        assert images.problems(damaged, index, rows), f"byte {at} of {len(data)}"


@given(size=st.integers(0, 10_000))
def test_a_beton_that_was_cut_short_is_found(small: tuple[Stored, Path, Array, Rows], size: int) -> None:
    images, path, index, rows = small
    data = path.read_bytes()
    short = path.with_name("short.beton")
    short.write_bytes(data[: size % len(data)])
    with patch.object(beton, "PAGE_BYTES", 1 << 10):
        assert images.problems(short, index, rows)


@pytest.mark.parametrize(
    ("at", "value", "reason"),
    [
        (0, b"\1\0", "its version is 1, not 2"),
        (2, b"\0\0", "it has no fields"),
        (2, b"\xff\xff", "its field descriptors end at"),
        (4, b"\1\2\0\0", "no power of two"),
        (8, b"\xff" * 8, "its rows end at"),
        (16, b"\0" * 8, "no table of allocations"),
        (16, b"\xff" * 8, "no table of allocations"),
        (24, b"\7", "fields of types [7]; known are [1, 2, 4]"),
        (25, b"\xff", "ascii"),
    ],
)
def test_what_is_no_beton_is_refused_with_the_reason(
    small: tuple[Stored, Path, Array, Rows], at: int, value: bytes, reason: str
) -> None:
    data = bytearray(small[1].read_bytes())
    data[at : at + len(value)] = value
    damaged = small[1].with_name("damaged.beton")
    damaged.write_bytes(data)
    with pytest.raises(UserError) as error:
        read_beton(damaged)
    assert reason in str(error.value)
    assert str(damaged) in str(error.value)


def test_the_verifier_names_image_and_reason(tmp_path: Path) -> None:
    images = stored([30, 1, 50], 4)
    path = tmp_path / "a.beton"
    _, index = images.write(path, "images")
    data = bytearray(path.read_bytes())
    rows = read_beton(path).rows
    wanted = images.labels(np.arange(3))
    data[24 + 3 * 1041 + 32 + 16] ^= 1  # the label of image 1
    data[int(rows["labels"][2]) + 2] ^= 1  # that of copy 2 of image 2
    path.write_bytes(data)
    assert images.problems(path, index, "images") == [
        (1, f"the label of row 1 is {wanted[1, 0] ^ 1}, not {wanted[1, 0]}"),
        (2, f"the label of copy 2 is {wanted[2, 2] ^ 1}; the formula gives {wanted[2, 2]}"),
    ]


def interrupt_after(calls: int, labels: Callable[[Array], Array]) -> Callable[[Array], Array]:
    left = iter(range(calls))

    def counted(image_ids: Array) -> Array:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return labels(image_ids)

    return counted


def test_an_interrupted_write_publishes_nothing(tmp_path: Path) -> None:
    images = stored([700] * 10, 2)
    with patch.object(beton, "PAGE_BYTES", 1 << 10):  # a page an image
        labels = interrupt_after(1 + 6, images.labels)  # one block of rows, six pages
        with pytest.raises(KeyboardInterrupt):
            write_beton(tmp_path / "a.beton", images.index, images.stored, labels, num_copies=2, rows="images")
        assert {path.name for path in tmp_path.iterdir()} == {"a.beton.part"}
        images.write(tmp_path / "a.beton", "images")
    assert {path.name for path in tmp_path.iterdir()} == {"a.beton"}


@pytest.mark.parametrize("change", [-1, 1])
def test_an_image_of_another_size_publishes_nothing(tmp_path: Path, change: int) -> None:
    images = stored([300, 500], 2)
    images.data[1] = bytes(500 + change)
    with pytest.raises(UserError, match=f"image 1 has {500 + change} bytes, the index says 500"):
        images.write(tmp_path / "a.beton", "images")
    assert not (tmp_path / "a.beton").exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [("encoding", ENCODINGS.index("png")), ("channels", 4), ("height", 0), ("width", 0), ("encoding", RAW)],
)
def test_an_image_that_ffcv_cannot_show_is_refused_by_name(tmp_path: Path, field: str, value: int) -> None:
    images = stored([301, 500], 2)
    images.index[field][1] = value
    with pytest.raises(UserError, match=r"image 1 is .* a beton holds JPEG files of 1 or 3 channels and raw RGB"):
        images.write(tmp_path / "a.beton", "images")
    assert not (tmp_path / "a.beton.part").exists()


def test_an_image_larger_than_a_page_makes_pages_larger(tmp_path: Path) -> None:
    images = with_a_large_one(stored([31, 31, 61], 3))
    _, index = images.write(tmp_path / "a.beton", "images")
    assert read_beton(tmp_path / "a.beton").header["page_size"] == 2 * PAGE_BYTES
    assert index["offset"].tolist() == [16 << 20, (16 << 20) + 35, (16 << 20) + 35 + 8_400_000 + 4]
    assert images.problems(tmp_path / "a.beton", index, "images") == []


def test_labels_are_asked_for_in_blocks_whatever_alpha_is(tmp_path: Path) -> None:
    for num_copies in (2, 3_001):
        images = stored([30] * 1_500, num_copies)
        asked: list[int] = []

        def labels(image_ids: Array, images: Stored = images, asked: list[int] = asked) -> Array:
            asked.append(len(image_ids))
            return images.labels(image_ids)

        write_beton(tmp_path / "a.beton", images.index, images.stored, labels, num_copies=num_copies, rows="images")
        assert max(asked) * num_copies <= PAGE_BYTES // 2 + len(asked)


# ---- what the stock reader makes of it ----

STOCK = """
import json, sys
from pathlib import Path
import numpy as np
from ffcv.fields import IntField, NDArrayField, RGBImageField
from ffcv.libffcv import imdecode
from ffcv.loader import Loader, OrderOption
from ffcv.writer import DatasetWriter

folder, height, width = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
found = {}
for case in json.loads(sys.argv[4]):
    loader = Loader(str(folder / f"{case['file']}.beton"), 7, num_workers=1, drop_last=False, seed=3,
                    os_cache=case["os_cache"], order=OrderOption[case["order"]])
    batches = [[column.numpy().copy() for column in batch] for batch in loader]
    for name, columns in zip(("image", "label", "labels"), zip(*batches)):
        found[f"{case['name']}/{name}"] = np.concatenate(columns)

decoded = []
for path in sorted(folder.glob("*.jpg")):
    image = np.zeros((height, width, 3), np.uint8)
    source = np.fromfile(path, np.uint8)
    assert imdecode(source, image, height, width, height, width, 0, 0, 1, 1, False, False) == 0
    decoded.append(image)
found["decoded"] = np.stack(decoded)
np.savez(folder / "found.npz", **found)

theirs = [(image, 3 * i, np.arange(4, dtype=np.uint16) + i) for i, image in enumerate(decoded)]
array = NDArrayField(np.dtype("<u2"), (4,))
fields = {"picture": RGBImageField(write_mode="raw"), "label": IntField(), "labels": array}
DatasetWriter(str(folder / "theirs.beton"), fields, num_workers=1).from_indexed_dataset(theirs)
"""
CASES = [
    {"name": f"{rows}-{order}", "file": rows, "order": order, "os_cache": order != "QUASI_RANDOM"}
    for rows in ("images", "examples")
    for order in ("SEQUENTIAL", "RANDOM", "QUASI_RANDOM")
]
LARGE = {"name": "large", "file": "large", "order": "SEQUENTIAL", "os_cache": False}


class Read(NamedTuple):
    """What the stock reader made of a data set, and the data set."""

    folder: Path
    images: Stored
    found: dict[str, Array]
    pixels: Array
    large: Stored


def photos(num_images: int) -> tuple[list[bytes], Array, Array]:
    """Make raw, colour JPEG and grey JPEG images of noise; return their bytes, index and pixels (zeros for JPEG)."""
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (num_images, HEIGHT, WIDTH, 3), dtype=np.uint8)
    data = []
    index = np.zeros(num_images, INDEX_DTYPE)
    index["height"], index["width"], index["channels"], index["encoding"] = HEIGHT, WIDTH, 3, JPG
    for i in range(num_images):
        if i % 3 == 0:
            index["encoding"][i] = RAW
            data.append(pixels[i].tobytes())
            continue
        image = Image.fromarray(pixels[i])
        if i % 3 == 1:
            index["channels"][i] = 1
            image = image.convert("L")
        stream = io.BytesIO()
        image.save(stream, "jpeg", quality=92)
        data.append(stream.getvalue())
        pixels[i] = 0
    index["size"] = [len(one) for one in data]
    return data, index, pixels


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Read:
    """Let stock FFCV read both kinds, in a process of its own: it changes numba's and torch's threads for good."""
    if importlib.util.find_spec("ffcv") is None:
        pytest.skip("FFCV is not installed: it needs Debian's libopencv-dev, libturbojpeg0-dev, pkg-config and g++")
    folder = tmp_path_factory.mktemp("stock")
    data, index, pixels = photos(37)
    images = Stored(data, index, num_copies=5)
    for i in np.flatnonzero(index["encoding"] == JPG):
        (folder / f"{i:03d}.jpg").write_bytes(data[i])
    with patch.object(beton, "PAGE_BYTES", 1 << 12):  # several pages
        for rows in ("images", "examples"):
            images.write(folder / f"{rows}.beton", rows)
    large = with_a_large_one(stored([6, 6, 6], 2))
    for other in (0, 2):
        large.index[other], large.data[other] = large.index[1], bytes([other]) * 8_400_000
    large.write(folder / "large.beton", "images")
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", STOCK, folder, str(HEIGHT), str(WIDTH), json.dumps([*CASES, LARGE])],
        check=True,
        capture_output=True,
    )
    with np.load(folder / "found.npz") as file:
        found = dict(file)
    pixels[index["encoding"] == JPG] = found["decoded"]
    return Read(folder, images, found, pixels, large)


@pytest.mark.slow
@pytest.mark.parametrize("order", ["SEQUENTIAL", "RANDOM", "QUASI_RANDOM"])
@pytest.mark.parametrize("rows", ["images", "examples"])
def test_stock_ffcv_reads_every_image_with_its_labels(read: Read, rows: Rows, order: str) -> None:
    n, num_copies = len(read.images.data), read.images.num_copies
    labels = read.images.labels(np.arange(n))
    columns = ["image", "label"]
    if rows == "images":
        columns.append("labels")
        wanted = [(read.pixels[i].tobytes(), int(labels[i, 0]), labels[i, 1:].tobytes()) for i in range(n)]
    else:
        passes = [copies_in_pass(number, np.arange(n), num_copies=num_copies) for number in range(num_copies)]
        wanted = [(read.pixels[i].tobytes(), int(labels[i, copies[i]]), b"") for copies in passes for i in range(n)]
    image, label, *arrays = (read.found[f"{rows}-{order}/{column}"] for column in columns)
    found = [
        (image[i].tobytes(), int(label[i, 0]), b"".join(a[i].tobytes() for a in arrays)) for i in range(len(image))
    ]
    if order != "SEQUENTIAL":
        assert found != wanted
        found, wanted = sorted(found), sorted(wanted)
    assert found == wanted


@pytest.mark.slow
def test_stock_ffcv_reads_images_larger_than_its_pages(read: Read) -> None:
    assert [image.tobytes() for image in read.found["large/image"]] == read.large.data


@pytest.mark.slow
def test_what_ffcv_wrote_is_read(read: Read) -> None:
    found = read_beton(read.folder / "theirs.beton")
    decoded = read.found["decoded"]
    assert found.rows.dtype.names == ("picture", "label", "labels")
    assert found.header["page_size"] == PAGE_BYTES
    assert found.rows["label"].tolist() == [3 * i for i in range(len(decoded))]
    sizes = {ptr: size for _, ptr, size in found.allocations.tolist()}
    for i, row in enumerate(found.rows):
        *shape, start = row["picture"].tolist()
        assert (*shape, sizes[start]) == (beton.RAW, WIDTH, HEIGHT, WIDTH * HEIGHT * 3)
        assert found.data[start : start + sizes[start]].tobytes() == decoded[i].tobytes()
        at = int(row["labels"])
        assert found.data[at : at + sizes[at]].view("<u2").tolist() == [i, i + 1, i + 2, i + 3]


@pytest.mark.slow
def test_fields_are_described_as_ffcv_describes_them(read: Read) -> None:
    theirs = read_beton(read.folder / "theirs.beton").descriptors.copy()
    theirs["name"][0] = b"image"
    assert beton.field_descriptors(4).tobytes() == theirs.tobytes()
