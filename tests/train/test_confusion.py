import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.console import run
from pipeline.dataset import DilutedSet
from pipeline.errors import UserError
from pipeline.laws.files import read_matrix
from pipeline.laws.structured import confusing_order
from pipeline.loaders import open_evaluation
from pipeline.types import Batch
from train.assemble import build_learner
from train.checkpoint import load_state
from train.cli import train
from train.distributed import ALONE
from train.evaluate import confusion
from train.experiment import run_experiment
from train.recipes import Recipe

CPU = torch.device("cpu")
RECIPE = Recipe(
    dataset="synthetic",
    model="mlp1",
    batch=12,
    examples=240,
    eval_every=240,
    precision="fp32",
    lr=0.01,
    ema=3.0,
    val_frac=0.25,
)


class Given:
    """Predicts what the images say: pixel 0 is the class."""

    device = CPU
    world = ALONE

    @contextmanager
    def evaluating(self) -> Iterator[Callable[[Tensor], Tensor]]:
        yield lambda images: torch.nn.functional.one_hot(images[:, 0, 0, 0].long(), 5).float()


@given(
    pairs=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30), batch=st.integers(1, 9)
)
def test_a_cell_counts_the_images_of_a_class_that_were_taken_for_another(
    pairs: list[tuple[int, int]], batch: int
) -> None:
    none = torch.zeros(0, dtype=torch.int64)
    batches = []
    for first in range(0, len(pairs), batch):
        true, predicted = torch.tensor(pairs[first : first + batch]).T
        batches.append(Batch(predicted[:, None, None, None].float(), true, torch.arange(len(true)), none))
    matrix = confusion(Given(), batches, 5)
    assert {cell: matrix[cell] for cell in np.ndindex(5, 5)} == {cell: pairs.count(cell) for cell in np.ndindex(5, 5)}


@pytest.mark.parametrize("name", ["c.csv", "c.npy"])
def test_a_run_measures_its_last_weights_on_the_held_out_images(tiny: DilutedSet, tmp_path: Path, name: str) -> None:
    path = tmp_path / "new" / name
    run_experiment(RECIPE, tiny, tmp_path / "run", save_confusion=path)
    learner = build_learner(RECIPE, tiny, CPU)
    learner.evaluated.load_state_dict(load_state(tmp_path / "run" / "last.pt", CPU))
    held_out = open_evaluation(tiny, "train", images=range(90, 120))
    np.testing.assert_array_equal(read_matrix(path), confusion(learner, held_out, 4))
    np.testing.assert_array_equal(read_matrix(path).sum(axis=1), np.bincount(tiny.train.source_labels[90:]))


def test_a_finished_run_measures_again_and_leaves_a_file_of_others_alone(tiny: DilutedSet, tmp_path: Path) -> None:
    path, folder = tmp_path / "c.csv", tmp_path / "run"
    run_experiment(RECIPE, tiny, folder, save_confusion=path)
    before = path.read_bytes()
    run_experiment(RECIPE, tiny, folder, resume=True, save_confusion=path)
    assert path.read_bytes() == before
    path.unlink()
    run_experiment(RECIPE, tiny, folder, resume=True, save_confusion=path)
    assert path.read_bytes() == before
    path.write_text("mine")
    with pytest.raises(UserError, match="holds something else"):
        run_experiment(RECIPE, tiny, folder, resume=True, save_confusion=path)
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "val_frac", "message"),
    [
        ("mine.csv", 0.25, r"mine\.csv: the file exists already"),
        ("c.txt", 0.25, r"c\.txt is no \.npy or \.csv file"),
        ("c.csv", 0.0, "held-out images, and there are none: raise --val-frac"),
        ("c.csv", 0.001, "held-out images, and there are none: raise --val-frac"),
        ("mine.csv/c.csv", 0.25, r"cannot be written \(Not a directory\); give another file"),
        ("/proc/new/c.csv", 0.25, r"cannot be written \(No such file or directory\); give another file"),
        ("c" * 300 + ".csv", 0.25, r"cannot be written \(File name too long\); give another file"),
    ],
)
@pytest.mark.parametrize("resume", [False, True])
def test_what_cannot_be_written_is_refused_before_the_training(
    tiny: DilutedSet, tmp_path: Path, name: str, val_frac: float, message: str, resume: bool
) -> None:
    (tmp_path / "mine.csv").write_text("mine")
    recipe = Recipe(dataset="synthetic", model="mlp1", batch=12, examples=240, val_frac=val_frac)
    with pytest.raises(UserError, match=message):
        run_experiment(recipe, tiny, tmp_path / "run", resume=resume, save_confusion=tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.csv"]
    assert (tmp_path / "mine.csv").read_text() == "mine"


def test_what_a_clean_run_measures_orders_the_classes_of_a_noisy_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> str:
        small = ["--clean", "400", "--model", "perceptron", "--examples", "600", "--batch", "60"]
        monkeypatch.setattr(sys, "argv", ["train", "mnist5k", *small, *arguments])
        with pytest.raises(SystemExit) as ended:
            run(train, name="train")
        assert ended.value.code == 0, capsys.readouterr().err
        return capsys.readouterr().out

    assert "confusion matrix: c.csv" in call("--alpha", "0", "--save-confusion", "c.csv")
    call("--alpha", "5", "--law", "structured", "--delta", "0.5", "--matrix", "c.csv")
    matrix = read_matrix(Path("c.csv"))
    assert matrix.sum() == 40  # the tenth that is held out
    ranking = confusing_order(matrix)
    assert (matrix[np.arange(10), ranking[:, 0]] == (matrix - np.diag(np.diag(matrix))).max(axis=1)).all()
