from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from pipeline.builder import build
from pipeline.dataset import DamagedImageError, DilutedSet, ShardSplit, decode, dilute, open_shards, view
from pipeline.errors import UserError
from pipeline.plan import Options, plan_build
from pipeline.sources import Source, open_source
from pipeline.sources.synthetic import synthetic
from pipeline.sources.types import Item


@pytest.fixture(scope="module")
def source() -> Source:
    return synthetic(num_train=330, num_test=60, height=9, width=7, channels=3)


@pytest.fixture(scope="module")
def shards(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    build(plan_build(source, dilute(source, alpha=3, noise_seed=5), Options(shard_images=100)), folder)
    return folder


def equal(a: DilutedSet, b: DilutedSet) -> None:
    assert (a.name, a.classes, a.formula, a.augmentation) == (b.name, b.classes, b.formula, b.augmentation)
    assert (a.image_shape, a.mean, a.std) == (b.image_shape, b.mean, b.std)
    for left, right in ((a.train, b.train), (a.test, b.test)):
        assert left.num_images == right.num_images
        np.testing.assert_array_equal(left.source_labels, right.source_labels)
        for image_id in range(left.num_images):
            np.testing.assert_array_equal(decode(left.item(image_id)), decode(right.item(image_id)))


def test_shards_are_the_set_that_is_diluted_in_memory(source: Source, shards: Path) -> None:
    equal(open_shards(shards), dilute(source, alpha=3, noise_seed=5))


def test_a_view_of_shards_is_the_set_built_with_those_settings(source: Source, shards: Path) -> None:
    equal(
        view(open_shards(shards), alpha=7, noise_seed=6, clean=120),
        dilute(source, alpha=7, noise_seed=6, clean=120),
    )


def test_a_view_that_asks_for_nothing_is_the_manifests_formula(shards: Path) -> None:
    equal(view(open_shards(shards)), open_shards(shards))


def test_clean_is_a_balanced_prefix(source: Source) -> None:
    small, whole = dilute(source, alpha=2, clean=50), dilute(source, alpha=2)
    np.testing.assert_array_equal(small.train.source_labels, whole.train.source_labels[:50])
    assert (np.bincount(small.train.source_labels) == 5).all()


@pytest.mark.parametrize("clean", [0, -3, 331])
def test_a_clean_number_out_of_range_names_the_range(source: Source, clean: int) -> None:
    with pytest.raises(UserError, match="1 to 330"):
        dilute(source, alpha=2, clean=clean)


def test_statistics_are_those_of_all_training_pixels() -> None:
    source = open_source("mnist5k")
    dataset = dilute(source, alpha=0, clean=10)
    pixels = np.concatenate([decode(source.train.item(i)).reshape(-1) for i in range(4000)]) / 255
    assert dataset.mean == pytest.approx((pixels.mean(),), abs=1e-12)
    assert dataset.std == pytest.approx((pixels.std(),), abs=1e-9)


def test_a_flipped_byte_of_an_image_is_noticed_when_it_is_read(shards: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in shards.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    split = open_shards(copy).train
    assert isinstance(split, ShardSplit)
    row = split.index[205]
    content = bytearray((copy / "train-000002.tar").read_bytes())
    content[int(row["offset"]) + 70] ^= 4
    (copy / "train-000002.tar").write_bytes(content)
    with pytest.raises(DamagedImageError, match=r"train-000002.tar: image 205"):
        open_shards(copy).train.item(205)
    open_shards(copy).train.item(204)


def test_a_missing_or_shortened_file_is_named(shards: Path, tmp_path: Path) -> None:
    for file in shards.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "train-000001.tar").write_bytes(b"short")
    with pytest.raises(UserError, match=r"train-000001.tar has 5 bytes"):
        open_shards(tmp_path)
    (tmp_path / "train-000001.tar").unlink()
    with pytest.raises(UserError, match=r"train-000001.tar is missing"):
        open_shards(tmp_path)


def test_a_flipped_byte_in_the_head_of_an_index_is_an_error(shards: Path, tmp_path: Path) -> None:
    for file in shards.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    index = (tmp_path / "train.index.npy").read_bytes()
    opened = 0
    for place in range(index.index(b"\n") + 1):
        for change in (1, 8, 255):
            flipped = index[:place] + bytes([index[place] ^ change]) + index[place + 1 :]
            (tmp_path / "train.index.npy").write_bytes(flipped)
            with suppress(UserError):  # anything else fails this test
                open_shards(tmp_path)
                opened += 1
    assert opened < 20  # such as one blank for another
    (tmp_path / "train.index.npy").write_bytes(b"?" + index[1:])
    with pytest.raises(UserError, match=r"train\.index\.npy cannot be read .* build the data set again with --force"):
        open_shards(tmp_path)


def test_a_folder_without_a_manifest_is_unfinished(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished data set"):
        open_shards(tmp_path)


def test_bytes_that_are_no_image_are_damaged() -> None:
    with pytest.raises(DamagedImageError):
        decode(Item(b"\x89PNG\r\n\x1a\n and no more", "png"))
