"""From a recipe to a finished run folder."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float64, Int64
from numpy import ndarray as Array

from pipeline.atomic import check_writable
from pipeline.console import console
from pipeline.dataset import DilutedSet
from pipeline.errors import UserError
from pipeline.laws import Given
from pipeline.laws.files import check_matrix_path, write_matrix
from pipeline.stream import Rest, images_of
from train.assemble import build_learner, evaluation_of, held_out_images, parts_of, run_of, trained_learner, training_of
from train.checkpoint import load_state
from train.data import checks_reads, facts, facts_of_part
from train.determinism import determinism
from train.distributed import ALONE, World
from train.evaluate import confusion
from train.example_losses import write_losses
from train.learner import Learner, resolve_precision
from train.loop import Run, evaluation_named, fit, load, stop_signals, write_weights
from train.methods import METHODS
from train.methods.forward import known_transition
from train.metrics import Display, Log
from train.outcome import defined, outcome
from train.process import settle
from train.recipes import Recipe
from train.run_folder import RunFolder, begun
from train.select import SELECTORS, Judged, Part, Selection, Task
from train.select.selection import (
    check_selection,
    late_candidates,
    quality,
    quality_by_iteration,
    read_selection,
    write_selection,
)
from train.select.task import ALL, examples_of, judge_images
from train.theory.rsl import draw_weights
from train.transition import estimated_transition

_MASSIVE: Final = 10  # the least α at which coteaching was measured to do harm


class Stopped(Exception):
    """The run was asked to stop and saved itself.

    Args:
        signal_number: Who asked.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by signal {signal_number}")
        self.signal_number = signal_number


def run_experiment(
    recipe: Recipe,
    dataset: DilutedSet,
    folder: Path,
    *,
    resume: bool = False,
    save_confusion: Path | None = None,
    part: Part = ALL,
    world: World = ALONE,
) -> dict[str, Any]:
    """Train, or go on training, and return what came out.

    Args:
        recipe: What to do.
        dataset: What to train on.
        folder: Where to write the run.
        resume: Go on with the run that lies there, with any number of processes; a finished one is only read.
        save_confusion: A .npy or .csv file for the confusion matrix of the last weights on the held-out images with
            their source labels. Test images have no part in it: noise that is ordered by it shapes training sets.
        part: Which examples to train on and to validate on.
        world: The processes that share the run; all of them call this.

    Returns:
        The content of result.json.

    Raises:
        UserError: If the recipe does not fit the data, the folder or the processes, a loss is not finite, or
            `save_confusion` names a file that this run did not write.
        Stopped: If Ctrl-C or SIGTERM stopped it; `resume` goes on.
    """
    settle()
    with determinism(recipe.deterministic):
        return _run_experiment(recipe, dataset, folder, resume, save_confusion, part, world)


