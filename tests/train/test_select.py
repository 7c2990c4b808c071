"""Selections, from the choice of single examples to whole runs on what was chosen."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from calls import call, interrupted, rows, same, selection_for, weights

from pipeline.dataset import DilutedSet, dilute
from pipeline.errors import UserError
from pipeline.laws import Given, Pair, StoredArray, Symmetric, White
from pipeline.loaders import open_batches
from pipeline.sources.synthetic import synthetic
from train.assemble import evaluation_of, method_of, noisy_logits, trained_learner
from train.clock import Clock
from train.comparison.runs import check_fit
from train.distributed import ALONE
from train.example_losses import write_losses
from train.experiment import run_experiment
from train.learner import Learner
from train.methods import METHODS
from train.methods.coteaching import Coteaching
from train.methods.plain import Plain
from train.recipes import SELECTIONS, Recipe
from train.select import SELECTORS, Judged, Part, Selection, Task
from train.select.halves import split
from train.select.incv import best_iterations, largest, select_incv, wrong_share_of_copies
from train.select.rsl import select_rsl, smallest_of_classes
from train.select.selection import (
    check_selection,
    late_candidates,
    quality,
    quality_by_iteration,
    read_selection,
    write_selection,
)
from train.theory.incv import agreeing_noise_ratio
from train.theory.rsl import kept_counts, observed_noise_rates

# 120 images, 12 held out; one pass over all is 108 examples.
FIELDS: dict[str, Any] = {"dataset": "synthetic", "model": "mlp1", "batch": 12, "examples": 1080, "precision": "fp32"}
FIELDS |= {"optimizer": "adamw", "lr": 3e-3, "checkpoint_every": 360, "eval_every": 360}


@pytest.fixture
def wrong_set() -> DilutedSet:
    """120 images of 4 classes, one label in four wrong."""
    source = synthetic(num_train=120, num_test=40, height=8, width=8, channels=1, num_classes=4)
    return dilute(source, alpha=0, law=Symmetric(0.25))


def test_the_menu_is_the_recipes() -> None:
    assert tuple(SELECTORS) == SELECTIONS


def test_the_smallest_of_each_class_are_kept_and_of_equals_the_first() -> None:
    nan = float("nan")
    labels = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1], dtype=np.uint16)
    losses = np.array([3, 1, 1, 1, nan, 5, 9, 7, 8, 6], dtype=np.float32)
    # Class 0: 4 seen, class 1: 5; half of the labels wrong: max(1 - 1.2/2, 0.8/2) = 0.4, so 1.6 and 2 candidates.
    # m = 1.6/0.5 = 3.2, z = 2/1.6, γ = 1.125: at most 1.125 · 0.5 · 3.2 = 1.8 of each.
    kept = smallest_of_classes(losses, labels, np.array([0.5, 0.5]), np.array([0.5, 0.5]))
    assert np.flatnonzero(kept).tolist() == [1, 5]
    all_right = smallest_of_classes(losses, labels, np.zeros(2), np.array([4 / 9, 5 / 9]))
    assert np.flatnonzero(all_right).tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9]  # but for what was never seen


def test_halves_part_images_and_never_their_copies() -> None:
    candidates = np.zeros(4 * 30, dtype=np.bool_)
    candidates[[3, 33, 63, 40, 41, 42, 100, 29, 59, 7]] = True  # of six images
    halves = split(candidates, 30, seed=1, iteration=0)
    assert ((halves[0] ^ halves[1]) == candidates).all()
    images = [set(np.flatnonzero(half) % 30) for half in halves]
    assert images[0] & images[1] == set()
    assert sorted(map(len, images)) == [3, 3]
    others = [split(candidates, 30, seed=seed, iteration=iteration) for seed, iteration in ((1, 1), (2, 0), (3, 2))]
    assert any((other != halves).any() for other in others)
    np.testing.assert_array_equal(split(candidates, 30, seed=1, iteration=0), halves)


def test_the_largest_losses_are_marked_and_none_for_none() -> None:
    losses = np.array([1, 9, 5, 9, 7], dtype=np.float32)
    of = np.array([True, False, True, True, True])
    assert np.flatnonzero(largest(losses, of, 2)).tolist() == [3, 4]
    assert not largest(losses, of, 0).any()  # the authors' [-0:] is everything
    assert largest(losses, of, 99).sum() == 4


@pytest.mark.parametrize(
    ("ratio", "pairs", "expected"), [(0.2, False, 4), (0.5, False, 2), (0.8, False, 1), (0.2, True, 1)]
)
def test_early_weights_judge_for_as_long_as_the_authors_say(ratio: float, pairs: bool, expected: int) -> None:
    assert best_iterations(ratio, pairs=pairs) == expected


def test_a_selection_without_a_class_is_refused() -> None:
    labels = np.array([0, 1, 1, 2], dtype=np.uint16)
    scores = np.array([1, 1, 1, np.nan], dtype=np.float32)
    kept = np.array([True, False, False, False])
    with pytest.raises(UserError, match="selection rsl keeps none of the 2 examples with label 1,"):
        check_selection(Selection(kept, scores, None, {}), labels, 3, "rsl")
    kept[1] = True
    check_selection(Selection(kept, scores, None, {}), labels, 3, "rsl")  # label 2 was held out


def test_quality_counts_what_was_judged() -> None:
    scores = np.array([4, 3, 2, 1, np.nan], dtype=np.float32)
    kept, right = np.array([True, True, False, False, False]), np.array([True, False, True, False, True])
    found = quality(Selection(kept, scores, None, {}), right)
    assert found == {"label_precision": 0.5, "label_recall": 0.5, "auroc": 0.75}


def test_quality_by_iteration_counts_all_that_was_selected_up_to_its_end() -> None:
    scores = np.array([4, 3, 2, 1, 0, np.nan], dtype=np.float32)
    right = np.array([True, False, True, False, True, True])
    iterations = np.array([1, 3, 3, 0, 0, 0], dtype=np.uint8)
    found = quality_by_iteration(Selection(iterations > 0, scores, None, {}, iterations), right)
    third = pytest.approx(1 / 3)
    assert [each["label_precision"] for each in found] == [1, 1, pytest.approx(2 / 3)]  # the second selects nothing
    assert [each["label_recall"] for each in found] == [third, third, pytest.approx(2 / 3)]  # of what was judged
    assert quality_by_iteration(Selection(iterations > 0, scores, None, {}), right) == []


def test_what_each_iteration_selected_is_written_and_held_against_the_truth(
    wrong_set: DilutedSet, tmp_path: Path
) -> None:
    recipe = Recipe(**FIELDS, select="incv", select_epochs=4, select_rate=0.25)
    said = run_experiment(recipe, wrong_set, tmp_path / "run")["selection"]
    table = selected(tmp_path / "run", "incv")
    sums = np.cumsum(np.bincount(table["iteration"], minlength=5)[1:])
    assert sums.tolist() == [each["selected"] for each in said["iterations"]]
    assert 0 < sums[0] < sums[-1]
    last, quality = said["by_iteration"][-1], (said["label_precision"], said["label_recall"])
    assert (last["label_precision"], last["label_recall"]) == quality
    assert said["by_iteration"][0]["label_recall"] < last["label_recall"]
    text = (tmp_path / "run/select-incv/selected.csv").read_text(encoding="utf-8")
    lines = [*csv.DictReader(text.splitlines())]
    assert [int(line["iteration"]) for line in lines] == table["iteration"][:108].tolist()


def selected(run: Path, name: str) -> Any:
    return np.load(run / f"select-{name}" / "selected.npy")


@pytest.mark.parametrize("name", ["incv", "rsl"])
def test_a_run_trains_on_what_was_selected_and_on_nothing_else(
    wrong_set: DilutedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    step, seen = Plain.step, set()

    def spied(self: Plain, learner: Learner, batch: Any, clock: Clock) -> Any:
        if clock.total_examples == 1092:  # the run's own steps
            seen.update(batch.rows.tolist())
        return step(self, learner, batch, clock)

    monkeypatch.setattr(Plain, "step", spied)
    recipe = Recipe(**FIELDS | {"examples": 1092}, select=name, select_epochs=8, select_rate=0.25)
    result = run_experiment(recipe, wrong_set, tmp_path / "run")
    table = selected(tmp_path / "run", name)
    assert set(table["example_id"][table["kept"]]) == seen
    assert np.isnan(table["score"][108:]).all()
    assert not table["kept"][108:].any()
    assert not np.isnan(table["score"][:108]).any()
    np.testing.assert_array_equal(table["iteration"] > 0, table["kept"])
    right = wrong_set.formula.all_labels(np.arange(120), wrong_set.train.source_labels)[:, 0]
    right = right == wrong_set.train.source_labels
    said = result["selection"]
    assert said["kept"] == table["kept"].sum() == len(seen)
    assert said["label_precision"] == right[table["kept"]].mean() > right[:108].mean()  # better than no selection
    assert said == json.loads((tmp_path / "run" / f"select-{name}" / "selection.json").read_text())
    assert not (table["kept"] & table["candidate"]).any()
    assert not table["candidate"][108:].any()
    assert table["candidate"].sum() == (said["iterations"][-1]["candidates"] if name == "incv" else 0)
    assert said["late_from"] == (0.2 if name == "incv" else 1.0)
    text = (tmp_path / "run" / f"select-{name}" / "selected.csv").read_text(encoding="utf-8")
    lines = list(csv.DictReader(text.splitlines()))
    assert [int(line["example_id"]) for line in lines if line["kept"] == "1"] == sorted(seen)
    assert len(lines) == 108


@pytest.mark.parametrize("name", ["incv", "rsl"])
def test_copies_are_selected_one_by_one(tiny: DilutedSet, tmp_path: Path, name: str) -> None:
    recipe = Recipe(**FIELDS, select=name, select_epochs=3, **({"select_rate": 0.5} if name == "incv" else {}))
    run_experiment(recipe, tiny, tmp_path / "run")
    table = selected(tmp_path / "run", name)
    by_copy = table["kept"].reshape(4, 120)
    assert by_copy.any(axis=1).all()
    labels = tiny.formula.all_labels(np.arange(120), tiny.train.source_labels).T
    same_label = labels[1] == labels[0]
    if name == "incv":  # a net that predicts a label predicts it for all copies that carry it
        np.testing.assert_array_equal(by_copy[0][same_label], by_copy[1][same_label])
    assert not by_copy[:, 108:].any()


@pytest.mark.parametrize("name", ["incv", "rsl"])
@pytest.mark.parametrize("at", [7, 60, 100])
def test_a_killed_selection_goes_on_and_ends_the_same(
    wrong_set: DilutedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, at: int
) -> None:
    recipe = Recipe(**FIELDS, select=name, select_epochs=4, select_rate=0.25)
    run_experiment(recipe, wrong_set, tmp_path / "whole")
    with interrupted(Plain, at):
        run_experiment(recipe, wrong_set, tmp_path / "cut")
    run_experiment(recipe, wrong_set, tmp_path / "cut", resume=True)
    assert same(weights(tmp_path / "cut"), weights(tmp_path / "whole"))
    for column in ("score", "kept", "iteration"):
        found = (selected(tmp_path / end, name)[column] for end in ("cut", "whole"))
        np.testing.assert_array_equal(*found)
    assert rows(tmp_path / "cut")[-1] == rows(tmp_path / "whole")[-1]


@pytest.mark.parametrize(
    ("name", "rate"), [("incv", 0.5), ("incv", None), ("all", None), ("rsl", None), ("rsl", "auto"), ("rsl", 0.5)]
)
def test_copies_that_show_other_images_are_judged_by_their_own_losses_or_not_at_all(
    name: str, rate: float | str | None, tmp_path: Path
) -> None:
    source = synthetic(num_train=120, num_test=40, height=8, width=8, channels=1, num_classes=4)
    white = dilute(source, alpha=1, law=White())
    recipe = Recipe(**FIELDS, select=name, select_rate=rate, select_epochs=1)
    if rate == 0.5 and name == "rsl":
        assert run_experiment(recipe, white, tmp_path / "run")["selection"]["judged"] == 2 * 108
        return
    with pytest.raises(UserError, match=f"selection {name} asks .* law white shows other .* rsl with --select-rate"):
        run_experiment(recipe, white, tmp_path / "run")
    assert not [*(tmp_path / "run" / f"select-{name}").iterdir()]  # before any net is trained


def told(
    dataset: DilutedSet, folder: Path, judged: Judged, select: str = "incv", **given: Any
) -> tuple[Task, list[Recipe]]:
    """Return a selector's task in which no net is trained and every net says the same, and what was to be trained."""
    asked: list[Recipe] = []

    def train(phase: Recipe, where: Path, part: Part) -> None:
        asked.append(phase)
        where.mkdir(parents=True)
        write_losses(where / "losses.npy", judged.losses)

    recipe = Recipe(**FIELDS, select=select, **given)
    only = {"folder": folder, "world": ALONE, "train": train, "judge": lambda phase, weights, images: judged}
    return Task(recipe=recipe, dataset=dataset, num_images=dataset.formula.num_images, **only), asked


