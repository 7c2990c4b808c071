"""Figures of the README's tables: recipes as they are, on real digits."""

from __future__ import annotations

from typing import Any, Final

from train.figures.points import NOT_RUN, Claim, Figure, Finding, Noise, Panel, Point, Scale, uniform_points, verdict
from train.figures.rows import Row, curve, spread, where
from train.measured import best_rate


def digits(dataset: str, scale: Scale) -> list[Point]:
    """Real digits, all clean images, recipes as they are (train/recipes.py says how they were chosen)."""
    everything: dict[str, Any] = {"settings": {"val_frac": 0.0}, "uncut": scale.name != "smoke"}
    return [
        Point(noise=Noise(alpha=20), clean=4_000, method="histogram", **everything),
        Point(noise=Noise(alpha=10), clean=2_000, method="plain", **everything),
    ]


def massive(dataset: str, scale: Scale) -> list[Point]:
    """4,000 clean labels among 20, 50 and 100 times as many random ones, by four methods.

    Plain training has the net of `fig8` and the rates that it chose on noisy validation, by noise and batch: four
    layers of convolutions learn nothing at α = 50 (fig1). The others have both nets.
    """
    alphas = scale.pick((20,), (20, 50, 100), (20, 50, 100))
    uncut = scale.name != "smoke"
    images: dict[str, Any] = {"settings": {"val_frac": 0.0}, "uncut": uncut}
    points = uniform_points(alphas, clean=4_000, method="h_alpha", **images)
    for model in ("conv4", "conv2"):
        for method in ("marginal", "histogram"):
            points += uniform_points(alphas, clean=4_000, method=method, model=model, **images)
    most = scale.pick(1_024, 300_000, 5_000_000)
    for batch in (512, 4_096):
        settings = {"val_frac": 0.0, "batch": batch, "examples": most}
        points += [
            Point(
                noise=Noise(alpha=alpha),
                model="conv2",
                clean=4_000,
                rate=best_rate(alpha, batch),
                settings=settings,
                uncut=uncut,
            )
            for alpha in alphas
        ]
    return points


def _moonshot(rows: list[Row]) -> Finding:
    at = where(rows, alpha=50, clean=4_000)
    found = {
        f"{method}, {model}, batch {batch:,}": curve(where(at, method=method, model=model, batch=batch))
        for method, model, batch in {(row["method"], row["model"], row["batch"]): 0 for row in at}
    }
    told = ", ".join(f"{name} {spread(mean[50])}" for name, mean in found.items())
    blind = [mean[50].value for name, mean in found.items() if not name.startswith("h_alpha")]
    return Finding(told, verdict(max(blind) >= 0.9)) if blind else NOT_RUN


DIGITS: Final = Figure(
    title="Real digits: the README's table",
    datasets=("mnist5k", "mnist5k"),
    points=digits,
    panels=(),
    claims=(),
    protocol="All clean images are trained on; settings chosen beforehand on noisy validation.",
)


MASSIVE: Final = Figure(
    title="4,000 clean digits among massive noise",
    datasets=("mnist5k", "mnist5k"),
    points=massive,
    panels=(Panel(series=("method", "model", "batch")),),
    claims=(Claim("4,000 clean labels are enough for 90 % at α = 50.", "10,000 are needed (as read)", _moonshot),),
    protocol="All clean images are trained on, recipes as they are, which were chosen for conv4; but plain has 300,000 "
    "examples and the rate that fig8 chose on noisy validation for its α and batch (of the nearest that it has).",
)
