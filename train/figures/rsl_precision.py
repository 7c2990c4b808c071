"""The figure of RSL's label precision against the amount of data."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Final

from train.figures.points import NOT_RUN, VAL_FRAC, Claim, Figure, Finding, Noise, Panel, Point, Scale, verdict
from train.figures.rows import Row, along, curve, spread

QUARTERS: Final = (1, 2, 3, 4)
PUBLISHED: Final = {0.25: 0.908, 0.5: 0.937, 0.75: 0.949, 1.0: 0.955}  # CIFAR-10, from a review of the paper
NOISE: Final = ("symmetric-inclusive", 0.5)


def rsl_precision(dataset: str, scale: Scale) -> list[Point]:
    """RSL on a quarter, a half, three quarters and all of the images; one draw of labels in two, of any class.

    Deviates: the paper trains a wide ResNet on CIFAR-10 for 200 epochs; scale cpu takes 10,000 images, two layers of
        convolutions and 20 epochs.
    """
    most, epochs = scale.pick(400, 10_000, 50_000), scale.pick(5, 20, 200)
    if dataset == "mnist5k":
        most = min(most, 4_000)
    settings: dict[str, Any] = {"batch": scale.pick(32, 128, 128), "weight_decay": 5e-4, "ema": 0.0, "select": "rsl"}
    return [
        Point(
            noise=Noise(alpha=0, law=NOISE[0], flip_rate=NOISE[1]),
            model=scale.pick("mlp1", "conv2", "conv4"),
            clean=clean,
            rate=1e-3,
            settings={**settings, "examples": round(epochs * (1 - VAL_FRAC) * clean)},
            uncut=True,
            curves=True,
        )
        for clean in (most * quarter // 4 for quarter in QUARTERS)
    ]


def by_share(rows: list[Row]) -> list[Row]:
    """Add to every row which share of the largest number of images it has, `share`."""
    most = max((row["clean"] for row in rows), default=0)
    return [{**row, "share": row["clean"] / most} for row in rows]


def _rises(rows: list[Row]) -> Finding:
    means = curve(along(rows, "label_precision"), x="clean", y="value")
    if len(means) < len(QUARTERS):
        return NOT_RUN
    told = ", ".join(f"{clean:,} images {spread(mean)}" for clean, mean in means.items())
    values = [mean.value for mean in means.values()]
    return Finding(told, verdict(all(a < b for a, b in pairwise(values)), in_part=values[0] < values[-1]))


RSL_PRECISION: Final = Figure(
    title="RSL: label precision against the amount of data",
    datasets=("fashion_mnist", "cifar10"),
    points=rsl_precision,
    panels=(
        Panel(
            y="value",
            ylabel="label precision of what is selected",
            x="share",
            xlabel="share of the images",
            series=("law", "flip_rate"),
            select=lambda rows: along(by_share(rows), "label_precision"),
            published={NOISE: PUBLISHED},
        ),
        Panel(x="share", xlabel="share of the images", series=("law", "flip_rate"), select=by_share),
    ),
    claims=(
        Claim(
            "The more data there is, the more of the labels that small losses select are right.",
            "label precision .908/.937/.949/.955 with 1/4, 1/2, 3/4 and all of the data (second hand)",
            _rises,
        ),
    ),
    protocol="Gui et al. 2021 (RSL). Uniform noise of 0.5, which draws the true class too: 45 % of the labels are "
    "wrong. A tenth of the images is held out. All selections train for the same number of epochs; the accuracy is "
    "that of a net that then sees as many examples of what was selected.",
)
