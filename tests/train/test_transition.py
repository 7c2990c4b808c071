"""Forward correction with a matrix that no law says: given in a file, or estimated by a run before the run."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from calls import call, interrupted, same, weights
from listed import write_clothing1m

from pipeline.dataset import DilutedSet, dilute
from pipeline.errors import UserError
from pipeline.laws import Pair, White
from pipeline.sources.synthetic import synthetic
from train.experiment import run_experiment
from train.methods.forward import Forward
from train.methods.plain import Plain
from train.recipes import Recipe

# 135 of 150 images are trained on.
FIELDS: dict[str, Any] = {"dataset": "synthetic", "model": "mlp1", "batch": 15, "examples": 1350, "precision": "fp32"}
FIELDS |= {"optimizer": "adamw", "lr": 3e-3, "checkpoint_every": 450, "eval_every": 450, "method": "forward"}


def pairs_of(num_images: int) -> DilutedSet:
    """Return images of 4 classes that look the same every time, one label in four the next one."""
    source = synthetic(num_train=num_images, num_test=40, height=8, width=8, channels=1, num_classes=4)
    made = dilute(source, alpha=0, law=Pair(0.25))
    return dataclasses.replace(made, augmentation=made.augmentation.for_evaluation())


@pytest.fixture
def pairs() -> DilutedSet:
    return pairs_of(150)


@pytest.mark.parametrize("ending", [".npy", ".csv"])
def test_a_file_with_the_matrix_of_the_law_trains_as_the_law_does(
    pairs: DilutedSet, tmp_path: Path, ending: str
) -> None:
    path, matrix = tmp_path / f"t{ending}", pairs.formula.law.matrix(0, 4)
    if ending == ".npy":
        np.save(path, matrix)
    else:
        np.savetxt(path, matrix, delimiter=",")
    run_experiment(Recipe(**FIELDS), pairs, tmp_path / "law")
    unknown = dataclasses.replace(pairs, observed=True)  # nobody says the law
    run_experiment(Recipe(**FIELDS, transition=str(path)), unknown, tmp_path / "file")
    assert same(weights(tmp_path / "law"), weights(tmp_path / "file"))


def test_an_estimate_is_near_the_law_and_is_what_the_run_corrects_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = pairs_of(1500)
    recipe = Recipe(**FIELDS | {"examples": 3000, "eval_every": 1000, "model": "perceptron"}, transition="auto")
    made: list[Forward] = []
    init = Forward.__init__
    monkeypatch.setattr(Forward, "__init__", lambda self, setting: (made.append(self), init(self, setting))[1])
    result = run_experiment(recipe, pairs, tmp_path / "run")
    matrix = np.load(tmp_path / "run/transition/transition.npy")
    np.testing.assert_allclose(matrix.sum(axis=1), 1)
    np.testing.assert_array_equal(matrix.argsort(axis=1)[:, -2:], [[1, 0], [2, 1], [3, 2], [0, 3]])  # the law's own
    error = np.abs(matrix - pairs.formula.law.matrix(0, 4)).mean()
    assert result["transition"]["mean_abs_error"] == pytest.approx(error)
    assert error < 0.1  # the identity's is 0.125
    np.testing.assert_allclose(made[-1].transition.numpy(), matrix, rtol=1e-6)
    result = run_experiment(recipe, pairs, tmp_path / "run", resume=True)
    assert result["transition"]["wall_s"] > 0


@pytest.mark.parametrize(("method", "at"), [(Plain, 40), (Forward, 50)])
def test_a_killed_run_goes_on_in_its_phase_and_ends_the_same(
    pairs: DilutedSet, tmp_path: Path, method: Any, at: int
) -> None:
    recipe, unknown = Recipe(**FIELDS, transition="auto"), dataclasses.replace(pairs, observed=True)
    run_experiment(recipe, unknown, tmp_path / "whole")
    with interrupted(method, at):
        run_experiment(recipe, unknown, tmp_path / "cut")
    result = run_experiment(recipe, unknown, tmp_path / "cut", resume=True)
    assert same(weights(tmp_path / "cut"), weights(tmp_path / "whole"))
    assert result["transition"]["mean_abs_error"] is None  # nobody knows


def test_labels_as_they_were_found_want_a_matrix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_clothing1m(Path("in"))
    np.save("small.npy", np.eye(3))
    small = ["--model", "perceptron", "--size", "16", "--batch", "4", "--examples", "8", "--val-frac", "0"]
    command = ["clothing1m", "--source", "in", *small, "--method", "forward"]
    for given, words in (
        ([], "nobody knows that of labels as they were found; give --transition FILE, or auto to estimate it"),
        (["--transition", "small.npy"], "--transition small.npy: the transition matrix is of 3 classes, and the data"),
        (["--transition", "none.npy"], "none.npy"),
        (
            ["--transition", "auto", "--select", "rsl"],
            "selection rsl keeps some of an image's labels, and forward is defined for all of them",
        ),
    ):
        assert call(monkeypatch, *command, *given, "--out", "refused") == 2
        assert words in capsys.readouterr().err
    assert call(monkeypatch, *command, "--transition", "auto", "--out", "auto") == 0
    assert np.load("auto/transition/transition.npy").shape == (14, 14)
    assert call(monkeypatch, "clothing1m", "--source", "in", *small, "--transition", "auto") == 2
    assert "transition auto is for method forward, this is plain; leave it out" in capsys.readouterr().err


def test_images_of_no_class_have_no_matrix(tmp_path: Path) -> None:
    source = synthetic(num_train=150, num_test=40, height=8, width=8, channels=1, num_classes=4)
    with pytest.raises(UserError, match="law white adds images that have none"):
        run_experiment(Recipe(**FIELDS, transition="auto"), dilute(source, alpha=1, law=White()), tmp_path / "run")
