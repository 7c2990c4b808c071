"""Figures of uniform noise: several nets against α on digits, CIFAR-10 and ImageNet."""

from __future__ import annotations

from typing import Final

from train.figures.points import (
    AUTO_RATE,
    BETTER,
    NOT_RUN,
    Claim,
    Figure,
    Finding,
    Panel,
    Point,
    Scale,
    summed_up,
    uniform_points,
    verdict,
)
from train.figures.rows import Row, curve, spread, where
from train.outcome import percent

SMALL_NETS: Final = ("perceptron", "mlp1", "mlp2", "mlp4", "conv4")


def uniform_small(dataset: str, scale: Scale) -> list[Point]:
    """Five nets against α on digits, the learning rate chosen for every net and α.

    Source: Rolnick et al. 2017, uniform noise on MNIST; the nets' depths are from memory.
    Deviates: widths, lengths and AdamW are ours; scale cpu has 4,000 clean labels and at most 300,000 examples a run.
    Cost: `tools/reproduce fig1`, at scale cpu 90 candidates and 60 more runs for three seeds, 1.9 h, added up, on a
        core of Intel Xeon with AMX each, with other work beside.
    """
    alphas = scale.pick((0, 2), (0, 5, 10, 20, 50, 100), (0, 5, 10, 20, 30, 50, 70, 100))
    models = scale.pick(("perceptron", "conv2"), SMALL_NETS, SMALL_NETS)
    return [point for model in models for point in uniform_points(alphas, model=model, rate=AUTO_RATE)]


def _ordering(rows: list[Row]) -> Finding:
    models = {row["model"] for row in rows}
    if not {"perceptron", "conv4"} <= models or not any(model.startswith("mlp") for model in models):
        return NOT_RUN
    curves = {model: curve(where(rows, model=model)) for model in SMALL_NETS if model in models}
    shared = set.intersection(*(set(found) for found in curves.values()))  # a grid may have been run in part
    told, right = [], []
    for alpha in sorted(shared - {0}):
        of = {model: found[alpha].value for model, found in curves.items()}
        mlps = [value for model, value in of.items() if model.startswith("mlp")]
        right.append(of["perceptron"] < min(mlps) and max(mlps) < of["conv4"])
        told.append(f"α = {alpha}: " + ", ".join(f"{model} {percent(value)}" for model, value in of.items()))
    return summed_up(told, right)


def _deeper_loses_less(rows: list[Row]) -> Finding:
    curves = {model: curve(where(rows, model=model)) for model in ("mlp1", "mlp2", "mlp4")}
    shared = set.intersection(*(set(found) for found in curves.values()))
    if 0 not in shared:
        return NOT_RUN
    told, right = [], []
    for alpha in sorted(shared - {0}):
        lost = {model: found[0].value - found[alpha].value for model, found in curves.items()}
        right.append(lost["mlp1"] - lost["mlp4"] > BETTER)
        told.append(f"α = {alpha}: " + ", ".join(f"{model} {100 * by:.1f}" for model, by in lost.items()))
    return summed_up([f"points lost at {each}" for each in told], right)


def _ninety_at_hundred(rows: list[Row]) -> Finding:
    found = curve(where(rows, model="conv4", alpha=100))
    if 100 not in found:
        return NOT_RUN
    clean = max(row["clean"] for row in rows)
    reached = verdict(found[100].value > 0.9) if clean >= 50_000 else "not run"
    return Finding(f"{spread(found[100])} with {clean:,} clean labels", reached)


def uniform_cifar(dataset: str, scale: Scale) -> list[Point]:
    """Three nets against α on CIFAR-10.

    Source: Rolnick et al. 2017, uniform noise on CIFAR-10; the nets are from memory.
    Deviates: widths, lengths and AdamW are ours; scale cpu has two nets and at most 300,000 examples a run.
    Cost: `tools/reproduce fig2`, at scale cpu 18 candidates and 12 more runs for three seeds, not made yet.
    """
    alphas = scale.pick((0, 1), (0, 5, 10), (0, 1, 2, 4, 6, 8, 10))
    models = scale.pick(("conv4",), ("conv4", "conv6"), ("conv4", "conv6", "cifar_resnet18"))
    return [point for model in models for point in uniform_points(alphas, model=model, rate=AUTO_RATE)]


