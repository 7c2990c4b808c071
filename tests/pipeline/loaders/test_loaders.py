from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.crops import flips, shifts
from kernels.images import gather_shift, normalised_values
from pipeline.builder import build
from pipeline.dataset import DamagedImageError, DilutedSet, dilute, open_shards
from pipeline.errors import UserError
from pipeline.loaders import LOADERS, open_batches, open_evaluation
from pipeline.loaders.replace import stand_ins
from pipeline.loaders.resident import Resident, gather_shift_torch, open_resident
from pipeline.loaders.types import How
from pipeline.plan import Options, plan_build
from pipeline.sources.synthetic import synthetic
from pipeline.stream import Rest, Stream
from pipeline.types import Batch

NUM_IMAGES, ALPHA = 61, 4
SOURCE = synthetic(num_train=NUM_IMAGES, num_test=23, height=8, width=6)
DATASET = dilute(SOURCE, alpha=ALPHA, noise_seed=3)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    build(plan_build(SOURCE, DATASET, Options(shard_images=20)), folder)
    return folder


def equal(a: Batch, b: Batch) -> None:
    for name in ("images", "labels", "rows", "replaced"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


def test_an_epoch_is_the_multiset_that_the_formula_promises() -> None:
    batches = open_batches(DATASET, batch=61, seed=1)
    assert batches.num_examples == NUM_IMAGES * (1 + ALPHA)
    seen = [next(batches) for _ in range(1 + ALPHA)]
    rows = torch.cat([b.rows for b in seen]).numpy()
    assert sorted(rows) == list(range(NUM_IMAGES * (1 + ALPHA)))
    table = DATASET.formula.all_labels(np.arange(NUM_IMAGES), DATASET.train.source_labels)
    copies, ids = np.divmod(rows, NUM_IMAGES)
    np.testing.assert_array_equal(torch.cat([b.labels for b in seen]).numpy(), table[ids, copies])


def test_a_batch_shows_the_image_of_its_row_shifted_and_flipped_as_its_coordinates_say() -> None:
    batches = open_batches(DATASET, batch=100, seed=9, start=300)  # 300..399 straddles epochs 0 and 1 at 305
    batch = next(batches)
    places = Stream(range(NUM_IMAGES), 1 + ALPHA, 9).at(np.arange(300, 400))
    assert set(places.epochs.tolist()) == {0, 1}
    rows = batch.rows.numpy()
    np.testing.assert_array_equal(rows, places.copies * NUM_IMAGES + places.image_ids)
    shift, flip = shifts(9, places.epochs, rows, 4), flips(9, places.epochs, rows)
    mean, std = np.array(DATASET.mean), np.array(DATASET.std)
    for i, image_id in enumerate(places.image_ids):
        item = DATASET.train.item(int(image_id))
        pixels = np.frombuffer(item.data, dtype=np.uint8).reshape(8, 6, 3)
        dy, dx = shift[i]
        crop = np.pad(pixels, ((4, 4), (4, 4), (0, 0)))[4 + dy : 12 + dy, 4 + dx : 10 + dx]
        crop = crop[:, ::-1] if flip[i] else crop
        expected = ((crop / 255 - mean) / std).transpose(2, 0, 1)
        np.testing.assert_allclose(batch.images[i].numpy(), expected, atol=1e-5)


@given(st.integers(0, 10**12), st.sampled_from([1, 2, 3, 8]), st.sampled_from(["examples", "images"]))
def test_the_ranks_together_are_the_global_batch_at_any_position(start: int, world_size: int, stream: str) -> None:
    options = {"batch": 24, "seed": 4, "start": start, "stream": stream}
    whole = next(open_batches(DATASET, **options))  # type: ignore[arg-type]
    parts = [
        next(open_batches(DATASET, **options, rank=r, world_size=world_size))  # type: ignore[arg-type]
        for r in range(world_size)
    ]
    for name in ("images", "labels", "rows"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))


