"""From a recipe to a finished run folder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy import ndarray as Array
from rich.table import Table
from torch import Tensor, nn

from pipeline.console import console
from pipeline.dataset import DilutedSet
from pipeline.errors import UserError
from pipeline.laws import Given
from pipeline.laws.files import check_matrix_path, write_matrix
from pipeline.loaders import Batches, Evaluation, open_batches, open_evaluation
from pipeline.votes import known_vote
from train.checkpoint import load_state
from train.clock import Clock
from train.data import facts, facts_of_part
from train.determinism import determinism
from train.distributed import ALONE, World
from train.evaluate import best_by_noisy_validation, columns, confusion
from train.example_losses import ExampleLosses, write_losses
from train.learner import Learner, resolve_precision
from train.loop import Run, all_replaced, fit, load, stop_signals, write_weights
from train.memory import parts_that_fit
from train.methods import METHODS, Method, Setting
from train.methods.forward import noisy_view
from train.methods.mlnt import teacher_share
from train.metrics import Display, Log
from train.models import build_model
from train.models.twins import Twins
from train.noise_scale import NoiseScale
from train.process import settle
from train.recipes import Recipe
from train.run_folder import RunFolder
from train.schedule import learning_rate
from train.select import SELECTORS, Judged, Part, Selection, Task
from train.select.selection import check_selection, quality, read_selection, write_selection
from train.select.task import ALL, judge_images

CPU: Final = torch.device("cpu")
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
    parts = world.together(lambda: parts_of(recipe, dataset, learner, folder if resume else None, world.size))
    learner.accumulate = int(*world.largest(parts))
    learner.join(world)
    recipe = dataclasses.replace(recipe, accumulate=learner.accumulate)
    if save_confusion is not None:
        finished = resume and (folder / "result.json").exists()
        held_out = len(held_out_images(recipe, dataset))
        world.together(lambda: check_confusion_file(save_confusion, held_out, finished=finished))
    method, batches = world.together(lambda: _training(recipe, dataset, learner, part))
    config = {"recipe": dataclasses.asdict(recipe), "data": facts(dataset) | facts_of_part(part)}
    with ExitStack() as stack:
        stack.callback(lambda: batches.close())
        console.print(f"loader: {batches.loader} ({batches.why})", highlight=False)
        claimed = world.together(
            lambda: RunFolder(folder, config, resume=resume, num_processes=world.size) if world.is_first else None
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
                part = dataclasses.replace(part, train=selection.example_ids)
                method, batches = world.together(
                    lambda: _training(recipe, dataset, learner, part, wrong=selection.wrong_share)
                )
            run = world.together(lambda: _run(recipe, dataset, folder, learner, method, batches, part))
            load(run)
            _train(run)
            write_weights(run, "last.pt")
            write_example_losses(run)
            result = outcome(run) | ({} if selection is None else {"selection": found})
            if claimed is not None:
                claimed.write("result.json", result)
        if save_confusion is not None:  # after the result: a file that exists belongs to a finished run, or to others
            write_confusion(save_confusion, recipe, dataset, learner)
        return result


def held_out_images(recipe: Recipe, dataset: DilutedSet) -> range:
    """Return the ids of the images that are held out of training."""
    num_images = dataset.formula.num_images
    return range(train_images(num_images, recipe.val_frac), num_images)


def method_of(recipe: Recipe, dataset: DilutedSet, *, device: torch.device = CPU, wrong: float | None = None) -> Method:
    """Make the method of a run.

    Args:
        recipe: Of the run.
        dataset: What it trains on.
        device: Where it trains.
        wrong: Share of wrong labels in a selection from it; None is what its law says of all.

    Raises:
        UserError: If it does not fit the data.
    """
    law, wanted = dataset.formula.law.name, METHODS[recipe.method].only_law
    if wanted not in (None, law):
        raise UserError(f"{recipe.method} is defined for law {wanted}, this data set's is {law}; give another --method")
    return METHODS[recipe.method](
        Setting(
            num_classes=dataset.num_classes,
            alpha=dataset.formula.alpha,
            law=dataset.formula.law,
            label_smoothing=recipe.label_smoothing,
            mixup_beta=recipe.mixup_beta,
            forget_rate=recipe.forget_rate,
            forget_epochs=recipe.forget_epochs,
            wrong_share=wrong_share(dataset) if wrong is None else wrong,
            mlnt_sets=recipe.mlnt_sets,
            mlnt_inner_lr=recipe.mlnt_inner_lr,
            mlnt_weight=recipe.mlnt_weight,
            mlnt_order=recipe.mlnt_order,
            mlnt_neighbours=recipe.mlnt_neighbours,
            mlnt_replaced_frac=recipe.mlnt_replaced_frac,
            mlnt_ramp_epochs=recipe.mlnt_ramp_epochs,
            mentor=None if recipe.mentor is None else mentor_of(Path(recipe.mentor), dataset, device),
            rows=recipe.batch // (1 if recipe.accumulate == "auto" else int(recipe.accumulate)),
            seed=recipe.seed,
        )
    )


def _training(
    recipe: Recipe, dataset: DilutedSet, learner: Learner, part: Part, *, wrong: float | None = None
) -> tuple[Method, Batches]:
    """Make the method of a run and open its batches; `wrong` is the share of wrong labels in a selection."""
    held_in = held_out_images(recipe, dataset).start
    if not held_in:
        raise UserError(f"val_frac {recipe.val_frac} holds all {dataset.formula.num_images} images out; lower it")
    method = method_of(recipe, dataset, device=learner.device, wrong=wrong)
    batches = open_batches(
        dataset,
        batch=recipe.batch,
        seed=recipe.seed,
        stream=method.stream,
        images=range(held_in),
        example_ids=part.train,
        order=recipe.order,
        window=recipe.window,
        reuse=recipe.reuse,
        loader=recipe.loader,
        resize=recipe.resize,
        device=learner.device,
        rank=learner.world.rank,
        world_size=learner.world.size,
    )
    return method, batches


def mentor_of(folder: Path, dataset: DilutedSet, device: torch.device) -> nn.Module:
    """Return the net of an earlier run as it was evaluated last.

    Raises:
        UserError: If the folder holds no finished run, or its net is made for other images.
    """
    if not (folder / "result.json").exists():
        raise UserError(f"mentor {folder} holds no finished run; give the folder of one")
    before: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))["recipe"]
    net = build_model(before["model"], dataset.batch_shape, dataset.num_classes, seed=0)
    try:
        net.load_state_dict(load_state(folder / "last.pt", device))
    except RuntimeError:
        raise UserError(
            f"mentor {folder} is no single net for images of {dataset.batch_shape} in {dataset.num_classes} classes; "
            "give a run of another --method than coteaching on such images"
        ) from None
    return net.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)


def wrong_share(dataset: DilutedSet) -> float | None:
    """Return the expected share of wrong labels under the law of a data set; None if nobody knows it."""
    if dataset.observed or isinstance(dataset.formula.law, Given):
        return None
    return 1 - dataset.formula.right_share(dataset.train.source_labels)


def _evaluation(
    recipe: Recipe, dataset: DilutedSet, learner: Learner, split: Literal["train", "test"] = "test", **options: Any
) -> Evaluation:
    """Open this process's part of some images for evaluation."""
    return open_evaluation(
        dataset,
        split,
        loader=recipe.loader,
        resize=recipe.resize,
        device=learner.device,
        rank=learner.world.rank,
        world_size=learner.world.size,
        **options,
    )


