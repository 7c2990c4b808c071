"""The training loop."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from pipeline.dataset import DilutedSet
from pipeline.errors import UserError
from pipeline.loaders import Batches, Evaluation
from pipeline.types import Batch
from train.checkpoint import load_checkpoint, save_checkpoint, save_state
from train.clock import Clock
from train.evaluate import TOP, best_by_noisy_validation, evaluate, memorisation
from train.learner import Learner
from train.memory import is_out_of_memory, out_of_memory
from train.methods import Method
from train.metrics import Display, Log, Meter, Pace
from train.recipes import Recipe
from train.run_folder import RunFolder

SAVE_EVERY_S: Final = 300.0
_SAVED: Final = ("learner", "clock", "meter", "pace")


@dataclass
class Run:
    """All that a run is made of.

    Args:
        recipe: What was asked for.
        dataset: What is trained on.
        folder: Where it is written down.
        learner: The net.
        method: What one step does.
        batches: Endless training batches.
        test: The test images.
        noisy_val: The held-out training images, or all examples of theirs that show other images; None if there are
            none.
        memorised: Training images whose wrong labels the net may have learned; None if other images carry those.
        clock: The time.
        evaluations: One row each, in order.
        replaced: Ids of images (n + those of foreign ones) that could not be read and in whose place others were
            trained on.
    """

    recipe: Recipe
    dataset: DilutedSet
    folder: RunFolder
    learner: Learner
    method: Method
    batches: Batches
    test: Evaluation
    noisy_val: Evaluation | None
    memorised: Evaluation | None
    clock: Clock
    evaluations: list[dict[str, float]] = field(default_factory=list)
    replaced: set[int] = field(default_factory=set)
    meter: Meter = field(default_factory=Meter)
    pace: Pace = field(default_factory=Pace)
    shown: dict[str, float] = field(default_factory=dict)
    saved_at: float = field(default_factory=time.monotonic)


def fit(run: Run, log: Log, display: Display, stop: Callable[[], bool]) -> None:
    """Train to the end of the run, or until asked to stop; either way the last state is saved."""
    recipe, clock = run.recipe, run.clock
    while not clock.finished:
        with run.pace.waiting():
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
            with run.pace.pausing():
                evaluate_now(run, log)
        stopping = stop()
        if stopping or clock.passed(recipe.checkpoint_every) or time.monotonic() - run.saved_at > SAVE_EVERY_S:
            with run.pace.pausing():
                save(run)
        if stopping:
            return


def train_on(run: Run, batch: Batch) -> None:
    """Do one step, on the whole batch or part after part.

    Raises:
        UserError: If it does not fit memory.
    """
    learner = run.learner
    try:
        for part in [batch] if learner.accumulate == 1 else batch.parts(learner.accumulate):
            run.meter.add(run.method.step(learner, part, run.clock))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(error, batch=run.recipe.batch, accumulate=learner.accumulate) from error


def note_replaced(run: Run, batch: Batch) -> None:
    """Keep the ids of the images that others stand in for; the batch's own rows name the stand-ins."""
    ids = run.batches.rows_at(run.clock.examples)[batch.replaced.numpy()]
    copies, image_ids = divmod(ids, run.dataset.formula.num_images)
    run.replaced.update(run.dataset.formula.shown(image_ids, copies).tolist())


def read_metrics(run: Run, log: Log) -> None:
    """Read what gathered on the device since the last reading, and log it.

    Raises:
        UserError: If a loss was not finite.
    """
    means, first_bad_step = run.meter.read(run.learner.first_bad_step)
    if first_bad_step >= 0:
        raise not_finite(run, first_bad_step)
    values = {**means, **run.pace.read()}
    if run.method.num_labels > 1:
        values["speed/labels_per_s"] = values["speed/examples_per_s"] * run.method.num_labels
    values["data/num_replaced"] = run.batches.num_replaced
    log.write(run.clock, values)
    run.shown |= values


def evaluate_now(run: Run, log: Log) -> None:
    """Evaluate on the test images and on the noisy validation, and keep the weights if they are the best yet.

    Raises:
        UserError: If a loss or a weight was not finite.
    """
    check_finite(run)
    scores = evaluate(run.learner, run.test)
    row = {"eval/top1_accuracy": scores.top1_accuracy, "eval/loss": scores.loss}
    if run.dataset.num_classes > TOP:
        row["eval/top5_accuracy"] = scores.top5_accuracy
    if run.memorised is not None:
        given, true = memorisation(run.learner, run.memorised, run.dataset.formula)
        row |= {"memorisation/given": given, "memorisation/true": true}
    if run.noisy_val is not None:
        formula = run.dataset.formula
        noisy = evaluate(run.learner, run.noisy_val, None if formula.law.adds_images else formula)
        row |= {"eval/noisy_val_loss": noisy.loss, "eval/noisy_val_loss_se": noisy.loss_se}
    log.write(run.clock, row)
    run.shown |= row
    run.evaluations.append({"examples": run.clock.examples, **row})
    if best_by_noisy_validation(run.evaluations) == len(run.evaluations) - 1:
        save_state(run.folder.path / "best.pt", run.learner.evaluated.state_dict())


def save(run: Run) -> None:
    """Write a checkpoint, unless something in it is broken: then the last good one stays.

    Raises:
        UserError: If a loss or a weight was not finite.
    """
    check_finite(run)
    state: dict[str, Any] = {part: getattr(run, part).state_dict() for part in _SAVED}
    state |= {"evaluations": run.evaluations, "replaced": sorted(run.replaced)}
    state |= {"num_replaced": run.batches.num_replaced}
    save_checkpoint(run.folder.path, state, keep=run.recipe.keep)
    run.saved_at = time.monotonic()


def load(run: Run) -> None:
    """Go on from the newest checkpoint that can be read, if there is any.

    Raises:
        UserError: If there are some and all are damaged.
    """
    state = load_checkpoint(run.folder.path, run.learner.device)
    if state is not None:
        for part in _SAVED:
            getattr(run, part).load_state_dict(state[part])
        run.evaluations = state["evaluations"]
        run.replaced = set(state["replaced"])
        run.batches.num_replaced = state["num_replaced"]
        run.batches.position = run.clock.examples


def check_finite(run: Run) -> None:
    """Stop a run that is broken; waits for the device.

    Raises:
        UserError: If a loss or a weight was not finite.
    """
    first_bad_step = int(run.learner.first_bad_step)
    if first_bad_step >= 0:
        raise not_finite(run, first_bad_step)
    if not run.learner.is_finite():
        raise not_finite(run, run.clock.step - 1, what="a weight after")


def not_finite(run: Run, step: int, what: str = "the loss of") -> UserError:
    """Describe a step that broke the run; its examples come from the stream."""
    first = step * run.recipe.batch
    ids = run.batches.rows_at(first).tolist()
    more = f" and {len(ids) - 8} more" if len(ids) > 8 else ""
    return UserError(
        f"{what} step {step} is not finite (positions {first} to {first + len(ids) - 1} of the stream, example ids "
        f"{', '.join(map(str, ids[:8]))}{more}); the last good checkpoint is kept in {run.folder.path}: "
        "start again with a lower --lr, or with --precision fp32"
    )


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Turn the first Ctrl-C or SIGTERM into an entry of a list, so that a step can end and be saved.

    The second one ends the process at once.
    """
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        received.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)

    before = {each: signal.signal(each, note) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
