"""The runs of a comparison: every method on the same labels, for the same epochs, then for the same time."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final, Literal

from pipeline.atomic import write_file
from pipeline.console import console
from pipeline.dataset import DilutedSet
from pipeline.errors import UserError
from pipeline.stream import check_batch
from train.assemble import held_out_images, method_of
from train.comparison.entries import OWN, Entry, entries_of, told_of
from train.comparison.labels import label_scores
from train.figures.points import SCALES, Noise, Point
from train.figures.rows import Row
from train.figures.runs import Job, Place, finish, open_point, recipe_of, row_of, run_jobs
from train.metrics import rows_with
from train.recipes import Recipe, difference, rows_an_epoch
from train.run_folder import read_json

EVALUATIONS: Final = 20  # of a run: the mean of the last ten is that of its second half; speed is read as often
BUDGETS: Final = {"epochs": "equal epochs", "time": "equal time"}
LEAST_STEPS: Final = 5  # of a run whose speed is measured: the first one compiles and warms up
FILE: Final = "compare.json"  # says what a folder compares


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is compared.

    Args:
        place: The clean set, and where runs lie.
        noise: Of its labels.
        methods: Names that `train.comparison.entries.entry_of` knows.
        model: Of all methods.
        epochs: Passes over what a method streams: examples, or images with all their labels.
        images: Clean images to use, the held-out ones among them; None is all.
        shared: Fields of `Recipe` that all methods are given: batch, lr, weight_decay.
        own: Those of `train.comparison.entries.OWN`.
        seeds: Runs a method.
        equal_time: Also for equal time.
        augment: Whether images are shifted and flipped as is usual for the set.
    """

    place: Place
    noise: Noise
    methods: tuple[str, ...]
    model: str
    epochs: float
    images: int | None = None
    shared: Mapping[str, Any] = field(default_factory=dict)
    own: Mapping[str, Any] = field(default_factory=dict)
    seeds: int = 3
    equal_time: bool = False
    augment: bool = True


@dataclass(frozen=True)
class Entrant(Job):
    """The run of a method.

    Args:
        name: The method's in this comparison.
        budget: What it shares with the others: "epochs" or "time".
    """

    name: str
    budget: Literal["epochs", "time"]


def run_comparison(comparison: Comparison, *, workers: int, keep: Callable[[Row], None]) -> None:
    """Run every method on the same data; finished runs are read, stopped ones go on.

    Args:
        comparison: What to run.
        workers: Runs at once.
        keep: Called with every row when its run is over: those of `row_of` and `measured`.

    Raises:
        UserError: If a method does not fit the data, or the folder holds another comparison; before anything is run.
        Stopped: If a signal came; what has run is kept.
    """
    entries = entries_of(comparison.methods)
    examples = equal_epochs(comparison, entries)
    claim(comparison)
    rows: dict[str, list[Row]] = {name: [] for name in entries}
    for row in _run_all(comparison, entries, examples, "epochs", workers):
        rows[row["entry"]].append(row)
        keep(row)
    if comparison.equal_time:
        for row in _run_all(comparison, entries, equal_time(rows), "time", workers):
            keep(row)


def _run_all(
    comparison: Comparison,
    entries: dict[str, Entry],
    examples: dict[str, int],
    budget: Literal["epochs", "time"],
    workers: int,
) -> Iterator[Row]:
    """Run all methods with one seed after the other, so that a machine's slow hours are shared."""
    console.rule(BUDGETS[budget])
    jobs = [
        entrant(comparison, name, entry, seed=seed, examples=examples[name], budget=budget)
        for seed in range(comparison.seeds)
        for name, entry in entries.items()
    ]
    return run_jobs(measured, jobs, workers)