def _resnet_at_ten(rows: list[Row]) -> Finding:
    found = curve(where(rows, model="cifar_resnet18", alpha=10))
    return Finding(spread(found[10]), verdict(found[10].value > 0.8)) if found else NOT_RUN


def uniform_imagenet(dataset: str, scale: Scale) -> list[Point]:
    """ResNet-18 against α on ImageNet, cosine schedule, SGD, batch 1024.

    Source: Rolnick et al. 2017, uniform noise on ImageNet; the net and the range of α are from memory.
    Deviates: the paper's schedule is not known, this is ours; scale cpu has batches of 32 and a small part of one pass.
    Cost: `tools/reproduce fig3 --scale full`, 18 runs for three seeds, not made yet; train/LARGE.md has the hours.
    """
    alphas = scale.pick((0, 1), (0, 5), (0, 1, 2, 3, 4, 5))
    settings = {"optimizer": "sgd", "lr": 0.4, "weight_decay": 1e-4, "schedule": "cosine", "ema": 0.0, "batch": 1024}
    small = {"optimizer": "sgd", "lr": 0.02, "batch": 32, "ema": 0.0}
    model = scale.pick("conv2", "resnet18", "resnet18")
    return uniform_points(alphas, model=model, settings=scale.pick(small, small, settings))


def _imagenet_at_five(rows: list[Row]) -> Finding:
    top1, top5 = (curve(where(rows, alpha=5, model="resnet18"), y=y) for y in ("top1_last", "top5_last"))
    if 5 not in top1 or max(row["clean"] for row in rows) < 10**6:
        return NOT_RUN
    return Finding(f"top-1 {spread(top1[5])}, top-5 {spread(top5[5])}", verdict(top5[5].value > 0.65))


UNIFORM_SMALL: Final = Figure(
    title="Uniform noise on digits: five nets",
    datasets=("mnist5k", "mnist"),
    points=uniform_small,
    panels=(Panel(),),
    claims=(
        Claim(
            "Perceptrons suffer more than multilayer ones, those more than conv nets.",
            "ordering (second hand)",
            _ordering,
        ),
        Claim(
            "Deeper nets degrade more slowly.",
            "second hand; a deeper conv net is better (as read)",
            _deeper_loses_less,
        ),
        Claim(
            "A conv net stays above 90 % at α = 100 with all clean labels of MNIST.",
            "> 90 % (as read); 91 % (from memory)",
            _ninety_at_hundred,
        ),
    ),
    protocol="A rate is chosen for every net and α. Scale cpu cuts MNIST's 60,000 labels to 4,000 and a run to 300,000 "
    "examples.",
)


UNIFORM_CIFAR: Final = Figure(
    title="Uniform noise on CIFAR-10: conv4, conv6, ResNet-18",
    datasets=("cifar10", "cifar10"),
    points=uniform_cifar,
    panels=(Panel(),),
    claims=(Claim("ResNet-18 keeps most of its accuracy at α = 10.", "85 % (from memory)", _resnet_at_ten),),
    protocol="A rate is chosen for every net and α. Scale cpu cuts a run to 300,000 examples, which is less than one "
    "pass at α = 10, and leaves out the residual net.",
)


UNIFORM_IMAGENET: Final = Figure(
    title="Uniform noise on ImageNet: ResNet-18",
    datasets=("imagenet", "imagenet"),
    points=uniform_imagenet,
    panels=(Panel(), Panel(y="top5_last", ylabel="top-5 test accuracy, last")),
    claims=(Claim("ResNet-18 still learns at α = 5.", "about 70 %, top-1 or top-5 (from memory)", _imagenet_at_five),),
    protocol="SGD with cosine schedule, batch 1024, peak rate 0.4; the length is that of the plain recipe. Scale cpu "
    "has batches of 32 at a constant 0.02 and cuts a run to 300,000 examples, a small part of one pass.",
)
