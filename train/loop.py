"""The training loop."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.dataset import DilutedSet
from pipeline.errors import UserError
from pipeline.loaders import Batches, Evaluation
from pipeline.types import Batch
from train.checkpoint import load_checkpoint, save_checkpoint, save_state
from train.clock import Clock
from train.determinism import seed_step
from train.distributed import World
from train.evaluate import TOP, best_by_noisy_validation, evaluate, memorisation
from train.example_losses import ExampleLosses
from train.learner import Learner
from train.memory import memory_named
from train.methods import Method
from train.metrics import Display, Log, Meter, Pace
from train.noise_scale import NoiseScale, carries_source_label
from train.recipes import Recipe

SAVE_EVERY_S: Final = 300.0
_SAVED: Final = ("clock", "learner", "method", "meter", "pace", "noise_scale")


@dataclass
class Run:
    """All that a run is made of.

    Args:
        recipe: What was asked for.
        dataset: What is trained on.
        folder: Where it is written down.
        learner: The net.
        method: What one step does.
        batches: Endless training batches: this process's part of each.
        test: The test images, as all evaluations this process's part of them.
        noisy_val: The held-out training images, or examples with labels of their own: those of a `Part`, or all of the
            held-out images where they show others; None if there are none.
        memorised: Training images whose wrong labels the net may have learned; None if other images carry those, or
            nobody knows which labels are wrong.
        clock: The time.
        noisy_logits: Turns the net's logits into those of a noisy label, for the noisy validation.
        example_losses: Where the losses of single examples are added up, if they are wanted.
        evaluations: One row each, in order.
        replaced: Ids of images (n + those of foreign ones) that could not be read and in whose place others were
            trained on.
    """

    recipe: Recipe
    dataset: DilutedSet
    folder: Path
    learner: Learner
    method: Method
    batches: Batches
    test: Evaluation
    noisy_val: Evaluation | None
    memorised: Evaluation | None
    clock: Clock
    noisy_logits: Callable[[Tensor], Tensor]
    example_losses: ExampleLosses | None = None
    evaluations: list[dict[str, float]] = field(default_factory=list)
    replaced: set[int] = field(default_factory=set)
    meter: Meter = field(init=False)
    pace: Pace = field(default_factory=Pace)
    noise_scale: NoiseScale = field(default_factory=NoiseScale)
    shown: dict[str, float] = field(default_factory=dict)
    saved_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.meter = Meter(self.world)

    @property
    def world(self) -> World:
        """The processes that share the run."""
        return self.learner.world


def fit(run: Run, log: Log | None, display: Display, stop: Callable[[], int]) -> int:
    """Train to the end of the run, or until any process is asked to stop; either way the last state is saved.

    Args:
        run: What to train; it moves on.
        log: Where metrics go; None in processes other than the first.
        display: Where people see them.
        stop: Returns the number of the signal that asks this process to stop, 0 before.

    Returns:
        The number of the signal that stopped the run, 0 at its end.
    """
    recipe, clock = run.recipe, run.clock
    while not clock.finished:
        with run.pace.waiting(), memory_named(f"a batch of {recipe.batch}", accumulate=run.learner.accumulate):
            batch = next(run.batches)
        if len(batch.replaced):
            note_replaced(run, batch)
        train_on(run, batch)
        run.pace.add(recipe.batch)
        clock.tick()
        if clock.passed(recipe.log_every):
            read_metrics(run, log)
        display.show(clock, run.shown)
        if clock.passed(recipe.eval_every):
            with aside(run), evaluation_named(run):
                evaluate_now(run, log)
        signal_number, late = run.world.largest(stop(), time.monotonic() - run.saved_at > SAVE_EVERY_S)
        if signal_number or late or clock.passed(recipe.checkpoint_every):
            with aside(run):
                save(run)
        if signal_number:
            return int(signal_number)
    return 0


@contextmanager
def aside(run: Run) -> Iterator[None]:
    """Leave this block, and nothing that the device still has to do, out of the run's speed."""
    run.learner.wait()
    with run.pace.pausing():
        yield


def train_on(run: Run, batch: Batch) -> None:
    """Do one step, on the whole batch or part after part.

    Raises:
        UserError: If it does not fit memory, or a part is too small for batch norm.
    """
    learner = run.learner
    seed_step(run.recipe.seed, run.clock.step, run.world.rank, learner.device)
    parts = f"{learner.accumulate} part{'s' if learner.accumulate > 1 else ''}"
    with batch_norm_named(run), memory_named(f"a step of {run.recipe.batch} in {parts}", accumulate=learner.accumulate):
        if run.recipe.measure is not None and run.clock.passing(run.recipe.log_every):
            with aside(run):
                probe_noise_scale(run, batch)
        losses: list[Tensor | None] = []
        for part in [batch] if learner.accumulate == 1 else batch.parts(learner.accumulate):
            run.meter.add(run.method.step(learner, part, run.clock) | kept_and_right(run, part))
            losses.append(run.method.row_losses)
        if run.example_losses is not None:
            run.example_losses.add(batch, torch.cat([each for each in losses if each is not None]))


