from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pipeline.dataset import DilutedSet
from pipeline.errors import UserError
from pipeline.loaders import open_batches
from pipeline.types import Batch
from train.assemble import build_learner
from train.clock import Clock
from train.example_losses import ExampleLosses, read_losses
from train.experiment import run_experiment
from train.learner import Learner
from train.methods.plain import Plain
from train.recipes import Recipe

# 108 of 120 images are trained on, four labels each; two epochs and a bit.
FIELDS: dict[str, Any] = {"dataset": "synthetic", "model": "mlp1", "batch": 12, "examples": 960, "precision": "fp32"}
CPU = torch.device("cpu")


def losses_of(folder: Path) -> Any:
    return read_losses(folder / "losses.npy")


def test_weights_that_stand_still_have_the_loss_of_each_example(tiny: DilutedSet, tmp_path: Path) -> None:
    recipe = Recipe(**FIELDS, lr=0.0, example_losses=True)
    run_experiment(recipe, tiny, tmp_path / "run")
    found = losses_of(tmp_path / "run").reshape(4, 120)
    assert np.isnan(found[:, 108:]).all()  # held out
    learner = build_learner(recipe, tiny, CPU)
    total, times = np.zeros(480), np.zeros(480)
    batches = open_batches(tiny, batch=12, images=range(108))
    for _ in range(960 // 12):
        batch = next(batches)
        losses = F.cross_entropy(learner.logits(batch.images), batch.labels, reduction="none").detach()
        np.add.at(total, batch.rows.numpy(), losses.double().numpy())
        np.add.at(times, batch.rows.numpy(), 1)
    assert sorted(np.unique(times[times > 0])) == [2, 3]
    np.testing.assert_allclose(found[:, :108], (total / times.clip(1)).reshape(4, 120)[:, :108], rtol=1e-5)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_stopped_run_counts_nothing_twice(
    tiny: DilutedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulate: int
) -> None:
    recipe = Recipe(**FIELDS, lr=0.05, example_losses=True, accumulate=accumulate, checkpoint_every=240)
    run_experiment(recipe, tiny, tmp_path / "whole")
    step = Plain.step

    def killed(self: Plain, learner: Learner, batch: Batch, clock: Clock) -> Any:
        if clock.step == 33:  # the last checkpoint was at step 20
            raise KeyboardInterrupt
        return step(self, learner, batch, clock)

    monkeypatch.setattr(Plain, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(recipe, tiny, tmp_path / "cut")
    monkeypatch.setattr(Plain, "step", step)
    run_experiment(recipe, tiny, tmp_path / "cut", resume=True)
    np.testing.assert_array_equal(losses_of(tmp_path / "cut"), losses_of(tmp_path / "whole"))


def test_an_image_that_stands_in_for_another_counts_for_neither() -> None:
    def shown(rows: list[int], replaced: list[int]) -> Batch:
        ids = torch.tensor(rows)
        return Batch(torch.zeros(len(rows), 1, 1, 1), ids, ids, torch.tensor(replaced, dtype=torch.int64))

    kept = ExampleLosses(6, CPU)
    kept.add(shown([2, 4, 4], [2]), torch.tensor([1.0, 2.0, 2.0]))
    kept.add(shown([4, 0, 2], []), torch.tensor([3.0, 4.0, 5.0]))
    assert kept.sums.tolist() == [4, 0, 6, 0, 5, 0]


def test_other_methods_keep_no_losses() -> None:
    with pytest.raises(UserError, match="example_losses adds up the losses of method plain, this is mixup"):
        Recipe(**FIELDS, method="mixup", example_losses=True)