def _run_experiment(
    recipe: Recipe,
    dataset: DilutedSet,
    folder: Path,
    resume: bool,
    save_confusion: Path | None,
    part: Part,
    world: World,
) -> dict[str, Any]:
    device = world.device()
    precision = world.together(lambda: resolve_precision(recipe.precision, device))
    recipe = dataclasses.replace(recipe, precision=precision)
    learner = world.together(lambda: build_learner(recipe, dataset, device))
    before = world.together(lambda: begun(folder) if resume else None)
    parts = world.together(lambda: parts_of(recipe, dataset, learner, before, world.size))
    learner.accumulate = int(*world.largest(parts))
    learner.join(world)
    recipe = dataclasses.replace(recipe, accumulate=learner.accumulate)
    finished = before is not None and (before / "result.json").exists()
    if recipe.compile and not finished:
        world.together(lambda: check_compiler(device))
    if save_confusion is not None:
        held_out = len(held_out_images(recipe, dataset))
        world.together(lambda: check_confusion_file(save_confusion, held_out, finished=finished))
    method, batches = world.together(lambda: training_of(recipe, dataset, learner, part))
    config = {"recipe": dataclasses.asdict(recipe), "data": facts(dataset) | facts_of_part(part)}
    with ExitStack() as stack:
        stack.callback(lambda: batches.close())
        console.print(f"loader: {batches.loader} ({batches.why})", highlight=False)
        if recipe.method == "coteaching" and recipe.select is None and dataset.formula.alpha >= _MASSIVE:
            console.print(
                f"warning: at α = {_MASSIVE} and more coteaching ended far below plain (train/recipes.py has the "
                "numbers): small losses are then of the classes that a net says most; histogram and marginal are for "
                "such labels",
                soft_wrap=True,
            )
        said = {"num_processes": world.size, "loader": batches.loader, "check_reads": checks_reads(dataset)}
        claimed = world.together(
            lambda: RunFolder(folder, config, resume=resume, facts=said) if world.is_first else None
        )
        if claimed is not None:
            stack.callback(claimed.close)
        result: dict[str, Any] | None = claimed.read("result.json") if claimed and claimed.finished else None
        result = world.from_first(result)
        if result is not None:
            if save_confusion is not None:
                learner.evaluated.load_state_dict(load_state(folder / "last.pt", device))
        else:
            selection = None
            if recipe.select is not None:
                selection, found = select(recipe, dataset, folder, world)
                batches.close()
                part = world.together(lambda: selected_part(recipe, dataset, selection))
                recipe = dataclasses.replace(
                    recipe, batch=batch_within(recipe, rows_of(recipe, dataset, selection), world.size)
                )
                if METHODS[recipe.method].takes_candidates:
                    late = late_candidates(selection, batch=recipe.batch, examples=recipe.examples)
                    part = dataclasses.replace(part, late=late)
                method, batches = world.together(
                    lambda: training_of(recipe, dataset, learner, part, wrong=selection.wrong_share)
                )
            transition = None
            if recipe.method == "forward" and recipe.transition == "auto":
                transition = estimate_transition(recipe, dataset, folder, world)
                batches.close()
                method, batches = world.together(
                    lambda: training_of(recipe, dataset, learner, part, transition=transition)
                )
            run = world.together(lambda: run_of(recipe, dataset, folder, learner, method, batches, part))
            load(run)
            _train(run)
            write_weights(run, "last.pt")
            write_example_losses(run)
            with evaluation_named(run):
                result = outcome(run) | ({} if selection is None else {"selection": found})
            if transition is not None:
                result["transition"] = transition_words(transition, dataset, folder)
            if claimed is not None:
                claimed.write("result.json", result)
        if save_confusion is not None:  # after the result: a file that exists belongs to a finished run, or to others
            write_confusion(save_confusion, recipe, dataset, learner)
        return result


def _train(run: Run) -> None:
    """Train to the end.

    Raises:
        Stopped: If a signal came first.
    """
    log = Log(run.folder, examples=run.clock.examples) if run.world.is_first else None
    display = Display(run.clock)
    try:
        with stop_signals() as received:
            signal_number = fit(run, log, display, stop=lambda: received[0] if received else 0)
    finally:
        display.close()
        if log is not None:
            log.close()
    if signal_number:
        raise Stopped(signal_number)


def rows_of(recipe: Recipe, dataset: DilutedSet, selection: Selection) -> int:
    """Return how many rows an epoch of a selection has: examples, or images for a method that streams images."""
    whole = METHODS[recipe.method].stream == "images"
    ids = selection.example_ids
    return len(images_of(ids, dataset.formula.num_images)) if whole else len(ids)


