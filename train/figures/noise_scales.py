"""The figure of noise scale, gradient cosine and schedules, which is ours."""

from __future__ import annotations

from typing import Final

from train.figures.points import (
    AUTO_RATE,
    NOT_RUN,
    UNTOLD,
    Claim,
    Figure,
    Finding,
    Panel,
    Point,
    Scale,
    uniform_points,
    verdict,
)
from train.figures.rows import Row, as_good, curve, shift, where


def noise_scales(dataset: str, scale: Scale) -> list[Point]:
    """Noise scale and gradient cosine at the initial weights and over a run; schedules beside each other.

    The initial weights are kept by a learning rate of 0, with a probe at every step of one pass: all probes are one
    large batch, of which no example comes twice, for a second look at its label would tell nothing of the noise.
    Schedules run without averaged weights, at the batch sizes and noise of the counter-evidence and at α = 20.

    Source: this project, from the argument of Rolnick et al. 2017 (second hand) and a report on CIFAR-10 (second hand).
    Deviates: the report has ResNet-18 and SGD, at most as many wrong labels as right ones; here digits and AdamW.
    Cost: `tools/reproduce fig10`, at scale cpu 73 runs and 0.8 h for one seed, candidates with them, added up, on a
        core of AMD EPYC each.
    """
    alphas = scale.pick((0, 2), (0, 5, 10, 20, 50), (0, 5, 10, 20, 50))
    model, clean = scale.pick("perceptron", "conv2", "conv2"), scale.pick(200, None, None)
    batch = scale.pick(64, 512, 512)
    still = {"batch": batch, "log_every": batch, "epochs": 1.0, "measure": "noise-scale"}
    points = uniform_points(alphas, model=model, clean=clean, rate=0.0, settings=still, uncut=True)
    moving = {"batch": batch, "log_every": 4 * batch, "measure": "noise-scale"}
    points += uniform_points(alphas, model=model, clean=clean, settings=moving)
    for schedule in ("constant", "cosine"):
        for size in scale.pick((32,), (32, 128, 512), (32, 128, 512)):
            settings = {"batch": size, "schedule": schedule, "ema": 0.0}
            points += uniform_points((0, 1, 20), model=model, clean=clean, rate=AUTO_RATE, settings=settings)
    return points


def _scale_grows_squared(rows: list[Row]) -> Finding:
    still = where(rows, lr=0.0)
    found = curve(still, y="noise_scale")
    unresolved = sorted({row["alpha"] for row in still} - found.keys())
    unknown = f"not resolved: |G|² at α = {', '.join(map(str, unresolved))}"
    if len(found) < 2 or 0 not in found:
        return Finding(unknown, "not run") if unresolved else NOT_RUN
    ratios = {a: m.value / found[0].value for a, m in found.items() if a}
    told = ", ".join(f"α = {a:g}: {r:.3g} × that of α = 0, (1+α)² = {(1 + a) ** 2:g}" for a, r in ratios.items())
    right = [0.5 < ratio / (1 + alpha) ** 2 < 2 for alpha, ratio in ratios.items()]
    ours = f"{told}; {unknown}" if unresolved else told
    return Finding(ours, verdict(all(right) and not unresolved, in_part=any(right)))


def _still_first(rows: list[Row]) -> list[Row]:
    """Order rows so that the line that the square is about is the first, which references begin with."""
    return sorted(rows, key=lambda row: bool(row["lr"]))


def _best_batches_under(schedule: str, rows: list[Row]) -> dict[float, list[int]]:
    chosen = where(rows, schedule=schedule, ema=0.0, rate=("chosen", "carried"))
    return as_good(chosen, by=lambda row: row["batch"])


def _schedules(rows: list[Row]) -> Finding:
    constant, cosine = (_best_batches_under(schedule, rows) for schedule in ("constant", "cosine"))
    if not {0, 20} <= constant.keys() or not {0, 20} <= cosine.keys():
        return NOT_RUN
    told = "; ".join(
        f"{name}: " + ", ".join(f"α = {alpha:g}: {' or '.join(map(str, ties))}" for alpha, ties in best.items())
        for name, best in (("constant", constant), ("cosine", cosine))
    )
    right = shift(constant[0], constant[20]), -shift(cosine[0], cosine[20])
    ours = f"batches within a standard error of the lowest noisy validation loss: {told}"
    overlap = any(len({*found[0], *found[20]}) > 1 for found in (constant, cosine))
    if right == (0, 0) and overlap:
        return Finding(ours, UNTOLD)
    return Finding(ours, verdict(min(right) > 0, in_part=max(right) > 0))


NOISE_SCALES: Final = Figure(
    title="Noise scale, gradient cosine, schedules (ours)",
    datasets=("mnist5k", "mnist"),
    points=noise_scales,
    panels=(
        Panel(
            y="noise_scale",
            ylabel="simple noise scale (examples)",
            series=("lr",),
            select=_still_first,
            log="y",
            references={"(1+α)² × that of α = 0": lambda alpha, first: first * (1 + alpha) ** 2},
        ),
        Panel(
            y="clean_noisy_cosine",
            ylabel="cosine of right and wrong labels' gradients",
            series=("lr",),
            select=_still_first,
        ),
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
            "derived from the paper's argument (second hand)",
            _scale_grows_squared,
        ),
        Claim(
            "With a constant rate larger batches help under noise; with a cosine schedule the best batch falls.",
            "a report on CIFAR-10, ResNet-18, up to 50 % noise (second hand)",
            _schedules,
        ),
    ),
    protocol="A rate of 0 measures at the initial weights, and |G|² that does not stand out from 0 gives no noise "
    "scale. Schedules: no averaged weights, a rate chosen for each. The report has CIFAR-10 and ResNet-18.",
)
