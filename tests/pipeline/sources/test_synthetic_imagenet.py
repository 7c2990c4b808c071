import hashlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy import ndarray as Array
from PIL import Image

from pipeline.errors import UserError
from pipeline.images import check_item
from pipeline.sources import Source, Split, open_source, synthetic_imagenet
from pipeline.sources.synthetic_imagenet import CELLS, TILES, write_synthetic_imagenet


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = tmp_path_factory.mktemp("data") / "imagenet"
    write_synthetic_imagenet(folder, num_images=120, num_classes=6, num_val=60)
    return open_source("imagenet", folder)


def files_below(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*.JPEG")
    }


def test_it_is_an_imagenet_tree_whose_images_all_pass(source: Source) -> None:
    assert source.classes == tuple(f"n9000000{label}" for label in range(6))
    assert np.bincount(source.train.labels).tolist() == [20] * 6
    assert np.bincount(source.test.labels).tolist() == [10] * 6
    assert source.train.name_of(0) == "train/n90000000/n90000000_0.JPEG"
    assert source.test.name_of(0) == "val/n90000000/ILSVRC2012_val_00000001.JPEG"
    for split in (source.train, source.test):
        for index in range(len(split)):
            assert check_item(split.item(index), "header").channels == 3
        check_item(split.item(0), "decode")


def test_sizes_are_distributed_like_imagenet_s(source: Source) -> None:
    items = [check_item(split.item(i), "header") for split in (source.train, source.test) for i in range(len(split))]
    num_bytes = np.array([len(item.data) for item in items])
    # ImageNet: mean 110 KB, average size about 470 × 400. Seeded, so there is no false alarm.
    assert 95_000 < num_bytes.mean() < 130_000
    assert num_bytes.max() / num_bytes.min() > 5
    assert 400 < np.mean([item.width for item in items]) < 550
    typical = [item for item in items if (item.width, item.height) == (500, 375)]
    assert 0.3 < len(typical) / len(items) < 0.6
    assert any(item.height > item.width for item in items)


def test_images_are_pure_functions_of_seed_split_and_number(tmp_path: Path) -> None:
    few, more, other = (tmp_path / name for name in ("few", "more", "other"))
    write_synthetic_imagenet(few, num_images=4, num_classes=2, num_val=2)
    write_synthetic_imagenet(more, num_images=6, num_classes=2, num_val=4)
    write_synthetic_imagenet(other, num_images=4, num_classes=2, num_val=2, seed=1)
    assert files_below(few).items() <= files_below(more).items()
    assert len(files_below(more)) == len(set(files_below(more).values())) == 10
    assert not set(files_below(few).values()) & set(files_below(other).values())


def features(split: Split) -> Array:
    """Average each image over the tiles of the pattern, and over its cells."""
    rows = []
    for index in range(len(split)):
        with Image.open(BytesIO(split.item(index).data)) as image:
            small = image.resize((TILES * CELLS, TILES * CELLS), Image.Resampling.BOX)
        cells = np.asarray(small, dtype=np.float64).reshape(TILES, CELLS, TILES, CELLS, 3).mean(axis=(0, 2))
        rows.append((cells - cells.mean(axis=(0, 1))).reshape(-1))
    return np.stack(rows)


def test_the_classes_can_be_learnt_from_one_pass_of_means(source: Source) -> None:
    train, test = features(source.train), features(source.test)
    means = np.stack([train[source.train.labels == label].mean(axis=0) for label in range(6)])
    distance = ((test[:, None] - means) ** 2).sum(axis=-1)
    # Seeded, so there is no false alarm; one class in six would be guessed right.
    assert (distance.argmin(axis=1) == source.test.labels).mean() > 0.8


def test_photos_keep_the_statistics_of_natural_images(source: Source) -> None:
    # Neighbouring pixels of photos are alike (correlation 0.9 and more); those of white noise are not.
    correlations = []
    for index in range(0, len(source.train), 10):
        with Image.open(BytesIO(source.train.item(index).data)) as image:
            grey = np.asarray(image.convert("L"), dtype=np.float64)
        correlations.append(np.corrcoef(grey[:, 1:].reshape(-1), grey[:, :-1].reshape(-1))[0, 1])
    assert np.median(correlations) > 0.9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "--classes 0: give 1 to 10,000"),
        ({"num_classes": 10_001}, "--classes 10001: give"),
        ({"num_images": 3, "num_classes": 4}, "every class needs at least one"),
        ({"num_images": 8, "num_classes": 4, "num_val": 3}, "every class needs at least one"),
        ({"seed": -1}, r"--seed -1: give a whole number in \[0, 2\^64\)"),
        ({"seed": 2**64}, "--seed 18446744073709551616: give"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments: dict[str, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        write_synthetic_imagenet(tmp_path / "x", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(UserError, match="exists and is not empty; remove it, or give another --out"):
        write_synthetic_imagenet(tmp_path, num_images=2, num_classes=1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_disk_that_is_full_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(UserError, match="No space left on device; make room, or give another --out"):
        write_synthetic_imagenet(tmp_path / "x", num_images=2, num_classes=1)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic_imagenet.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"photos of scikit-learn, .*pip install --force-reinstall scikit-learn"):
        write_synthetic_imagenet(tmp_path / "x", num_images=2, num_classes=1)