def batch_within(recipe: Recipe, num_rows: int, num_processes: int) -> int:
    """Return the batch of a recipe, or the largest that so few examples or images make, and say so.

    Nobody knows how many examples a selection keeps until it is made; to stop there would cost all that it took.
    """
    step = num_processes * int(recipe.accumulate)
    batch = min(recipe.batch, max(1, num_rows // step) * step)
    if batch < recipe.batch:
        what = METHODS[recipe.method].stream
        console.print(f"{num_rows:,} {what} are selected: batches hold {batch} of them, not {recipe.batch}")
    return batch


def selected_part(recipe: Recipe, dataset: DilutedSet, selection: Selection) -> Part:
    """Return what a run trains on after a selection: the kept examples, and beside them the others if its method asks.

    Args:
        recipe: Of the run.
        dataset: What was selected from.
        selection: What was kept.

    Raises:
        UserError: If the method asks for others and there are none.
    """
    views = METHODS[recipe.method].rest_views
    if not views:
        return Part(selection.example_ids)
    others = np.flatnonzero(examples_of(dataset, held_out_images(recipe, dataset).start) & ~selection.kept)
    if not len(others):
        raise UserError(
            f"selection {recipe.select} keeps all {len(selection.example_ids):,} examples, and method {recipe.method} "
            "learns from others besides; give a larger --select-rate, or another --method"
        )
    if recipe.select == "rsl":
        labels = dataset.formula.labels_by_example(dataset.train.source_labels)
        weights = draw_weights(-selection.scores, labels)[selection.kept]
    else:  # incv's scores come from several nets, at several times
        weights = np.ones(len(selection.example_ids))
    return Part(selection.example_ids, rest=Rest(weights, others, views))


def select(recipe: Recipe, dataset: DilutedSet, folder: Path, world: World) -> tuple[Selection, dict[str, Any]]:
    """Select the examples that a run is trained on, or read which were.

    Args:
        recipe: Of the run.
        dataset: To select from.
        folder: Of the run; the selection has a folder of its own in it.
        world: The processes of the run.

    Returns:
        The selection, and what selection.json says of it: also how good it is, where the truth is known.

    Raises:
        UserError: If the selector cannot select.
        Stopped: If a signal came.
    """
    name = str(recipe.select)
    folder = folder / f"select-{name}"
    before = world.from_first(read_selection(folder) if world.is_first else None)
    if before is not None:
        return before
    folder.mkdir(exist_ok=True)
    task = task_of(recipe, dataset, folder, world, f"selection {name}")
    try:
        selection = SELECTORS[name](task)
        check_selection(selection, task.labels, dataset.num_classes, name)
    except UserError as error:
        raise world.end_of_all(error) from None
    truth = dataset.formula
    phases = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*/result.json")]
    said: dict[str, Any] = {"wall_s": round(sum(each["wall_s"] for each in phases), 3)}
    said |= {"kept": int(selection.kept.sum()), "judged": int((~np.isnan(selection.scores)).sum())}
    if not (truth.law.adds_images or dataset.observed):  # else nobody knows which labels are right
        right = task.labels == np.tile(dataset.train.source_labels, 1 + truth.alpha)
        said |= defined(quality(selection, right))
        if found := quality_by_iteration(selection, right):
            said["by_iteration"] = [defined(each) for each in found]
    if world.is_first:
        write_selection(folder, selection, dataset, said)
    return selection, {**said, **selection.words}


def task_of(recipe: Recipe, dataset: DilutedSet, folder: Path, world: World, what: str) -> Task:
    """Return what a phase before a run is given.

    Args:
        recipe: Of the run.
        dataset: Of the run.
        folder: For the phase's own runs.
        world: The processes of the run.
        what: The phase, for people.
    """

    def train(phase: Recipe, where: Path, part: Part) -> None:
        console.print(f"{what}: training net {where.name}", highlight=False)
        run_experiment(phase, dataset, where, resume=True, part=part, world=world)

    return Task(
        recipe=recipe,
        dataset=dataset,
        num_images=held_out_images(recipe, dataset).start,
        folder=folder,
        world=world,
        train=train,
        judge=lambda phase, weights, images: judge(phase, dataset, weights, images, world),
    )


def estimate_transition(recipe: Recipe, dataset: DilutedSet, folder: Path, world: World) -> Float64[Array, "k k"]:
    """Estimate the transition matrix of a run's labels in a folder of its own, or read what was estimated."""
    folder = folder / "transition"
    folder.mkdir(exist_ok=True)
    return estimated_transition(task_of(recipe, dataset, folder, world, "transition"))


def transition_words(matrix: Float64[Array, "k k"], dataset: DilutedSet, folder: Path) -> dict[str, float | None]:
    """Say how long an estimate took, and how far its entries are from those of the law on average, if it is known."""
    phase = json.loads((folder / "transition/plain/result.json").read_text(encoding="utf-8"))
    formula, error = dataset.formula, None
    if not (dataset.observed or isinstance(formula.law, Given)):
        truth = known_transition(formula.law, alpha=formula.alpha, num_classes=formula.num_classes)
        error = float(np.abs(matrix - truth).mean())
    return {"wall_s": phase["wall_s"], "mean_abs_error": error}


def judge(recipe: Recipe, dataset: DilutedSet, weights: Path, images: Int64[Array, " i"], world: World) -> Judged:
    """Ask the net of a finished run about some images of the training split.

    Args:
        recipe: Of the run.
        dataset: Of the run.
        weights: One of its files of weights.
        images: Image ids, ascending.
        world: The processes that share the work.
    """
    learner = trained_learner(recipe, dataset, weights, world)
    asked = evaluation_of(recipe, dataset, learner, "train", example_ids=images)
    return judge_images(learner, asked, dataset.formula.num_images, dataset.formula.alpha)


def write_example_losses(run: Run) -> None:
    """Write the mean training loss of every example, if they were added up."""
    if run.example_losses is None:
        return
    losses = run.example_losses.means(run.batches, run.clock.examples)
    if run.world.is_first:
        write_losses(run.folder / "losses.npy", losses)


def check_compiler(device: torch.device) -> None:
    """Refuse to compile where nothing can: torch writes C++ for a CPU, and Triton's launchers are C.

    Raises:
        UserError: If there is no compiler.
    """
    variable, names = ("CC", ["gcc", "clang"]) if device.type == "cuda" else ("CXX", ["g++"])
    given = os.environ.get(variable)
    if not any(map(shutil.which, names if given is None else [given])):
        where = f"${variable} is {given}, which is none" if given is not None else f"there is no {' or '.join(names)}"
        raise UserError(f"--compile needs a compiler, and {where}; install one, set ${variable} to it, or leave it out")


def check_confusion_file(path: Path, num_held_out: int, *, finished: bool) -> None:
    """Refuse what would only fail after the training.

    Args:
        path: The file to write.
        num_held_out: Images that the matrix is measured on.
        finished: Whether the run is over, so that the file may be its own.

    Raises:
        UserError: If the file is of another type, exists or cannot be written, or no images are held out.
    """
    check_matrix_path(path)
    if not num_held_out:
        raise UserError(f"--save-confusion {path} is measured on held-out images, and there are none: raise --val-frac")
    try:
        if path.exists() and not finished:
            raise UserError(f"--save-confusion {path}: the file exists already; give the name of one that does not")
        check_writable(path.parent)
    except OSError as error:
        raise UserError(f"--save-confusion {path} cannot be written ({error.strerror}); give another file") from None


def write_confusion(path: Path, recipe: Recipe, dataset: DilutedSet, learner: Learner) -> None:
    """Measure the confusion matrix of a net on the held-out images, and write it.

    Source: Rolnick et al. 2017 order the false labels of structured noise by a confusion matrix.
    Deviates: the paper does not say which images it was measured on.
    """
    images = evaluation_of(recipe, dataset, learner, "train", images=held_out_images(recipe, dataset))
    matrix = confusion(learner, images, dataset.num_classes)
    if learner.world.is_first:
        write_matrix(path, matrix)
