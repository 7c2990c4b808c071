"""Stage methods: runs of every method, beside a plain one, their floors and plain scripts of two of them.

All methods on digits, then two of them as their papers have them: Co-teaching with its net of nine convolutions, MLNT
of ten label sets with ResNet-18 and a batch of 32. Half of the labels are wrong, or α is 20 for the methods that are
made for that. Every run is the trainer's own loop, evaluations and checkpoints left out.

A floor (`limit/`) is what the net alone costs, in passes: forward and backward over the rows of a batch, timed apart.
Co-teaching: two passes, whose backward half has only the rows that are kept (`-kept`) or, as batch norm makes every row
depend on every other, all of them. MLNT: a step of its own; for each label set the gradient on its labels, and that of
the consistency after the step, a pass each; of second order also the first one's derivative along the other, which
takes two. A method should take at most 1.25 times its floor.

`peer/` is the method as its authors wrote it, in float32 (peers/plain_coteaching.py, peers/plain_mlnt.py).
`ours/example-losses` is what the state of RSL holds, in bytes an example.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.load import Process, command, process
from benchmarks.measure import Settings, Timed, Variant
from benchmarks.train import DEVICE, Net, forget_peak, go_on, open_run, peak_mb, wait
from pipeline.dataset import DilutedSet, dilute
from pipeline.laws import Symmetric, Uniform
from pipeline.loaders import open_batches
from pipeline.sources import open_source
from pipeline.stream import Rest
from train.assemble import build_learner
from train.example_losses import ExampleLosses
from train.loop import Run
from train.methods import METHODS
from train.metrics import Log
from train.select import Part
from train.select.task import ALL

ALPHA: Final = 20
RATE: Final = 0.5
SETS: Final = 10  # of labels, as MLNT's paper has them
DIGITS: Final = Net("conv4", 28, 128, 20)
SLOW: Final = {"mlnt": 2}  # steps of a round, which takes a minute with those of the others
# The round that does not count has warmed them up.
OF_PAPERS: Final = {"coteaching": Net("cnn9", 32, 128, 2, 0), "mlnt": Net("cifar_resnet18", 32, 32, 1, 0)}
AT_ONCE: Final = 1e-9  # passes in which what grows over some of them has grown
EXAMPLES: Final = 1_000_000


def variants(settings: Settings) -> list[Variant]:
    """Measure every method."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: settings.threads])  # as every peer is started
    torch.set_num_threads(settings.threads)
    found = []
    for method in METHODS:
        net = dataclasses.replace(DIGITS, steps=SLOW[method], warm=0) if method in SLOW else DIGITS
        for name, fields in kinds_of(method):
            found += _run(
                name, net, method, fields, settings, against=(f"ours/{DIGITS.model}-{DIGITS.size_px}px-plain",)
            )
    for method, net in OF_PAPERS.items():
        plain = f"ours/{net.model}-32px-plain"
        found += _run("plain", net, "plain", {}, settings, against=())
        peer = f"peer/{net.model}-32px-{method}"
        for name, fields in kinds_of(method):
            found += _run(name, net, method, fields, settings, against=(plain, peer))
        found += _peer(peer, f"plain_{method}", net, settings)
    return [*found, Variant("ours/example-losses", "B/example", state_bytes)]


def kinds_of(method: str) -> list[tuple[str, dict[str, Any]]]:
    """Return in which ways a method is measured: names and fields of its recipe, what grows over a run being grown."""
    if method == "coteaching":
        return [(method, {"forget_epochs": AT_ONCE})]
    if method == "mlnt":
        common = {"mlnt_sets": SETS, "mlnt_ramp_epochs": AT_ONCE, "ema": 0.0}
        return [(f"{method}-{order}", {**common, "mlnt_order": order}) for order in ("first", "second")]
    return [(method, {"select": "rsl"} if METHODS[method].rest_views else {})]


def part_of(dataset: DilutedSet, method: str) -> Part:
    """Return what a method is trained on: all, or every other example as labelled and the rest beside them."""
    views, example_ids = METHODS[method].rest_views, np.arange(dataset.formula.num_examples)
    if not views:
        return ALL
    return Part(example_ids[::2], rest=Rest(np.ones(len(example_ids[::2])), example_ids[1::2], views))


@cache
def data_of(size_px: int, massive: bool) -> DilutedSet:
    """Open what is trained on."""
    source = open_source("mnist5k" if size_px == DIGITS.size_px else "synthetic")
    return dilute(source, alpha=ALPHA if massive else 0, law=Uniform() if massive else Symmetric(RATE))


