import json
from pathlib import Path

import numpy as np
from PIL import Image

from train.curves import plot_curves


def run_folder(path: Path, accuracy: list[float]) -> Path:
    path.mkdir()
    config = {
        "data": {"num_classes": 10, "alpha": 20, "law": {"name": "uniform"}},
        "recipe": {"dataset": "mnist5k", "method": "histogram", "model": "conv4"},
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
