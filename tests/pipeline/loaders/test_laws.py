"""What every loader owes, on every kind of data: the batches of `resident`, which are those of the formula."""

from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from diluted import ALPHA, NAMES, ORDERS, SIZE_PX, WHERE, WITHOUT_FFCV, Sets, small_blocks

from kernels.crops import flips, windows
from kernels.resize import resize_window_plain
from pipeline.dataset import DilutedSet, decode
from pipeline.errors import UserError
from pipeline.loaders import LOADERS, open_batches, open_evaluation
from pipeline.stream import Stream
from pipeline.types import Batch

BATCH = 24
KINDS = [("photos", where) for where in WHERE]
KINDS += [(kind, where) for kind in ("grey", "foreign", "white") for where in ("memory", "tar", "beton")]
FAST = {("photos", "tar"), ("photos", "beton"), ("grey", "tar")}


def cases(extra: Iterable[Any], fast: Any) -> list[Any]:
    """Loader, kind, where, and one more argument; what is not fast is slow."""
    found = []
    for loader, (kind, where), more in product(LOADERS, KINDS, extra):
        marks = [WITHOUT_FFCV] if loader == "ffcv" else []
        home = where == ("beton" if loader == "ffcv" and kind == "photos" else "memory" if kind == "white" else "tar")
        if (kind, where) not in FAST or not home or more != fast:
            marks.append(pytest.mark.slow)
        if (loader, where) != ("webdataset", "memory") and (more == fast or kind in ("photos", "grey")):
            found.append(pytest.param(loader, kind, where, more, marks=marks))
    return found


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Sets:
    return Sets(tmp_path_factory.mktemp("sets"))


@pytest.fixture(autouse=True)
def blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch)