def test_resuming_anywhere_goes_on_as_if_nothing_had_happened() -> None:
    through = open_batches(DATASET, batch=32, seed=2)
    for _ in range(13):
        next(through)
    resumed = open_batches(DATASET, batch=32, seed=2, start=through.position)
    for _ in range(4):
        equal(next(through), next(resumed))


def test_shards_give_the_batches_of_memory(shards: Path) -> None:
    for stream in ("examples", "images"):
        a = open_batches(DATASET, batch=40, seed=6, stream=stream)  # type: ignore[arg-type]
        b = open_batches(open_shards(shards), batch=40, seed=6, stream=stream)  # type: ignore[arg-type]
        for _ in range(9):
            equal(next(a), next(b))


def test_a_stream_of_images_carries_the_labels_of_all_copies() -> None:
    batches = open_batches(DATASET, batch=NUM_IMAGES, stream="images")
    batch = next(batches)
    assert batches.num_examples == NUM_IMAGES
    assert sorted(batch.rows.tolist()) == list(range(NUM_IMAGES))
    table = DATASET.formula.all_labels(np.arange(NUM_IMAGES), DATASET.train.source_labels)
    np.testing.assert_array_equal(batch.labels.numpy(), table[batch.rows.numpy()])


def test_a_stream_of_images_of_a_clean_set_has_one_column_of_labels() -> None:
    batch = next(open_batches(dilute(SOURCE, alpha=0), batch=10, stream="images"))
    assert batch.labels.shape == (10, 1)


def test_a_held_out_part_is_never_seen_and_ids_stay_those_of_the_whole() -> None:
    batches = open_batches(DATASET, batch=50, images=range(50))
    assert batches.num_examples == 50 * (1 + ALPHA)
    rows = np.concatenate([next(batches).rows.numpy() for _ in range(1 + ALPHA)])
    assert sorted(rows) == sorted(c * NUM_IMAGES + i for c in range(1 + ALPHA) for i in range(50))


