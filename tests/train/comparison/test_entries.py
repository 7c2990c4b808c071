import pytest

from pipeline.errors import UserError
from train.comparison.entries import ENTRIES, entries_of, entry_of
from train.methods import METHODS
from train.recipes import Recipe, recipe_for


def recipe(name: str) -> Recipe:
    entry = entry_of(name)
    return recipe_for("mnist5k", entry.method, num_images=3_600, num_copies=1, **entry.settings)


@pytest.mark.parametrize("name", ENTRIES)
def test_only_what_says_ema_has_averaged_weights(name: str) -> None:
    assert (recipe(name).ema > 0) == (name == "ema")
    assert METHODS[recipe(name).method].has_teacher == ("average of weights" in entry_of(name).told)


def test_entries_join() -> None:
    mixed = recipe("mixup+ema")
    assert (mixed.method, mixed.ema, mixed.label_smoothing) == ("mixup", recipe("ema").ema, 0)
    assert recipe("smoothing").label_smoothing == 0.1
    assert entry_of("forward+ema").told == ENTRIES["forward"].told
    assert entry_of("plain").told == ""


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
