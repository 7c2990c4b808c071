"""Stage train: whole runs of the trainer, beside what bounds them and beside a plain PyTorch script.

Of each net, in turn: its steps alone, on one batch in memory (`limit/NET`); the loader alone (`-loader`); the loop that
`train` runs, evaluations and checkpoints left out (`-run`), and the share of its time in which it waited for data
(`-run-wait`); the same with the labels of all copies at once (`-histogram`, small images only); and
peers/plain_training.py, in a process of its own. A run should reach 0.95 of its limit where the loader alone is at
least 1.2 times as fast as that.

`save-NET` is the time of a checkpoint over the five minutes from one to the next, which should stay below 0.01.
`-run-mfu` is the share of `--peak-tflops` that the net itself uses: its operations forward and backward as torch counts
them, a multiplication and an addition being two. On a GPU a run also shows its peak memory; give all cores to the
loaders there (`--threads`). `--compile` adds what torch compiled.

timm's training script, a peer for photos, is left out: its package (timm 1.0.31) does not hold it.
"""

from __future__ import annotations

import atexit
import dataclasses
import os
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.build import synthetic_tree
from benchmarks.load import command, process, temporary_folder, write_shards
from benchmarks.measure import Settings, Timed, Variant
from kernels.jit import num_threads
from pipeline.console import console
from pipeline.dataset import DilutedSet, dilute, open_shards
from pipeline.loaders import open_batches, open_evaluation
from pipeline.sources import open_source
from train.assemble import build_learner, training_of
from train.clock import Clock
from train.learner import resolve_precision
from train.loop import SAVE_EVERY_S, Run, fit, save
from train.methods import METHODS, Setting
from train.metrics import Display, Log, Pace
from train.models import build_model
from train.recipes import Recipe, recipe_for
from train.select import Part
from train.select.task import ALL

DEVICE: Final = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ALPHA: Final = 20
PHOTO_PX: Final = 224
SETS: Final = {28: "mnist5k", 32: "synthetic"}  # by the size of their images
WARM: Final = 4  # batches that do not count
LOADER_S: Final = 1.0
NEVER: Final = 10**12  # examples


@dataclass(frozen=True)
class Net:
    """What is trained, and how.

    Args:
        model: Its name.
        size_px: Of its images; says which data it is trained on.
        batch: Examples a step.
        steps: That are timed in a round.
        warm: Steps before those; after a few no batch is left that was made while others were measured.
    """

    model: str
    size_px: int
    batch: int
    steps: int
    warm: int = 4


ON_CPU: Final = (Net("resnet18", PHOTO_PX, 64, 5), Net("conv4", 28, 512, 40))
ON_GPU: Final = (
    Net("resnet50", PHOTO_PX, 1024, 30),
    Net("resnet18", PHOTO_PX, 1024, 60),
    Net("cifar_resnet18", 32, 1024, 100),
    Net("conv4", 28, 512, 400),
)
SAVED: Final = (Net("resnet50", 28, 2, 1), Net("conv4", 28, 2, 1))  # weights do not grow with the images


class Quiet(Display):
    """Shows nothing: the table is what a user wants to see."""

    def __init__(self) -> None: ...

    def show(self, clock: Clock, values: dict[str, float]) -> None:
        """Show nothing."""


