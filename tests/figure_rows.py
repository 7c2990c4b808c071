"""Rows of runs that nobody ran, for tests of what reads them, and what a figure says of them."""

import dataclasses
import random
from typing import Any

from train.figures.menu import FIGURES
from train.figures.points import Scale
from train.figures.rows import CURVES, FIELDS, FOUND


def row(**given: Any) -> dict[str, Any]:
    """Return a complete row; what is not given is the same for all."""
    told: dict[str, Any] = dict.fromkeys(FIELDS)
    told |= {"experiment": "fig1", "dataset": "mnist5k", "scale": "cpu", "law": "uniform", "order": "", "foreign": ""}
    told |= {"alpha": 20, "clean": 4_000, "model": "conv4", "method": "plain", "batch": 512, "lr": 1e-3}
    told |= {"schedule": "constant", "ema": 3.0, "examples": 300_000, "log_every": 25_600, "noise_seed": 0, "seed": 0}
    told |= {"rate": "recipe", "top1_last": 0.9, "noisy_val_loss": 2.2, "noisy_val_loss_se": 0.001, "wall_s": 60.0}
    told |= dict.fromkeys(CURVES, ())
    told |= {"device": "a processor × 2", "versions": "python 3.11", "commit": "0123456", "command": "tools/reproduce"}
    assert given.keys() <= told.keys()
    told |= given
    return {**told, "noise_seed": given.get("noise_seed", told["seed"])}


def verdicts(figure: str, rows: list[dict[str, Any]]) -> list[str]:
    """Return the verdict on each claim of a figure."""
    return [claim.check(rows).verdict for claim in FIGURES[figure].claims]


def grid_rows(figure: str, scale: Scale) -> list[list[dict[str, Any]]]:
    """Return rows of two seeds for each point of a figure, with results out of the air; some runs measured nothing."""
    drawn, made = random.Random(0), []
    dataset = FIGURES[figure].datasets[0]
    for point in FIGURES[figure].points(dataset, scale):
        given = {name: point.settings[name] for name in ("batch", "schedule", "ema") if name in point.settings}
        rate = {"lr": point.rate} if isinstance(point.rate, float) else {}
        given |= dataclasses.asdict(point.noise) | {"model": point.model, "method": point.method, **rate}
        given |= {"rate": "given" if rate else point.rate, "clean": point.clean or 4_000, "dataset": dataset}
        for seed in (0, 1):
            found: dict[str, Any] = {name: drawn.random() for name in FOUND if name != "rate"}
            found |= dict.fromkeys(CURVES, (0.1, 0.2, 0.3, 0.4)) | {"fitted": 0.99}
            if drawn.random() < 0.1:
                found |= dict.fromkeys(("noise_scale", "clean_noisy_cosine", "noisy_val_loss", "top5_last"))
            made.append(row(**given | found, seed=seed))
    return [made[at : at + 2] for at in range(0, len(made), 2)]
