"""The figures: what each runs at which scale, what the paper says of it, and how our rows are held against that.

The paper is Rolnick et al. 2017 (arXiv 1705.10694). Marks of its numbers: "as read" in its text or figures, "derived"
from them, "second hand" from reviews of it, "from memory" where nobody could check.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, Final

import numpy as np

from train.figures.agreement import QUADRATIC_LAW
from train.figures.points import (
    AUTO_RATE,
    NOT_RUN,
    VAL_FRAC,
    Claim,
    Figure,
    Finding,
    Noise,
    Panel,
    Point,
    Scale,
    verdict,
)
from train.figures.rows import Mean, Row, best_curve, curve, line_through, where
from train.outcome import percent

SMALL_NETS: Final = ("perceptron", "mlp1", "mlp2", "mlp4", "conv4")
HARMLESS: Final = 0.03  # a loss of accuracy below this is called none


def spread(mean: Mean) -> str:
    """Write a mean over seeds with its range."""
    return f"{percent(mean.value)} ({100 * mean.least:.1f} to {100 * mean.most:.1f}, n = {mean.n})"


def _uniform(alphas: Iterable[int], **fields: Any) -> list[Point]:
    return [Point(noise=Noise(alpha=alpha), **fields) for alpha in alphas]


# Uniform noise ------------------------------------------------------------------------------------------------------


def uniform_small(dataset: str, scale: Scale) -> list[Point]:
    """Five nets against α on digits, the learning rate chosen for every net and α."""
    alphas = scale.pick((0, 2), (0, 5, 10, 20, 50, 100), (0, 5, 10, 20, 30, 50, 70, 100))
    models = scale.pick(("perceptron", "conv2"), SMALL_NETS, SMALL_NETS)
    return [point for model in models for point in _uniform(alphas, model=model, rate=AUTO_RATE)]


def _ordering(rows: list[Row]) -> Finding:
    alphas = {alpha for alpha in {row["alpha"] for row in rows} if alpha}
    models = {row["model"] for row in rows}
    if not alphas or not {"perceptron", "conv4"} <= models or not any(m.startswith("mlp") for m in models):
        return NOT_RUN
    told, right = [], []
    for alpha in sorted(alphas):
        of = {model: curve(where(rows, model=model))[alpha].value for model in SMALL_NETS if model in models}
        mlps = [value for model, value in of.items() if model.startswith("mlp")]
        right.append(of["perceptron"] < min(mlps) and max(mlps) < of["conv4"])
        told.append(f"α = {alpha}: " + ", ".join(f"{model} {percent(value)}" for model, value in of.items()))
    return Finding("; ".join(told), verdict(all(right), in_part=any(right)))


def _ninety_at_hundred(rows: list[Row]) -> Finding:
    found = curve(where(rows, model="conv4", alpha=100))
    if 100 not in found:
        return NOT_RUN
    clean = max(row["clean"] for row in rows)
    reached = verdict(found[100].value > 0.9) if clean >= 50_000 else "not run"
    return Finding(f"{spread(found[100])} with {clean:,} clean labels", reached)


def uniform_cifar(dataset: str, scale: Scale) -> list[Point]:
    """Three nets against α on CIFAR-10."""
    alphas = scale.pick((0, 1), (0, 5, 10), (0, 1, 2, 4, 6, 8, 10))
    models = scale.pick(("conv4",), ("conv4", "conv6"), ("conv4", "conv6", "cifar_resnet18"))
    return [point for model in models for point in _uniform(alphas, model=model, rate=AUTO_RATE)]


def _resnet_at_ten(rows: list[Row]) -> Finding:
    found = curve(where(rows, model="cifar_resnet18", alpha=10))
    return Finding(spread(found[10]), verdict(found[10].value > 0.8)) if found else NOT_RUN


def uniform_imagenet(dataset: str, scale: Scale) -> list[Point]:
    """ResNet-18 against α on ImageNet, cosine schedule, SGD, batch 1024."""
    alphas = scale.pick((0, 1), (0, 5), (0, 1, 2, 3, 4, 5))
    settings = {"optimizer": "sgd", "lr": 0.4, "weight_decay": 1e-4, "schedule": "cosine", "ema": 0.0, "batch": 1024}
    small = {"optimizer": "sgd", "lr": 0.02, "batch": 32, "ema": 0.0}
    model = scale.pick("conv2", "resnet18", "resnet18")
    return _uniform(alphas, model=model, settings=scale.pick(small, small, settings))


def _imagenet_at_five(rows: list[Row]) -> Finding:
    top1, top5 = (curve(where(rows, alpha=5, model="resnet18"), y=y) for y in ("top1_last", "top5_last"))
    if 5 not in top1 or max(row["clean"] for row in rows) < 10**6:
        return NOT_RUN
    return Finding(f"top-1 {spread(top1[5])}, top-5 {spread(top5[5])}", verdict(top5[5].value > 0.65))


# Structure and source of noise --------------------------------------------------------------------------------------


def structured(dataset: str, scale: Scale) -> list[Point]:
    """Three orders of the false classes against δ at α = 20.

    Deviates: the paper has four layers of convolutions, scale cpu two. It does not say which confusion matrix orders
    the classes: here that of a net trained on clean labels, over held-out training images.
    """
    deltas = scale.pick((0.0, 1.0), (0.0, 0.4, 0.6, 0.8, 1.0), tuple(n / 10 for n in range(11)))
    orders = scale.pick(("random",), ("confusing", "reverse", "random"), ("confusing", "reverse", "random"))
    model = scale.pick("perceptron", "conv2", "conv4")
    return [
        Point(noise=Noise(alpha=20, law="structured", order=order, delta=delta), model=model)
        for order in orders
        for delta in deltas
    ]


def _harmless_to_06(rows: list[Row]) -> Finding:
    told, right = [], []
    for order in sorted({row["order"] for row in rows}):
        found = curve(where(rows, order=order), x="delta")
        if not {0.0, 0.6, 1.0} <= found.keys():
            return NOT_RUN
        worst = max(found[0.0].value - mean.value for delta, mean in found.items() if delta <= 0.6)
        at_one = found[0.0].value - found[1.0].value
        told.append(f"{order}: at most {100 * worst:.1f} points lost up to δ = 0.6, {100 * at_one:.1f} at δ = 1")
        right += [worst < HARMLESS, at_one > HARMLESS]
    return Finding("; ".join(told), verdict(all(right), in_part=any(right))) if told else NOT_RUN


def _confusing_order_best(rows: list[Row]) -> Finding:
    of = {order: curve(where(rows, order=order, delta=1.0), x="delta") for order in ("confusing", "reverse", "random")}
    if not all(of.values()):
        return NOT_RUN
    means = {order: found[1.0] for order, found in of.items()}
    told = ", ".join(f"{order} {spread(mean)}" for order, mean in means.items())
    best = max(means, key=lambda order: means[order].value)
    return Finding(f"δ = 1: {told}", verdict(best == "confusing"))


SOURCES: Final = {
    "fashion_mnist": "mnist5k",
    "mnist5k": "fashion_mnist",
    "mnist": "fashion_mnist",
    "cifar10": "cifar100",
}


def source_of_noise(dataset: str, scale: Scale) -> list[Point]:
    """Noise on the set's own images, on another set's, on white noise.

    Deviates: the net and the range of α are from memory of the paper; scale cpu takes 10,000 clean images, two layers
    of convolutions and the set that Debian has.
    """
    alphas = scale.pick((2,), (5, 10, 20), (1, 2, 4, 6, 8, 10))
    fields: dict[str, Any] = {
        "model": scale.pick("perceptron", "conv2", "conv6"),
        "clean": scale.pick(200, 10_000, None),
    }
    if dataset == "mnist5k":
        fields["clean"] = scale.pick(200, None, None)
    points = _uniform((0, *alphas), **fields)
    points += [Point(noise=Noise(alpha=a, law="foreign", foreign=SOURCES[dataset]), **fields) for a in alphas]
    return points + [Point(noise=Noise(alpha=a, law="white"), **fields) for a in alphas]


def _source_drops(rows: list[Row]) -> dict[str, float]:
    alpha = max((row["alpha"] for row in rows), default=0)
    clean = curve(where(rows, alpha=0))
    found = {law: curve(where(rows, law=law, alpha=alpha)) for law in ("uniform", "foreign", "white")}
    if not alpha or not clean or not all(found.values()):
        return {}
    return {law: clean[0].value - found[law][alpha].value for law in found}


def _foreign_costs_half(rows: list[Row]) -> Finding:
    drops = _source_drops(rows)
    if not drops:
        return NOT_RUN
    share = drops["foreign"] / drops["uniform"] if drops["uniform"] else math.nan
    told = f"{100 * drops['foreign']:.1f} points lost against {100 * drops['uniform']:.1f}: a share of {share:.2f}"
    return Finding(told, verdict(0.3 < share < 0.7, in_part=share <= 0.3))


def _white_costs_nothing(rows: list[Row]) -> Finding:
    drops = _source_drops(rows)
    if not drops:
        return NOT_RUN
    return Finding(f"{100 * drops['white']:.1f} points lost", verdict(drops["white"] < HARMLESS))


# Clean labels -------------------------------------------------------------------------------------------------------

TARGETS: Final = (0.8, 0.85, 0.9)


def clean_labels(dataset: str, scale: Scale) -> list[Point]:
    """Accuracy against the number of clean labels, at several α."""
    numbers = scale.pick(
        (200, 400), (250, 500, 1_000, 2_000, 4_000), (500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000)
    )
    alphas = scale.pick((0, 2), (0, 5, 10, 20, 50), (0, 5, 10, 20, 50, 100))
    model = scale.pick("perceptron", "conv2", "conv4")
    return [point for clean in numbers for point in _uniform(alphas, clean=clean, model=model)]


def needed(rows: list[Row], target: float) -> dict[int, float]:
    """Return, for every α above 0, how many clean labels reach an accuracy.

    Between two numbers that were run, accuracy is taken to be linear in the logarithm of the number; an α whose numbers
    do not enclose the target is left out.
    """
    found = {}
    for alpha in sorted({row["alpha"] for row in rows} - {0}):
        means = [(n, mean.value) for n, mean in curve(where(rows, alpha=alpha), x="clean").items()]
        for (below, low), (above, high) in pairwise(means):
            if low < target <= high:
                share = (target - low) / (high - low)
                found[alpha] = math.exp(math.log(below) + share * math.log(above / below))
                break
    return found


def _linear_in_alpha(rows: list[Row]) -> Finding:
    told, right = [], []
    for target in TARGETS:
        found = needed(rows, target)
        if len(found) < 3:
            continue
        alphas, numbers = np.array([*found]), np.array([*found.values()])
        slope, base = line_through(found)
        explained = 1 - ((numbers - slope * alphas - base) ** 2).sum() / ((numbers - numbers.mean()) ** 2).sum()
        right.append(explained > 0.9)
        told.append(f"{percent(target)}: {base:.0f} + {slope:.0f}·α (R² = {explained:.3f}, {len(found)} values of α)")
    return Finding("; ".join(told), verdict(all(right), in_part=any(right))) if told else NOT_RUN


def _steeper_for_higher(rows: list[Row]) -> Finding:
    slopes = {t: line_through(f)[0] for t in TARGETS if len(f := needed(rows, t)) >= 2}
    if len(slopes) < 2:
        return NOT_RUN
    told = ", ".join(f"{percent(target)}: {slope:.0f} labels a unit of α" for target, slope in slopes.items())
    return Finding(told, verdict(sorted(slopes.values()) == [*slopes.values()]))


# Batch size and learning rate ---------------------------------------------------------------------------------------

RATES: Final = (3e-4, 1e-3, 3e-3)


def batch_and_rate(dataset: str, scale: Scale) -> list[Point]:
    """Every batch size with every learning rate, at several α; the limit and the histogram beside them.

    The same number of examples for all points of an α. Also what `--batch auto --lr auto` rests on.
    """
    alphas = scale.pick((0, 2), (0, 5, 20, 50), (0, 5, 10, 20, 50))
    batches = scale.pick((32, 128), (32, 128, 512, 2_048), (32, 64, 128, 256, 1_024, 4_096))
    rates = scale.pick((1e-3,), RATES, (1e-4, *RATES))
    fields: dict[str, Any] = {
        "model": scale.pick("perceptron", "conv2", "conv2"),
        "clean": scale.pick(200, 2_000, None),
    }
    points = [
        point
        for batch in batches
        for rate in rates
        for point in _uniform(alphas, rate=rate, settings={"batch": batch}, **fields)
        if batch <= (1 - VAL_FRAC) * (fields["clean"] or math.inf) * (1 + point.noise.alpha)
    ]
    return points + [p for method in ("h_alpha", "histogram") for p in _uniform(alphas, method=method, **fields)]


def learning_rates(dataset: str, scale: Scale) -> list[Point]:
    """Learning rates against α at one batch size: a part of the runs of `batch_and_rate`."""
    batch = scale.pick(128, 512, 256)
    points = batch_and_rate(dataset, scale)
    return [point for point in points if point.method == "plain" and point.settings["batch"] == batch]


def best_rate_rows(rows: list[Row]) -> list[Row]:
    """Keep, of every α and batch size, the rows of the learning rate with the lowest noisy validation loss."""
    kept = where(rows, method=("h_alpha", "histogram"))
    for batch in sorted({row["batch"] for row in where(rows, method="plain")}):
        of_batch = where(rows, method="plain", batch=batch)
        kept += [row for found in best_curve(of_batch, by=lambda row: row["lr"]).values() for row in found]
    return kept


def _larger_batch_better(rows: list[Row]) -> Finding:
    told, right = [], []
    for alpha in sorted({row["alpha"] for row in rows} - {0}):
        found = curve(where(best_rate_rows(rows), alpha=alpha, method="plain"), x="batch")
        values = [mean.value for mean in found.values()]
        if len(values) < 2:
            return NOT_RUN
        told.append(f"α = {alpha}: " + ", ".join(f"{batch:g} {percent(m.value)}" for batch, m in found.items()))
        right.append(max(values) - values[-1] < 0.005 and values[-1] > values[0])
    return Finding("; ".join(told), verdict(all(right), in_part=any(right))) if told else NOT_RUN


def _limit_is_flat(rows: list[Row]) -> Finding:
    limit = curve(where(rows, method="h_alpha"))
    plain = curve(where(best_rate_rows(rows), method="plain"))
    if len(limit) < 2 or not plain:
        return NOT_RUN
    last = max(limit)
    told = f"from α = 0 to {last:g} H_α goes from {spread(limit[0])} to {spread(limit[last])}"
    return Finding(told, verdict(limit[0].value - limit[last].value < HARMLESS))


def _best_rate_falls(rows: list[Row]) -> Finding:
    found = best_curve(where(rows, method="plain"), by=lambda row: row["lr"])
    if len(found) < 2:
        return NOT_RUN
    rates = [group[0]["lr"] for group in found.values()]
    told = ", ".join(f"α = {alpha:g}: {rate:g}" for alpha, rate in zip(found, rates, strict=True))
    falls = sorted(rates, reverse=True) == rates and rates[0] > rates[-1]
    return Finding(f"lowest noisy validation loss at {told}", verdict(falls, in_part=len(set(rates)) == 1))


# Noise scale and schedules: ours ------------------------------------------------------------------------------------


def noise_scales(dataset: str, scale: Scale) -> list[Point]:
    """Noise scale and gradient cosine at the initial weights and over a run; schedules beside each other.

    The initial weights are kept by a learning rate of 0, with a probe at every step: all probes are one large batch.
    Schedules run without averaged weights, at the batch sizes and noise of the counter-evidence and at α = 20.
    """
    alphas = scale.pick((0, 2), (0, 5, 10, 20, 50), (0, 5, 10, 20, 50))
    model, clean = scale.pick("perceptron", "conv2", "conv2"), scale.pick(200, None, None)
    batch = scale.pick(64, 512, 512)
    still = {
        "batch": batch,
        "log_every": batch,
        "examples": batch * scale.pick(4, 400, 1_000),
        "measure": "noise-scale",
    }
    points = _uniform(alphas, model=model, clean=clean, rate=0.0, settings=still, uncut=True)
    moving = {"batch": batch, "log_every": 4 * batch, "measure": "noise-scale"}
    points += _uniform(alphas, model=model, clean=clean, settings=moving)
    for schedule in ("constant", "cosine"):
        for size in scale.pick((32,), (32, 128, 512), (32, 128, 512)):
            settings = {"batch": size, "schedule": schedule, "ema": 0.0}
            points += _uniform((0, 1, 20), model=model, clean=clean, rate=AUTO_RATE, settings=settings)
    return points


def _scale_grows_squared(rows: list[Row]) -> Finding:
    found = curve(where(rows, lr=0.0), y="noise_scale")
    if len(found) < 2 or 0 not in found:
        return NOT_RUN
    ratios = {a: m.value / found[0].value for a, m in found.items() if a}
    told = ", ".join(f"α = {a:g}: {r:.3g} × that of α = 0, (1+α)² = {(1 + a) ** 2:g}" for a, r in ratios.items())
    right = [0.5 < ratio / (1 + alpha) ** 2 < 2 for alpha, ratio in ratios.items()]
    return Finding(told, verdict(all(right), in_part=any(right)))


def _best_batch_under(schedule: str, rows: list[Row]) -> dict[float, int]:
    found = best_curve(where(rows, schedule=schedule, ema=0.0, rate=("chosen", "carried")), by=lambda row: row["batch"])
    return {alpha: group[0]["batch"] for alpha, group in found.items()}


def _schedules(rows: list[Row]) -> Finding:
    constant, cosine = (_best_batch_under(schedule, rows) for schedule in ("constant", "cosine"))
    if not {0, 20} <= constant.keys() or not {0, 20} <= cosine.keys():
        return NOT_RUN
    told = "; ".join(
        f"{name}: " + ", ".join(f"α = {alpha:g}: {batch}" for alpha, batch in best.items())
        for name, best in (("constant", constant), ("cosine", cosine))
    )
    up, down = constant[20] >= constant[0], cosine[20] < cosine[0]
    return Finding(f"batch with the lowest noisy validation loss: {told}", verdict(up and down, in_part=up or down))


# Digits -------------------------------------------------------------------------------------------------------------


def digits(dataset: str, scale: Scale) -> list[Point]:
    """Real digits, all clean images, recipes as they are (train/recipes.py says how they were chosen)."""
    everything: dict[str, Any] = {"settings": {"val_frac": 0.0}, "uncut": scale.name != "smoke"}
    return [
        Point(noise=Noise(alpha=20), clean=4_000, method="histogram", **everything),
        Point(noise=Noise(alpha=10), clean=2_000, method="plain", **everything),
    ]


def massive(dataset: str, scale: Scale) -> list[Point]:
    """4,000 clean labels among 20, 50 and 100 times as many random ones, by four methods."""
    alphas = scale.pick((20,), (20, 50, 100), (20, 50, 100))
    uncut = scale.name != "smoke"
    images: dict[str, Any] = {"settings": {"val_frac": 0.0}, "uncut": uncut}
    points = [
        p
        for method in ("marginal", "histogram", "h_alpha")
        for p in _uniform(alphas, clean=4_000, method=method, **images)
    ]
    most = scale.pick(1_024, 300_000, 5_000_000)
    for batch in (512, 4_096):
        settings = {"val_frac": 0.0, "batch": batch, "examples": most}
        points += _uniform(alphas, clean=4_000, settings=settings, uncut=uncut)
    return points


def _moonshot(rows: list[Row]) -> Finding:
    at = where(rows, alpha=50, clean=4_000)
    found = {m: curve(where(at, method=m)) for m in ("marginal", "histogram", "plain", "h_alpha")}
    told = ", ".join(f"{method} {spread(mean[50])}" for method, mean in found.items() if mean)
    blind = [found[method][50].value for method in ("marginal", "histogram", "plain") if found[method]]
    return Finding(told, verdict(max(blind) >= 0.9)) if blind else NOT_RUN


# The menu -----------------------------------------------------------------------------------------------------------

FIGURES: Final[dict[str, Figure]] = {
    "fig1": Figure(
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
                "A conv net stays above 90 % at α = 100 with all clean labels of MNIST.",
                "> 90 % (as read); 91 % (from memory)",
                _ninety_at_hundred,
            ),
        ),
        protocol="Learning rate chosen on noisy validation for every net and α.",
    ),
    "fig2": Figure(
        title="Uniform noise on CIFAR-10: conv4, conv6, ResNet-18",
        datasets=("cifar10", "cifar10"),
        points=uniform_cifar,
        panels=(Panel(),),
        claims=(Claim("ResNet-18 keeps most of its accuracy at α = 10.", "85 % (from memory)", _resnet_at_ten),),
        protocol="Learning rate chosen on noisy validation for every net and α.",
    ),
    "fig3": Figure(
        title="Uniform noise on ImageNet: ResNet-18",
        datasets=("imagenet", "imagenet"),
        points=uniform_imagenet,
        panels=(Panel(), Panel(y="top5_last", ylabel="top-5 test accuracy, last")),
        claims=(
            Claim("ResNet-18 still learns at α = 5.", "about 70 % (from memory, top-1 or top-5)", _imagenet_at_five),
        ),
        protocol="SGD with cosine schedule, batch 1024, peak rate 0.4; the length is that of the plain recipe.",
    ),
    "fig4": Figure(
        title="Structured noise, α = 20: three orders of the false classes",
        datasets=("mnist5k", "mnist"),
        points=structured,
        panels=(Panel(x="delta", xlabel="degree of structure, δ", series=("order",)),),
        claims=(
            Claim(
                "Structure is harmless up to about δ = 0.6; accuracy falls towards δ = 1.", "as read", _harmless_to_06
            ),
            Claim("The order matters little, the confusing one is slightly better.", "as read", _confusing_order_best),
        ),
        protocol="False classes are ordered by the confusion matrix of a net trained on clean labels, over held-out "
        "training images; the ramp of their shares is our reconstruction. Fixed recipe.",
    ),
    "fig5": Figure(
        title="Source of noise: own images, another set's, white noise",
        datasets=("fashion_mnist", "cifar10"),
        points=source_of_noise,
        panels=(Panel(series=("law",)),),
        claims=(
            Claim(
                "Noise on another set's images costs half of what noise on the own images costs.",
                "half (as read)",
                _foreign_costs_half,
            ),
            Claim("White noise costs almost nothing.", "second hand", _white_costs_nothing),
        ),
        protocol="On Fashion-MNIST the other set is MNIST's digits; white noise has the set's mean and deviation. "
        "Fixed recipe.",
    ),
    "fig6": Figure(
        title="Accuracy against the number of clean labels",
        datasets=("mnist5k", "mnist"),
        points=clean_labels,
        panels=(Panel(x="clean", xlabel="clean labels", series=("alpha",), log="x"),),
        claims=(),
        protocol="A tenth of the clean labels is held out for noisy validation. Fixed recipe, at scale cpu cut at "
        "300,000 examples: 1.6 passes over the largest set at α = 50.",
    ),
    "fig7": Figure(
        title="Clean labels needed for an accuracy",
        datasets=("mnist5k", "mnist"),
        points=clean_labels,
        panels=(),
        claims=(
            Claim("The number needed grows linearly in α.", "about 200·α for 90 % (derived)", _linear_in_alpha),
            Claim("It grows faster for a higher accuracy.", "second hand", _steeper_for_higher),
        ),
        protocol="Read off the runs of fig6, accuracy linear in the logarithm of the number between two runs.",
        fits=lambda rows: {percent(target): needed(rows, target) for target in TARGETS},
    ),
    "fig8": Figure(
        title="Batch size, and its infinite limit",
        datasets=("mnist5k", "mnist"),
        points=batch_and_rate,
        panels=(Panel(series=("method", "batch"), select=best_rate_rows),),
        claims=(
            Claim("Larger batches are better under noise.", "32 to 256 (as read)", _larger_batch_better),
            Claim("H_α, the limit of infinite batches, stays almost flat.", "as read", _limit_is_flat),
        ),
        protocol="For every batch size and α the learning rate with the lowest noisy validation loss, mean of all "
        "seeds; the same number of examples for all. h_alpha reads the clean labels; it and histogram count images.",
    ),
    "fig9": Figure(
        title="Learning rate",
        datasets=("mnist5k", "cifar10"),
        points=learning_rates,
        panels=(Panel(series=("lr",)),),
        claims=(Claim("The best learning rate falls as noise rises.", "as read", _best_rate_falls),),
        protocol="One batch size; runs shared with fig8. The paper's figure is on CIFAR-10.",
    ),
    "fig10": Figure(
        title="Noise scale, gradient cosine, schedules (ours)",
        datasets=("mnist5k", "mnist"),
        points=noise_scales,
        panels=(
            Panel(
                y="noise_scale",
                ylabel="simple noise scale (examples)",
                series=("lr",),
                log="y",
                references={"(1+α)² × that of α = 0": lambda alpha, first: first * (1 + alpha) ** 2},
            ),
            Panel(y="clean_noisy_cosine", ylabel="cosine of right and wrong labels' gradients", series=("lr",)),
            Panel(
                x="batch",
                xlabel="batch (examples)",
                series=("schedule", "alpha"),
                select=lambda rows: where(rows, rate=("chosen", "carried")),
                log="x",
            ),
        ),
        claims=(
            Claim(
                "The effective batch is B/(1+α)²: the noise scale grows with (1+α)².",
                "derived from the paper's argument",
                _scale_grows_squared,
            ),
            Claim(
                "With a constant rate larger batches help under noise; with a cosine schedule the best batch falls.",
                "a report on CIFAR-10, ResNet-18, up to 50 % noise (second hand)",
                _schedules,
            ),
        ),
        protocol="A rate of 0 measures at the initial weights. Schedules: no averaged weights, learning rate chosen on "
        "noisy validation.",
    ),
    "digits": Figure(
        title="Real digits: the README's table",
        datasets=("mnist5k", "mnist5k"),
        points=digits,
        panels=(),
        claims=(),
        protocol="All clean images are trained on; settings chosen beforehand on noisy validation.",
    ),
    "massive": Figure(
        title="4,000 clean digits among massive noise",
        datasets=("mnist5k", "mnist5k"),
        points=massive,
        panels=(Panel(series=("method", "batch")),),
        claims=(Claim("4,000 clean labels are enough for 90 % at α = 50.", "10,000 are needed (as read)", _moonshot),),
        protocol="All clean images are trained on, recipes as they are, but plain has 300,000 examples.",
    ),
    "quadratic-law": QUADRATIC_LAW,
}
