"""What test_distributed.py looks at from inside: run by torchrun, writes what each process saw."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from pipeline.dataset import DilutedSet, dilute
from pipeline.errors import UserError
from pipeline.sources.synthetic import synthetic
from train.clock import Clock
from train.distributed import World, joined
from train.experiment import run_experiment
from train.learner import Learner
from train.methods import METHODS
from train.metrics import Meter
from train.recipes import Recipe

SELECTING: Final[dict[str, Any]] = {"order": "full", "select_epochs": 8, "select_rate": 0.4, "weight_decay": 0.0}


def images(rank: int, part: int) -> torch.Tensor:
    """Return what a process sees in one part of a step; the scale makes statistics differ."""
    generator = torch.Generator().manual_seed(10 * rank + part)
    return torch.randn(6, 3, 4, 4, generator=generator) * (1 + rank)


def net() -> nn.Module:
    """Return a net whose weights are the same everywhere."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))


def learner_of(world: World, accumulate: int) -> Learner:
    """Return a learner that all processes share."""
    learner = Learner(net(), rate=lambda clock: 0.1, weight_decay=0.01)
    learner.accumulate = accumulate
    learner.join(world)
    return learner


def step(learner: Learner, clock: Clock, rank: int, *, break_it: bool = False) -> None:
    """Train one step."""
    for part in range(learner.accumulate):
        loss = learner.logits(images(rank, part)).square().mean()
        learner.update(loss * float("nan") if break_it else loss, clock)
    clock.tick()


def state(learner: Learner) -> dict[str, list[float]]:
    """Return weights and statistics as plain numbers."""
    return {name: values.double().flatten().tolist() for name, values in learner.net.state_dict().items()}


def outcome(world: World, make: Any) -> str:
    """Say what `together` made, or how it ended."""
    try:
        return str(world.together(make))
    except UserError as error:
        return f"error: {error}"
    except SystemExit as end:
        return f"exit {end.code}"


def failing(rank: int, ranks: tuple[int, ...]) -> int:
    """Fail in some processes."""
    if rank in ranks:
        raise UserError(f"no good in {rank}")
    return rank


def recipe(method: str, model: str) -> Recipe:
    """Return a short run in float32; its batch divides by two processes and two parts each.

    Co-teaching forgets nothing: what it leaves out, each part of a batch chooses by itself. MLNT weighs nothing:
    each part of each process steps on its own labels. MixMatch draws from a selection without weights: those of rsl
    depend on the order of sums.
    """
    return Recipe(
        dataset="synthetic",
        examples=480,
        method=method,
        model=model,
        batch=24,
        accumulate=1 if model == "conv2" else 2,
        lr=0.05,
        forget_rate=0.0,
        mlnt_weight=0.0,
        ema=2.0,
        precision="fp32",
        eval_every=240,
        val_frac=0.2,
        **({**SELECTING, "select": "incv"} if METHODS[method].rest_views else {"order": "passes"}),
    )


def meta_recipe(accumulate: int) -> Recipe:
    """Return a short run in which MLNT steps on labels as they are: each part finds neighbours by itself."""
    asked = recipe("mlnt", "mlp1")
    return dataclasses.replace(
        asked, accumulate=accumulate, mlnt_weight=1.0, mlnt_ramp_epochs=0.1, mlnt_replaced_frac=0.0, mlnt_sets=2
    )


def ranking_recipe(accumulate: int, rank_over: str = "data") -> Recipe:
    """Return a short run in which examples compete over the data set, or over a batch, wherever they are."""
    return dataclasses.replace(
        recipe("coteaching", "mlp1"), accumulate=accumulate, forget_rate=0.5, forget_epochs=0.3, rank_over=rank_over
    )


def data() -> DilutedSet:
    """Return 120 images of 8 × 8 px in 4 classes, alpha = 3."""
    return dilute(synthetic(num_train=120, num_test=41, height=8, width=8, channels=1, num_classes=4), alpha=3)


def selecting(name: str) -> Recipe:
    """Return the recipe of a run on selected examples.

    Its net has no ReLU: near one of its kinks the order of a sum decides on a whole example's gradient, and over the
    steps of a selection some come near, on one processor or another.
    """
    return dataclasses.replace(recipe("plain", "perceptron"), **SELECTING, select=name)


def run_everywhere(folder: Path, world: World) -> None:
    """Run every method and every selection on a net without batch norm, and one with."""
    for method in METHODS:
        run_experiment(recipe(method, "mlp1"), data(), folder / method, world=world)
    run_experiment(recipe("plain", "conv2"), data(), folder / "conv2", world=world)
    for name in ("incv", "rsl"):
        run_experiment(selecting(name), data(), folder / name, world=world)
    run_experiment(meta_recipe(accumulate=1), data(), folder / "meta", world=world)
    run_experiment(ranking_recipe(accumulate=2), data(), folder / "ranking", world=world)
    run_experiment(ranking_recipe(accumulate=1, rank_over="batch"), data(), folder / "in-batches", world=world)


def main() -> None:
    """Look at everything."""
    with joined() as world:
        seen = look(world)
        Path(sys.argv[1], f"{world.rank}.json").write_text(json.dumps(seen), encoding="utf-8")
        run_everywhere(Path(sys.argv[1]), world)


def look(world: World) -> dict[str, Any]:
    """Try what a world and a learner do."""
    rank, seen = world.rank, dict[str, Any]()
    for accumulate in (1, 2):
        learner, clock = learner_of(world, accumulate), Clock(12, 1200, 1200)
        step(learner, clock, rank)
        seen[f"state{accumulate}"] = state(learner)
    before = state(learner)
    step(learner, clock, rank, break_it=rank == 1)
    step(learner, clock, rank)
    after = state(learner)
    seen["first_bad_step"] = int(learner.first_bad_step)
    kept = [name for name in before if "running" not in name and "num_batches" not in name]
    seen["weights_kept"] = all(after[name] == before[name] for name in kept)
    meter = Meter(world)
    meter.add({"loss": torch.tensor(1.0 + rank)})
    meter.share()
    meter.add({"loss": torch.tensor(2.0 * rank)})
    seen["meter"] = meter.read(torch.tensor(7))
    seen["largest"] = world.largest(rank, 5 - rank)
    seen["rows"] = world.rows(torch.tensor([[rank, 0], [rank, 1]])).tolist()
    seen["sum"] = world.sum(torch.tensor([rank + 1, 10])).tolist()
    seen["gather"] = world.gather(f"r{rank}")
    seen["from_first"] = world.from_first({"rank": rank})
    seen["together"] = [outcome(world, lambda ranks=ranks: failing(rank, ranks)) for ranks in ((), (1,), (0, 1))]
    return seen


if __name__ == "__main__":
    main()
