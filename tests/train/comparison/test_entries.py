from typing import Any

import pytest

from pipeline.errors import UserError
from train.comparison.entries import ENTRIES, entries_of, entry_of, told_of
from train.methods import METHODS
from train.recipes import Recipe, recipe_for


def recipe(name: str, **fields: Any) -> Recipe:
    entry = entry_of(name)
    return recipe_for("mnist5k", entry.method, num_images=3_600, num_copies=1, **entry.settings, **fields)


@pytest.mark.parametrize("name", ENTRIES)
def test_only_what_says_ema_has_averaged_weights(name: str) -> None:
    assert (recipe(name).ema > 0) == (name == "ema")
    assert METHODS[recipe(name).method].has_teacher == ("average of weights" in told_of(recipe(name), "symmetric"))


def test_entries_join() -> None:
    mixed = recipe("mixup+ema")
    assert (mixed.method, mixed.ema, mixed.label_smoothing) == ("mixup", recipe("ema").ema, 0)
    assert recipe("smoothing").label_smoothing == 0.1


@pytest.mark.parametrize(
    ("name", "law", "fields", "told"),
    [
        ("plain", "symmetric", {}, ""),
        ("forward+ema", "symmetric", {}, "the transition matrix"),
        ("forward_estimated", "symmetric", {}, ""),
        ("coteaching", "symmetric", {}, "the share of wrong labels"),
        ("incv", "symmetric", {}, ""),
        ("incv+coteaching", "symmetric", {}, ""),  # it has what the selection estimates
        ("incv+coteaching", "symmetric", {"forget_rate": 0.5}, "the share of wrong labels"),
        ("incv+coteaching", "symmetric", {"select_rate": 0.5}, "the share of wrong labels"),
        ("incv", "pair", {}, "the form of the noise"),
        ("incv", "uniform", {"alpha": 5}, "the share of wrong labels"),
        ("rsl", "symmetric", {}, "the share of wrong labels in each class, and how many images each has"),
        ("rsl", "symmetric", {"select_rate": 0.5}, "the share of wrong labels"),
        ("rsl", "symmetric", {"select_rate": "auto"}, ""),
        ("h_alpha", "uniform", {}, "the clean labels"),
    ],
)
def test_a_table_says_what_a_method_is_told(name: str, law: str, fields: dict[str, Any], told: str) -> None:
    assert told_of(recipe(name, **fields), law) == told


@pytest.mark.parametrize("name", ENTRIES)
def test_an_oracle_is_marked(name: str) -> None:
    assert entry_of(name).uses_clean_labels == (name == "h_alpha")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["mixpu"], r"unknown method 'mixpu' \(did you mean mixup\?\); the methods are: plain, ema, "),
        (["plain", ""], "unknown method ''; the methods are: plain"),
        (["mixup+forward"], "method mixup\\+forward sets method twice"),
        (["mixup+ema", "ema+mixup"], "methods mixup\\+ema and ema\\+mixup are the same"),
        (["plain", "plain"], "methods plain and plain are the same"),
    ],
)
def test_names_that_make_no_comparison_are_refused(names: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        entries_of(names)
