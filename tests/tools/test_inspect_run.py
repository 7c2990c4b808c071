import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.dataset import dilute
from pipeline.laws import Symmetric
from pipeline.sources import open_source
from train.diagnostics import loss_histograms
from train.experiment import run_experiment
from train.label_picture import draw_losses
from train.recipes import recipe_for

ROOT = Path(__file__).resolve().parent.parent.parent


def inspect(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([str(ROOT / "tools/inspect_run"), *arguments], capture_output=True, text=True, timeout=200)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dataset = dilute(open_source("mnist5k"), alpha=0, law=Symmetric(0.3), clean=400)
    recipe = recipe_for(
        "mnist5k", "plain", num_images=360, num_copies=1, alpha=0, law="symmetric", clean=400, model="perceptron",
        batch=60, epochs=8.0,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("runs") / "mine"
    run_experiment(recipe, dataset, folder)
    return folder


@pytest.mark.slow
def test_a_run_shows_its_result_and_its_pictures(run: Path) -> None:
    done = inspect(str(run))
    assert done.returncode == 0, done.stderr
    result = json.loads((run / "result.json").read_text())
    assert f"{100 * result['top1_accuracy']['last']:.1f} %" in done.stdout
    found = re.search(r"label auroc\s+([\d.]+) %", done.stdout)
    assert found is not None
    assert float(found[1]) > 70  # a net that learnt tells right labels from wrong ones
    for name in ("curves.png", "labels.png"):
        assert np.asarray(Image.open(run / name).convert("L")).std() > 5


@pytest.mark.slow
def test_what_cannot_be_shown_is_said_in_a_line(run: Path, tmp_path: Path) -> None:
    unfinished, other, of_files = (tmp_path / name for name in ("unfinished", "other", "of_files"))
    for folder in (unfinished, other, of_files):
        shutil.copytree(run, folder)
    (unfinished / "result.json").unlink()
    config = json.loads((other / "config.json").read_text())
    config["data"]["noise_seed"] = 5
    config["data"]["source_labels_crc32"] += 1
    (other / "config.json").write_text(json.dumps(config))
    config["data"]["law"] = {"name": "matrix", "matrix": {"sha256": "00"}}
    (of_files / "config.json").write_text(json.dumps(config))
    told = {
        unfinished: "holds no finished run",
        other: "(source_labels_crc32 differs)",
        of_files: "law matrix has files of its own",
    }
    for folder, words in told.items():
        done = inspect(str(folder))
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert words in done.stderr
        assert done.stderr.count("\n") == 1


def test_right_and_wrong_labels_have_areas_of_their_own() -> None:
    losses, right = np.array([0.1, 0.2, 0.2, 3.0, 4.0]), np.array([True, True, True, False, False])
    axes = draw_losses(loss_histograms(losses, right, num_bins=4), 1.0).axes[0]
    assert axes.get_title() == "loss under the last weights, AUROC 1.000"
    heights = [patch.get_data().values.tolist() for patch in axes.patches]
    assert heights == [[3, 0, 0, 0], [0, 0, 1, 1]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["right labels, 3", "wrong labels, 2"]
    alone = draw_losses(loss_histograms(losses, right, num_bins=4), float("nan")).axes[0]
    assert "AUROC" not in alone.get_title()
