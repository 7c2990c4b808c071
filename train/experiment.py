"""From a recipe to a finished run folder."""

from __future__ import annotations

import dataclasses
import json
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import torch
from rich.table import Table

from pipeline.console import console
from pipeline.dataset import DilutedSet
from pipeline.errors import UserError
from pipeline.laws.files import check_matrix_path, write_matrix
from pipeline.loaders import open_batches, open_evaluation
from pipeline.votes import expected_vote
from train.checkpoint import load_state, save_state
from train.clock import Clock
from train.data import facts
from train.evaluate import best_by_noisy_validation, columns, confusion
from train.learner import Learner, resolve_precision
from train.loop import Run, fit, load, stop_signals
from train.memory import parts_that_fit
from train.methods import METHODS
from train.metrics import Display, Log
from train.models import build_model
from train.process import settle
from train.recipes import Recipe
from train.run_folder import RunFolder
from train.schedule import learning_rate

MEMORISED: Final = 1_000  # training images whose wrong labels are looked at; the ids are a class-balanced shuffle


class Stopped(Exception):
    """The run was asked to stop and saved itself.

    Args:
        signal_number: Who asked.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by signal {signal_number}")
        self.signal_number = signal_number


def train_images(num_images: int, val_frac: float) -> int:
    """Return how many of the images are trained on; the last ones are held out, as whole images.

    Image ids are a class-balanced shuffle, so the held-out part is balanced too.
    """
    return num_images - round(val_frac * num_images)


def run_experiment(
    recipe: Recipe, dataset: DilutedSet, folder: Path, *, resume: bool = False, save_confusion: Path | None = None
) -> dict[str, Any]:
    """Train, or go on training, and return what came out.

    Args:
        recipe: What to do.
        dataset: What to train on.
        folder: Where to write the run.
        resume: Go on with the run that lies there; a finished one is only read.
        save_confusion: A .npy or .csv file for the confusion matrix of the last weights on the held-out images with
            their source labels. Test images have no part in it: noise that is ordered by it shapes training sets.

    Returns:
        The content of result.json.

    Raises:
        UserError: If the recipe does not fit the data or the folder, a loss is not finite, or `save_confusion` names a
            file that this run did not write.
        Stopped: If Ctrl-C or SIGTERM stopped it; `resume` goes on.
    """
    settle()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recipe = dataclasses.replace(recipe, precision=resolve_precision(recipe.precision, device))
    learner = build_learner(recipe, dataset, device)
    learner.accumulate = parts_of(recipe, dataset, learner, folder if resume else None)
    recipe = dataclasses.replace(recipe, accumulate=learner.accumulate)
    held_in = train_images(dataset.formula.num_images, recipe.val_frac)
    if not held_in:
        raise UserError(f"val_frac {recipe.val_frac} holds all {dataset.formula.num_images} images out; lower it")
    law = dataset.formula.law.name
    if METHODS[recipe.method].uses_clean_labels and law != "uniform":
        raise UserError(f"{recipe.method} is defined for law uniform, this data set's is {law}; give another --method")
    method = METHODS[recipe.method](
        num_classes=dataset.num_classes, alpha=dataset.formula.alpha, label_smoothing=recipe.label_smoothing
    )
    if save_confusion is not None:
        finished = resume and (folder / "result.json").exists()
        check_confusion_file(save_confusion, dataset.formula.num_images - held_in, finished=finished)
    batches = open_batches(
        dataset,
        batch=recipe.batch,
        seed=recipe.seed,
        stream=method.stream,
        images=range(held_in),
        order=recipe.order,
        window=recipe.window,
        reuse=recipe.reuse,
        loader=recipe.loader,
        resize=recipe.resize,
        device=device,
    )
    console.print(f"loader: {batches.loader} ({batches.why})", highlight=False)
    config = {"recipe": dataclasses.asdict(recipe), "data": facts(dataset)}
    with closing(RunFolder(folder, config, resume=resume)) as run_folder:
        if run_folder.finished:
            batches.close()
            result: dict[str, Any] = run_folder.read("result.json")
            if save_confusion is not None:
                learner.evaluated.load_state_dict(load_state(folder / "last.pt", device))
                write_confusion(save_confusion, recipe, dataset, learner)
            return result
        held_out = range(held_in, dataset.formula.num_images)
        run = Run(
            recipe,
            dataset,
            run_folder,
            learner,
            method,
            batches,
            test=open_evaluation(dataset, loader=recipe.loader, resize=recipe.resize, device=device),
            noisy_val=open_evaluation(
                dataset,
                "train",
                stream="examples" if dataset.formula.law.adds_images else "images",
                images=held_out,
                loader=recipe.loader,
                resize=recipe.resize,
                device=device,
            )
            if held_out
            else None,
            memorised=None
            if dataset.formula.law.adds_images
            else open_evaluation(
                dataset,
                "train",
                images=range(min(held_in, MEMORISED)),
                loader=recipe.loader,
                resize=recipe.resize,
                device=device,
            ),
            clock=Clock(recipe.batch, recipe.examples, batches.num_examples),
        )
        load(run)
        log, display = Log(folder, examples=run.clock.examples), Display(run.clock)
        try:
            with stop_signals() as received:
                fit(run, log, display, stop=lambda: bool(received))
        finally:
            display.close()
            log.close()
            batches.close()
        if not run.clock.finished:
            raise Stopped(received[0])
        save_state(folder / "last.pt", learner.evaluated.state_dict())
        result = outcome(run)
        run_folder.write("result.json", result)
        if save_confusion is not None:  # after the result: a file that exists belongs to a finished run, or to others
            write_confusion(save_confusion, recipe, dataset, learner)
        return result


def check_confusion_file(path: Path, num_held_out: int, *, finished: bool) -> None:
    """Refuse what would only fail after the training.

    Args:
        path: The file to write.
        num_held_out: Images that the matrix is measured on.
        finished: Whether the run is over, so that the file may be its own.

    Raises:
        UserError: If the file is of another type or exists, or no images are held out.
    """
    check_matrix_path(path)
    if not num_held_out:
        raise UserError(f"--save-confusion {path} is measured on held-out images, and there are none: raise --val-frac")
    if path.exists() and not finished:
        raise UserError(f"--save-confusion {path}: the file exists already; give the name of one that does not")


def write_confusion(path: Path, recipe: Recipe, dataset: DilutedSet, learner: Learner) -> None:
    """Measure the confusion matrix of a net on the held-out images, and write it.

    Source: Rolnick et al. 2017 order the false labels of structured noise by a confusion matrix.
    Deviates: the paper does not say which images it was measured on.
    """
    num_images = dataset.formula.num_images
    held_out = range(train_images(num_images, recipe.val_frac), num_images)
    images = open_evaluation(
        dataset, "train", images=held_out, loader=recipe.loader, resize=recipe.resize, device=learner.device
    )
    write_matrix(path, confusion(learner, images, dataset.num_classes))


def build_learner(recipe: Recipe, dataset: DilutedSet, device: torch.device) -> Learner:
    """Build the net of a recipe with its optimizer.

    Raises:
        UserError: If the images are too small for the net.
    """
    return Learner(
        build_model(recipe.model, dataset.batch_shape, dataset.num_classes, seed=recipe.seed),
        rate=lambda clock: learning_rate(
            clock.progress, schedule=recipe.schedule, peak=recipe.lr, warmup_frac=recipe.warmup_frac
        ),
        optimizer=recipe.optimizer,
        momentum=recipe.momentum,
        beta2=recipe.beta2,
        weight_decay=recipe.weight_decay,
        ema=recipe.ema,
        compile=recipe.compile,
        precision=recipe.precision,
        device=device,
    )


def parts_of(recipe: Recipe, dataset: DilutedSet, learner: Learner, begun: Path | None) -> int:
    """Return in how many parts a batch is computed: as asked for, as a run has begun, or as many as memory calls for.

    Raises:
        UserError: If not even one image fits.
    """
    if recipe.accumulate != "auto":
        return int(recipe.accumulate)
    if begun is not None and (begun / "config.json").exists():  # batch norm sees the parts, so they stay
        before: dict[str, Any] = json.loads((begun / "config.json").read_text(encoding="utf-8"))
        return int(before["recipe"].get("accumulate", 1))
    parts = parts_that_fit(learner.net, dataset.batch_shape, recipe.batch, learner.dtype)
    if parts > 1:
        console.print(f"accumulate: {parts} parts of {recipe.batch // parts} fit memory", highlight=False)
    return parts


def outcome(run: Run) -> dict[str, Any]:
    """Return what goes into result.json."""
    chosen = best_by_noisy_validation(run.evaluations)
    best = {} if chosen is None else run.evaluations[chosen]
    formula = run.dataset.formula
    matrix = confusion(run.learner, run.test, run.dataset.num_classes)
    last = run.evaluations[-1]
    return {
        "top1_accuracy": columns(run.evaluations),
        "top5_accuracy": last.get("eval/top5_accuracy"),
        "class_accuracy": (matrix.diagonal() / matrix.sum(axis=1).clip(min=1)).round(6).tolist(),
        "memorisation": {name: last.get(f"memorisation/{name}") for name in ("given", "true")},
        "noisy_val_loss": best.get("eval/noisy_val_loss"),
        "noisy_val_loss_se": best.get("eval/noisy_val_loss_se"),
        "num_noisy_val_images": len(run.noisy_val) if run.noisy_val is not None else 0,
        "num_test_images": len(run.test),
        "vote_baseline": None if formula.law.adds_images else expected_vote(formula, run.dataset.train.source_labels),
        "uses_clean_labels": run.method.uses_clean_labels,
        "examples": run.clock.examples,
        "epochs": run.clock.epoch,
        "num_replaced": run.batches.num_replaced,
        "replaced_image_ids": sorted(run.replaced),
        "wall_s": round(run.clock.wall_s, 3),
        **run.pace.totals(),
    }


def result_table(result: dict[str, Any], title: str) -> Table:
    """Lay out a result for people."""
    accuracy = result["top1_accuracy"]
    rows = [
        ("test accuracy, last", percent(accuracy["last"])),
        ("test accuracy, mean of the last 10", percent(accuracy["last10"])),
        ("test accuracy, best by noisy validation", percent(accuracy["best_noisy_val"])),
        ("test accuracy, best on test (oracle)", percent(accuracy["best_test"])),
        (
            "vote over an image's labels",
            "not defined: it has one" if result["vote_baseline"] is None else percent(result["vote_baseline"]),
        ),
    ]
    if result["noisy_val_loss"] is not None:
        loss = f"{result['noisy_val_loss']:.5f} ± {result['noisy_val_loss_se']:.5f}"
        rows.append(("lowest noisy validation loss", f"{loss} ({result['num_noisy_val_images']:,} images)"))
    if result["num_replaced"]:
        ids = result["replaced_image_ids"]
        named = ", ".join(map(str, ids[:5])) + (" …" if len(ids) > 5 else "")
        rows.append(("examples replaced, unreadable", f"{result['num_replaced']:,} (image ids {named})"))
    rows.append(("examples", f"{result['examples']:,} ({result['epochs']:.1f} epochs)"))
    speed = f"{result['speed/examples_per_s']:,.0f} examples/s"
    rows.append(("speed", f"{speed}, {result['data/wait_frac']:.0%} waiting for data"))
    table = Table(title=title + (" (uses clean labels)" if result["uses_clean_labels"] else ""), box=None)
    table.add_column("", no_wrap=True)
    table.add_column("", no_wrap=True, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def percent(share: float | None) -> str:
    """Write a share for people."""
    return "not measured" if share is None else f"{100 * share:.1f} %"


def show_result(result: dict[str, Any], title: str, folder: Path) -> None:
    """Print a result and where it lies."""
    console.print(result_table(result, title))
    console.print(f"run folder: {folder}", soft_wrap=True)