def _run(
    recipe: Recipe,
    dataset: DilutedSet,
    folder: Path,
    learner: Learner,
    method: Method,
    batches: Batches,
    part: Part,
) -> Run:
    """Open what a run is evaluated on, and put everything together."""
    held_out, adds_images = held_out_images(recipe, dataset), dataset.formula.law.adds_images
    noisy_val = memorised = example_losses = None
    if part.noisy_val is not None:
        noisy_val = _evaluation(recipe, dataset, learner, "train", stream="examples", example_ids=part.noisy_val)
    elif held_out:
        stream = "examples" if adds_images else "images"
        noisy_val = _evaluation(recipe, dataset, learner, "train", stream=stream, images=held_out)
    if not adds_images and not dataset.observed:
        looked_at = range(min(held_out.start, MEMORISED))
        memorised = _evaluation(recipe, dataset, learner, "train", images=looked_at)
    if recipe.example_losses:
        example_losses = ExampleLosses(dataset.formula.num_examples, learner.device, learner.world)
    return Run(
        recipe,
        dataset,
        folder,
        learner,
        method,
        batches,
        test=_evaluation(recipe, dataset, learner),
        noisy_val=noisy_val,
        memorised=memorised,
        clock=Clock(recipe.batch, recipe.examples, batches.num_examples),
        noisy_logits=noisy_logits(recipe, dataset, method),
        noise_scale=NoiseScale(still=recipe.lr == 0),
        example_losses=example_losses,
    )


