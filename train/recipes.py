"""Recipes: typed, complete configurations of a run, with the evidence for their numbers.

A recipe says what a user may choose. The facts of the data (n, K, α, mean and standard deviation …) have their home
in the data set; where a recipe's alpha, law, noise_seed or clean is None, the data set's own holds.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

from pipeline.errors import UserError
from train.learner import OPTIMIZERS, PRECISIONS
from train.methods import METHODS
from train.models import MODELS
from train.schedule import SCHEDULES


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A complete configuration of a run.

    Args:
        dataset: Name of the clean set.
        examples: Length of the run, rounded up to whole steps (images for a method that streams images).
        shards: Folder of shards; None dilutes in memory.
        source: The user's own files of a set that is not embedded.
        alpha: Noisy labels a clean one; None is the data set's own.
        law: Where noisy labels come from; None is the data set's own.
        noise_seed: Draws the labels; None is the data set's own.
        clean: Use the first so many images of the class-balanced order; None is all.
        model: One of `MODELS`.
        method: One of `METHODS`.
        loader: One of the loaders, or "auto".
        batch: Examples (images) a step.
        optimizer: One of `OPTIMIZERS`.
        lr: Peak learning rate.
        momentum: Nesterov momentum of sgd, first beta of adamw, in [0, 1).
        beta2: Second beta of adamw, in [0, 1).
        weight_decay: For weights; norms and biases have none.
        ema: Evaluate an average of weights that weighs the last 1/ema of the run most; 0 for none.
        schedule: One of `SCHEDULES`.
        warmup_frac: Share of the run in which the rate climbs from 0, in [0, 1).
        precision: One of `PRECISIONS`.
        seed: Draws order, augmentation and initial weights.
        val_frac: Share of the training images held out for the noisy validation, in [0, 1).
        eval_every: Examples between evaluations.
        log_every: Examples between readings of the device's metrics.
        checkpoint_every: Examples between checkpoints; there is one every five minutes besides.

    Raises:
        UserError: If a value is not allowed.
    """

    dataset: str
    examples: int
    shards: str | None = None
    source: str | None = None
    alpha: int | None = None
    law: str | None = None
    noise_seed: int | None = None
    clean: int | None = None
    model: str = "conv4"
    method: str = "plain"
    loader: str = "auto"
    batch: int = 512
    optimizer: str = "sgd"
    lr: float = 0.02
    momentum: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 5e-4
    ema: float = 0.0
    schedule: str = "cosine"
    warmup_frac: float = 0.05
    precision: str = "auto"
    seed: int = 0
    val_frac: float = 0.1
    eval_every: int = 100_000
    log_every: int = 25_600
    checkpoint_every: int = 10_000_000

    def __post_init__(self) -> None:
        check_choice("model", self.model, MODELS)
        check_choice("method", self.method, METHODS)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("precision", self.precision, PRECISIONS)
        for name in ("momentum", "beta2", "warmup_frac", "val_frac"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; give a number in [0, 1)")
        for name in ("lr", "weight_decay", "ema"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name} is {getattr(self, name)}; give a finite number, 0 or more")
        for name in ("examples", "batch", "eval_every", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; give a whole number of examples, 1 or more")
        if not 0 <= self.seed < 2**64:
            raise UserError(f"seed {self.seed}; give a whole number in [0, 2^64)")


# What may differ when a run is resumed: where the data lies (its facts are compared instead), how often to save.
FREE_FIELDS: Final = frozenset({"shards", "source", "alpha", "law", "noise_seed", "clean", "checkpoint_every"})


def recipe_for(
    dataset: str, method: str, *, num_images: int, num_copies: int, epochs: float | None = None, **given: Any
) -> Recipe:
    """Return the recipe of a method on a data set.

    What is not given comes from the method's function below; `eval_every` and `log_every` then follow from the
    length of the run and the batch.

    Args:
        dataset: Name of the clean set.
        method: One of `METHODS`.
        num_images: Images to train on, the held-out ones left out.
        num_copies: 1 + α of the data.
        epochs: Length in passes over what the method streams, in place of `examples`.
        given: Fields of `Recipe` that the user chose.

    Raises:
        UserError: If a value is not allowed.
    """
    check_choice("method", method, METHODS)
    defaults = _RECIPES[method](num_images, num_copies)
    if epochs is not None:
        if not 0 < epochs < math.inf:
            raise UserError(f"epochs is {epochs}; give a number above 0")
        per_image = num_copies if METHODS[method].stream == "examples" else 1
        given["examples"] = max(1, round(epochs * num_images * per_image))
    fields = {**defaults, **given}
    fields.setdefault("eval_every", max(fields["batch"], fields["examples"] // 30))
    fields.setdefault("log_every", 50 * fields["batch"])
    return Recipe(dataset=dataset, method=method, **fields)


def plain_recipe(num_images: int, num_copies: int) -> dict[str, Any]:
    """Large batches and a small rate, because a batch's signal shrinks with 1/(1+α): 12 views of an image's labels.

    Not tuned yet on data; the numbers are those that a conv net on MNIST commonly starts from.
    """
    return {"batch": 512, "lr": 0.02, "examples": 12 * num_images * num_copies}


def histogram_recipe(num_images: int, num_copies: int) -> dict[str, Any]:
    """Forty passes over the images; the batch counts images, each with all its labels.

    Not tuned yet on data; the numbers are those that a conv net on MNIST commonly starts from.
    """
    return {"batch": 128, "lr": 0.02, "examples": 40 * num_images}


_RECIPES: Final = {"plain": plain_recipe, "h_alpha": histogram_recipe, "histogram": histogram_recipe}


def check_choice(kind: str, name: str, menu: Collection[str]) -> None:
    """Refuse a name that is not on a menu.

    Raises:
        UserError: With the menu.
    """
    if name not in menu:
        raise UserError(f"unknown {kind} '{name}'; the {kind}s are: {', '.join(menu)}")


def difference(before: dict[str, Any], now: dict[str, Any], *, free: Collection[str] = frozenset()) -> list[str]:
    """Say which keys of two flat configurations differ, as "key: before → now"; those of `free` may."""
    keys = [*before, *(key for key in now if key not in before)]
    return [
        f"{key}: {before.get(key)} → {now.get(key)}"
        for key in keys
        if key not in free and before.get(key) != now.get(key)
    ]