def _run(
    name: str, net: Net, method: str, fields: dict[str, Any], settings: Settings, *, against: tuple[str, ...]
) -> list[Variant]:
    """Go on with a run by some steps of the trainer's own loop; show its floors and what memory it takes."""
    run, log = open_method(net, method, fields)
    title = f"{net.model}-{net.size_px}px-{name}"
    floors = floors_of(run, net, method, fields)
    unit = "examples/s" if run.method.stream == "examples" else "images/s"
    others = (*against, *(f"limit/{title}{floor}" for floor in floors))
    found = [
        Variant(
            f"ours/{title}",
            unit,
            lambda: go_on(run, log, net, settings.threads),
            tuple(other for other in others if other != f"ours/{title}" and unit == "examples/s"),
            forget_peak,  # on a GPU
        ),
        *(Variant(f"limit/{title}{floor}", unit, measured) for floor, measured in floors.items()),
    ]
    if net.size_px != DIGITS.size_px:
        peer = f"peer/{net.model}-{net.size_px}px-{method}" if method in OF_PAPERS else None
        name = f"ours/{title}"
        if DEVICE.type == "cuda":
            found.insert(1, Variant(name, "MB", lambda: peak_mb(run), peer))
        else:
            alone = _script(name, "our_method", net, settings, "--method", method, "--fields", json.dumps(fields))
            found.insert(1, Variant(name, "MB", lambda: alone.found["peak_mb"], peer, prepare=alone.start))
    return found


def open_method(net: Net, method: str, fields: dict[str, Any]) -> tuple[Run, Log]:
    """Open a run of a method that never ends, on the data that are meant for it."""
    massive = METHODS[method].stream == "images" or METHODS[method].only_law == "uniform"
    dataset = data_of(net.size_px, massive)
    return open_run(net, dataset, method=method, part=part_of(dataset, method), **fields)


def _script(name: str, script: str, net: Net, settings: Settings, *more: str) -> Process:
    line = command(script, Path("synthetic"), "--model", net.model, "--warm", str(net.warm), *more)
    numbers = Settings(None, "", net.batch, settings.threads, settings.rounds)
    return process(name, line, numbers, batches=net.steps)


def _peer(name: str, script: str, net: Net, settings: Settings) -> list[Variant]:
    peer = _script(name, script, net, settings)
    return [
        Variant(name, "examples/s", lambda: Timed(peer.found["images"], peer.found["seconds"]), prepare=peer.start),
        Variant(name, "MB", lambda: peer.found["peak_mb"]),
    ]


def floors_of(run: Run, net: Net, method: str, fields: dict[str, Any]) -> dict[str, Callable[[], Timed]]:
    """Return what bounds a step of a method, by the end of its name."""
    passes = Passes(net, run)
    kept = round((1 - RATE) * net.batch)
    if method == "coteaching":
        return {
            "-kept": lambda: Timed(net.batch, 2 * (passes.forward(net.batch) + passes.backward(kept))),
            "-whole": lambda: Timed(net.batch, 2 * (passes.forward(net.batch) + passes.backward(net.batch))),
        }
    if method == "mlnt":
        number = 1 + (2 if fields["mlnt_order"] == "first" else 4) * SETS
        return {"": lambda: Timed(net.batch, number * (passes.forward(net.batch) + passes.backward(net.batch)))}
    return {}


class Passes:
    """Forward and backward passes of one net over rows of one batch, timed; each time the median of three.

    Args:
        net: What is trained, and on how many rows.
        run: Whose data they come from, at its precision.
    """

    def __init__(self, net: Net, run: Run) -> None:
        self.learner = build_learner(run.recipe, run.dataset, DEVICE)
        self.net = getattr(self.learner.net, "first", self.learner.net)
        batches = open_batches(run.dataset, batch=net.batch, device=DEVICE)
        self.batch = next(batches)
        batches.close()

    def forward(self, rows: int) -> float:
        """Return the seconds of a forward pass over the first rows, its graph kept."""
        return _median_s(lambda: self._loss(rows))

    def backward(self, rows: int) -> float:
        """Return the seconds of a backward pass over the first rows."""
        weights = list(self.net.parameters())
        return _median_s(lambda loss: torch.autograd.grad(loss, weights), lambda: (self._loss(rows),))

    def _loss(self, rows: int) -> Tensor:
        logits = self.learner.run(self.net, self.batch.images[:rows])
        return F.cross_entropy(logits, self.batch.labels[:rows])


def _median_s(work: Callable[..., object], prepare: Callable[[], tuple[Any, ...]] = tuple) -> float:
    seconds = []
    for _ in range(3):
        given = prepare()
        wait()
        start = time.perf_counter()
        work(*given)
        wait()
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[1]


def state_bytes() -> float:
    """Return what the losses of all examples take, an example."""
    state: dict[str, Tensor] = ExampleLosses(EXAMPLES, DEVICE).state_dict()
    return sum(value.nbytes for value in state.values()) / EXAMPLES
