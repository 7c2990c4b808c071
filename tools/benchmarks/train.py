"""Stage train: whole training steps, data included, beside a plain PyTorch script."""

from __future__ import annotations

import warnings

import torch
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.load_small import Expanded, dataset_of
from benchmarks.measure import Settings, Variant
from pipeline.dataset import DilutedSet
from pipeline.loaders import open_batches
from train.clock import Clock
from train.experiment import build_learner
from train.learner import Learner, resolve_precision
from train.methods import METHODS, Setting
from train.metrics import Meter
from train.models import build_model
from train.recipes import recipe_for

LOG_STEPS = 50
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def variants(settings: Settings) -> list[Variant]:
    """Compare our step, with and without data, with a script as it is commonly written."""
    warnings.filterwarnings("ignore", "'pin_memory' argument")
    torch.set_num_threads(settings.threads)
    dataset = dataset_of(settings)
    num_steps = max(4, 20_000 // settings.batch)
    plain = "peer/pytorch-script"
    return [
        _ours("plain", dataset, settings, num_steps, against=plain),
        _ours("histogram", dataset, settings, num_steps, against=plain),
        _ceiling(dataset, settings, num_steps),
        _script(dataset, settings, num_steps),
    ]


def _learner(method: str, dataset: DilutedSet, settings: Settings) -> Learner:
    """Build the learner of a method's recipe, with the model and batch to be measured."""
    formula = dataset.formula
    recipe = recipe_for(
        dataset.name,
        method,
        num_images=formula.num_images,
        num_copies=1 + formula.alpha,
        batch=settings.batch,
        model=settings.model,
        precision=resolve_precision("auto", DEVICE),
    )
    return build_learner(recipe, dataset, DEVICE)


def _ours(name: str, dataset: DilutedSet, settings: Settings, num_steps: int, against: str) -> Variant:
    """Run the trainer's steps: batch, method, metrics read once per log interval."""
    learner = _learner(name, dataset, settings)
    method = METHODS[name](Setting(num_classes=dataset.num_classes, alpha=dataset.formula.alpha))
    batches = open_batches(dataset, batch=settings.batch, stream=method.stream, device=DEVICE)
    clock, meter = Clock(settings.batch, 10**9, batches.num_examples), Meter()

    def run() -> float:
        for step in range(num_steps):
            meter.add(method.step(learner, next(batches), clock))
            clock.tick()
            if step % LOG_STEPS == LOG_STEPS - 1 or step == num_steps - 1:
                meter.read(learner.first_bad_step)
        return num_steps * settings.batch

    unit = "examples/s" if method.stream == "examples" else "images/s"
    return Variant(f"ours/{name}", unit, run, against=against if unit == "examples/s" else None)


def _ceiling(dataset: DilutedSet, settings: Settings, num_steps: int) -> Variant:
    """Run the same steps on one batch that never changes: what the net alone costs."""
    learner = _learner("plain", dataset, settings)
    method = METHODS["plain"](Setting(num_classes=dataset.num_classes, alpha=dataset.formula.alpha))
    batch = next(open_batches(dataset, batch=settings.batch, device=DEVICE))
    clock = Clock(settings.batch, 10**9, dataset.formula.num_examples)

    def run() -> float:
        for _ in range(num_steps):
            metrics = method.step(learner, batch, clock)
        metrics["train/loss"].item()
        return num_steps * settings.batch

    return Variant("limit/same-batch", "examples/s", run)


def _script(dataset: DilutedSet, settings: Settings, num_steps: int) -> Variant:
    """A plain script, frozen: torchvision transforms, DataLoader workers, float32, `loss.item()` each step."""
    assert dataset.image_shape is not None
    net = build_model(settings.model, dataset.image_shape, dataset.num_classes, seed=0).to(DEVICE)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9, nesterov=True, weight_decay=5e-4)
    criterion = nn.CrossEntropyLoss()
    loader = DataLoader(Expanded(dataset), settings.batch, shuffle=True, num_workers=settings.threads, drop_last=True)
    num_steps = min(num_steps, len(loader) - 1)
    running: list[object] = []

    def start() -> None:  # workers start, and the first batch comes, outside the time
        running[:] = [iter(loader)]
        next(running[0])  # type: ignore[call-overload]

    def run() -> float:
        total = 0.0
        for _ in range(num_steps):
            images, labels = next(running[0])  # type: ignore[call-overload]
            optimizer.zero_grad()
            loss = criterion(net(images.to(DEVICE)), labels.to(DEVICE))
            loss.backward()
            optimizer.step()
            total += loss.item()
        return num_steps * settings.batch

    return Variant("peer/pytorch-script", "examples/s", run, prepare=start)