def noisy_logits(
    recipe: Recipe, dataset: DilutedSet, method: Method
) -> Callable[[Float[Tensor, "b k"]], Float[Tensor, "b k"]]:
    """Return what turns logits into those of a noisy label: a net that saw selected labels predicts the class."""
    if recipe.select is None:
        return method.noisy_logits
    formula = dataset.formula
    return noisy_view(formula.law, alpha=formula.alpha, num_classes=formula.num_classes)


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

    def train(phase: Recipe, where: Path, part: Part) -> None:
        console.print(f"selection {name}: training net {where.name}", highlight=False)
        run_experiment(phase, dataset, where, resume=True, part=part, world=world)

    task = Task(
        recipe=recipe,
        dataset=dataset,
        num_images=held_out_images(recipe, dataset).start,
        folder=folder,
        world=world,
        train=train,
        judge=lambda phase, weights, images: judge(phase, dataset, weights, images, world),
    )
    try:
        selection = SELECTORS[name](task)
        check_selection(selection, task.labels(), dataset.num_classes, name)
    except UserError as error:
        raise world.end_of_all(error) from None
    truth = dataset.formula
    phases = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*/result.json")]
    said: dict[str, float] = {"wall_s": round(sum(each["wall_s"] for each in phases), 3)}
    said |= {"kept": int(selection.kept.sum()), "judged": int((~np.isnan(selection.scores)).sum())}
    if not (truth.law.adds_images or dataset.observed):  # else nobody knows which labels are right
        right = task.labels() == np.tile(dataset.train.source_labels, 1 + truth.alpha)
        said |= quality(selection, right)
    if world.is_first:
        write_selection(folder, selection, dataset, said)
    return selection, {**said, "wrong_share": selection.wrong_share, **selection.told}


def judge(recipe: Recipe, dataset: DilutedSet, weights: Path, images: Int64[Array, " i"], world: World) -> Judged:
    """Ask the net of a finished run about some images of the training split.

    Args:
        recipe: Of the run.
        dataset: Of the run.
        weights: One of its files of weights.
        images: Image ids, ascending.
        world: The processes that share the work.
    """
    device = world.device()
    recipe = dataclasses.replace(recipe, precision=resolve_precision(recipe.precision, device))
    learner = build_learner(recipe, dataset, device)
    learner.world = world
    learner.evaluated.load_state_dict(load_state(weights, learner.device))
    asked = _evaluation(recipe, dataset, learner, "train", example_ids=images)
    return judge_images(learner, asked, dataset.formula.num_images, dataset.formula.alpha)


def write_example_losses(run: Run) -> None:
    """Write the mean training loss of every example, if they were added up."""
    if run.example_losses is None:
        return
    losses = run.example_losses.means(run.batches, run.clock.examples)
    if run.world.is_first:
        write_losses(run.folder / "losses.npy", losses)


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
    images = _evaluation(recipe, dataset, learner, "train", images=held_out_images(recipe, dataset))
    matrix = confusion(learner, images, dataset.num_classes)
    if learner.world.is_first:
        write_matrix(path, matrix)


def build_learner(recipe: Recipe, dataset: DilutedSet, device: torch.device) -> Learner:
    """Build the net of a recipe, or its two nets, with an optimizer.

    Raises:
        UserError: If the images are too small for the net.
    """
    nets = [
        build_model(recipe.model, dataset.batch_shape, dataset.num_classes, seed=recipe.seed, learner=number)
        for number in range(METHODS[recipe.method].num_nets)
    ]
    teacher = partial(teacher_share, ramp_epochs=recipe.mlnt_ramp_epochs)
    return Learner(
        nets[0] if len(nets) == 1 else Twins(*nets),
        rate=lambda clock: learning_rate(
            clock.progress, schedule=recipe.schedule, peak=recipe.lr, warmup_frac=recipe.warmup_frac
        ),
        optimizer=recipe.optimizer,
        momentum=recipe.momentum,
        beta2=recipe.beta2,
        weight_decay=recipe.weight_decay,
        ema=recipe.ema,
        teacher=teacher if METHODS[recipe.method].has_teacher else None,
        compile=recipe.compile,
        precision=recipe.precision,
        device=device,
    )


