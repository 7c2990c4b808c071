from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from calls import CPU, rows, same, weights
from torch import nn

from pipeline.dataset import DilutedSet
from pipeline.errors import UserError
from train import running_losses
from train.checkpoint import load_checkpoint
from train.clock import Clock
from train.experiment import run_experiment
from train.learner import Learner
from train.recipes import Recipe
from train.running_losses import RunningLosses

# 108 of 120 images are trained on, four labels each; two epochs and a bit of 36 steps each.
FIELDS: dict[str, Any] = {"dataset": "synthetic", "model": "mlp1", "batch": 12, "examples": 960, "precision": "fp32"}
FIELDS |= {"method": "coteaching", "forget_epochs": 1.0, "lr": 0.05, "rank_over": "data", "checkpoint_every": 240}


def learner_in(parts: int) -> Learner:
    learner = Learner(nn.Linear(1, 1), rate=lambda clock: 0.0)
    learner.accumulate = parts
    return learner


@pytest.mark.parametrize("parts", [1, 2])
def test_a_row_is_small_whose_mean_is_small_among_those_of_the_last_steps(
    monkeypatch: pytest.MonkeyPatch, parts: int
) -> None:
    """Forty steps of 6 rows out of 40 examples against plain lists; 21 recent rows are three whole steps."""
    monkeypatch.setattr(running_losses, "RECENT", 21)
    kept, clock = RunningLosses(2, 40, batch=6, device=CPU), Clock(6, 240, 40)
    draw = torch.Generator().manual_seed(0)
    seen: list[list[list[float]]] = [[[] for _ in range(40)] for _ in range(2)]
    recent: list[np.ndarray] = []
    marked = []
    for share in [1.0] * 2 + [0.8] * 10 + [0.3] * 28:
        rows = torch.randint(0, 40, (6,), generator=draw)
        losses = torch.rand(2, 6, generator=draw)
        learner = learner_in(parts)
        found = []
        for own, part in zip(rows.chunk(parts), losses.chunk(parts, dim=1), strict=True):
            found.append(kept.small_rows(own, part, share, learner, clock))
            learner.update(torch.zeros((), requires_grad=True), clock)
        means = np.zeros((2, 6))
        for first in range(0, 6, 6 // parts):  # a later part of a step is judged by more losses of a row in both
            part = range(first, first + 6 // parts)
            for net in range(2):
                for row in part:
                    seen[net][rows[row]].append(losses[net, row].item())
                for row in part:
                    means[net, row] = np.mean(seen[net][rows[row]])
        before = np.concatenate(recent[-3:], axis=1) if recent else np.zeros((2, 0))
        number = round(share * before.shape[1])
        limits = np.sort(before, axis=1)[:, number - 1 : number] if share < 1 else np.full((2, 1), np.inf)
        np.testing.assert_array_equal(torch.cat(found, dim=1).numpy(), means <= limits + 1e-7)
        marked.append(torch.cat(found, dim=1).float().mean().item())
        recent.append(means)
        clock.tick()
    assert all(share == 1 for share in marked[:2])
    assert 0.15 < np.mean(marked[12:]) < 0.45


def test_before_there_are_losses_to_compare_with_every_row_is_kept() -> None:
    kept = RunningLosses(2, 40, batch=6, device=CPU)
    first = kept.small_rows(torch.arange(6), torch.rand(2, 6), 0.1, learner_in(1), Clock(6, 240, 40))
    assert first.all()


def test_the_rows_that_stand_for_the_data_are_whole_steps_and_no_more_than_the_data() -> None:
    sizes = [RunningLosses(2, number, batch=12, device=CPU).recent.shape for number in (20_000, 100, 12)]
    assert sizes == [(2, 682, 12), (2, 8, 12), (2, 1, 12)]


def test_of_losses_that_stand_still_a_share_is_small_whatever_is_in_a_batch() -> None:
    losses = torch.rand(2, 1000, generator=torch.Generator().manual_seed(0))
    kept, clock, learner = RunningLosses(2, 1000, batch=10, device=CPU), Clock(10, 2000, 1000), learner_in(1)
    marked = []
    for _ in range(200):
        rows = torch.arange(clock.examples, clock.examples + 10) % 1000
        marked.append(kept.small_rows(rows, losses[:, rows], 0.2, learner, clock))
        clock.tick()
    of_epoch = torch.cat(marked[100:], dim=1)
    assert torch.equal(of_epoch, losses <= losses.sort(dim=1).values[:, 199:200])
    assert len(set(of_epoch.view(2, 100, 10).sum(dim=2).flatten().tolist())) > 3  # one batch holds more than another


def test_co_teaching_is_told_what_its_rows_compete_among(tiny: DilutedSet, tmp_path: Path) -> None:
    several = {}
    for rank_over in ("batch", "data"):
        asked = Recipe(**FIELDS | {"lr": 0.01, "forget_epochs": 0.3, "rank_over": rank_over, "log_every": 12})
        run_experiment(asked, tiny, tmp_path / rank_over)
        kept = [row["coteaching/kept_frac"] for row in rows(tmp_path / rank_over) if "train/loss" in row][40:]
        several[rank_over] = len(np.unique(kept)) > 1
    assert several == {"batch": False, "data": True}


@pytest.mark.parametrize("given", [{}, {"accumulate": 3, "label_smoothing": 0.1}], ids=["whole", "parts"])
def test_data_that_forget_nothing_are_ranked_in_vain(tiny: DilutedSet, tmp_path: Path, given: dict[str, Any]) -> None:
    for rank_over in ("batch", "data"):
        asked = Recipe(**FIELDS | {"rank_over": rank_over, "forget_rate": 0.0}, **given)
        run_experiment(asked, tiny, tmp_path / rank_over)
    assert same(weights(tmp_path / "batch"), weights(tmp_path / "data"))


def test_parts_of_a_batch_choose_as_the_whole_does(tiny: DilutedSet, tmp_path: Path) -> None:
    for parts in (1, 3):
        run_experiment(Recipe(**FIELDS, accumulate=parts), tiny, tmp_path / str(parts))
    one, three = (weights(tmp_path / str(parts)) for parts in (1, 3))
    assert all(torch.allclose(one[name], three[name], rtol=1e-4, atol=1e-5) for name in one)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_stopped_run_counts_nothing_twice(
    tiny: DilutedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulate: int
) -> None:
    asked = Recipe(**FIELDS, accumulate=accumulate)
    run_experiment(asked, tiny, tmp_path / "whole")
    step = RunningLosses.small_rows

    def killed(self: RunningLosses, rows: Any, losses: Any, share: float, learner: Learner, clock: Clock) -> Any:
        if clock.step == 33:  # the last checkpoint was at step 20
            raise KeyboardInterrupt
        return step(self, rows, losses, share, learner, clock)

    monkeypatch.setattr(RunningLosses, "small_rows", killed)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(asked, tiny, tmp_path / "cut")
    monkeypatch.setattr(RunningLosses, "small_rows", step)
    run_experiment(asked, tiny, tmp_path / "cut", resume=True)
    assert same(weights(tmp_path / "cut"), weights(tmp_path / "whole"))
    states = [load_checkpoint(tmp_path / name, CPU) for name in ("cut", "whole")]
    assert states[0] is not None
    assert states[1] is not None
    assert same(states[0]["method"], states[1]["method"])
    seen = states[0]["method"]["totals"][:, -1].reshape(4, 120)
    assert not seen[:, 108:].any()  # held out
    assert sorted(seen[:, :108].unique().tolist()) == [2, 3]


def test_what_losses_compete_over_is_on_the_menu() -> None:
    with pytest.raises(UserError, match="unknown rank_over 'epoch'; the rank_overs are: batch, data"):
        Recipe(**FIELDS | {"rank_over": "epoch"})
