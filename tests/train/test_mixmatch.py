"""Method mixmatch: its parts against plain sums, what it does not look at, and runs after a selection."""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from calls import call, interrupted, rows, same, weights
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.dataset import DilutedSet, dilute
from pipeline.errors import UserError
from pipeline.laws import Symmetric
from pipeline.sources.synthetic import synthetic
from pipeline.types import Batch
from train.clock import Clock
from train.experiment import run_experiment, selected_part
from train.learner import Learner
from train.memory import parts_that_fit
from train.methods import Setting
from train.methods.mixmatch import MixMatch, brier_loss, group_partners, guessed_labels
from train.methods.mixup import mixup_weight
from train.methods.plain import Plain
from train.models import build_model
from train.recipes import Recipe
from train.select import Selection

NO_ROWS = torch.zeros(0, dtype=torch.int64)
CPU = torch.device("cpu")
# 120 images, 12 held out.
FIELDS: dict[str, Any] = {"dataset": "synthetic", "model": "mlp1", "batch": 12, "examples": 600, "precision": "fp32"}
FIELDS |= {"optimizer": "adamw", "lr": 3e-3, "checkpoint_every": 360, "eval_every": 360, "log_every": 120}
FIELDS |= {"method": "mixmatch", "select": "rsl", "select_epochs": 4.0}


@pytest.fixture
def wrong_set() -> DilutedSet:
    """120 images of 4 classes, one label in four wrong."""
    source = synthetic(num_train=120, num_test=40, height=8, width=8, channels=1, num_classes=4)
    return dilute(source, alpha=0, law=Symmetric(0.25))


def learner(model: str = "mlp1", rate: float = 0.1, **settings: Any) -> Learner:
    net = build_model(model, (8, 8, 1), 3, seed=0)
    head = [layer for layer in net.modules() if isinstance(layer, nn.Linear)][-1]
    nn.init.normal_(head.weight, std=0.3, generator=torch.Generator().manual_seed(0))  # models start it at zero
    return Learner(net, **{"rate": lambda clock: rate, **settings})


def batch(seed: int, groups: int = 5) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(3 * groups, 1, 8, 8, generator=generator)
    return Batch(images, torch.randint(0, 3, (3 * groups,), generator=generator), torch.arange(3 * groups), NO_ROWS)


def method(**setting: Any) -> MixMatch:
    return MixMatch(Setting(**{"num_classes": 3, "alpha": 0, "seed": 4, **setting}))


def test_guessed_labels_are_the_sharpened_mean_of_predictions() -> None:
    predicted = torch.tensor([[[0.8, 0.1, 0.1], [0.4, 0.5, 0.1]], [[0.2, 0.3, 0.5], [0.2, 0.3, 0.5]]])
    found = guessed_labels(predicted.log() + torch.tensor([[[3.0], [-7.0]]]), 0.5)
    # Means .6 .3 .1 and .2 .3 .5; their squares are .36 .09 .01 and .04 .09 .25.
    expected = torch.tensor([[36 / 46, 9 / 46, 1 / 46], [4 / 38, 9 / 38, 25 / 38]])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(guessed_labels(predicted.log(), 1.0), predicted.mean(dim=1))
    torch.testing.assert_close(guessed_labels(predicted.log(), 1e-3)[1], torch.tensor([0.0, 0.0, 1.0]))


@given(groups=st.integers(1, 40), group=st.integers(2, 4))
def test_every_row_is_the_partner_of_one_row_in_the_neighbouring_group(groups: int, group: int) -> None:
    found = group_partners(groups, group, CPU)
    assert sorted(found.flatten().tolist()) == list(range(groups * group))
    expected = [number ^ 1 if number ^ 1 < groups else number for number in range(groups)]
    assert (found // group == torch.tensor(expected)[:, None]).all()


def test_labelled_rows_meet_labelled_rows_as_often_as_shuffled_ones() -> None:
    first = group_partners(12, 3, CPU)[:, 0]
    assert (first % 3).tolist() == [0, 0, 1, 1, 2, 2, 0, 0, 1, 1, 2, 2]
    # Parts of six groups are mixed as the whole is.
    assert torch.equal(group_partners(12, 3, CPU), torch.cat([group_partners(6, 3, CPU) + 18 * n for n in (0, 1)]))


def test_the_squared_error_is_a_mean_over_rows_and_classes() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]).log()
    targets = torch.tensor([[1.0, 0.0, 0.0], [0.1, 0.8, 0.1]])
    assert brier_loss(logits, targets).item() == pytest.approx((0.25 + 2 * 0.0625) / 6)


