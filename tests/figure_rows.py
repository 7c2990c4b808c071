"""Rows of runs that nobody ran, for tests of what reads them, and what a figure says of them."""

from typing import Any

from train.figures.menu import FIGURES
from train.figures.rows import CURVES, FIELDS


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
