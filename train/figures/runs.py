"""Runs of a grid, one after the other or several at once; finished ones are read, stopped ones go on."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Final, NamedTuple, TypeVar

from jaxtyping import Int64
from numpy import ndarray as Array

from pipeline.console import console
from pipeline.dataset import DilutedSet
from pipeline.law_flags import law_from_flags
from pipeline.sources import open_source
from pipeline.workers import spread
from train.assemble import train_images
from train.data import open_data
from train.experiment import Stopped, run_experiment
from train.figures.curves import curves_of
from train.figures.points import AUTO_RATE, VAL_FRAC, Figure, Noise, Point, Scale, key_of
from train.figures.rows import Row
from train.figures.unseen import confusion_of, halves, measure_unseen
from train.metrics import rows_with
from train.recipes import Recipe, recipe_for, rows_an_epoch
from train.select.task import ALL

LARGEST_SE: Final = 0.02  # of the noisy validation loss; above it the choice is that of ...
CARRIED_ALPHA: Final = 10
_EVALUATIONS: Final = 10  # of a run, so that the mean of the last ten is the mean of all


@dataclass(frozen=True)
class Place:
    """Where data and runs lie.

    Args:
        dataset: Name of the clean set.
        out: Folder of the runs.
        source: The user's own files of the set.
        shards: Its shards, of which every point is a view.
        foreign_source: The user's own files of the set that foreign noise shows.
        noise_seed: Draws the labels of all runs; None for the seed of each.
    """

    dataset: str
    out: Path
    source: Path | None = None
    shards: str | None = None
    foreign_source: Path | None = None
    noise_seed: int | None = None


@dataclass(frozen=True)
class Job:
    """One run.

    Args:
        place: Where it lies.
        scale: What it may cost.
        point: What it is.
        rate: Its learning rate, or "recipe".
        how: How that was found: "recipe", "given", "candidate", "chosen", "carried".
        seed: Of training, and of noise unless the place has a noise seed; generators of their own draw from it.
    """

    place: Place
    scale: Scale
    point: Point
    rate: float | str
    how: str
    seed: int

    @property
    def noise_seed(self) -> int:
        """Draws its labels."""
        return self.seed if self.place.noise_seed is None else self.place.noise_seed


OneJob = TypeVar("OneJob", bound=Job)  # or what knows more of itself than a job


class Finished(NamedTuple):
    """A run that is over.

    Args:
        recipe: What it was.
        dataset: What it trained on.
        result: What came out of it.
        folder: Where it lies.
    """

    recipe: Recipe
    dataset: DilutedSet
    result: dict[str, Any]
    folder: Path


def run_figure(
    name: str, figure: Figure, place: Place, scale: Scale, *, seeds: int, workers: int, keep: Callable[[Row], None]
) -> list[Row]:
    """Run the grid of a figure.

    Learning rates that are to be chosen come first: seed 0 of every candidate, the lowest loss on the noisy validation
    split, which holds out a tenth of the images, at the last evaluation; where that loss has a standard error above
    `LARGEST_SE`, the rate chosen at α = `CARRIED_ALPHA` for the same point is taken.

    Args:
        name: Of the figure; the rows carry it.
        figure: What to run.
        place: Where.
        scale: At what cost.
        seeds: Runs a point.
        workers: Runs at once, each in a process of its own if there are several.
        keep: Called with every row when its run is over.

    Returns:
        The rows of all points, candidates left out.

    Raises:
        UserError: If the figure has no grid for the set, or the data cannot be opened.
        Stopped: If a signal came; what has run is kept.
    """
    points = figure.points(place.dataset, scale)
    if any(point.noise.order in ("confusing", "reverse") for point in points):
        measure_confusion(place, scale)
    for point in [each for each in points if each.unseen and not each.noise.flip_rate][:1]:
        finish(Job(place, scale, point, point.rate, "given", 0))  # what the others are held against

    def run(jobs: list[Job]) -> Iterator[Row]:
        for row in run_jobs(run_job, jobs, workers):
            row |= {"experiment": name}
            keep(row)
            yield row

    rates = _choose_rates([point for point in points if point.rate == AUTO_RATE], place, scale, run)
    jobs = []
    for number, point in enumerate(points):
        rate, how = point.rate, "recipe" if point.rate == "recipe" else "given"
        if point.rate == AUTO_RATE:
            rate, how = rates[key_of(point)]
        jobs += [(seed, number, Job(place, scale, point, rate, how, seed)) for seed in range(seeds)]
    return [*run([job for _, _, job in sorted(jobs, key=lambda each: each[:2])])]  # a whole figure of one seed first


def _choose_rates(
    points: list[Point], place: Place, scale: Scale, run: Callable[[list[Job]], Iterator[Row]]
) -> dict[str, tuple[float, str]]:
    """Return the rate of every point and how it was found."""

    def losses(wanted: list[Point]) -> dict[str, list[Row]]:
        distinct = {key_of(point): point for point in wanted}
        jobs = {
            (key, rate): Job(place, scale, point, rate, "candidate", 0)
            for key, point in distinct.items()
            for rate in scale.rates
        }
        rows = {(row["point"], row["lr"]): row for row in run([*jobs.values()])}
        return {key: [rows[key, rate] for rate in scale.rates] for key in distinct}

    found = losses(points)
    unsure = {
        key_of(point): dataclasses.replace(point, noise=dataclasses.replace(point.noise, alpha=CARRIED_ALPHA))
        for point in points
        if min(row["noisy_val_loss_last_se"] for row in found[key_of(point)]) > LARGEST_SE
    }
    known = losses([point for point in unsure.values() if key_of(point) not in found]) | found
    chosen = {}
    for point in points:
        key = key_of(point)
        rows = known[key_of(unsure[key])] if key in unsure else found[key]
        best = min(rows, key=lambda row: row["noisy_val_loss_last"])
        chosen[key] = (best["lr"], "carried" if key in unsure else "chosen")
    return chosen


def run_jobs(run_one: Callable[[OneJob], Row], jobs: list[OneJob], workers: int) -> Iterator[Row]:
    """Run jobs and yield their rows, in the order of the jobs; each says how far the whole is.

    Args:
        run_one: Runs a job and returns its row: `run_job`, or one that adds to it.
        jobs: In the order of their runs, where one runs at a time.
        workers: Runs at once, each in a process of its own if there are several.

    Raises:
        Stopped: If a signal came.
    """
    done: list[Row] = []

    def told(row: Row) -> Row:
        done.append(row)
        left_s = (len(jobs) - len(done)) * fmean(each["wall_s"] for each in done) / workers
        eta = f", about {left_s / 60:.0f} min to go" if len(done) < len(jobs) else ""
        console.print(f"{len(done)} of {len(jobs)}: {describe(row)}{eta}", highlight=False, soft_wrap=True)
        return row

    if not jobs:
        return
    with spread(run_one, workers, threads=max(1, len(os.sched_getaffinity(0)) // workers)) as run:
        for found in run(_run_or_signal, jobs):
            if isinstance(found, int):
                raise Stopped(found)
            yield told(found)


def _run_or_signal(run_one: Callable[[OneJob], Row], job: OneJob) -> Row | int:
    """Run a job; the number of a signal stands for one that was stopped by it."""
    try:
        return run_one(job)
    except Stopped as stopped:
        return stopped.signal_number


def run_job(job: Job) -> Row:
    """Run a job, or read what it gave, and return its row.

    Raises:
        Stopped: If a signal came.
    """
    run = finish(job)
    row = row_of(job, run)
    if job.point.curves:
        row |= curves_of(run.result, run.folder)
    if job.point.unseen:
        row |= measure_unseen(run.recipe, run.dataset, run.folder, clean_confusion(job))
    return row


def finish(job: Job) -> Finished:
    """Run a job, or go on with it, unless it is over already.

    Raises:
        Stopped: If a signal came.
    """
    point = job.point
    dataset = open_point(
        job.place, point.noise, point.clean, job.noise_seed, augment=point.augment and not point.unseen
    )
    recipe = recipe_of(job, dataset)
    folder = job.place.out / folder_name(job, recipe)
    if (folder / "result.json").exists():
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    else:
        with quiet():
            result = run_experiment(recipe, dataset, folder, resume=True, part=halves(dataset) if point.unseen else ALL)
    return Finished(recipe, dataset, result, folder)


def clean_confusion(job: Job) -> Int64[Array, "k k"]:
    """Measure, at seed 0, how a net of the same point confuses the classes that it learnt without noise."""
    noise = dataclasses.replace(job.point.noise, law="symmetric", flip_rate=0.0)
    run = finish(dataclasses.replace(job, point=dataclasses.replace(job.point, noise=noise), seed=0))
    return confusion_of(run.recipe, run.dataset, run.folder)


@contextmanager
def quiet() -> Iterator[None]:
    """Let a run say nothing of its own."""
    before, console.quiet = console.quiet, True
    try:
        yield
    finally:
        console.quiet = before


def open_point(place: Place, noise: Noise, clean: int | None, noise_seed: int, *, augment: bool = True) -> DilutedSet:
    """Open the data of a point, whose labels a seed draws."""
    foreign = open_source(noise.foreign, place.foreign_source) if noise.foreign else None
    measured = noise.order in ("confusing", "reverse")
    law = law_from_flags(
        None if noise.law == "uniform" else noise.law,
        rate=noise.flip_rate,
        delta=noise.delta,
        order_of_classes=noise.order or None,
        matrix=confusion_path(place) if measured else None,
        foreign=foreign,
        order_seed=noise_seed,
    )
    return open_data(
        place.dataset,
        shards=place.shards,
        alpha=noise.alpha,
        law=law,
        noise_seed=noise_seed,
        clean=clean,
        source=place.source,
        foreign=foreign,
        augment=augment,
    )


def recipe_of(job: Job, dataset: DilutedSet) -> Recipe:
    """Return the recipe of a job: the method's own, its length cut to what the scale allows."""
    point = job.point
    given: dict[str, Any] = {
        "num_images": train_images(dataset.formula.num_images, point.settings.get("val_frac", VAL_FRAC)),
        "num_copies": 1 + point.noise.alpha,
        "alpha": point.noise.alpha,
        "noise_seed": job.noise_seed,
        "clean": point.clean,
        "law": point.noise.law,
        "shards": job.place.shards,
        "source": job.place.source and str(job.place.source),
        "model": point.model,
        "seed": job.seed,
        "val_frac": VAL_FRAC,
        **({} if job.rate == "recipe" else {"lr": job.rate}),
        **point.settings,
    }
    own = recipe_for(job.place.dataset, point.method, **given)
    shown = rows_an_epoch(point.method, num_images=given["num_images"], num_copies=given["num_copies"])
    given = {"batch": min(own.batch, shown), **given}  # a recipe's batch may be more than a few clean images make
    examples = own.examples
    if not point.uncut:
        fewest, most = job.scale.examples
        examples = min(max(examples, fewest), most or examples)
    given = {"eval_every": max(1, examples // _EVALUATIONS), **given, "examples": examples}
    if point.curves:
        given["log_every"] = given["eval_every"]
    return recipe_for(job.place.dataset, point.method, **given)


def folder_name(job: Job, recipe: Recipe) -> str:
    """Name the folder of a run: for people, and by all that differs from a recipe's defaults.

    Fields that are added to recipes later, and that a run leaves as they are, do not make it another run.
    """
    own = dataclasses.asdict(Recipe(dataset=recipe.dataset, examples=recipe.examples))
    fields = {name: value for name, value in dataclasses.asdict(recipe).items() if value != own[name]}
    noise = dataclasses.asdict(job.point.noise)
    if noise["flip_rate"] is None:  # runs without one were named before there was one
        del noise["flip_rate"]
    facts = {"recipe": fields, "examples": recipe.examples, "noise": noise}
    if job.point.unseen:
        facts["unseen"] = True
    if not job.point.augment:
        facts["augment"] = False
    digest = zlib.crc32(json.dumps(facts, sort_keys=True).encode())
    words = (recipe.dataset, recipe.model, recipe.method, f"alpha{job.point.noise.alpha}", f"seed{job.seed}")
    return "-".join((*words, f"{digest:08x}"))


def row_of(job: Job, finished: Finished) -> Row:
    """Lay out what came out of a run."""
    recipe, dataset, result, folder = finished
    held_out = rows_with(folder, "eval/noisy_val_loss")
    at_end = held_out[-1] if held_out else {}
    noise, accuracy, given = job.point.noise, result["top1_accuracy"], result["memorisation"]["given"]
    row = {
        "dataset": recipe.dataset,
        "scale": job.scale.name,
        **dataclasses.asdict(noise),
        "clean": dataset.formula.num_images,
        **{
            name: getattr(recipe, name)
            for name in ["model", "method", "batch", "lr", "schedule", "ema", "log_every", "seed"]
        },
        "examples": result["examples"],
        "noise_seed": job.noise_seed,
        "rate": job.how,
        **{f"top1_{name}": accuracy[name] for name in ("last", "last10", "best_noisy_val", "best_test")},
        "top5_last": result["top5_accuracy"],
        "noisy_val_loss": result["noisy_val_loss"],
        "noisy_val_loss_se": result["noisy_val_loss_se"],
        "noisy_val_loss_last": at_end.get("eval/noisy_val_loss"),
        "noisy_val_loss_last_se": at_end.get("eval/noisy_val_loss_se"),
        "wrong_labels_said": None if given is None or math.isnan(given) else given,  # no label is wrong
        "vote": result["vote_baseline"],
        "wall_s": result["wall_s"] + before_s(result),
        "point": key_of(job.point),
    }
    return {**row, **noise_scale_of(folder, still=recipe.lr == 0)}


def before_s(result: dict[str, Any]) -> float:
    """Return the seconds of a run's phases before its own training: a selection, an estimate of its noise."""
    return sum(float(result[phase]["wall_s"]) for phase in ("selection", "transition") if phase in result)


def noise_scale_of(folder: Path, *, still: bool) -> dict[str, float | None]:
    """Read the noise scale that a run measured, over all its probes, and the cosine of its gradients.

    Args:
        folder: Of the run.
        still: Whether its weights stood still: the cosine is then that of all probes, else their mean.
    """
    probes = rows_with(folder, "noise_scale/trace")
    cosines = [row["noise_scale/clean_noisy_cosine"] for row in probes if "noise_scale/clean_noisy_cosine" in row]
    return {
        "noise_scale": probes[-1].get("noise_scale/simple_examples") if probes else None,
        "clean_noisy_cosine": fmean(cosines[-1:] if still else cosines) if cosines else None,
    }


def confusion_path(place: Place) -> Path:
    """Return where the confusion matrix of a set lies."""
    return place.out / f"{place.dataset}-confusion.csv"


def measure_confusion(place: Place, scale: Scale) -> None:
    """Measure how a net that learnt from clean labels confuses the classes of held-out training images."""
    if confusion_path(place).exists():
        return
    job = Job(place, scale, Point(noise=Noise(alpha=0)), "recipe", "recipe", 0)
    dataset = open_point(place, job.point.noise, None, 0)
    recipe = recipe_of(job, dataset)
    console.print("measuring the confusion matrix of a net trained on clean labels", highlight=False)
    folder = place.out / folder_name(job, recipe)
    run_experiment(recipe, dataset, folder, resume=True, save_confusion=confusion_path(place))


def describe(row: Row) -> str:
    """Say a run and its result in a line."""
    noise = [row["law"], row["order"], row["foreign"], "" if row["delta"] is None else f"δ = {row['delta']:g}"]
    noise += ["" if row["flip_rate"] is None else f"rate {row['flip_rate']:g}"]
    words = [row["dataset"], f"α = {row['alpha']}", *(word for word in noise if word and word != "uniform")]
    method = row.get("entry", row["method"])  # in a comparison it has a name of its own
    words += [f"{row['clean']:,} clean", row["model"], method, f"batch {row['batch']}", f"lr {row['lr']:g}"]
    rate = " (candidate)" if row["rate"] == "candidate" else ""
    return f"{', '.join(words)}{rate}, seed {row['seed']}: {row['top1_last']:.1%} ({row['wall_s']:.0f} s)"