@contextmanager
def batch_norm_named(run: Run) -> Iterator[None]:
    """Say which knob to turn where batch norm finds one value alone.

    Raises:
        UserError: In place of torch's error.
    """
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        shares = run.world.size * run.learner.accumulate
        raise UserError(
            f"batch norm has a variance only of two rows or more, and a batch of {run.recipe.batch} comes in {shares} "
            f"part{'s' if shares > 1 else ''}; give a larger --batch{', a smaller --accumulate' * (shares > 1)}, or a "
            "--model without batch norm"
        ) from error


def kept_and_right(run: Run, batch: Batch) -> dict[str, Tensor]:
    """Return which share of the rows is right, and which share is right and was chosen; means over nets, on the device.

    Nothing is returned of a method that leaves no rows out, or where nobody knows which labels are right. The method
    itself does not learn of it.
    """
    dataset, kept = run.dataset, run.method.kept_rows
    if kept is None or dataset.observed or dataset.formula.law.adds_images:
        return {}
    right = carries_source_label(batch, dataset.formula, dataset.train.source_labels)
    shares = {"right": right, "right_kept": right & kept}
    return {f"coteaching/{name}_frac": marked.float().mean() for name, marked in shares.items()}


def kept_quality(means: dict[str, float]) -> dict[str, float]:
    """Return label precision and recall of all rows of a log interval, as far as they are known and defined."""
    if "coteaching/right_frac" not in means:
        return {}
    of = {"precision": means["coteaching/kept_frac"], "recall": means["coteaching/right_frac"]}
    return {f"coteaching/label_{name}": means["coteaching/right_kept_frac"] / of[name] for name in of if of[name]}


def probe_noise_scale(run: Run, batch: Batch) -> None:
    """Measure gradients on a batch before it is trained on: the weights do not know its noise yet.

    Those of weights that stand still are averaged over one pass: an example that comes again is no new one.
    """
    if run.noise_scale.still and run.clock.examples + run.recipe.batch > run.clock.examples_per_epoch:
        return
    right = carries_source_label(batch, run.dataset.formula, run.dataset.train.source_labels)
    run.noise_scale.probe(run.learner, batch, right)


def note_replaced(run: Run, batch: Batch) -> None:
    """Keep the ids of the images that others stand in for; the batch's own rows name the stand-ins."""
    first = run.world.rank * len(batch.rows)
    ids = run.batches.rows_at(run.clock.examples)[first + batch.replaced.numpy()]
    copies, image_ids = divmod(ids, run.dataset.formula.num_images)
    run.replaced.update(run.dataset.formula.shown(image_ids, copies).tolist())


def read_metrics(run: Run, log: Log | None) -> None:
    """Read what gathered on the device since the last reading, and log it.

    Raises:
        UserError: If a loss was not finite.
    """
    means, first_bad_step = run.meter.read(run.learner.first_bad_step)
    if first_bad_step >= 0:
        raise run.world.end_of_all(not_finite(run, first_bad_step))
    values = {**means, **kept_quality(means), **run.pace.read(), **run.noise_scale.latest}
    if run.method.num_labels > 1:
        values["speed/labels_per_s"] = values["speed/examples_per_s"] * run.method.num_labels
    # The process that waits longest for data is the one that all others wait for.
    waits, replaced = zip(*run.world.gather((values["data/wait_frac"], run.batches.num_replaced)), strict=True)
    values |= {"data/wait_frac": max(waits), "data/num_replaced": sum(replaced)}
    if log is not None:
        log.write(run.clock, values)
    run.shown |= values