def expected_loss(
    net: nn.Module, seen: Batch, *, weight: float, unlabelled_weight: float, temperature: float
) -> Tensor:
    """Compute the loss row by row, with lists."""
    images, groups = seen.images, len(seen.labels) // 3
    targets = []
    for group in range(groups):
        own = torch.eye(3)[seen.labels[3 * group]]
        views = net(images[3 * group + 1 : 3 * group + 3]).softmax(dim=1).detach()
        guess = views.mean(dim=0) ** (1 / temperature)
        targets += [own, guess / guess.sum(), guess / guess.sum()]
    labelled, unlabelled = [], []
    for row in range(3 * groups):
        other = row // 3 ^ 1 if row // 3 ^ 1 < groups else row // 3
        partner = 3 * other + (row % 3 + row // 6) % 3
        predicted = net((weight * images[row] + (1 - weight) * images[partner])[None])[0].log_softmax(dim=0)
        target = weight * targets[row] + (1 - weight) * targets[partner]
        if row % 3 == 0:
            labelled.append(-(target * predicted).sum())
        else:
            unlabelled.append((predicted.exp() - target).square().sum() / 3)
    return torch.stack(labelled).mean() + unlabelled_weight * torch.stack(unlabelled).mean()


@pytest.mark.parametrize("step", range(3))
def test_a_step_descends_on_the_loss_of_the_paper(step: int) -> None:
    ours, theirs = learner(momentum=0.0), learner(momentum=0.0)
    seen, clock = batch(1), Clock(5, 50, 50, 5 * step)
    drawn = mixup_weight(4, step, beta=0.75)
    # The run has ten steps, and a step lies in its middle.
    loss = expected_loss(
        theirs.net, seen, weight=max(drawn, 1 - drawn), unlabelled_weight=20 * (step + 0.5) / 10, temperature=0.7
    )
    metrics = method(mixmatch_weight=20.0, mixmatch_temperature=0.7).step(ours, seen, clock)
    theirs.update(loss, clock)
    torch.testing.assert_close(metrics["train/loss"], loss.detach())
    for own, other in zip(ours.net.parameters(), theirs.net.parameters(), strict=True):
        torch.testing.assert_close(own, other)


def test_both_sides_of_one_half_were_drawn() -> None:
    drawn = [mixup_weight(4, step, beta=0.75) for step in range(3)]
    assert min(drawn) < 0.4 < 0.6 < max(drawn)


def test_labels_of_unlabelled_rows_do_not_matter() -> None:
    ours, theirs = learner(), learner()
    seen = batch(2)
    other = seen.labels.clone().view(-1, 3)
    other[:, 1:] = (other[:, 1:] + 1) % 3
    for net, labels in ((ours, seen.labels), (theirs, other.flatten())):
        method().step(net, dataclasses.replace(seen, labels=labels), Clock(5, 50, 50, 45))
    assert same(ours.net.state_dict(), theirs.net.state_dict())


def test_without_weight_and_mixing_it_is_plain_on_the_labelled_rows() -> None:
    ours, theirs = learner(), learner()
    seen = batch(3)
    own = Batch(seen.images[::3], seen.labels[::3], seen.rows[::3], NO_ROWS)
    for step in range(3):
        clock = Clock(5, 50, 50, 5 * step)
        said = method(mixmatch_weight=0.0, mixmatch_beta=0.0, label_smoothing=0.1).step(ours, seen, clock)
        plain = Plain(Setting(num_classes=3, alpha=0, label_smoothing=0.1)).step(theirs, own, clock)
        torch.testing.assert_close(said["train/loss"], plain["train/loss"])
        assert said["train/top1_accuracy"] == plain["train/top1_accuracy"]
    for name, value in theirs.net.state_dict().items():
        torch.testing.assert_close(ours.net.state_dict()[name], value)


def test_guessing_leaves_the_statistics_of_batch_norm_to_the_mixed_rows() -> None:
    ours, theirs = learner("conv2", rate=0.0), learner("conv2", rate=0.0)
    seen = batch(4, groups=6)
    method(mixmatch_beta=0.0).step(ours, seen, Clock(6, 60, 60))
    theirs.logits(seen.images)
    assert same(ours.net.state_dict(), theirs.net.state_dict())
    assert ours.net.training


def test_views_count_for_the_memory_of_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    net = build_model("conv2", (8, 8, 1), 3, seed=0)
    free = [1 << 40]
    monkeypatch.setattr("train.memory.free_bytes", lambda device: free[0])
    shape, kind = (8, 8, 1), torch.float32
    while parts_that_fit(net, shape, 64, kind) == 1:
        free[0] //= 2
    assert parts_that_fit(net, shape, 64, kind) == 2
    assert parts_that_fit(net, shape, 64, kind, views=1) == 4


def seen_in(monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], list[int]]:
    """Return lists that gather the example ids of labelled and of unlabelled rows."""
    step, labelled, others = MixMatch.step, list[int](), list[int]()

    def spied(self: MixMatch, learner: Learner, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        labelled.extend(batch.rows.view(-1, 3)[:, 0].tolist())
        others.extend(batch.rows.view(-1, 3)[:, 1].tolist())
        return step(self, learner, batch, clock)

    monkeypatch.setattr(MixMatch, "step", spied)
    return labelled, others


@pytest.mark.parametrize("name", ["rsl", pytest.param("incv", marks=pytest.mark.slow)])
def test_a_run_draws_what_was_selected_and_shows_all_else_unlabelled(
    wrong_set: DilutedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    labelled, others = seen_in(monkeypatch)
    recipe = Recipe(**FIELDS | {"examples": 1_800, "select": name, "select_rate": 0.25, "select_epochs": 6.0})
    result = run_experiment(recipe, wrong_set, tmp_path / "run")
    table = np.load(tmp_path / "run" / f"select-{name}" / "selected.npy")
    kept = np.flatnonzero(table["kept"])
    assert {*labelled} == {*kept.tolist()}
    assert {*others} == {*range(108)} - {*kept.tolist()}
    assert len(labelled) == len(others) == 1_800
    assert result["epochs"] == pytest.approx(1_800 / len(kept))


@pytest.mark.parametrize("name", ["rsl", "incv"])
def test_weights_come_from_the_losses_of_rsl_and_all_else_that_is_not_held_out_is_shown(
    tiny: DilutedSet, name: str
) -> None:
    scores = -np.random.default_rng(0).random(480).astype(np.float32)
    kept = scores > -0.4
    held_out = np.arange(480) % 120 >= 108
    scores[held_out], kept[held_out] = np.nan, False
    never_seen = int(np.flatnonzero(~kept & ~held_out)[0])
    scores[never_seen] = np.nan
    recipe = Recipe(**FIELDS | {"select": name})
    part = selected_part(recipe, tiny, Selection(kept, scores, None, {}))
    assert part.train is not None
    assert part.rest is not None
    np.testing.assert_array_equal(part.train, np.flatnonzero(kept))
    np.testing.assert_array_equal(part.rest.example_ids, np.flatnonzero(~kept & ~held_out))
    assert never_seen in part.rest.example_ids
    assert part.rest.views == 2
    labels = tiny.formula.labels_by_example(tiny.train.source_labels)
    for weight, example_id in zip(part.rest.weights, part.train, strict=True):
        of_class = -scores[(labels == labels[example_id]) & ~np.isnan(scores)]
        above = (-scores[example_id] - of_class.min()) / (of_class.max() - of_class.min())
        assert weight == pytest.approx(0.7**above if name == "rsl" else 1, rel=1e-6)  # losses are float32
    plain = selected_part(dataclasses.replace(recipe, method="plain"), tiny, Selection(kept, scores, None, {}))
    assert plain.rest is None


@pytest.mark.parametrize(
    ("at", "given"),
    [
        (3, {}),
        (43, {}),
        pytest.param(70, {"accumulate": 2, "ema": 3.0, "model": "conv2"}, marks=pytest.mark.slow),  # two parts a step
    ],
)
def test_a_stopped_run_goes_on_and_ends_the_same(
    wrong_set: DilutedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, given: dict[str, Any]
) -> None:
    recipe = Recipe(**FIELDS | given)
    run_experiment(recipe, wrong_set, tmp_path / "whole")
    with interrupted(MixMatch, at):
        run_experiment(recipe, wrong_set, tmp_path / "cut")
    run_experiment(recipe, wrong_set, tmp_path / "cut", resume=True)
    assert same(weights(tmp_path / "cut"), weights(tmp_path / "whole"))
    assert rows(tmp_path / "cut")[-1] == rows(tmp_path / "whole")[-1]


def test_a_batch_may_be_larger_than_what_is_left_out(wrong_set: DilutedSet, tmp_path: Path) -> None:
    recipe = Recipe(**FIELDS | {"batch": 60, "select_rate": 0.05})
    result = run_experiment(recipe, wrong_set, tmp_path / "run")
    assert 108 - result["selection"]["kept"] < 60
    assert result["examples"] == 600


def test_a_loss_that_is_not_finite_is_named_with_its_positions(wrong_set: DilutedSet, tmp_path: Path) -> None:
    recipe = Recipe(**FIELDS | {"select_epochs": 1.0, "mixmatch_temperature": 1e-40})
    with pytest.raises(UserError, match=r"the loss of step 0 is not finite \(positions 0 to 11 .*and 28 more\)"):
        run_experiment(recipe, wrong_set, tmp_path / "run")


def test_a_selection_that_leaves_nothing_out_is_refused(tmp_path: Path) -> None:
    clean = dilute(synthetic(num_train=120, num_test=40, height=8, width=8, channels=1, num_classes=4), alpha=0)
    message = "selection rsl keeps all 108 examples, and method mixmatch learns from others besides; give a larger"
    with pytest.raises(UserError, match=message):
        run_experiment(Recipe(**FIELDS), clean, tmp_path / "run")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"select": None, "select_epochs": None}, "of all else; give --select incv or rsl, or another --method"),
        ({"mixmatch_temperature": 0.0}, "mixmatch_temperature is 0.0; give a finite number above 0"),
        ({"mixmatch_weight": -1.0}, "mixmatch_weight is -1.0; give a finite number, 0 or more"),
        ({"mixmatch_beta": math.inf}, "mixmatch_beta is inf; give a finite number, 0 or more"),
        ({"measure": "noise-scale"}, "measure noise-scale looks at the gradients of labels, and mixmatch drops"),
    ],
)
def test_what_does_not_go_with_it_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        Recipe(**FIELDS | given)


def test_the_command_runs_on_digits_and_wants_a_selection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["mnist5k", "--law", "symmetric", "--rate", "0.5", "--method", "mixmatch", "--clean", "400"]
    flags += ["--model", "perceptron", "--batch", "32", "--epochs", "2"]
    flags += ["--mixmatch-weight", "10", "--mixmatch-beta", "0.5", "--mixmatch-temperature", "0.8"]
    assert call(monkeypatch, *flags, "--select", "rsl") == 0
    logged = rows(tmp_path / "runs" / "mnist5k-rsl-mixmatch-alpha0-seed0")
    assert any(row.get("mixmatch/unlabelled_loss", -1) >= 0 for row in logged)
    capfd.readouterr()
    assert call(monkeypatch, *flags) == 2
    assert capfd.readouterr().err.count("error: method mixmatch learns from the labels of a selection") == 1
