"""The figure of Co-teaching: label precision of what is kept, and test accuracy, against the epoch."""

from __future__ import annotations

from typing import Any, Final

from train.figures.points import HARMLESS, VAL_FRAC, Claim, Figure, Finding, Noise, Panel, Point, Scale, summed_up
from train.figures.rows import Row, along, by_noise, where
from train.outcome import percent

NOISES: Final = (("symmetric", 0.5), ("symmetric", 0.2), ("pair", 0.45))


def coteaching(dataset: str, scale: Scale) -> list[Point]:
    """Plain and Co-teaching by the same settings: Adam, a rate that falls to 0, no augmentation, no decay.

    Deviates: the paper trains nine convolutions on whole sets for 200 epochs; scale cpu takes 10,000 images, two layers
        of convolutions and 20 epochs.
    """
    clean, epochs = scale.pick(400, 10_000, 50_000), scale.pick(4, 20, 200)
    if dataset == "mnist5k":
        clean = min(clean, 4_000)
    epoch = round((1 - VAL_FRAC) * clean)
    settings: dict[str, Any] = {
        **{"optimizer": "adamw", "weight_decay": 0.0, "schedule": "coteaching", "warmup_frac": 0.0, "ema": 0.0},
        **{"batch": scale.pick(32, 128, 128), "examples": epochs * epoch, "eval_every": epoch},
    }
    return [
        Point(
            noise=Noise(alpha=0, law=law, flip_rate=rate),
            model=scale.pick("mlp1", "conv2", "cnn9"),
            method=method,
            clean=clean,
            rate=1e-3,
            settings=settings,
            uncut=True,
            augment=False,
            curves=True,
        )
        for law, rate in scale.pick(NOISES[:1], NOISES, NOISES)
        for method in ("plain", "coteaching")
    ]


def _precision_rises(rows: list[Row]) -> Finding:
    told, right = [], []
    for noise, found in by_noise(where(rows, method="coteaching"), NOISES, "label_precision").items():
        first, *_, last = found.values()
        told.append(f"{noise}: {percent(first)} in the first epoch, {percent(last)} in the last")
        right.append(last > first and max(found.values()) - last < HARMLESS)
    return summed_up(told, right)


def _lost(found: dict[float, float]) -> float:
    """Return how far the last accuracy is below the best."""
    *_, last = found.values()
    return max(found.values()) - last


def _plain_falls(rows: list[Row]) -> Finding:
    told, right = [], []
    for noise, found in by_noise(where(rows, method="plain"), NOISES, "top1").items():
        best = max(found, key=lambda epoch: found[epoch])
        *_, last = found
        told.append(f"{noise}: {percent(found[best])} after epoch {best:.0f}, {percent(found[last])} after {last:.0f}")
        right.append(_lost(found) > HARMLESS)
    return summed_up(told, right)


def _falls_less(rows: list[Row]) -> Finding:
    told, right = [], []
    kept = by_noise(where(rows, method="coteaching"), NOISES, "top1")
    for noise, found in by_noise(where(rows, method="plain"), NOISES, "top1").items():
        if noise in kept:
            told.append(f"{noise}: {100 * _lost(kept[noise]):.1f} points lost against {100 * _lost(found):.1f}")
            right.append(_lost(kept[noise]) < _lost(found))
    return summed_up(told, right)


COTEACHING: Final = Figure(
    title="Co-teaching: accuracy and label precision against the epoch",
    datasets=("fashion_mnist", "cifar10"),
    points=coteaching,
    panels=(
        Panel(
            y="value",
            ylabel="top-1 test accuracy",
            x="at",
            xlabel="epochs",
            series=("method", "law", "flip_rate"),
            select=lambda rows: along(rows, "top1"),
        ),
        Panel(
            y="value",
            ylabel="label precision of what is kept",
            x="at",
            xlabel="epochs",
            series=("law", "flip_rate"),
            select=lambda rows: along(rows, "label_precision"),
        ),
    ),
    claims=(
        Claim(
            "Label precision of what Co-teaching keeps rises, and does not fall again.",
            "curves (from memory)",
            _precision_rises,
        ),
        Claim(
            "Plain training is best early and loses accuracy as it memorises wrong labels.",
            "curves (from memory)",
            _plain_falls,
        ),
        Claim(
            "Co-teaching loses less of its best accuracy than plain training.",
            "its last accuracy at symmetric .5 / .2 / pair .45: MNIST 91.7 / 97.7 / 87.6 %, CIFAR-10 74.5 / 82.2 / "
            "72.9 % (the authors' README)",
            _falls_less,
        ),
    ),
    protocol="Han et al. 2018. The same settings for both methods, without augmentation; the share that is left out "
    "grows to the share of wrong labels in ten epochs. Label precision is that of an epoch's batches, over both nets.",
)
