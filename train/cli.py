"""The command `train`; typed recipes are the truth, this only fills one in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pipeline.console import Argument, Exit, Option, UserError, console, run
from pipeline.law_flags import (
    DeltaFlag,
    ForeignFlag,
    ForeignSourceFlag,
    LabelsFlag,
    LawFlag,
    MatrixFlag,
    OrderFlag,
    RateFlag,
    foreign_from_flags,
    law_from_flags,
)
from train.process import settle

# Heavy imports stand in the function: `train --help` answers without loading torch.


def train(
    dataset: Annotated[str, Argument(help="Clean set: mnist5k, mnist, fashion_mnist, synthetic …")],
    mini: Annotated[
        bool, Option("--mini", help="Of webvision: the first 50 classes, which are set mini_webvision [default: all]")
    ] = False,
    alpha: Annotated[
        int | None,
        Option(
            help="Noisy labels per clean one; without --shards the set is diluted in memory "
            "[default: the shards' own; without shards: 20 for mnist5k, 0 to labels as observed]",
        ),
    ] = None,
    law: LawFlag = None,
    rate: RateFlag = None,
    delta: DeltaFlag = None,
    order_of_classes: OrderFlag = None,
    matrix: MatrixFlag = None,
    labels: LabelsFlag = None,
    foreign: ForeignFlag = None,
    foreign_source: ForeignSourceFlag = None,
    shards: Annotated[
        str | None,
        Option(help="Folder of shards, or s3://bucket/folder [default: the only shards/DATASET-alpha*]", metavar="DIR"),
    ] = None,
    source: Annotated[
        Path | None, Option(help="Your own files of DATASET, when no shards are used [default: where Debian puts them]")
    ] = None,
    clean: Annotated[
        int | None,
        Option(help="Use the first so many images of a class-balanced order [default: all]"),
    ] = None,
    model: Annotated[
        str | None,
        Option(
            help="perceptron, mlp1, mlp2, mlp4, conv2, conv4, conv6, cnn9; for 32 px: cifar_resnet18, cifar_resnet32, "
            "preact_resnet18, wrn_28_2; or any model of timm, such as resnet50 "
            "[default: conv4; cifar_resnet18 for CIFAR, resnet18 for photos]"
        ),
    ] = None,
    method: Annotated[
        str,
        Option(
            help="plain, h_alpha (oracle: reads the clean labels), histogram, marginal (one label of an image is "
            "right), mixup, forward (knows the noise law), coteaching (two nets; knows how many labels are wrong), "
            "mlnt (a step on wrong labels should not lead away from its teacher), mixmatch (with --select: all that is "
            "not selected is trained on without its label)"
        ),
    ] = "plain",
    select: Annotated[
        str | None,
        Option(
            help="First decide which examples to train on: incv (labels that nets trained on the other half predict), "
            "rsl (small mean losses, class by class), or all, and how many labels are wrong (for method coteaching, "
            "estimated); RUN/select-NAME/ has ids and scores [default: no selection]"
        ),
    ] = None,
    select_epochs: Annotated[
        float | None,
        Option(
            help="Passes over its data of each net that the selection trains "
            "[default: rsl: the run's; incv: a quarter of them]"
        ),
    ] = None,
    select_rate: Annotated[
        str | None,
        Option(
            help="Share of wrong labels that the selection reckons with, in [0, 1), or auto: estimated "
            "[default: rsl, and incv under --alpha: by the law, if it says; incv, all: estimated]",
            metavar="RATE|auto",
        ),
    ] = None,
    late_from: Annotated[
        float | None,
        Option(
            help="Of --select incv --method coteaching: share of the run, in [0, 1], after which examples that were "
            "left undecided join; 1 for never [default: 0.2, or 0.4 where much is wrong]"
        ),
    ] = None,
    paper: Annotated[
        str | None,
        Option(
            help="Take net, batch, optimizer, schedule, length and augmentation from a paper on label noise: incv, "
            "coteaching, mlnt, rsl, rsl_wm, each for its data sets; flags that are given besides win [default: none]"
        ),
    ] = None,
    loader: Annotated[
        str,
        Option(
            help="What reads and decodes: resident (all in memory), dali, ffcv, webdataset; auto chooses by the data. "
            "It changes the speed, never the experiment."
        ),
    ] = "auto",
    order: Annotated[
        str | None,
        Option(
            help="full (a shuffle of all examples), or passes (over the images again and again, read block by block) "
            "[default: full]"
        ),
    ] = None,
    window: Annotated[
        int | None, Option(help="Blocks of 1,024 images that order passes mixes [default: 16; with --reuse 1]")
    ] = None,
    reuse: Annotated[
        int | None, Option(help="Labels that order passes shows of an image for which it is decoded once [default: 1]")
    ] = None,
    resize: Annotated[
        str | None,
        Option(help="antialias, or linear, which is faster, of images that differ in size [default: antialias]"),
    ] = None,
    size: Annotated[
        int | None, Option(help="Height and width of those images in a batch, in px [default: 224]", min=1)
    ] = None,
    augment: Annotated[
        bool | None,
        Option(
            "--augment/--no-augment",
            help="Shift or crop, and flip, training images at random [default: on, or as --paper has it]",
        ),
    ] = None,
    check_reads: Annotated[
        bool,
        Option(
            "--check-reads/--no-check-reads",
            help="Check every image of shards against its checksum as it is read; one that is damaged is replaced and "
            "reported. Without, damage that still decodes goes unseen.",
        ),
    ] = True,
    batch: Annotated[
        str | None,
        Option(
            help="Examples a step (images for h_alpha, histogram, marginal), or auto: as measured for this α "
            "[default: the recipe's]",
            metavar="N|auto",
        ),
    ] = None,
    lr: Annotated[
        str | None,
        Option(help="Peak learning rate, or auto: as measured for this α [default: the recipe's]", metavar="RATE|auto"),
    ] = None,
    optimizer: Annotated[
        str | None, Option(help="sgd (Nesterov, momentum 0.9), adamw, adadelta [default: the recipe's]")
    ] = None,
    momentum: Annotated[
        float | None,
        Option(help="Of sgd; first beta of adamw, rho of adadelta, in [0, 1) [default: the recipe's]"),
    ] = None,
    weight_decay: Annotated[
        float | None, Option(help="Of weights; norms and biases have none [default: the recipe's]")
    ] = None,
    label_smoothing: Annotated[
        float | None, Option(help="Share of a label that is spread over all classes, in [0, 1) [default: 0]")
    ] = None,
    mixup_beta: Annotated[
        float | None,
        Option(
            help="Of method mixup: both parameters of the Beta distribution that weighs the two examples of a pair; "
            "0 mixes nothing [default: 8]"
        ),
    ] = None,
    forget_rate: Annotated[
        float | None,
        Option(
            help="Of method coteaching: share of a batch, in [0, 1), that is left out in the end, where losses are "
            "largest [default: the share of wrong labels under the law]"
        ),
    ] = None,
    forget_epochs: Annotated[
        float | None,
        Option(help="Of method coteaching: passes over the data in which that share grows from 0 [default: 10]"),
    ] = None,
    rank_over: Annotated[
        str | None,
        Option(
            help="Of method coteaching: batch leaves out the largest losses of each batch, data those of the data set, "
            "by each example's mean so far [default: batch, or data where noisy labels are added]"
        ),
    ] = None,
    mlnt_sets: Annotated[
        int | None, Option(help="Of method mlnt: synthetic label sets a step, each a step to try [default: 10]")
    ] = None,
    mlnt_inner_lr: Annotated[
        float | None, Option(help="Of method mlnt: learning rate of the step that is tried [default: 0.01]")
    ] = None,
    mlnt_weight: Annotated[
        float | None,
        Option(help="Of method mlnt: weight of the consistency with its teacher; 0 is method plain [default: 0.4]"),
    ] = None,
    mlnt_order: Annotated[
        str | None,
        Option(help="Of method mlnt: second differentiates that step too, first does not [default: second]"),
    ] = None,
    mlnt_neighbours: Annotated[
        int | None,
        Option(help="Of method mlnt: nearest rows of a batch, one of which a row takes its label from [default: 10]"),
    ] = None,
    mlnt_replaced_frac: Annotated[
        float | None, Option(help="Of method mlnt: share of a set's rows that take one, in [0, 1] [default: 0.5]")
    ] = None,
    mlnt_ramp_epochs: Annotated[
        float | None,
        Option(help="Of method mlnt: passes over the data in which that weight grows [default: 2]"),
    ] = None,
    mixmatch_weight: Annotated[
        float | None,
        Option(help="Of method mixmatch: weight of the loss on unlabelled images in the end [default: 75]"),
    ] = None,
    mixmatch_temperature: Annotated[
        float | None,
        Option(help="Of method mixmatch: below 1 the labels that it guesses are sharpened [default: 0.5]"),
    ] = None,
    mixmatch_beta: Annotated[
        float | None,
        Option(
            help="Of method mixmatch: both parameters of the Beta distribution that it mixes images by; 0 mixes "
            "nothing [default: 0.75]"
        ),
    ] = None,
    transition: Annotated[
        str | None,
        Option(
            help="Of method forward: .npy or .csv file of the transition matrix (rows = true class, sum 1), or auto: "
            "estimated from a plain run before [default: the law's]",
            metavar="FILE|auto",
        ),
    ] = None,
    mentor: Annotated[
        Path | None,
        Option(
            help="Of method mlnt: folder of an earlier run, whose net joins the teacher and drops labels that it finds "
            "most unlikely [default: none]",
            metavar="RUN_FOLDER",
        ),
    ] = None,
    accumulate: Annotated[
        str | None,
        Option(
            help="Compute a batch in so many parts, to fit memory, or auto; batch norm sees the parts [default: 1]",
            metavar="N|auto",
        ),
    ] = None,
    ema: Annotated[
        float | None,
        Option(
            help="Evaluate an average of weights that weighs the last 1/EMA of the run most, 0 for none "
            "[default: the recipe's]"
        ),
    ] = None,
    schedule: Annotated[
        str | None,
        Option(
            help="constant, linear, cosine, steps (a tenth at 1/3, 2/3, 8/9), or a paper's (incv, coteaching, "
            "coteaching100, mlnt, rsl), after a warm-up [default: the recipe's]"
        ),
    ] = None,
    warmup: Annotated[
        int | None,
        Option(help="Examples in which the rate climbs from 0, in a straight line [default: the recipe's]"),
    ] = None,
    examples: Annotated[
        int | None,
        Option(help="Length of the run in examples (images for h_alpha, histogram, marginal) [default: the recipe's]"),
    ] = None,
    epochs: Annotated[
        float | None,
        Option(
            help="Length of the run in passes over all data, after a selection too, in place of --examples "
            "[default: none]"
        ),
    ] = None,
    seed: Annotated[int | None, Option(help="Draws order, augmentation and weights [default: 0]")] = None,
    noise_seed: Annotated[int | None, Option(help="Draws the noisy labels [default: the shards' own, or 0]")] = None,
    precision: Annotated[
        str | None,
        Option(help="auto (bf16 where the hardware has it, else fp32), bf16, fp16, tf32, fp32 [default: auto]"),
    ] = None,
    compile: Annotated[
        bool,
        Option(
            "--compile",
            help="Let torch compile the net; needs a C++ compiler ($CXX or g++), on a GPU a C compiler ($CC, gcc or "
            "clang) [default: off]",
        ),
    ] = False,
    deterministic: Annotated[
        bool,
        Option(
            "--deterministic",
            help="The same bits from every run on a GPU too, at the cost of speed; on a CPU they are. [default: off]",
        ),
    ] = False,
    val_frac: Annotated[
        float | None,
        Option(help="Share of the training images held out for the noisy validation, in [0, 1) [default: 0.1]"),
    ] = None,
    eval_every: Annotated[
        int | None, Option(help="Examples between evaluations [default: a thirtieth of the run]")
    ] = None,
    log_every: Annotated[
        int | None, Option(help="Examples between readings of the training metrics [default: 50 steps]")
    ] = None,
    measure: Annotated[
        str | None,
        Option(
            help="noise-scale: at every reading also the gradient noise scale, in examples, and the cosine between the "
            "gradients of right and of wrong labels; the weights stay what they are without [default: none]"
        ),
    ] = None,
    example_losses: Annotated[
        bool,
        Option(
            "--example-losses",
            help="Of method plain: write the mean training loss of every example, losses.npy, by example id "
            "(copy · n + image id) [default: off]",
        ),
    ] = False,
    checkpoint_every: Annotated[
        int | None,
        Option(help="Examples between checkpoints, besides one every 5 minutes [default: 10,000,000]"),
    ] = None,
    keep: Annotated[int | None, Option(help="Checkpoints to keep; a damaged one is passed over [default: 2]")] = None,
    save_confusion: Annotated[
        Path | None,
        Option(
            help="After training, write how often the net takes each class for each class: K×K counts (.npy or .csv; "
            "rows = true class) over the held-out training images of --val-frac with their source labels. Noise that "
            "this orders (--law structured --matrix FILE) then knows nothing of the test images. [default: none]"
        ),
    ] = None,
    out: Annotated[
        Path | None, Option(help="Run folder [default: runs/DATASET-METHOD-alphaA-seedS, a selection before METHOD]")
    ] = None,
    resume: Annotated[
        bool,
        Option("--resume", help="Start, go on, or show the result, whichever the run folder calls for [default: off]"),
    ] = False,
) -> None:
    """Train a net on an α-diluted image data set."""
    from pipeline.dataset import DilutedSet
    from pipeline.sources import name_of_set
    from train.assemble import train_images
    from train.data import open_data
    from train.distributed import joined
    from train.experiment import Stopped, run_experiment
    from train.outcome import show_result
    from train.papers import page_of
    from train.recipes import Recipe, recipe_for

    def asked() -> tuple[Recipe, DilutedSet]:
        if examples is not None and epochs is not None:
            raise UserError(
                f"--examples {examples} and --epochs {epochs} both give the length of the run; leave one out"
            )
        foreign_set = foreign_from_flags(foreign, foreign_source)
        made = law_from_flags(
            law,
            rate=rate,
            delta=delta,
            order_of_classes=order_of_classes,
            matrix=matrix,
            labels=labels,
            foreign=foreign_set,
            order_seed=noise_seed or 0,
        )
        name = name_of_set(dataset, mini=mini)
        page = None if paper is None else page_of(paper, name, method)
        augmented = page is None or page.augment
        data = open_data(
            name,
            shards=shards,
            alpha=alpha,
            law=made,
            noise_seed=noise_seed,
            clean=clean,
            source=source,
            foreign=foreign_set,
            size=size,
            augment=augmented if augment is None else augment,
            check_reads=check_reads,
        )
        given: dict[str, Any] = {
            "alpha": alpha,
            "law": law,
            "noise_seed": noise_seed,
            "clean": clean,
            "shards": shards,
            "source": source and str(source),
            "model": model,
            "select": select,
            "select_epochs": select_epochs,
            "select_rate": number_or_auto("--select-rate", select_rate, float),
            "late_from": late_from,
            "loader": loader,
            "order": order,
            "window": window,
            "reuse": reuse,
            "resize": resize,
            "batch": number_or_auto("--batch", batch, int),
            "lr": number_or_auto("--lr", lr, float),
            "optimizer": optimizer,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "label_smoothing": label_smoothing,
            "mixup_beta": mixup_beta,
            "forget_rate": forget_rate,
            "forget_epochs": forget_epochs,
            "rank_over": rank_over,
            "mlnt_sets": mlnt_sets,
            "mlnt_inner_lr": mlnt_inner_lr,
            "mlnt_weight": mlnt_weight,
            "mlnt_order": mlnt_order,
            "mlnt_neighbours": mlnt_neighbours,
            "mlnt_replaced_frac": mlnt_replaced_frac,
            "mlnt_ramp_epochs": mlnt_ramp_epochs,
            "mixmatch_weight": mixmatch_weight,
            "mixmatch_temperature": mixmatch_temperature,
            "mixmatch_beta": mixmatch_beta,
            "transition": transition,
            "mentor": mentor and str(mentor),
            "accumulate": number_or_auto("--accumulate", accumulate, int),
            "ema": ema,
            "schedule": schedule,
            "examples": examples,
            "seed": seed,
            "precision": precision,
            "compile": compile or None,
            "deterministic": deterministic or None,
            "val_frac": val_frac,
            "eval_every": eval_every,
            "log_every": log_every,
            "measure": measure,
            "example_losses": example_losses or None,
            "checkpoint_every": checkpoint_every,
            "keep": keep,
        }
        given = {name: value for name, value in given.items() if value is not None}
        if page is not None:
            given.setdefault("val_frac", page.val_frac)
        recipe = recipe_for(
            name,
            method,
            num_images=train_images(data.formula.num_images, given.get("val_frac", Recipe.val_frac)),
            num_copies=1 + data.formula.alpha,
            epochs=epochs,
            warmup=warmup,
            page=page,
            **given,
        )
        return recipe, data

    stopped: Stopped | None = None
    with joined() as world:
        recipe, data = world.together(asked)
        how = method if select is None else f"{select}-{method}"
        title = f"{recipe.dataset}-{how}-alpha{data.formula.alpha}-seed{recipe.seed}"
        folder = out or Path("runs") / title
        try:
            result = run_experiment(recipe, data, folder, resume=resume, save_confusion=save_confusion, world=world)
        except Stopped as signal_came:
            stopped = signal_came
    if stopped is not None:
        console.print(f"saved in {folder}; go on with the same command and --resume", soft_wrap=True)
        raise Exit(128 + stopped.signal_number)
    show_result(result, title, folder)
    if save_confusion is not None:
        console.print(f"confusion matrix: {save_confusion}", soft_wrap=True)


def number_or_auto(flag: str, text: str | None, kind: Callable[[str], float]) -> float | str | None:
    """Read what stands behind a flag that takes a number or the word auto.

    Args:
        flag: Its name.
        text: What was given.
        kind: int or float.

    Raises:
        UserError: If it is neither.
    """
    if text is None or text == "auto":
        return text
    try:
        return kind(text)
    except ValueError:
        whole = "a whole number" if kind is int else "a number"
        raise UserError(f"{flag} {text}: give {whole}, or auto") from None


def main() -> None:
    """Run the command."""
    settle()
    run(train, name="train")