@pytest.mark.parametrize("world_size", [1, 2])
def test_chosen_examples_alone_are_streamed_with_their_own_labels(world_size: int) -> None:
    chosen = np.array([2, 5, 60, 61, 121, 244, 300, 304])  # of 61 · 5
    opened = [
        open_batches(DATASET, batch=8, example_ids=chosen, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert opened[0].num_examples == 8
    for epoch in range(2):
        batches = [next(each) for each in opened]
        rows = np.concatenate([batch.rows.numpy() for batch in batches])
        np.testing.assert_array_equal(np.sort(rows), chosen)
        copies, image_ids = np.divmod(rows, NUM_IMAGES)
        labels = DATASET.formula.labels(image_ids, copies, DATASET.train.source_labels[image_ids])
        np.testing.assert_array_equal(np.concatenate([batch.labels.numpy() for batch in batches]), labels)
        assert epoch == 0 or (rows != chosen).any()


@pytest.mark.parametrize("world_size", [1, 3])
def test_chosen_examples_alone_are_evaluated(world_size: int) -> None:
    chosen = np.array([2, 5, 60, 61, 121, 244, 304])
    parts = [
        open_evaluation(
            DATASET, "train", stream="examples", example_ids=chosen, batch=2, rank=rank, world_size=world_size
        )
        for rank in range(world_size)
    ]
    assert sum(map(len, parts)) == 7
    rows = np.concatenate([batch.rows.numpy() for part in parts for batch in part])
    np.testing.assert_array_equal(rows, chosen)
    labels = np.concatenate([batch.labels.numpy() for part in parts for batch in part])
    np.testing.assert_array_equal(
        labels,
        DATASET.formula.labels(rows % NUM_IMAGES, rows // NUM_IMAGES, DATASET.train.source_labels[rows % NUM_IMAGES]),
    )


def test_single_examples_have_no_place_where_whole_images_go_by() -> None:
    with pytest.raises(UserError, match="single examples"):
        open_batches(DATASET, batch=2, example_ids=np.array([1, 2, 30]), order="passes")


def test_rows_at_foretells_a_batch() -> None:
    batches = open_batches(DATASET, batch=32, seed=2, start=64)
    expected = batches.rows_at(64)
    np.testing.assert_array_equal(next(batches).rows.numpy(), expected)


@pytest.mark.parametrize("world_size", [1, 2, 3, 8, 40])
def test_evaluation_sees_every_image_exactly_once(world_size: int) -> None:
    for split, dataset_split in (("test", DATASET.test), ("train", DATASET.train)):
        batches = [
            batch
            for rank in range(world_size)
            for batch in open_evaluation(DATASET, split, batch=7, rank=rank, world_size=world_size)  # type: ignore[arg-type]
        ]
        rows = torch.cat([batch.rows for batch in batches]).numpy()
        assert Counter(rows.tolist()) == Counter(range(dataset_split.num_images))
        labels = torch.cat([batch.labels for batch in batches]).numpy()
        np.testing.assert_array_equal(labels, dataset_split.source_labels[rows])
        table = normalised_values(DATASET.mean, DATASET.std)
        pixels = np.frombuffer(dataset_split.item(int(rows[3])).data, dtype=np.uint8).reshape(8, 6, 3)
        expected = np.stack([table[c][pixels[..., c]] for c in range(3)])
        np.testing.assert_array_equal(torch.cat([batch.images for batch in batches])[3].numpy(), expected)


@given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_a_bad_row_is_filled_by_the_previous_good_one(bad: list[bool]) -> None:
    if all(bad):
        with pytest.raises(DamagedImageError):
            stand_ins(np.array(bad))
        return
    filled = stand_ins(np.array(bad)).tolist()
    for row, source in enumerate(filled):
        good_before = [r for r in range(row + 1) if not bad[r]]
        assert source == (good_before[-1] if good_before else bad.index(False))


def test_rows_of_a_position_are_filled_together() -> None:
    bad = np.array([0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], dtype=np.bool_)
    assert stand_ins(bad, together=3).tolist() == [3, 4, 5, 3, 4, 5, 3, 4, 5, 9, 10, 11]
    assert stand_ins(bad, together=1).tolist() == stand_ins(bad).tolist()
    with pytest.raises(DamagedImageError):
        stand_ins(bad, together=6)


def damage(folder: Path, image_id: int) -> DilutedSet:
    """Flip a byte in the pixels of one training image; the DEFLATE stream stays readable, only the crc tells."""
    row = np.load(folder / "train.index.npy")[image_id]
    path = folder / f"train-{image_id // 20:06d}.tar"
    content = bytearray(path.read_bytes())
    content[int(row["offset"]) + 100] ^= 1
    path.write_bytes(content)
    return open_shards(folder)


def test_an_unreadable_image_is_replaced_and_named_never_dropped(shards: Path, tmp_path: Path) -> None:
    for file in shards.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    dataset = damage(tmp_path, 17)
    clean, damaged = open_batches(DATASET, batch=61, seed=1), open_batches(dataset, batch=61, seed=1)
    replaced = 0
    for _ in range(1 + ALPHA):
        a, b = next(clean), next(damaged)
        where = np.flatnonzero(a.rows.numpy() % NUM_IMAGES == 17)
        np.testing.assert_array_equal(b.replaced.numpy(), where)
        source = stand_ins(a.rows.numpy() % NUM_IMAGES == 17)
        assert torch.equal(b.rows, a.rows[source])
        assert torch.equal(b.labels, a.labels[source])
        kept = np.setdiff1d(np.arange(61), where)
        assert torch.equal(b.images[kept], a.images[kept])
        replaced += len(where)
    assert replaced == damaged.num_replaced == 1 + ALPHA
    evaluation = list(open_evaluation(dataset, "train", batch=30))
    assert 17 not in torch.cat([batch.rows for batch in evaluation])
    assert torch.cat([batch.replaced for batch in evaluation]).tolist() == [17]


@given(st.integers(0, 2**32), st.integers(1, 3), st.integers(0, 5))
def test_the_torch_path_equals_the_numba_path(seed: int, channels: int, shift_px: int) -> None:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (11, 6, 9, channels), dtype=np.uint8)
    ids = rng.integers(0, 11, 20)
    shift = rng.integers(-shift_px, shift_px + 1, (20, 2)).astype(np.int8)
    flip = rng.integers(0, 2, 20).astype(np.bool_)
    mean, std = tuple(rng.random(channels).tolist()), tuple((rng.random(channels) + 0.1).tolist())
    expected = np.empty((20, channels, 6, 9), dtype=np.float32)
    gather_shift(images, ids, shift, flip, mean, std, expected)
    found = gather_shift_torch(
        *(torch.from_numpy(x) for x in (images, ids, shift, flip)),  # type: ignore[arg-type]
        torch.tensor(normalised_values(mean, std)),
    )
    np.testing.assert_array_equal(found.numpy(), expected)


def test_an_unknown_loader_lists_the_menu() -> None:
    with pytest.raises(UserError, match=", ".join(["auto", *LOADERS])):
        open_batches(DATASET, batch=4, loader="resdent")


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(UserError, match="larger than the data"):
        open_batches(DATASET, batch=NUM_IMAGES * (1 + ALPHA) + 1)


def draws_of(dataset: DilutedSet, **options: Any) -> Any:
    """Open batches that draw from the first 20 examples, besides views of all others."""
    every = np.arange(NUM_IMAGES * (1 + ALPHA))
    rest = Rest(np.linspace(0.7, 1, 30), every[30:], 2)
    return open_batches(dataset, batch=24, seed=1, example_ids=every[:30], rest=rest, **options)


def test_batches_of_draws_hold_views_besides_whatever_rank_they_go_to() -> None:
    whole = draws_of(DATASET)
    assert whole.num_examples == 30
    ranks = [draws_of(DATASET, rank=rank, world_size=2) for rank in range(2)]
    for _ in range(3):
        position = whole.position
        batch = next(whole)
        images, rows = batch.images.unflatten(0, (24, 3)), batch.rows.view(24, 3)
        assert batch.labels.shape == (72,)
        assert (rows[:, 0] < 30).all()
        assert (rows[:, 1] >= 30).all()
        assert torch.equal(rows[:, 1], rows[:, 2])
        different = (images[:, 1] != images[:, 2]).flatten(1).any(dim=1)
        assert different.float().mean() > 0.9  # of shifts by up to two px and flips, one pair in 50 is the same
        parts = [next(each) for each in ranks]
        for name in ("images", "labels", "rows"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name)), name
        assert whole.rows_at(position).tolist() == batch.rows.tolist()
        equal(next(draws_of(DATASET, start=position)), batch)


def test_a_damaged_image_takes_its_whole_position_with_it(shards: Path, tmp_path: Path) -> None:
    for file in shards.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    clean, damaged = draws_of(DATASET), draws_of(damage(tmp_path, 17))
    seen = 0
    for _ in range(4):
        a, b = next(clean), next(damaged)
        bad = a.rows.numpy() % NUM_IMAGES == 17
        np.testing.assert_array_equal(b.replaced.numpy(), np.flatnonzero(bad))
        source = stand_ins(bad, together=3)
        for name in ("images", "labels", "rows"):
            assert torch.equal(getattr(b, name), getattr(a, name)[source]), name
        seen += int(bad.sum())
    assert damaged.num_replaced == seen > 0


def test_loaders_of_a_split_share_its_pixels_on_a_device() -> None:
    dataset = dilute(synthetic(num_train=20, num_test=10, height=8, width=8, channels=1, num_classes=4), alpha=1)
    how = How(dataset.augmentation.for_evaluation(), torch.device("meta"))  # no device at all, but none of the host's
    first, second = (open_resident(dataset, dataset.train, how) for _ in range(2))
    assert isinstance(first, Resident)
    assert isinstance(second, Resident)
    assert first.on_device is second.on_device
    other = open_resident(dataset, dataset.test, how)
    assert isinstance(other, Resident)
    assert len(other.on_device) == 10