def entrant(
    comparison: Comparison,
    name: str,
    entry: Entry,
    *,
    seed: int = 0,
    examples: int | None = None,
    budget: Literal["epochs", "time"] = "epochs",
) -> Entrant:
    """Describe a run.

    Args:
        comparison: What it is part of.
        name: Of the method there.
        entry: The method.
        seed: Of noise and training.
        examples: Length; None for the epochs of the comparison.
        budget: What it shares with the others.
    """
    own = {name: value for name, value in comparison.own.items() if OWN[name](entry)}
    settings = {**entry.settings, **comparison.shared, **own}
    if examples is None:
        settings |= {"epochs": comparison.epochs}
    else:
        every = max(1, examples // EVALUATIONS)
        settings |= {"examples": examples, "eval_every": every, "log_every": every}
    point = Point(
        noise=comparison.noise,
        model=comparison.model,
        method=entry.method,
        clean=comparison.images,
        settings=settings,
        uncut=True,
        augment=comparison.augment,
    )
    return Entrant(comparison.place, SCALES["full"], point, "recipe", "recipe", seed, name, budget)


def equal_epochs(comparison: Comparison, entries: dict[str, Entry]) -> dict[str, int]:
    """Return how many examples (images) each method sees in the epochs of a comparison, in whole steps.

    Raises:
        UserError: If a method does not fit the data, or is too short for equal time.
    """
    dataset = open_point(comparison.place, comparison.noise, comparison.images, noise_seed=0)
    examples = {}
    for name, entry in entries.items():
        try:
            recipe = recipe_of(entrant(comparison, name, entry), dataset)
            check_fit(recipe, dataset)
        except UserError as error:
            raise UserError(f"method {name} cannot take part: {error}") from None
        examples[name] = whole_steps(recipe.examples, recipe.batch)
        num_steps = examples[name] // recipe.batch
        if comparison.equal_time and num_steps < LEAST_STEPS:
            raise UserError(
                f"equal time wants {LEAST_STEPS} steps of every method, to measure speeds, and {name} has {num_steps} "
                f"of batch {recipe.batch}; give more --epochs or a smaller --batch"
            )
    return examples


def check_fit(recipe: Recipe, dataset: DilutedSet) -> None:
    """Refuse a recipe that does not fit its data, before anything is run.

    Raises:
        UserError: If its method or its batch does not.
    """
    method_of(recipe, dataset)
    held_in = held_out_images(recipe, dataset).start
    shown = rows_an_epoch(recipe.method, num_images=held_in, num_copies=1 + dataset.formula.alpha)
    check_batch(recipe.batch, num_examples=shown)


def whole_steps(examples: float, batch: int) -> int:
    """Round a length to whole steps, at least one.

    Args:
        examples: Above 0.
        batch: Examples a step.
    """
    return batch * max(1, round(examples / batch))


def equal_time(rows: Mapping[str, list[Row]]) -> dict[str, int]:
    """Return how many examples (images) each method sees in the time that the slowest one took for equal epochs.

    Time is that of training, without evaluations and checkpoints, of a method's fastest seed: what else a machine does
    only ever slows a run. Nets that are trained before the run, to select or to estimate, count; a longer run is taken
    to be as fast, and to have as large a share of them, unless their epochs are given. The slowest method's runs stay
    as they are.

    Args:
        rows: Of all seeds for equal epochs, by method; those of a method are equally long.
    """
    fastest = {name: min(of_method, key=_training_s) for name, of_method in rows.items()}
    budget_s = max(map(_training_s, fastest.values()))
    examples = {}
    for name, row in fastest.items():
        if row["before_is_fixed"]:
            shown = (budget_s - row["before_s"]) * row["examples_per_s"]
        else:
            shown = budget_s / _training_s(row) * row["examples"]
        examples[name] = whole_steps(shown, row["batch"])
    return examples


def _training_s(row: Row) -> float:
    return float(row["examples"] / row["examples_per_s"] + row["before_s"])


def measured(job: Entrant) -> Row:
    """Run a job, or read what it gave, and return its row with what only a comparison looks at.

    Raises:
        Stopped: If a signal came.
    """
    finished = finish(job)
    recipe, _, result, folder = finished
    row = row_of(job, finished)
    phases = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*/*/result.json")]
    return {
        **row,
        "before_s": sum(phase["examples"] / phase["speed/examples_per_s"] for phase in phases),
        "before_is_fixed": recipe.select_epochs is not None,
        "told": told_of(recipe, job.point.noise.law),
        "entry": job.name,
        "budget": job.budget,
        "optimizer": recipe.optimizer,
        "weight_decay": recipe.weight_decay,
        "label_smoothing": recipe.label_smoothing,
        "epochs": result["epochs"],
        "examples_per_s": speed_of(folder),
        "uses_clean_labels": result["uses_clean_labels"],
        **label_scores(finished),
        "curve": rows_with(folder, "eval/top1_accuracy"),
    }


def speed_of(folder: Path) -> float:
    """Return the median of a run's examples a second over its readings: the first one compiles and warms up."""
    return median(row["speed/examples_per_s"] for row in rows_with(folder, "speed/examples_per_s"))


def description(comparison: Comparison) -> dict[str, Any]:
    """Say what is compared in plain values."""
    fields = dataclasses.asdict(comparison)
    described = {**fields.pop("place"), **fields.pop("noise"), **fields.pop("shared"), **fields.pop("own"), **fields}
    return {
        name: list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value
        for name, value in described.items()
        if name != "out"
    }


def claim(comparison: Comparison) -> None:
    """Take a comparison's folder; one that lies there may grow by methods, by seeds, and by equal time.

    Raises:
        UserError: If the folder holds another comparison, more of this one, or something else.
    """
    out, now = comparison.place.out, description(comparison)
    if (out / FILE).exists():
        before = read_json(out / FILE)
        changes = difference(before, now, free={"methods", "seeds", "equal_time"})
        if changes:
            raise UserError(f"{out} holds another comparison ({'; '.join(changes)}); give another --out")
        missing = [name for name in before["methods"] if name not in now["methods"]]
        if missing:
            raise UserError(
                f"{out} compares {', '.join(missing)} too; name all of it in --methods, or give another --out"
            )
        if before["seeds"] > now["seeds"]:
            raise UserError(
                f"{out} has {before['seeds']} seeds a method; give --seeds {before['seeds']} or another --out"
            )
        if before["equal_time"] and not now["equal_time"]:
            raise UserError(f"{out} has runs of equal time too; give --equal-time or another --out")
    elif out.exists() and (not out.is_dir() or any(path.suffix != ".part" for path in out.iterdir())):
        raise UserError(f"{out} exists and holds no comparison; give --out a new folder")
    out.mkdir(parents=True, exist_ok=True)
    write_file(out / FILE, (json.dumps(now, indent=1) + "\n").encode())