@pytest.mark.parametrize("undecided", [[], [5], [5, 65]])
def test_halves_end_when_no_two_images_are_left_to_halve(
    tiny: DilutedSet, tmp_path: Path, undecided: list[int]
) -> None:
    labels = tiny.formula.labels_by_example(tiny.train.source_labels).astype(np.int64)
    predicted = labels.copy()
    predicted[[120 * copy + image for copy in range(4) for image in undecided]] = -1
    task, asked = told(tiny, tmp_path, Judged(predicted, np.ones(480, dtype=np.float32)), select_rate=0.0)
    selection = select_incv(task)
    assert len(asked) == (8 if len(undecided) == 2 else 2)
    assert selection.kept.sum() == 4 * (120 - len(undecided))
    assert selection.candidates is not None
    assert selection.candidates.sum() == 4 * len(undecided)


def test_where_nothing_is_wrong_just_what_a_net_agrees_with_is_kept_and_nothing_removed(
    tiny: DilutedSet, tmp_path: Path
) -> None:
    labels = tiny.formula.labels_by_example(tiny.train.source_labels).astype(np.int64)
    agrees = np.arange(480) % 3 == 0
    losses = np.arange(480, dtype=np.float32)
    task, asked = told(tiny, tmp_path, Judged(np.where(agrees, labels, -1), losses), select_rate=0.0)
    selection = select_incv(task)
    np.testing.assert_array_equal(selection.kept, agrees)
    np.testing.assert_array_equal(selection.candidates, ~agrees)
    assert len(asked) == 8
    assert selection.wrong_share == 0


