"""Agreement with labels that a net did not see, measured on a real run and held against the law."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from figure_rows import row

from train.distributed import ALONE
from train.experiment import judge
from train.figures.agreement import QUADRATIC_LAW, agreement, lines_of
from train.figures.points import SCALES
from train.figures.rows import Row
from train.figures.runs import Job, Place, folder_name, open_point, recipe_of, run_figure
from train.figures.unseen import halves


def test_a_run_is_held_against_the_labels_of_the_half_that_it_did_not_see(tmp_path: Path) -> None:
    place, scale = Place("mnist5k", tmp_path), SCALES["smoke"]
    rows = run_figure("quadratic-law", QUADRATIC_LAW, place, scale, seeds=1, workers=1, keep=lambda row: None)
    assert [(each["law"], each["flip_rate"]) for each in rows] == [("symmetric", 0.0), ("symmetric", 0.4)]
    clean, noisy = rows
    assert clean["unseen_accuracy"] == pytest.approx(clean["law_accuracy"])  # C is its own
    assert clean["unseen_precision"] == pytest.approx(clean["law_precision"]) == 1
    # (C·T)_ij T_ij, C nearly diagonal: below (1-ε)² + ε²/9 = .378 and above chance.
    assert 0.15 < noisy["law_accuracy"] < 0.378
    point = agreement("mnist5k", scale)[1]
    job = Job(place, scale, point, point.rate, "given", 0)
    dataset = open_point(place, point.noise, point.clean, 0, augment=False)
    recipe = recipe_of(job, dataset)
    folder = tmp_path / folder_name(job, recipe)
    ids = np.arange(400)
    source = dataset.train.source_labels
    labels = dataset.formula.labels(ids, ids * 0, source)
    assert 0.3 < (labels != source).mean() < 0.5
    for name, weights in (("unseen", "last.pt"), ("early", "best.pt")):
        agrees = judge(recipe, dataset, folder / weights, ids, ALONE).predicted == labels
        other = ids[200:]
        assert noisy[f"{name}_accuracy"] == agrees[other].mean()
        assert noisy[f"{name}_precision"] == (labels == source)[other][agrees[other]].mean()
        assert noisy[f"{name}_recall"] == agrees[other][(labels == source)[other]].mean()
        if name == "unseen":
            assert noisy["fitted"] == agrees[:200].mean()


def test_the_halves_part_images_with_all_their_copies() -> None:
    dataset = open_point(Place("mnist5k", Path()), agreement("mnist5k", SCALES["smoke"])[0].noise, 400, 0)
    part = halves(dataset)
    assert part.train is not None
    assert part.noisy_val is not None
    assert set(part.train % 400) == set(range(200))
    assert set(part.noisy_val % 400) == set(range(200, 400))


def law_rows(*away: float, fitted: float = 0.99, law: str = "symmetric") -> list[Row]:
    fields: dict[str, Any] = {"law": law, "alpha": 0, "fitted": fitted, "law_accuracy": 0.5}
    return [row(**fields, flip_rate=n / 10, unseen_accuracy=0.5 + by) for n, by in enumerate(away)]


def test_the_law_is_held_against_nets_that_fit_their_labels() -> None:
    check = QUADRATIC_LAW.claims[0].check
    held = check(law_rows(0.01, -0.04, 0.02))
    assert held.verdict == "holds"
    assert held.ours == "symmetric, 3 rates: largest deviation -4.0 points, at 0.1"
    assert check(law_rows(0.01, -0.06, 0.02)).verdict == "does not hold"
    assert check(law_rows(0.01, -0.06, 0.02) + law_rows(0.0, 0.0, 0.0, law="pair")).verdict == "in part"
    assert check(law_rows(0.01, 0.01, fitted=0.99) + law_rows(0.2, fitted=0.9)).verdict == "not run"
    told = check([*law_rows(0.01, 0.02, 0.03), row(law="symmetric", fitted=0.9, flip_rate=0.9)]).ours
    assert "1 rates left out" in told


def test_precision_and_recall_are_those_at_half() -> None:
    check = QUADRATIC_LAW.claims[1].check
    fields: dict[str, Any] = {"law": "symmetric", "flip_rate": 0.5, "early_precision": 0.97, "early_recall": 0.8}
    assert check([row(**fields, unseen_precision=0.9, unseen_recall=0.5)]).verdict == "holds"
    assert check([row(**fields, unseen_precision=0.9, unseen_recall=0.4)]).verdict == "does not hold"
    assert check([row(**fields, unseen_precision=0.8, unseen_recall=0.5)]).verdict == "does not hold"


def test_a_panel_has_a_line_for_each_kind_of_weights_and_one_for_the_law() -> None:
    found = lines_of("recall", [row(unseen_recall=0.1, early_recall=0.2, law_recall=0.3)])
    assert [(each["line"], each["value"]) for each in found] == [
        ("last weights", 0.1), ("best on unseen labels", 0.2), ("law, (C·T)_ij T_ij", 0.3),
    ]  # fmt: skip
