"""The figure of the quadratic law: how nets agree with noisy labels that they have not seen."""

from __future__ import annotations

from typing import Any, Final

from train.figures.points import NOT_RUN, Claim, Figure, Finding, Noise, Panel, Point, Scale, summed_up, verdict
from train.figures.rows import Row, curve, where

CLOSE: Final = 0.05  # a deviation from the law below this is called none
FITS: Final = 0.98  # share of its own labels that a net must predict for the law to be about it
SHOWN: Final = {"unseen": "last weights", "early": "best on unseen labels", "law": "law, (C·T)_ij T_ij"}


def agreement(dataset: str, scale: Scale) -> list[Point]:
    """Symmetric and pair noise at several rates; 60 passes over half of the images without augmentation.

    Deviates: the paper trains a ResNet-110 on half of CIFAR-10 for 200 epochs; scale cpu takes 10,000 images and two
    hidden layers, which fit 5,000 labels in 60 epochs.
    """
    rates = {
        "symmetric": scale.pick((0.0, 0.4), tuple(n / 10 for n in range(9)), tuple(n / 10 for n in range(10))),
        "pair": scale.pick((), (0.1, 0.2, 0.3, 0.4), (0.1, 0.2, 0.3, 0.4, 0.5)),
    }
    clean, epochs = scale.pick(400, 10_000, 50_000), scale.pick(5, 60, 200)
    if dataset == "mnist5k":
        clean = min(clean, 4_000)
    settings: dict[str, Any] = {
        **{"optimizer": "adamw", "weight_decay": 0.0, "schedule": "cosine", "ema": 0.0, "batch": 128, "val_frac": 0.0},
        "examples": epochs * clean // 2,
    }
    return [
        Point(
            noise=Noise(alpha=0, law=law, flip_rate=rate),
            model=scale.pick("perceptron", "mlp2", "conv4"),
            clean=clean,
            rate=1e-3,
            settings=settings,
            uncut=True,
            unseen=True,
        )
        for law, some in rates.items()
        for rate in some
    ]


def lines_of(what: str, rows: list[Row]) -> list[Row]:
    """Return a row for every line of a panel: what the weights do, and what the law says.

    Args:
        what: "accuracy", "precision" or "recall".
        rows: Of the runs.
    """
    return [{**row, "line": label, "value": row[f"{who}_{what}"]} for who, label in SHOWN.items() for row in rows]


def _panel(what: str, ylabel: str) -> Panel:
    return Panel(
        y="value",
        ylabel=ylabel,
        x="flip_rate",
        xlabel="share of wrong labels",
        series=("law", "line"),
        select=lambda rows: lines_of(what, rows),
    )


def _follows(rows: list[Row]) -> Finding:
    told, close = [], []
    for law in sorted({row["law"] for row in rows}):
        fitted = [row for row in where(rows, law=law) if row["fitted"] >= FITS]
        found, said = (curve(fitted, x="flip_rate", y=f"{who}_accuracy") for who in ("unseen", "law"))
        if len(found) < 3:
            continue
        away = {rate: mean.value - said[rate].value for rate, mean in found.items()}
        worst = max(away, key=lambda rate: abs(away[rate]))
        left_out = len(curve(where(rows, law=law), x="flip_rate", y="fitted")) - len(found)
        told.append(
            f"{law}, {len(found)} rates: largest deviation {100 * away[worst]:+.1f} points, at {worst:g}"
            + (f" ({left_out} rates left out, where the net fits fewer than 98 % of its labels)" if left_out else "")
        )
        close.append(abs(away[worst]) < CLOSE)
    return summed_up(told, close)


def _precise(rows: list[Row]) -> Finding:
    at = where(rows, law="symmetric", flip_rate=0.5)
    if not at:
        return NOT_RUN
    precision, recall = (curve(at, x="flip_rate", y=f"unseen_{what}")[0.5] for what in ("precision", "recall"))
    early = [curve(at, x="flip_rate", y=f"early_{what}")[0.5].value for what in ("precision", "recall")]
    told = (
        f"label precision {precision.value:.3f}, label recall {recall.value:.3f} (n = {precision.n}); "
        f"best on unseen labels {early[0]:.3f}, {early[1]:.3f}"
    )
    return Finding(told, verdict(precision.value > 0.87 and recall.value > 0.45))


QUADRATIC_LAW: Final = Figure(
    title="Agreement with unseen noisy labels, and the quadratic law",
    datasets=("fashion_mnist", "cifar10"),
    points=agreement,
    panels=(
        _panel("accuracy", "accuracy against noisy labels"),
        _panel("precision", "label precision"),
        _panel("recall", "label recall"),
    ),
    claims=(
        Claim(
            "A net that fits its labels agrees with those that it has not seen as a quadratic law of the noise says.",
            "ResNet-110 stays up to 5 points below the law without C (read off a figure)",
            _follows,
        ),
        Claim(
            "Where half of the labels are wrong, 9 in 10 that agree are right, and half of the right ones agree.",
            "label precision .900 by the law, .885 measured; label recall .50, .465 (read off a figure)",
            _precise,
        ),
    ),
    protocol="Chen et al. 2019 (INCV). One half of the images is trained on without augmentation, the other judged. "
    "C is the confusion matrix of a net of the same kind without noise on the other half.",
)