def test_no_net_of_incv_judges_an_image_of_which_it_learnt_a_label(tiny: DilutedSet, tmp_path: Path) -> None:
    """Under dilution an image may have selected labels beside undecided ones; a net that saw those knows the image."""
    labels = tiny.formula.labels_by_example(tiny.train.source_labels).astype(np.int64)
    parts: list[Part] = []
    task, _ = told(tiny, tmp_path, Judged(labels[:120].repeat(4), np.ones(480, dtype=np.float32)))

    def judge(phase: Recipe, weights: Path, images: Any) -> Judged:
        """Agree with the clean label of an image, and in later iterations with the next class."""
        said = (labels[:120] + (len(parts) - 1) // 2) % 4
        return Judged(np.tile(said, 4), np.ones(480, dtype=np.float32))

    def train(phase: Recipe, where: Path, part: Part) -> None:
        parts.append(part)

    select_incv(dataclasses.replace(task, train=train, judge=judge))
    assert len(parts) > 4
    seen = []
    for part in parts:
        assert part.train is not None
        assert part.noisy_val is not None
        assert not {*(part.train % 120)} & {*(part.noisy_val % 120)}
        seen.append(len({*(part.train % 120)}))
    assert max(seen[2:]) > 60  # what is selected of images that are decided is learnt from in both halves


def test_incv_takes_the_ratio_of_a_dilution_from_its_law_and_counts_contradictions_as_wrong(
    tiny: DilutedSet, tmp_path: Path
) -> None:
    labels = tiny.formula.labels_by_example(tiny.train.source_labels).astype(np.int64)
    task, _ = told(tiny, tmp_path, Judged(np.tile(labels[:120], 4), np.ones(480, dtype=np.float32)))
    selection = select_incv(task)
    assert selection.told["noise_ratio"] == tiny.wrong_share == pytest.approx(0.75 * 3 / 4)
    agreement = float((labels == np.tile(labels[:120], 4)).mean())
    expected = agreeing_noise_ratio(0.5625, agreement=agreement, num_classes=4)
    assert selection.wrong_share == pytest.approx(expected)  # one class an image
    kept = np.zeros(12, dtype=np.bool_)
    kept[[0, 3, 6, 1, 4]] = True  # of three images: 0 has copies 0, 3, 6 and 9
    several = np.array([2, 2, 0, 1, 2, 0, 2, 0, 0, 0, 0, 0])  # image 0: classes 2, 1, 2; image 1: 2 and 2
    assert wrong_share_of_copies(kept, several, 3, alone=0.1) == pytest.approx((3 * 0.5 + 2 * 0.1) / 5)


@pytest.mark.parametrize(("name", "rate"), [("all", None), ("incv", "auto"), ("rsl", "auto")])
def test_the_share_of_wrong_labels_is_not_estimated_from_labels_that_contradict_each_other(
    name: str, rate: str | None, tiny: DilutedSet, tmp_path: Path
) -> None:
    instead = "--forget-rate in place of --select all" if name == "all" else "--select-rate"
    recipe = Recipe(**FIELDS, select=name, select_rate=rate)
    with pytest.raises(UserError, match=f"none fits the 4 of each image, .* give {instead}; by the law it is 0.5625"):
        run_experiment(recipe, tiny, tmp_path / "run")
    assert not [*(tmp_path / "run" / f"select-{name}").iterdir()]  # before any net is trained


def test_incv_reckons_with_the_ratio_that_it_estimates(tmp_path: Path) -> None:
    """Nets that say a class as the labels do, wrong as often: of 2,000 examples 53 % agree, ± 1.1 points, or 0.009."""
    source = synthetic(num_train=4000, num_test=40, height=8, width=8, channels=1, num_classes=4)
    noisy, other = (dilute(source, alpha=0, law=Symmetric(0.3), noise_seed=seed) for seed in (0, 1))
    labels, said = (each.formula.labels_by_example(each.train.source_labels) for each in (noisy, other))
    losses = np.arange(4000, dtype=np.float32)
    task, _ = told(noisy, tmp_path, Judged(said.astype(np.int64), losses))
    selection = select_incv(task)
    ratio = selection.told["noise_ratio"]
    assert ratio == pytest.approx(0.3, abs=0.03)
    assert selection.wrong_share == pytest.approx(ratio**2 / (ratio**2 + 3 * (1 - ratio) ** 2))
    first = selection.told["iterations"][0]
    agrees = int((said == labels).sum())
    assert first["selected"] == agrees
    removed = 4000 - first["selected"] - first["candidates"]
    assert removed == pytest.approx(ratio / (1 - ratio) * agrees, abs=2)  # each half rounds down


@pytest.mark.parametrize("given", [{"select": "incv"}, {"select": "rsl"}, {"method": "coteaching"}], ids=str)
def test_two_classes_are_enough(given: dict[str, Any], tmp_path: Path) -> None:
    source = synthetic(num_train=400, num_test=200, height=8, width=8, channels=1, num_classes=2)
    made = dilute(source, alpha=0, law=Symmetric(0.2))
    noisy = dataclasses.replace(made, augmentation=made.augmentation.for_evaluation())
    if "select" in given:
        given = given | {"select_rate": 0.2, "select_epochs": 2}
    result = run_experiment(Recipe(**FIELDS | {"eval_every": 1080}, **given), noisy, tmp_path / "run")
    assert result["top1_accuracy"]["last"] > 0.8


ALLOWED = [{"select": name} for name in SELECTORS if name != "all"] + [
    {"method": name, **selection_for(name)} for name in METHODS
]


@pytest.mark.parametrize("given", ALLOWED, ids=lambda given: "-".join(given.values()))
def test_selections_and_methods_stand_ten_noisy_labels_a_clean_one(given: dict[str, Any], tmp_path: Path) -> None:
    source = synthetic(num_train=60, num_test=40, height=8, width=8, channels=1, num_classes=4)
    if "select" in given:
        given = given | {"select_epochs": 1.0}
    recipe = Recipe(**FIELDS | {"batch": 27, "examples": 540, "eval_every": 270}, **given)
    result = run_experiment(recipe, dilute(source, alpha=10), tmp_path / "run")
    assert result["examples"] == 540
    if "select" in given:
        assert 0 < result["selection"]["kept"] <= result["selection"]["judged"] == 54 * 11


@pytest.mark.parametrize("rate", [None, 0.4])
def test_rsl_counts_the_images_of_each_class_only_where_the_law_says_so(rate: float | None, tmp_path: Path) -> None:
    """Of 90 images two in three are of class 0; under a given rate nobody knows, and each label keeps its share."""
    source = synthetic(num_train=90, num_test=40, height=8, width=8, channels=1, num_classes=2)
    source.train.labels[:] = np.arange(90) % 3 == 0
    noisy = dilute(source, alpha=0, law=Symmetric(0.4))
    task, _ = told(
        noisy, tmp_path, Judged(np.zeros(90, dtype=np.int64), np.arange(90, dtype=np.float32)), "rsl", select_rate=rate
    )
    labels = noisy.formula.labels_by_example(noisy.train.source_labels)
    counts = np.bincount(labels, minlength=2)
    kept = np.bincount(labels[select_rsl(task).kept], minlength=2)
    if rate is None:
        prior = np.array([2 / 3, 1 / 3])
        rates = observed_noise_rates(Symmetric(0.4).matrix(0, 2), prior)
        np.testing.assert_array_equal(kept, kept_counts(rates, counts, prior))
    else:
        np.testing.assert_array_equal(kept, np.floor(max(1 - 1.2 * rate, 0.8 * (1 - rate)) * counts))


@pytest.mark.parametrize("rate", [None, 0.45])
def test_rsl_warns_of_a_law_that_contradicts_it_whoever_says_the_rates(
    rate: float | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = synthetic(num_train=120, num_test=40, height=8, width=8, channels=1, num_classes=4)
    pairs = dilute(source, alpha=0, law=Pair(0.55))
    task, _ = told(
        pairs, tmp_path, Judged(np.zeros(120, dtype=np.int64), np.ones(120, dtype=np.float32)), "rsl", select_rate=rate
    )
    selection = select_rsl(task)
    assert "warning: class 0: label 1 is as likely as its own (0.55 against 0.45)" in capsys.readouterr().out
    assert selection.words["warnings"][0].startswith("class 0: label 1 is as likely as its own")
    assert selection.words.get("noise_ratio") == rate


def test_an_estimate_of_a_net_that_fits_little_says_so_in_the_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = synthetic(num_train=1200, num_test=40, height=8, width=8, channels=1, num_classes=4)
    noisy = dilute(source, alpha=0, law=Symmetric(0.25))
    predicted = noisy.formula.labels_by_example(noisy.train.source_labels).astype(np.int64)
    predicted[::3] = -1
    for name in SELECTIONS:
        judged = Judged(predicted, np.ones(1200, dtype=np.float32))
        task, _ = told(noisy, tmp_path / name, judged, name, select_rate=None if name == "all" else "auto")
        words = SELECTORS[name](task).words
        instead = "--forget-rate in place of --select all" if name == "all" else "--select-rate"
        assert words["warnings"] == [
            f"the net fits 67% of its own labels, so that the noise ratio {words['noise_ratio']:.3f} is estimated too "
            f"small; give {instead}, or more --select-epochs"
        ]
        assert f"warning: {words['warnings'][0]}" in capsys.readouterr().out


def test_a_table_that_is_too_long_is_left_out_and_said_to_be(
    wrong_set: DilutedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("train.select.selection.LARGEST_TABLE", 119)
    selection = Selection(np.ones(120, dtype=np.bool_), np.zeros(120, dtype=np.float32), None, {})
    write_selection(tmp_path, selection, wrong_set, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["selected.npy", "selection.json"]
    assert "selected.csv is left out: 120 rows are more than 119; selected.npy has them all" in capsys.readouterr().out


LATE: dict[str, Any] = {"method": "coteaching", "select": "incv", "rank_over": "data", "forget_epochs": 0.1}


@pytest.fixture
def undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    """Selection incv keeps 72 examples, one in four wrong, and leaves 24 undecided, which join after 30 %."""

    def choose(task: Task) -> Selection:
        places, held_in = np.arange(120), np.arange(120) < 108
        found: dict[str, Any] = {"iterations": []}
        late_from = 0.3 if task.recipe.late_from is None else task.recipe.late_from
        scores = np.where(held_in, 0.0, np.nan).astype(np.float32)
        undecided = (places % 3 == 0) & (places < 72)
        return Selection(places % 3 > 0, scores, 0.25, found, candidates=undecided, late_from=late_from)

    monkeypatch.setitem(SELECTORS, "incv", choose)


@pytest.mark.usefixtures("undecided")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_what_is_undecided_joins_co_teaching_late_and_changes_not_how_much_is_kept(
    wrong_set: DilutedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulate: int
) -> None:
    step, seen = Coteaching.step, list[tuple[Any, float]]()

    def spied(self: Coteaching, learner: Learner, batch: Any, clock: Clock) -> Any:
        metrics = step(self, learner, batch, clock)
        seen.append((batch.rows.numpy(), float(metrics["coteaching/kept_frac"])))
        return metrics

    monkeypatch.setattr(Coteaching, "step", spied)
    asked = FIELDS | LATE | {"examples": 600, "batch": 24, "rank_over": "batch", "accumulate": accumulate}
    run_experiment(Recipe(**asked), wrong_set, tmp_path / "run")
    table, size = selected(tmp_path / "run", "incv"), 24 // accumulate
    assert np.flatnonzero(table["candidate"]).tolist() == list(range(0, 72, 3))
    # 24 join 80: of 24 rows a batch 24 / (24 + 80) are theirs, from step 8 of 25 on.
    joined = [int(table["candidate"][rows].sum()) for rows, _ in seen]
    assert joined == [0] * 8 * accumulate + [6 // accumulate] * 17 * accumulate
    assert all((table["kept"] | table["candidate"])[rows].all() for rows, _ in seen)
    kept = [round(size * frac) for _, frac in seen]
    assert kept[5 * accumulate] == round(size * 0.75)
    assert set(kept[8 * accumulate :]) == {round((size - 6 // accumulate) * 0.75)}


@pytest.mark.usefixtures("undecided")
@pytest.mark.parametrize(("given", "start"), [({}, 3), ({"late_from": 0.5}, 5), ({"late_from": 1.0}, None)])
def test_a_run_reads_when_candidates_join(
    wrong_set: DilutedSet, tmp_path: Path, given: dict[str, Any], start: int | None
) -> None:
    run_experiment(Recipe(**FIELDS | LATE | {"examples": 120}, **given), wrong_set, tmp_path / "run")
    found = read_selection(tmp_path / "run" / "select-incv")
    assert found is not None
    late = late_candidates(found[0], batch=12, examples=120)
    assert (None if late is None else late.start) == start
    text = (tmp_path / "run" / "select-incv" / "selected.csv").read_text(encoding="utf-8")
    lines = list(csv.DictReader(text.splitlines()))
    assert [int(line["example_id"]) for line in lines if line["candidate"] == "1"] == list(range(0, 72, 3))


@pytest.mark.usefixtures("undecided")
@pytest.mark.parametrize("name", ["incv", "all"])
@pytest.mark.parametrize("unknown", ["observed", "given"])
def test_a_selection_tells_co_teaching_how_many_are_wrong_where_no_law_does(
    wrong_set: DilutedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unknown: str, name: str
) -> None:
    monkeypatch.setitem(SELECTORS, name, SELECTORS["incv"])  # of what it keeps, a quarter is wrong
    if unknown == "observed":
        dataset = dataclasses.replace(wrong_set, observed=True)
    else:
        law = Given(StoredArray((np.arange(120) * 7 // 10 % 4).astype(np.uint16)))
        dataset = dataclasses.replace(wrong_set, formula=dataclasses.replace(wrong_set.formula, law=law))
        dataset = dataclasses.replace(dataset, formula=dataset.formula.bind(dataset.train))
    recipe = Recipe(**FIELDS | LATE | {"select": name, "rank_over": "batch", "log_every": 120})
    check_fit(recipe, dataset)  # before anything is selected
    run_experiment(recipe, dataset, tmp_path / "run")
    shares = [row["coteaching/kept_frac"] for row in rows(tmp_path / "run") if "coteaching/kept_frac" in row]
    assert shares[1] == 0.75  # after the ramp, before candidates join
    with pytest.raises(UserError, match="give --forget-rate"):
        check_fit(dataclasses.replace(recipe, select=None), dataset)


@pytest.mark.usefixtures("undecided")
def test_methods_without_use_for_candidates_never_see_them(
    wrong_set: DilutedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, seen = Plain.step, set[int]()

    def spied(self: Plain, learner: Learner, batch: Any, clock: Clock) -> Any:
        seen.update(batch.rows.tolist())
        return step(self, learner, batch, clock)

    monkeypatch.setattr(Plain, "step", spied)
    run_experiment(Recipe(**FIELDS, select="incv"), wrong_set, tmp_path / "run")
    assert seen == {place for place in range(120) if place % 3}


@pytest.mark.usefixtures("undecided")
def test_a_run_that_was_stopped_after_candidates_joined_goes_on_the_same(
    wrong_set: DilutedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(**FIELDS | LATE | {"examples": 600, "checkpoint_every": 96, "log_every": 120})
    run_experiment(recipe, wrong_set, tmp_path / "whole")
    with interrupted(Coteaching, 31):  # candidates joined after step 15; the last checkpoint was after 24
        run_experiment(recipe, wrong_set, tmp_path / "cut")
    run_experiment(recipe, wrong_set, tmp_path / "cut", resume=True)
    assert same(weights(tmp_path / "cut"), weights(tmp_path / "whole"))
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


def test_a_selection_that_is_smaller_than_a_batch_is_trained_on(
    wrong_set: DilutedSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = Recipe(**FIELDS | {"batch": 100, "accumulate": 4}, select="rsl", select_epochs=4, select_rate=0.6)
    result = run_experiment(recipe, wrong_set, tmp_path / "run")
    kept = result["selection"]["kept"]
    assert 20 < kept < 60
    batch = kept // 4 * 4
    assert f"{kept} examples are selected: batches hold {batch} of them, not 100" in capsys.readouterr().out
    assert result["examples"] == -(-1080 // batch) * batch


def test_a_histogram_holds_the_labels_that_are_kept_of_an_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = synthetic(num_train=40, num_test=40, height=8, width=8, channels=1, num_classes=4)
    diluted = dilute(source, alpha=3)
    recipe = Recipe(**FIELDS | {"batch": 30}, method="histogram", select="rsl", select_epochs=4)
    run_experiment(recipe, diluted, tmp_path / "run")
    kept = selected(tmp_path / "run", "rsl")["kept"].reshape(4, 40)
    shown = np.flatnonzero(kept.any(axis=0))
    assert len(shown) < 30 < kept.sum()
    assert f"{len(shown)} images are selected: batches hold {len(shown)} of them" in capsys.readouterr().out
    batches = open_batches(diluted, batch=len(shown), stream="images", example_ids=np.flatnonzero(kept))
    batch = next(batches)
    assert batches.num_examples == len(shown)
    assert sorted(batch.rows.tolist()) == shown.tolist()
    labels = diluted.formula.labels_by_example(diluted.train.source_labels).reshape(4, 40).astype(int)
    labels[~kept] = -1
    np.testing.assert_array_equal(batch.labels.numpy(), labels[:, batch.rows].T)


def test_nothing_wrong_keeps_all_that_can_be_learnt(tmp_path: Path) -> None:
    clean = dilute(synthetic(num_train=120, num_test=40, height=8, width=8, channels=1, num_classes=4), alpha=0)
    recipe = Recipe(**FIELDS, select="rsl", select_epochs=2)
    result = run_experiment(recipe, clean, tmp_path / "rsl")
    assert result["selection"]["kept"] == result["selection"]["judged"] == 108  # its rate is 0
    assert result["selection"]["auroc"] is None  # no label is wrong: not a number, which JSON has not
    result = run_experiment(
        dataclasses.replace(recipe, select="incv", select_rate=0.0, select_epochs=40), clean, tmp_path / "incv"
    )
    iterations = result["selection"]["iterations"]
    assert all(each["selected"] + each["candidates"] == 108 for each in iterations)  # nothing is removed
    assert result["selection"]["wrong_share"] == 0


@pytest.mark.parametrize(("method", "streamed"), [("histogram", 108), ("plain", 432)])
def test_passes_of_a_run_are_over_what_its_method_streams(tmp_path: Path, method: str, streamed: int) -> None:
    source = synthetic(num_train=120, num_test=40, height=8, width=8, channels=1, num_classes=4)
    noisy = dilute(source, alpha=3)
    recipe = Recipe(**FIELDS | {"method": method, "examples": 20 * streamed}, select="rsl")
    judged = Judged(np.zeros(480, dtype=np.int64), np.ones(480, dtype=np.float32))
    task, trained = told(noisy, tmp_path, judged, "rsl")
    select_rsl(dataclasses.replace(task, recipe=recipe, num_images=108))
    assert [phase.examples for phase in trained] == [20 * 432]  # over labels, whatever the run counts


def test_weights_that_were_selected_for_are_validated_through_the_noise(wrong_set: DilutedSet, tmp_path: Path) -> None:
    recipe = Recipe(**FIELDS, select="rsl", select_epochs=4)
    result = run_experiment(recipe, wrong_set, tmp_path / "run")
    learner = trained_learner(recipe, wrong_set, tmp_path / "run/best.pt")
    (batch,) = evaluation_of(recipe, wrong_set, learner, "train", stream="images", images=range(108, 120))
    labels = wrong_set.formula.labels_by_example(wrong_set.train.source_labels)[batch.rows]
    with learner.evaluating() as logits_of:
        says = logits_of(batch.images).softmax(dim=1).numpy() @ wrong_set.formula.law.matrix(0, 4)
    assert result["noisy_val_loss"] == pytest.approx(-np.log(says[np.arange(12), labels]).mean(), rel=1e-4)


def test_weights_that_saw_all_labels_are_validated_as_they_are(wrong_set: DilutedSet) -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    for select, changed in (("all", False), ("rsl", True)):
        recipe = Recipe(**FIELDS, select=select)
        seen = noisy_logits(recipe, wrong_set, method_of(recipe, wrong_set))(logits)
        assert torch.equal(seen, logits) != changed


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"select": "insv"}, "unknown selection 'insv'; the selections are: incv, rsl, all"),
        ({"select_rate": 0.5}, "select_rate 0.5 is for a selection; give --select incv, rsl, all"),
        ({"select": "rsl", "select_rate": 1.0}, r"select_rate is 1.0; give a number in \[0, 1\)"),
        ({"select": "rsl", "select_epochs": 0.0}, "select_epochs is 0.0; give a finite number above 0"),
        (
            {"select": "rsl", "method": "marginal"},
            "selection rsl keeps some of an image's labels, and marginal is defined for all of them",
        ),
        ({"select": "incv", "order": "passes"}, "give --order full"),
        ({"select": "rsl", "method": "coteaching"}, "give --forget-rate"),
        (
            {"select": "all", "select_rate": 0.3},
            "selection all estimates the share of wrong labels, and select_rate 0.3",
        ),
        ({"select": "all", "method": "mixmatch"}, "the images of all else; give --select incv or rsl"),
        ({"select": "incv", "late_from": 0.5}, "late_from 0.5 is for .*; give --select incv --method coteaching"),
        ({"method": "coteaching", "late_from": 0.5}, "late_from 0.5 is for .*; give --select incv"),
        ({"select": "incv", "method": "coteaching", "late_from": 1.5}, r"late_from is 1.5; give a number in \[0, 1\]"),
    ],
)
def test_what_does_not_go_with_a_selection_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Recipe(**FIELDS, **given)


@pytest.fixture
def many_wrong() -> DilutedSet:
    """1,500 images of 4 classes that look the same every time, three labels in ten wrong."""
    source = synthetic(num_train=1500, num_test=40, height=8, width=8, channels=1, num_classes=4)
    made = dilute(source, alpha=0, law=Symmetric(0.3))
    return dataclasses.replace(made, augmentation=made.augmentation.for_evaluation())


def test_coteaching_forgets_as_many_as_are_estimated_to_be_wrong(many_wrong: DilutedSet, tmp_path: Path) -> None:
    fields = {**FIELDS, "lr": 1e-3, "select": "all", "select_epochs": 40, "method": "coteaching", "forget_epochs": 0.1}
    result = run_experiment(Recipe(**{**fields, "log_every": 540}), many_wrong, tmp_path / "run")
    found = result["selection"]
    assert found["wrong_share"] == found["noise_ratio"] == pytest.approx(0.3, abs=0.07)
    assert found["kept"] == found["judged"] == 1350
    last = [row for row in rows(tmp_path / "run") if "coteaching/kept_frac" in row][-1]
    assert last["coteaching/kept_frac"] == round(12 * (1 - found["wrong_share"])) / 12


@pytest.mark.parametrize("rate", ["auto", None, 0.1])
def test_rsl_estimates_the_share_of_wrong_labels_when_asked_to(
    rate: str | float | None, many_wrong: DilutedSet, tmp_path: Path
) -> None:
    recipe = Recipe(**FIELDS | {"lr": 1e-3}, select="rsl", select_rate=rate, select_epochs=40)
    found = run_experiment(recipe, many_wrong, tmp_path / "run")["selection"]
    assert (tmp_path / "run/select-rsl/rate").exists() == (rate == "auto")
    expected = {"auto": pytest.approx([0.3] * 4, abs=0.07), None: pytest.approx([0.3] * 4, abs=0.01), 0.1: [0.1] * 4}
    assert found["noise_rates"] == expected[rate]


@pytest.mark.parametrize(("alpha", "warned"), [(9, False), (10, True)])
def test_coteaching_says_that_it_does_harm_under_massive_noise(
    alpha: int, warned: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = synthetic(num_train=60, num_test=40, height=8, width=8, channels=1, num_classes=4)
    fields = FIELDS | {"examples": 24, "eval_every": 24, "method": "coteaching", "rank_over": "data"}
    run_experiment(Recipe(**fields), dilute(source, alpha=alpha), tmp_path / "run")
    assert ("coteaching ended far below plain" in capsys.readouterr().out) == warned


def test_massive_noise_on_few_examples_says_that_the_ratio_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ("--law", "symmetric", "--rate", "0.85", "--clean", "300", "--batch", "32")
    flags += ("--model", "perceptron", "--epochs", "1", "--select", "incv")
    assert call(monkeypatch, "mnist5k", *flags, "--out", str(tmp_path / "run")) == 2
    assert "selection incv cannot tell the noise ratio: accuracy" in (error := capfd.readouterr().err)
    assert error.rstrip().endswith("or say the ratio, by --select-rate and another --out")