def close_to(found: Batch, expected: Batch, loader: str, dataset: DilutedSet) -> None:
    """The same rows, labels and replacements, and pixels as like as two decoders are."""
    for name in ("labels", "rows", "replaced"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert found.images.dtype == torch.float32
    std = torch.tensor(dataset.std)[:, None, None]
    gap = (found.images - expected.images).abs() * std  # of full scale
    # FFCV's own libjpeg upsamples colour in another way; no image of a batch may differ as two crops would.
    assert gap.mean() <= (3 / 255 if loader == "ffcv" else 0.1 / 255)
    assert gap.mean(dim=(1, 2, 3)).max() <= (6 / 255 if loader == "ffcv" else 1 / 255)


@pytest.mark.parametrize(("loader", "kind", "where", "order"), cases(ORDERS, "full"))
def test_every_batch_of_an_epoch_is_that_of_resident(
    sets: Sets, loader: str, kind: str, where: str, order: str
) -> None:
    dataset = sets.get(kind, where)
    options = ORDERS[order] | {"batch": BATCH, "seed": 5}
    with (
        closing(open_batches(dataset, loader=loader, **options)) as batches,
        closing(open_batches(sets.get(kind, "memory"), loader="resident", **options)) as reference,
    ):
        assert batches.num_examples == reference.num_examples == dataset.formula.num_images * (1 + ALPHA)
        rows: list[int] = []
        for _ in range(batches.num_examples // BATCH + 2):  # into the next epoch
            batch = next(batches)
            close_to(batch, next(reference), loader, dataset)
            rows += batch.rows.tolist()
        assert Counter(rows[: batches.num_examples]) == Counter(range(batches.num_examples))
        assert batches.num_replaced == 0


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("loader", NAMES)
def test_any_position_on_any_world_size_goes_on_with_the_same_batches(sets: Sets, loader: str, order: str) -> None:
    dataset = sets.get("photos", "tar")
    options: dict[str, Any] = ORDERS[order] | {"batch": BATCH, "seed": 2, "loader": loader}
    with closing(open_batches(dataset, **options)) as through:
        whole = [next(through) for _ in range(9)]
    for number, world_size in ((0, 3), (4, 2), (7, 3), (8, 1)):
        for rank in range(world_size):
            share = slice(rank * BATCH // world_size, (rank + 1) * BATCH // world_size)
            place: dict[str, Any] = {"start": number * BATCH, "rank": rank, "world_size": world_size}
            with closing(open_batches(dataset, **options, **place)) as part:
                found = next(part)
            for name in ("images", "labels", "rows"):
                assert torch.equal(getattr(found, name), getattr(whole[number], name)[share]), name


@pytest.mark.parametrize("loader", NAMES)
def test_a_new_position_is_gone_on_from(sets: Sets, loader: str) -> None:
    with closing(open_batches(sets.get("photos", "tar"), batch=BATCH, loader=loader)) as batches:
        first = next(batches)
        next(batches)
        batches.position = 0
        again = next(batches)
        assert batches.position == BATCH
        assert torch.equal(first.images, again.images)
        assert torch.equal(first.rows, again.rows)


@pytest.mark.parametrize("stream", ["images", "examples"])
@pytest.mark.parametrize("loader", NAMES)
def test_a_stream_is_far_along_at_once(sets: Sets, loader: str, stream: str) -> None:
    options: dict[str, Any] = {"batch": BATCH, "stream": stream, "start": 60_000_000 // BATCH * BATCH}
    with (
        closing(open_batches(sets.get("photos", "tar"), loader=loader, **options)) as batches,
        closing(open_batches(sets.get("photos", "memory"), loader="resident", **options)) as reference,
    ):
        close_to(next(batches), next(reference), loader, sets.get("photos", "tar"))


@pytest.mark.parametrize(("loader", "kind", "where", "world_size"), cases((1, 2, 3), 3))
def test_evaluation_sees_every_image_exactly_once(
    sets: Sets, loader: str, kind: str, where: str, world_size: int
) -> None:
    dataset = sets.get(kind, where)
    for split, images in (("test", dataset.test), ("train", dataset.train)):
        parts = [
            batch
            for rank in range(world_size)
            for batch in open_evaluation(dataset, split, batch=6, loader=loader, rank=rank, world_size=world_size)  # type: ignore[arg-type]
        ]
        rows = torch.cat([batch.rows for batch in parts])
        assert rows.tolist() == list(range(images.num_images))
        assert torch.cat([batch.labels for batch in parts]).tolist() == images.source_labels.tolist()
        assert sum(len(batch.replaced) for batch in parts) == 0
        (reference,) = open_evaluation(sets.get(kind, "memory"), split, batch=1000, loader="resident")  # type: ignore[arg-type]
        together = Batch(torch.cat([batch.images for batch in parts]), reference.labels, rows, reference.replaced)
        close_to(together, reference, loader, dataset)


def test_resident_shows_the_window_of_its_row(sets: Sets) -> None:
    """The reference against what stands in the images and in the coordinates."""
    dataset = sets.get("photos", "memory")
    num_images = dataset.formula.num_images
    batch = next(open_batches(dataset, batch=48, seed=9, start=144, loader="resident"))  # straddles two epochs
    places = Stream(range(num_images), 1 + ALPHA, 9).at(np.arange(144, 192))
    rows = batch.rows.numpy()
    assert len(set(places.epochs.tolist())) == 2
    np.testing.assert_array_equal(rows, places.copies * num_images + places.image_ids)
    images = [decode(dataset.train.item(int(image_id))) for image_id in places.image_ids]
    heights, widths = (np.array([image.shape[axis] for image in images]) for axis in (0, 1))
    flip = flips(9, places.epochs, rows)
    for row, (image, (top, left, height, width)) in enumerate(
        zip(images, windows(9, places.epochs, rows, heights, widths).tolist(), strict=True)
    ):
        box = np.array([top, left, height / SIZE_PX, width / SIZE_PX])
        bounds = np.array([top, top + height, left, left + width], dtype=np.int32)
        colour = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
        pixels = resize_window_plain(colour, box, bounds, bool(flip[row]), size=SIZE_PX)
        expected = (pixels / 255 - np.array(dataset.mean)) / np.array(dataset.std)
        np.testing.assert_allclose(batch.images[row].permute(1, 2, 0).numpy(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("loader", NAMES)
def test_resize_linear_is_another_filter_on_every_loader(sets: Sets, loader: str) -> None:
    dataset = sets.get("photos", "tar")
    found = {}
    for name in (loader, "resident"):
        for resize in ("linear", "antialias"):
            with closing(open_batches(dataset, batch=BATCH, loader=name, resize=resize)) as batches:
                found[name, resize] = next(batches)
    close_to(found[loader, "linear"], found["resident", "linear"], loader, dataset)
    assert not torch.equal(found[loader, "linear"].images, found[loader, "antialias"].images)


def test_a_wrong_resize_lists_the_menu(sets: Sets) -> None:
    with pytest.raises(UserError, match="--resize cubic: choose one of antialias, linear"):
        open_batches(sets.get("photos", "tar"), batch=4, resize="cubic")


def test_webdataset_asks_for_shards(sets: Sets) -> None:
    with pytest.raises(UserError, match="reads shards; give --shards, or another --loader"):
        open_batches(sets.get("photos", "memory"), batch=4, loader="webdataset")


@pytest.mark.parametrize(
    ("kind", "where", "loader"),
    [("grey", "tar", "resident"), ("photos", "tar", "dali"), ("photos", "memory", "dali"), ("photos", "beton", "ffcv")],
)
def test_auto_picks_by_what_the_data_are_and_says_why(sets: Sets, kind: str, where: str, loader: str) -> None:
    with closing(open_batches(sets.get(kind, where), batch=4)) as batches:
        assert batches.loader == loader
        assert len(batches.why) > 10
    assert set(LOADERS) == {"resident", "dali", "ffcv", "webdataset"}