def evaluate_now(run: Run, log: Log | None) -> None:
    """Evaluate on the test images and on the noisy validation, and keep the weights if they are the best yet.

    Raises:
        UserError: If a loss or a weight was not finite.
    """
    check_finite(run)
    scores = evaluate(run.learner, run.test)
    row = {"eval/top1_accuracy": scores.top1_accuracy, "eval/loss": scores.loss}
    unreadable = {"test": scores.num_unreadable}
    if run.dataset.num_classes > TOP:
        row["eval/top5_accuracy"] = scores.top5_accuracy
    if run.memorised is not None:
        given, true = memorisation(run.learner, run.memorised, run.dataset.formula)
        row |= {"memorisation/given": given, "memorisation/true": true}
    if run.noisy_val is not None:
        noise = None if run.noisy_val.own_labels else run.dataset.formula  # own labels carry the noise already
        noisy = evaluate(run.learner, run.noisy_val, noise, run.noisy_logits)
        row |= {"eval/noisy_val_loss": noisy.loss, "eval/noisy_val_loss_se": noisy.loss_se}
        unreadable["noisy_val"] = noisy.num_unreadable
    row |= {f"eval/num_unreadable_{name}": number for name, number in unreadable.items() if number}
    if log is not None:
        log.write(run.clock, row)
    run.shown |= row
    run.evaluations.append({"examples": run.clock.examples, **row})
    if best_by_noisy_validation(run.evaluations) == len(run.evaluations) - 1:
        write_weights(run, "best.pt")


def evaluation_named(run: Run) -> AbstractContextManager[None]:
    """Say which knob to turn where an evaluation does not fit memory."""
    return memory_named(f"an evaluation of {run.test.batch} images at a time", accumulate=run.learner.accumulate)


def write_weights(run: Run, name: str) -> None:
    """Write the weights that are evaluated."""
    if run.world.is_first:
        save_state(run.folder / name, run.learner.evaluated.state_dict())


def save(run: Run) -> None:
    """Write a checkpoint that any number of processes can go on from, unless something in it is broken.

    Raises:
        UserError: If a loss or a weight was not finite; the last good checkpoint is still there.
    """
    check_finite(run)
    run.meter.share()
    state: dict[str, Any] = {part: getattr(run, part).state_dict() for part in _SAVED}
    if run.example_losses is not None:
        state["example_losses"] = run.example_losses.state_dict()
    state |= {"evaluations": run.evaluations, **all_replaced(run)}
    if run.world.is_first:
        save_checkpoint(run.folder, state, keep=run.recipe.keep)
    run.saved_at = time.monotonic()


def all_replaced(run: Run) -> dict[str, Any]:
    """Return what all processes together replaced: how many examples, and the ids of their images."""
    found = run.world.gather((run.batches.num_replaced, run.replaced))
    return {
        "num_replaced": sum(number for number, _ in found),
        "replaced": sorted(set().union(*(ids for _, ids in found))),
    }


def load(run: Run) -> None:
    """Go on from the newest checkpoint that can be read, if there is any.

    Raises:
        UserError: If there are some and all are damaged, or their steps are of another size.
    """
    world = run.world
    where = run.learner.device if world.size == 1 else torch.device("cpu")  # from there it goes to the other processes
    state = world.together(lambda: load_checkpoint(run.folder, where) if world.is_first else None)
    state = world.from_first(state)
    if state is not None:
        for part in _SAVED:
            getattr(run, part).load_state_dict(state[part])
        if run.example_losses is not None:
            run.example_losses.load_state_dict(state["example_losses"])
        run.evaluations = state["evaluations"]
        run.replaced = set(state["replaced"])
        run.batches.num_replaced = state["num_replaced"] if world.is_first else 0
        run.batches.position = run.clock.examples


def check_finite(run: Run) -> None:
    """Stop a run that is broken; waits for the device.

    Raises:
        UserError: If a loss or a weight was not finite.
    """
    first_bad_step = int(run.learner.first_bad_step)
    if first_bad_step >= 0:
        raise run.world.end_of_all(not_finite(run, first_bad_step))
    if not run.learner.is_finite():
        raise run.world.end_of_all(not_finite(run, run.clock.step - 1, what="a weight after"))


def not_finite(run: Run, step: int, what: str = "the loss of") -> UserError:
    """Describe a step that broke the run; its examples come from the stream."""
    first = step * run.recipe.batch
    ids = run.batches.rows_at(first).tolist()
    more = f" and {len(ids) - 8} more" if len(ids) > 8 else ""
    saved = (run.folder / "checkpoint.pt").exists()
    kept = "the last good checkpoint is kept" if saved else "it was before the first checkpoint"
    last = first + run.recipe.batch - 1
    return UserError(
        f"{what} step {step} is not finite (positions {first} to {last} of the stream, example ids "
        f"{', '.join(map(str, ids[:8]))}{more}); {kept} in {run.folder}: "
        "start again with another --out and a lower --lr, or with --precision fp32"
    )


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Turn the first Ctrl-C or SIGTERM into an entry of a list, so that a step can end and be saved.

    The second one ends the process at once; not under torchrun, which itself sends on what the terminal sends to all.
    """
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        received.append(number)
        if dist.is_torchelastic_launched():
            return
        for each, handler in before.items():
            signal.signal(each, handler)

    before = {each: signal.signal(each, note) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