def parts_of(recipe: Recipe, dataset: DilutedSet, learner: Learner, begun: Path | None, num_processes: int = 1) -> int:
    """Return in how many parts a process computes its share of a batch.

    As many as asked for, as a run has begun with, or as memory calls for.

    Args:
        recipe: Of the run.
        dataset: What it trains on.
        learner: Its net.
        begun: Folder of a run that is resumed.
        num_processes: How many share a batch.

    Raises:
        UserError: If not even one image fits, or the batch does not divide so.
    """
    parts = recipe.accumulate
    if recipe.batch % num_processes:
        raise UserError(
            f"batch {recipe.batch} does not divide by the {num_processes} processes that share it; "
            f"give a multiple of {num_processes}"
        )
    if parts == "auto" and begun is not None and (begun / "config.json").exists():
        before: dict[str, Any] = json.loads((begun / "config.json").read_text(encoding="utf-8"))
        parts = int(before["recipe"].get("accumulate", 1))  # batch norm sees the parts, so they stay
    share = recipe.batch // num_processes
    if parts == "auto":
        parts = parts_that_fit(learner.net, dataset.batch_shape, share, learner.dtype)
        if parts > 1:
            console.print(f"accumulate: {parts} parts of {share // parts} fit memory", highlight=False)
    if share % int(parts):
        raise UserError(
            f"batch {recipe.batch} in {num_processes} processes is {share} each, which does not divide by accumulate "
            f"{parts}; give a batch that is a multiple of {num_processes * int(parts)}"
        )
    return int(parts)


def outcome(run: Run) -> dict[str, Any]:
    """Return what goes into result.json."""
    chosen = best_by_noisy_validation(run.evaluations)
    best = {} if chosen is None else run.evaluations[chosen]
    matrix = confusion(run.learner, run.test, run.dataset.num_classes)
    last = run.evaluations[-1]
    seen = run.world.gather((len(run.noisy_val) if run.noisy_val is not None else 0, len(run.test)))
    num_noisy_val, num_test = (sum(numbers) for numbers in zip(*seen, strict=True))
    replaced = all_replaced(run)
    return {
        "top1_accuracy": columns(run.evaluations),
        "top5_accuracy": last.get("eval/top5_accuracy"),
        "class_accuracy": (matrix.diagonal() / matrix.sum(axis=1).clip(min=1)).round(6).tolist(),
        "memorisation": {name: last.get(f"memorisation/{name}") for name in ("given", "true")},
        "noisy_val_loss": best.get("eval/noisy_val_loss"),
        "noisy_val_loss_se": best.get("eval/noisy_val_loss_se"),
        "num_noisy_val_images": num_noisy_val,
        "num_test_images": num_test,
        "vote_baseline": known_vote(run.dataset),
        "observed_labels": run.dataset.observed,
        "uses_clean_labels": run.method.uses_clean_labels,
        "examples": run.clock.examples,
        "epochs": run.clock.epoch,
        "num_replaced": replaced["num_replaced"],
        "replaced_image_ids": replaced["replaced"],
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
        ("vote over an image's labels", vote_words(result)),
    ]
    if result["noisy_val_loss"] is not None:
        loss = f"{result['noisy_val_loss']:.5f} ± {result['noisy_val_loss_se']:.5f}"
        rows.append(("lowest noisy validation loss", f"{loss} ({result['num_noisy_val_images']:,} images)"))
    if selection := result.get("selection"):
        rows.append(("selected", f"{selection['kept']:,} of {selection['judged']:,} examples"))
        if "label_precision" in selection:
            known = [percent(selection[name]) for name in ("label_precision", "label_recall")]
            rows.append(("of those right, of the right ones selected", ", ".join(known)))
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


def vote_words(result: dict[str, Any]) -> str:
    """Say what a vote over an image's labels finds."""
    if result.get("observed_labels"):
        return "unknown: labels are as observed"
    return "not defined: it has one" if result["vote_baseline"] is None else percent(result["vote_baseline"])


def percent(share: float | None) -> str:
    """Write a share for people."""
    return "not measured" if share is None else f"{100 * share:.1f} %"


def show_result(result: dict[str, Any], title: str, folder: Path) -> None:
    """Print a result and where it lies."""
    console.print(result_table(result, title))
    console.print(f"run folder: {folder}", soft_wrap=True)
