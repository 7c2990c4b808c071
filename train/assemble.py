"""From a recipe to what a run is made of: net, method, batches, and what it is evaluated on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from jaxtyping import Float, Float64
from numpy import ndarray as Array
from torch import Tensor, nn

from pipeline.console import console
from pipeline.dataset import DilutedSet
from pipeline.errors import UserError
from pipeline.laws.files import read_matrix
from pipeline.laws.law import check_share
from pipeline.loaders import Batches, Evaluation, batches_ahead, choose, open_batches, open_evaluation
from pipeline.stream import images_of
from train.checkpoint import load_state
from train.clock import Clock
from train.distributed import ALONE, World
from train.example_losses import ExampleLosses
from train.learner import Learner, resolve_precision
from train.loop import Run
from train.memory import free_bytes, parts_that_fit
from train.methods import METHODS, Method, Setting
from train.methods.forward import noisy_view
from train.methods.mlnt import teacher_share
from train.models import build_model
from train.models.twins import Twins
from train.noise_scale import LEAST_BATCH, NoiseScale
from train.recipes import Recipe
from train.schedule import learning_rate
from train.select import Part
from train.select.task import ALL
from train.theory.transition import checked_transition

CPU: Final = torch.device("cpu")
EVALUATED: Final = 1_000  # images at once, at most
LABELS_AT_ONCE: Final = 1 << 24  # of images that are evaluated against all of theirs: 1,000 images of alpha 16,776
_LABEL_BYTES: Final = 13  # of each of them while losses and shares are computed (measured)
_KEPT_BYTES: Final = 4  # of an example, at least: its mean loss, or its label and whether it is selected
MEMORISED: Final = 1_000  # training images whose wrong labels are looked at; the ids are a class-balanced shuffle


def train_images(num_images: int, val_frac: float) -> int:
    """Return how many of the images are trained on; the last ones are held out, as whole images.

    Image ids are a class-balanced shuffle, so the held-out part is balanced too.

    Raises:
        UserError: If the share to hold out is none.
    """
    check_share("val_frac", val_frac, below_one=True)
    return num_images - round(val_frac * num_images)


def held_out_images(recipe: Recipe, dataset: DilutedSet) -> range:
    """Return the ids of the images that are held out of training."""
    num_images = dataset.formula.num_images
    return range(train_images(num_images, recipe.val_frac), num_images)


def method_of(
    recipe: Recipe,
    dataset: DilutedSet,
    *,
    device: torch.device = CPU,
    wrong: float | None = None,
    part: Part = ALL,
    transition: Float64[Array, "k k"] | None = None,
) -> Method:
    """Make the method of a run.

    Args:
        recipe: Of the run.
        dataset: What it trains on.
        device: Where it trains.
        wrong: Share of wrong labels in a selection from it; None is what its law says of all, or what `wrong_share`
            takes before a selection is made.
        part: What it trains on.
        transition: An estimated one; None is what `given_transition` says.

    Raises:
        UserError: If it does not fit the data.
    """
    law, wanted = dataset.formula.law.name, METHODS[recipe.method].only_law
    if wanted not in (None, law):
        raise UserError(f"{recipe.method} is defined for law {wanted}, this data set's is {law}; give another --method")
    labels_an_image = None
    if part.train is not None and METHODS[recipe.method].stream == "images":  # else nobody asks
        labels_an_image = len(part.train) / len(images_of(part.train, dataset.formula.num_images))
    return METHODS[recipe.method](
        Setting(
            num_classes=dataset.num_classes,
            alpha=dataset.formula.alpha,
            law=dataset.formula.law,
            label_smoothing=recipe.label_smoothing,
            mixup_beta=recipe.mixup_beta,
            forget_rate=recipe.forget_rate,
            forget_epochs=recipe.forget_epochs,
            rank_over=recipe.rank_over,
            wrong_share=wrong_share(recipe, dataset) if wrong is None else wrong,
            mlnt_sets=recipe.mlnt_sets,
            mlnt_inner_lr=recipe.mlnt_inner_lr,
            mlnt_weight=recipe.mlnt_weight,
            mlnt_order=recipe.mlnt_order,
            mlnt_neighbours=recipe.mlnt_neighbours,
            mlnt_replaced_frac=recipe.mlnt_replaced_frac,
            mlnt_ramp_epochs=recipe.mlnt_ramp_epochs,
            mixmatch_weight=recipe.mixmatch_weight,
            mixmatch_temperature=recipe.mixmatch_temperature,
            mixmatch_beta=recipe.mixmatch_beta,
            mentor=None if recipe.mentor is None else mentor_of(Path(recipe.mentor), dataset, device),
            transition=given_transition(recipe, dataset) if transition is None else transition,
            rows=rows_at_once(recipe),
            batch=recipe.batch,
            num_examples=dataset.formula.num_examples,
            device=device,
            late=part.late,
            labels_an_image=labels_an_image,
            seed=recipe.seed,
        )
    )


def training_of(
    recipe: Recipe,
    dataset: DilutedSet,
    learner: Learner,
    part: Part,
    *,
    wrong: float | None = None,
    transition: Float64[Array, "k k"] | None = None,
) -> tuple[Method, Batches]:
    """Make the method of a run and open its batches; see `method_of` for what is told of a phase before it."""
    held_in = held_out_images(recipe, dataset).start
    if not held_in:
        raise UserError(f"val_frac {recipe.val_frac} holds all {dataset.formula.num_images} images out; lower it")
    if recipe.window is not None and recipe.order == "full":
        raise UserError(
            f"--window {recipe.window} is for --order passes, which mixes so many blocks of images; leave it out, or "
            "give --order passes"
        )
    check_labels(recipe, dataset, learner.world.size)
    method = method_of(recipe, dataset, device=learner.device, wrong=wrong, part=part, transition=transition)
    batches = open_batches(
        dataset,
        batch=recipe.batch,
        seed=recipe.seed,
        stream=method.stream,
        images=range(held_in),
        example_ids=part.train,
        rest=part.rest,
        late=part.late,
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


def check_labels(recipe: Recipe, dataset: DilutedSet, num_processes: int = 1) -> None:
    """Refuse more labels an image than can be held at once, where all of them are looked at.

    Raises:
        UserError: With the memory that they would take.
    """
    copies = 1 + dataset.formula.alpha
    if not dataset.formula.law.adds_images and copies > LABELS_AT_ONCE:
        raise UserError(
            f"alpha {copies - 1:,}: evaluations look at all labels of hundreds of images, and those of one would take "
            f"{copies * _LABEL_BYTES / 1e9:.1f} GB; lower --alpha, to {LABELS_AT_ONCE - 1:,} or less"
        )
    share, num_examples = recipe.batch // num_processes, dataset.formula.num_examples
    needed = {}
    if METHODS[recipe.method].stream == "images":
        needed[f"all labels of a batch of {share:,} images"] = share * copies * _LABEL_BYTES
    ranked = recipe.method == "coteaching" and recipe.rank_over == "data"
    if recipe.select is not None or recipe.transition == "auto" or recipe.example_losses or ranked:
        needed[f"what is kept of each of {num_examples:,} examples"] = num_examples * _KEPT_BYTES
    free = free_bytes(CPU)
    for what, size in needed.items():
        if size > free:
            raise UserError(
                f"{what} would take {size / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; lower --alpha "
                f"(here {copies - 1:,}){' or --batch' * ('batch' in what)}"
            )


def rows_at_once(recipe: Recipe) -> int:
    """Return how many rows of a batch are computed at once, in all processes."""
    return recipe.batch // (1 if recipe.accumulate == "auto" else int(recipe.accumulate))


def given_transition(recipe: Recipe, dataset: DilutedSet) -> Float64[Array, "k k"] | None:
    """Return the transition matrix that a recipe gives method forward; None is the law's.

    One that is to be estimated is the identity until it is.

    Raises:
        UserError: If the file holds no such matrix, or nobody knows it: labels are as they were found.
    """
    if recipe.method != "forward":
        return None
    if recipe.transition == "auto":
        return np.eye(dataset.num_classes)
    if recipe.transition is not None:
        try:
            return checked_transition(read_matrix(Path(recipe.transition)), dataset.num_classes)
        except UserError as error:
            raise UserError(f"--transition {recipe.transition}: {error}") from None
    if dataset.observed:
        raise UserError(
            "method forward needs a transition matrix, and nobody knows that of labels as they were found; give "
            "--transition FILE, or auto to estimate it, or another --method"
        )
    return None


def mentor_of(folder: Path, dataset: DilutedSet, device: torch.device) -> nn.Module:
    """Return the net of an earlier run as it was evaluated last.

    Raises:
        UserError: If the folder holds no finished run, its files are damaged, or its net is made for other images.
    """
    if not (folder / "result.json").exists():
        raise UserError(f"mentor {folder} holds no finished run; give the folder of one")
    otherwise = "give the folder of another run as --mentor"
    try:
        model = json.loads((folder / "config.json").read_text(encoding="utf-8"))["recipe"]["model"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / 'config.json'} cannot be read ({error!r}); {otherwise}") from None
    net = build_model(model, dataset.batch_shape, dataset.num_classes, seed=0)
    try:
        net.load_state_dict(load_state(folder / "last.pt", device, otherwise=otherwise))
    except RuntimeError:
        raise UserError(
            f"mentor {folder} is no single net for images of {dataset.batch_shape} in {dataset.num_classes} classes; "
            "give a run of another --method than coteaching on such images"
        ) from None
    return net.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)


def wrong_share(recipe: Recipe, dataset: DilutedSet) -> float | None:
    """Return the expected share of wrong labels under the law of a data set; None if nobody knows it.

    Of what a selection keeps, the selection says it later; until then 0 stands for it.
    """
    return dataset.wrong_share if recipe.select is None else 0.0


def evaluation_of(
    recipe: Recipe, dataset: DilutedSet, learner: Learner, split: Literal["train", "test"] = "test", **options: Any
) -> Evaluation:
    """Open this process's part of some images for evaluation, in batches that fit memory where training does.

    Training images come with all their labels, which may be many more than an image has pixels.

    Batches of 32 in place of 1,000 take 0.6 to 0.9 of the CPU time with conv2 and conv4, 4 times with mlp1, which is
    less than an image takes in training (mnist5k, bf16, one thread of AMD EPYC, torch 2.15, best of 4).
    """
    labels = 1 + dataset.formula.alpha if split == "train" else 1
    return open_evaluation(
        dataset,
        split,
        batch=min(EVALUATED, rows_at_once(recipe) // learner.world.size, max(1, LABELS_AT_ONCE // labels)),
        loader=recipe.loader,
        resize=recipe.resize,
        device=learner.device,
        rank=learner.world.rank,
        world_size=learner.world.size,
        **options,
    )


def run_of(
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
        noisy_val = evaluation_of(recipe, dataset, learner, "train", stream="examples", example_ids=part.noisy_val)
    elif held_out:
        stream = "examples" if adds_images else "images"
        noisy_val = evaluation_of(recipe, dataset, learner, "train", stream=stream, images=held_out)
    if not adds_images and not dataset.observed:
        looked_at = range(min(held_out.start, MEMORISED))
        memorised = evaluation_of(recipe, dataset, learner, "train", images=looked_at)
    if recipe.example_losses:
        example_losses = ExampleLosses(dataset.formula.num_examples, learner.device, learner.world)
    return Run(
        recipe,
        dataset,
        folder,
        learner,
        method,
        batches,
        test=evaluation_of(recipe, dataset, learner),
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
    if recipe.select in (None, "all"):
        return method.noisy_logits
    formula = dataset.formula
    return noisy_view(formula.law, alpha=formula.alpha, num_classes=formula.num_classes)


def build_learner(recipe: Recipe, dataset: DilutedSet, device: torch.device) -> Learner:
    """Build the net of a recipe, or its two nets, with an optimizer.

    Raises:
        UserError: If the images are too small for the net.
    """
    nets = [
        build_model(recipe.model, dataset.batch_shape, dataset.num_classes, seed=recipe.seed, learner=number)
        for number in range(METHODS[recipe.method].num_nets)
    ]
    gamma_examples = recipe.mlnt_teacher_examples
    teacher = partial(teacher_share, ramp_epochs=recipe.mlnt_ramp_epochs, gamma_examples=gamma_examples)
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


def trained_learner(recipe: Recipe, dataset: DilutedSet, weights: Path, world: World = ALONE) -> Learner:
    """Return the learner of a finished run for evaluation.

    Args:
        recipe: Of the run.
        dataset: Of the run.
        weights: One of its files of weights.
        world: The processes that share the work.
    """
    device = world.device()
    recipe = dataclasses.replace(recipe, precision=resolve_precision(recipe.precision, device))
    learner = build_learner(recipe, dataset, device)
    learner.world = world
    learner.evaluated.load_state_dict(load_state(weights, device))
    return learner


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
    if recipe.measure is not None and share < LEAST_BATCH:
        raise UserError(
            f"batch {recipe.batch} in {num_processes} processes is {share} each, and measure {recipe.measure} cuts "
            f"that in parts; give {num_processes * LEAST_BATCH} or more"
        )
    if parts == "auto":
        views = METHODS[recipe.method].rest_views
        ahead = batches_ahead(choose(recipe.loader, dataset)[0])
        parts = parts_that_fit(learner.net, dataset.batch_shape, share, learner.dtype, views, ahead)
        if parts > 1:
            console.print(f"accumulate: {parts} parts of {share // parts} fit memory", highlight=False)
    if share % int(parts):
        raise UserError(
            f"batch {recipe.batch} in {num_processes} processes is {share} each, which does not divide by accumulate "
            f"{parts}; give a batch that is a multiple of {num_processes * int(parts)}"
        )
    return int(parts)
