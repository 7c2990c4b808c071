import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.pictures import Figure
from train import curves
from train.curves import plot_curves
from train.methods import METHODS


def run_folder(path: Path, accuracy: list[float], method: str = "histogram") -> Path:
    path.mkdir()
    config = {
        "data": {"num_classes": 10, "alpha": 20, "law": {"name": "uniform"}},
        "recipe": {"dataset": "mnist5k", "method": method, "model": "conv4"},
    }
    (path / "config.json").write_text(json.dumps(config))
    rows = [{"examples": 10 * i, "eval/top1_accuracy": a, "train/loss": 2.3 - a} for i, a in enumerate(accuracy)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_picture_shows_the_curves(tmp_path: Path) -> None:
    pictures = []
    for name, accuracy in (("a", [0.1, 0.5, 0.9]), ("b", [0.1, 0.2, 0.3])):
        plot_curves(run_folder(tmp_path / name, accuracy), tmp_path / f"{name}.png")
        pictures.append(np.asarray(Image.open(tmp_path / f"{name}.png").convert("L")))
    assert pictures[0].shape == pictures[1].shape
    assert min(pictures[0].shape) > 300
    assert (pictures[0] != pictures[1]).mean() > 0.001  # other curves, other pixels


def drawn(path: Path, monkeypatch: pytest.MonkeyPatch, accuracy: list[float], method: str) -> Figure:
    pictures: list[Figure] = []
    monkeypatch.setattr(curves, "save", lambda figure, picture: pictures.append(figure))
    plot_curves(run_folder(path, accuracy, method), path / "curves.png")
    return pictures[0]


@pytest.mark.parametrize("method", METHODS)
def test_the_axis_counts_what_the_method_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    figure = drawn(tmp_path / "run", monkeypatch, [0.1, 0.5], method)
    images = method in ("h_alpha", "histogram", "marginal")
    assert {axis.get_xlabel() for axis in figure.axes} == {"images seen" if images else "examples seen"}


def test_a_single_reading_has_a_marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for readings, marker in (([0.1], "."), ([0.1, 0.5], "None")):
        figure = drawn(tmp_path / str(len(readings)), monkeypatch, readings, "plain")
        (loss,) = figure.axes[1].lines
        assert loss.get_marker() == marker


def test_a_run_without_a_reading_has_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = drawn(tmp_path / "run", monkeypatch, [], "plain")
    assert not figure.axes[1].lines
