"""Who may take part in a comparison; this is the menu."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Final

from pipeline.errors import UserError
from train.methods import METHODS
from train.recipes import Recipe
from train.select.incv import PAIRS


@dataclass(frozen=True)
class Entry:
    """What a method of a comparison is made of.

    Args:
        fields: Fields of `train.recipes.Recipe`; what is not named is as in the method's recipe, but for `BASE`.
    """

    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def method(self) -> str:
        """The method that trains it."""
        return str((BASE | self.fields)["method"])

    @property
    def settings(self) -> dict[str, Any]:
        """Its recipe's other fields."""
        return {name: value for name, value in (BASE | self.fields).items() if name != "method"}

    @property
    def uses_clean_labels(self) -> bool:
        """Whether it is an oracle; every table says so."""
        return METHODS[self.method].uses_clean_labels


# No entry has averaged weights unless it says so: recipes do, and then what a method gains and what averaging gains
# could not be told apart. That of mlnt is its teacher, and part of the method.
BASE: Final[dict[str, Any]] = {"method": "plain", "ema": 0.0}

# "a+b" is a with what b adds: "mixup+ema", "forward+ema", "incv+coteaching".
ENTRIES: Final[dict[str, Entry]] = {
    "plain": Entry(),
    "ema": Entry({"ema": 3.0}),  # as in the recipes: the average weighs the last third of the run most
    "smoothing": Entry({"label_smoothing": 0.1}),
    "mixup": Entry({"method": "mixup"}),
    "forward": Entry({"method": "forward"}),
    "forward_estimated": Entry({"method": "forward", "transition": "auto"}),
    "coteaching": Entry({"method": "coteaching"}),
    "mlnt": Entry({"method": "mlnt"}),
    "incv": Entry({"select": "incv"}),
    "rsl": Entry({"select": "rsl"}),
    "rsl_wm": Entry({"select": "rsl", "method": "mixmatch"}),
    "histogram": Entry({"method": "histogram"}),
    "marginal": Entry({"method": "marginal"}),
    "h_alpha": Entry({"method": "h_alpha"}),
}

# What a method is told besides images and noisy labels, whatever its recipe says.
_TOLD: Final = {
    "mlnt": "nothing more; its teacher, an average of weights, is what is evaluated",
    "histogram": "which labels share an image",
    "marginal": "which labels share an image, and that one of them is right",
    "h_alpha": "the clean labels",
}
_SHARE: Final = "the share of wrong labels"


# Fields that a comparison may set for the entries that look at them.
OWN: Final[dict[str, Callable[[Entry], bool]]] = {
    "select_epochs": lambda entry: "select" in entry.fields,
    "select_rate": lambda entry: "select" in entry.fields,
    "forget_rate": lambda entry: entry.method == "coteaching",
    "rank_over": lambda entry: entry.method == "coteaching",
    "mlnt_sets": lambda entry: entry.method == "mlnt",
    "mlnt_order": lambda entry: entry.method == "mlnt",
}


def entry_of(name: str) -> Entry:
    """Return an entry of the menu, or what several of them make together.

    Args:
        name: One of `ENTRIES`, or several joined by +.

    Raises:
        UserError: If one is not on the menu, or two of them set the same field.
    """
    fields: dict[str, Any] = {}
    for part in name.split("+"):
        if part not in ENTRIES:
            near = get_close_matches(part, ENTRIES, n=2)
            hint = f" (did you mean {' or '.join(near)}?)" if near else ""
            raise UserError(
                f"unknown method '{part}'{hint}; the methods are: {', '.join(ENTRIES)}; + joins them, as in mixup+ema"
            )
        if both := fields.keys() & ENTRIES[part].fields:
            raise UserError(f"method {name} sets {min(both)} twice; join what differs, as in mixup+ema")
        fields |= ENTRIES[part].fields
    return Entry(fields)


def told_of(recipe: Recipe, law: str) -> str:
    """Say what a run is told besides images and noisy labels, in a few words; what it estimates it is not told.

    Args:
        recipe: Of the run.
        law: Of its labels.
    """
    words = []
    by_law = recipe.select == "incv" and recipe.select_rate is None and bool(recipe.alpha)
    given = isinstance(recipe.select_rate, float | int) or by_law
    if given:
        words.append(_SHARE)
    elif recipe.select == "rsl" and recipe.select_rate is None:
        words.append(f"{_SHARE} in each class, and how many images each has")
    if recipe.select == "incv" and law in PAIRS:
        words.append("the form of the noise")
    if recipe.method == "coteaching" and not given and (recipe.select is None or recipe.forget_rate is not None):
        words.append(_SHARE)
    if recipe.method == "forward" and recipe.transition != "auto":
        words.append("the transition matrix")
    return ", ".join([*words, _TOLD[recipe.method]] if recipe.method in _TOLD else words)


def entries_of(names: Iterable[str]) -> dict[str, Entry]:
    """Return the entries of a comparison, by name.

    Raises:
        UserError: If there is none, a name is not known, or two are the same.
    """
    entries: dict[str, Entry] = {}
    for name in names:
        entry = entry_of(name)
        same = [other for other, known in entries.items() if known.fields == entry.fields]
        if same:
            raise UserError(f"methods {same[0]} and {name} are the same; name one of them, once")
        entries[name] = entry
    return entries
