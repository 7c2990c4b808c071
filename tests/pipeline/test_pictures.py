from pathlib import Path

import numpy as np
import pytest
from numpy import ndarray as Array
from PIL import Image

from pipeline.dataset import DilutedSet, dilute
from pipeline.errors import DamagedImageError
from pipeline.histograms import count_labels
from pipeline.laws import Law, Pair, Structured, Uniform, White
from pipeline.pictures import Figure, content_of, heat_map, is_current, sample_grid, save
from pipeline.sources.folder import open_folder
from pipeline.sources.synthetic import synthetic


def pixels(path: Path) -> Array:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def diluted(num_classes: int, law: Law | None = None, alpha: int = 3) -> DilutedSet:
    source = synthetic(num_train=3 * num_classes, num_test=1, height=4, width=4, num_classes=num_classes)
    return dilute(source, alpha=alpha, law=law)


@pytest.mark.parametrize("num_classes", [1, 10, 40, 300])
def test_a_heat_map_of_any_number_of_classes_has_one_size(tmp_path: Path, num_classes: int) -> None:
    dataset = diluted(num_classes)
    save(heat_map(dataset, count_labels(dataset)), tmp_path / "matrix.png")
    assert pixels(tmp_path / "matrix.png").shape == (800, 900, 3)


@pytest.mark.parametrize(
    ("law", "alpha"), [(Uniform(), 0), (Pair(0.5), 0), (Structured(0.2, "random"), 2), (White(), 2)]
)
def test_samples_of_every_kind_of_law_are_drawn(tmp_path: Path, law: Law, alpha: int) -> None:
    save(sample_grid(diluted(4, law, alpha), np.arange(6)), tmp_path / "samples.png")
    height, width, _ = pixels(tmp_path / "samples.png").shape
    assert width == 960
    assert height > 2 * 210


def test_right_labels_are_green(tmp_path: Path) -> None:
    def has_green(law: Law) -> bool:
        grey = synthetic(num_train=4, num_test=1, height=4, width=4, channels=1, num_classes=4)
        save(sample_grid(dilute(grey, alpha=0, law=law), np.arange(4)), tmp_path / "samples.png")
        found = pixels(tmp_path / "samples.png").astype(int)
        return bool((found[..., 1] - found[..., 0] > 50).any())

    assert has_green(Pair(0.0))
    assert not has_green(Pair(0.999999))


def test_photos_of_any_size_and_names_of_any_kind_are_drawn(tmp_path: Path) -> None:
    names = ["$\\frac$ [bold]tench[b]", "a very long name of a goldfish, Carassius auratus", "大白鯊", "x"]
    sizes = [(700, 30), (3, 500), (2000, 1500), (1, 1)]
    for split in ("train", "val"):
        for name, size in zip(names, sizes, strict=True):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("L" if name == "x" else "RGB", size, 128).save(tmp_path / split / name / "1.png")
    dataset = dilute(open_folder(tmp_path), alpha=2)
    save(sample_grid(dataset, np.arange(4)), tmp_path / "samples.png")
    save(heat_map(dataset, count_labels(dataset)), tmp_path / "matrix.png")
    assert pixels(tmp_path / "samples.png").shape[1] == 960


def test_a_damaged_image_does_not_keep_the_others_from_being_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = diluted(4)
    item = dataset.train.item

    def one_is_damaged(image_id: int) -> object:
        if image_id == 1:
            raise DamagedImageError("its bytes changed")
        return item(image_id)

    monkeypatch.setattr(dataset.train, "item", one_is_damaged)
    save(sample_grid(dataset, np.arange(4)), tmp_path / "samples.png")
    found = pixels(tmp_path / "samples.png")[40:200]
    assert found[:, 20:200].std() > 40  # drawn
    assert found[:, 260:440].std() < 40  # white, with one word


def chart(y: float = 0.5, color: str = "red", label: str = "ours", band: float = 0.1, bar: float = 3.0) -> Figure:
    figure = Figure(layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([1, 2], [y, 0.25], color=color, label=label)
    left.fill_between([1, 2], [y - band, 0.2], [y + band, 0.3])
    left.legend()
    right.barh(["one", "two"], [1.0, bar])
    return figure


def test_a_chart_is_current_as_long_as_it_shows_the_same(tmp_path: Path) -> None:
    path = tmp_path / "chart.png"
    assert not is_current(chart(), path)
    save(chart(), path)
    assert is_current(chart(), path)
    assert is_current(chart(y=0.5 + 1e-12), path)  # what another machine's arithmetic may differ by
    others = [chart(y=0.6), chart(color="blue"), chart(label="theirs"), chart(band=0.2), chart(bar=4.0)]
    assert not any(is_current(other, path) for other in others)
    assert len({content_of(other) for other in others}) == len(others)


def test_a_picture_that_says_nothing_of_its_content_is_not_current(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "chart.png")
    assert not is_current(chart(), tmp_path / "chart.png")