def variants(settings: Settings) -> list[Variant]:
    """Measure the nets of this device, or the one that was asked for."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: settings.threads])  # as every peer is started
    torch.set_num_threads(settings.threads)
    found = []
    for net in nets_of(settings):
        found += of_net(net, settings)
    return [*found, *(save_time(net) for net in SAVED)]


def nets_of(settings: Settings) -> list[Net]:
    """Choose what is measured: the stage's own nets, another one on the digits, or one on the user's data."""
    own = ON_GPU if DEVICE.type == "cuda" else ON_CPU
    if settings.shards:
        dataset = open_shards(settings.shards)
        size, model = dataset.batch_shape[0], settings.model or _recipe(dataset, "plain").model
        like = own[0] if dataset.image_shape is None else own[-1]
        nets = [dataclasses.replace(like, model=model, size_px=size)]
    else:
        nets = [net for net in own if settings.model in ("", net.model)]
        nets = nets or [dataclasses.replace(own[-1], model=settings.model)]
    return [dataclasses.replace(net, batch=settings.batch or net.batch) for net in nets]


@cache
def data_of(size_px: int, shards: Path | None) -> tuple[DilutedSet, Path | None]:
    """Open what a net is trained on, and name what the plain script reads, if it can."""
    if shards:
        dataset = open_shards(shards)
        return dataset, shards if dataset.image_shape else None
    if size_px == PHOTO_PX:
        tree, tar = synthetic_tree(), temporary_folder() / "tar"
        write_shards(tree, tar, "webdataset")
        return open_shards(tar), tree
    return dilute(open_source(SETS[size_px]), alpha=ALPHA), Path(SETS[size_px])


def of_net(net: Net, settings: Settings) -> list[Variant]:
    """Return all that is shown of a net."""
    dataset, peer = data_of(net.size_px, settings.shards)
    name = f"{net.model}-{net.size_px}px"
    limit, script = f"limit/{name}", f"peer/{name}-pytorch"
    found = [_limit(limit, net, dataset), _loader(f"ours/{name}-loader", net, dataset, settings.threads, limit)]
    found += _run(f"ours/{name}-run", net, dataset, (limit, script) if peer else (limit,), settings)
    if settings.compile:
        found.append(_limit(f"{limit}-compiled", net, dataset, compile=True))
        found += _run(f"ours/{name}-run-compiled", net, dataset, (f"{limit}-compiled", limit), settings, compile=True)
    if dataset.image_shape:  # photos take long enough
        found += _run(f"ours/{name}-histogram", net, dataset, (), settings, method="histogram")[:1]
    if peer is None:
        console.print(f"left out: {script}; it reads photos as files")
    else:
        found.append(_peer(script, net, peer, settings))
    return found


def _limit(name: str, net: Net, dataset: DilutedSet, *, compile: bool = False) -> Variant:
    """Do the steps of a run on one batch that never changes: what the net alone costs."""
    recipe = _recipe(dataset, "plain", net, compile=compile)
    method = METHODS["plain"](Setting(num_classes=dataset.num_classes, alpha=0))
    learner = build_learner(recipe, dataset, DEVICE)
    batches = open_batches(dataset, batch=net.batch, device=DEVICE)
    batch = next(batches)
    batches.close()
    clock = Clock(net.batch, NEVER, batches.num_examples)

    def run() -> float:
        for _ in range(net.steps):
            metrics = method.step(learner, batch, clock)
            clock.tick()
        metrics["train/loss"].item()  # waits for the device
        return net.steps * net.batch

    return Variant(name, "examples/s", run)


def _loader(name: str, net: Net, dataset: DilutedSet, threads: int, limit: str) -> Variant:
    """Take batches and do nothing with them."""
    batches = open_batches(dataset, batch=net.batch, device=DEVICE)
    atexit.register(batches.close)

    def run() -> Timed:
        with num_threads(threads):
            for _ in range(WARM):
                next(batches)
            wait()
            count, start = 0, time.perf_counter()
            while time.perf_counter() - start < LOADER_S:
                next(batches)
                count += 1
            wait()
            return Timed(count * net.batch, time.perf_counter() - start)

    return Variant(name, "examples/s", run, limit)


def _run(
    name: str,
    net: Net,
    dataset: DilutedSet,
    against: tuple[str, ...],
    settings: Settings,
    *,
    method: str = "plain",
    compile: bool = False,
) -> list[Variant]:
    """Go on with a run by some steps of the trainer's own loop, and show what it says of itself."""
    run, log = open_run(net, dataset, method=method, compile=compile)
    unit = "examples/s" if run.method.stream == "examples" else "images/s"
    found = [
        Variant(name, unit, lambda: go_on(run, log, net, settings.threads), against, prepare=forget_peak),
        Variant(f"{name}-wait", "frac", lambda: run.pace.totals()["data/wait_frac"]),
    ]
    if DEVICE.type == "cuda":
        found.append(Variant(name, "MB", lambda: peak_mb(run)))
    if settings.peak_tflops:
        share = operations(net.model, dataset.batch_shape, dataset.num_classes) / (settings.peak_tflops * 1e12)
        found.append(Variant(f"{name}-mfu", "frac", lambda: share * run.pace.totals()["speed/examples_per_s"]))
    return found


def go_on(run: Run, log: Log, net: Net, threads: int) -> Timed:
    """Go on with a run by the steps of a round."""
    left = net.warm + net.steps
    run.pace = Pace()

    def stop() -> bool:
        nonlocal left
        left -= 1
        if left == net.steps:
            wait()
            run.pace = Pace()
        return left == 0

    with num_threads(threads):
        fit(run, log, Quiet(), stop)
    return Timed(run.pace.total_examples, run.pace.total_s)


def _peer(name: str, net: Net, data: Path, settings: Settings) -> Variant:
    line = command("plain_training", data, "--model", net.model)
    script = process(name, line, dataclasses.replace(settings, batch=net.batch), batches=net.steps)

    def start() -> None:
        torch.cuda.empty_cache()  # it shares the GPU with this process
        script.start()

    return Variant(name, "examples/s", lambda: Timed(script.found["images"], script.found["seconds"]), prepare=start)


def save_time(net: Net) -> Variant:
    """Return the variant that writes the checkpoint of a net that has made a step: its optimizer has its state."""
    run, log = open_run(net, data_of(net.size_px, None)[0])
    fit(run, log, Quiet(), stop=lambda: True)

    def frac() -> float:
        start = time.perf_counter()
        save(run)
        return (time.perf_counter() - start) / SAVE_EVERY_S

    return Variant(f"ours/save-{net.model}", "frac", frac)


def _recipe(dataset: DilutedSet, method: str, net: Net | None = None, **more: Any) -> Recipe:
    """Return the recipe of a run that never ends, and for that reason has no warm-up, evaluations or checkpoints."""
    formula = dataset.formula
    given: dict[str, Any] = {}
    if net:
        given = {"model": net.model, "batch": net.batch, "log_every": (net.warm + net.steps) * net.batch}
    return recipe_for(
        dataset.name,
        method,
        num_images=formula.num_images,
        num_copies=1 + formula.alpha,
        warmup_frac=0.0,
        examples=NEVER,
        eval_every=NEVER,
        checkpoint_every=NEVER,
        precision=resolve_precision("auto", DEVICE),
        **{**given, **more},
    )


def open_run(net: Net, dataset: DilutedSet, *, method: str = "plain", part: Part = ALL, **more: Any) -> tuple[Run, Log]:
    """Open a run that never ends, on a part of the data; more fields of its recipe may be given."""
    recipe = _recipe(dataset, method, net, **{"val_frac": 0.0, **more})
    learner = build_learner(recipe, dataset, DEVICE)
    step, batches = training_of(recipe, dataset, learner, part)
    folder = temporary_folder() / "run"
    folder.mkdir()
    run = Run(
        recipe,
        dataset,
        folder,
        learner,
        step,
        batches,
        test=open_evaluation(dataset, device=DEVICE),
        noisy_val=None,
        memorised=None,
        clock=Clock(recipe.batch, recipe.examples, batches.num_examples),
        noisy_logits=step.noisy_logits,
    )
    log = Log(folder, examples=0)
    for part in (batches, log):  # before the folder goes
        atexit.register(part.close)
    return run, log


def operations(model: str, shape: tuple[int, int, int], num_classes: int) -> float:
    """Count the operations of an example of shape (h, w, c), forward and backward."""
    net = build_model(model, shape, num_classes, seed=0)
    height, width, channels = shape
    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(2, channels, height, width)).sum().backward()  # two: batch norm takes no fewer
    return counter.get_total_flops() / 2


def forget_peak() -> None:
    """Begin to measure what is held on the GPU at most."""
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_mb(run: Run) -> float:
    """Return what a run held on the GPU at most: its weights and optimizer, and what its steps came to besides."""
    own = sum(leaf.nbytes for leaf in tree_leaves(run.learner.state_dict()) if isinstance(leaf, Tensor))
    others = torch.cuda.memory_allocated() - own  # nets and batches of other variants
    return (torch.cuda.max_memory_allocated() - others) / 1e6


def wait() -> None:
    """Let the device finish what it was given."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
