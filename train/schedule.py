"""Learning rate: arithmetic on the clock."""

from __future__ import annotations

import math
from collections.abc import Callable


def _stairs(*drops: tuple[float, float]) -> Callable[[float], float]:
    """Return a schedule that is multiplied by a factor from a share of the run on; drops are (share, factor)."""
    return lambda progress: math.prod(factor for share, factor in drops if progress >= share)


# Progress in [0, 1] after the warm-up → share of the peak rate.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: (1.0 + math.cos(math.pi * progress)) / 2.0,
    "steps": lambda progress: 0.1 ** sum(progress >= drop for drop in (1 / 3, 2 / 3, 8 / 9)),  # ImageNet's 30, 60, 80
    # Those of `train.papers`: drops after so many of their epochs, or straight down to 0 from one on.
    "incv": _stairs((80 / 200, 0.1), (120 / 200, 0.1), (160 / 200, 0.1), (180 / 200, 0.5)),
    "coteaching": lambda progress: min(1.0, (1.0 - progress) / (1.0 - 80 / 200)),
    "coteaching100": lambda progress: min(1.0, (1.0 - progress) / (1.0 - 100 / 200)),
    "mlnt": _stairs((80 / 120, 0.1)),
    "rsl": _stairs((60 / 200, 0.02), (120 / 200, 0.02), (160 / 200, 0.02)),
}


def learning_rate(progress: float, *, schedule: str, peak: float, warmup_frac: float) -> float:
    """Return the learning rate at some point of a run.

    Args:
        progress: Share of the run's examples seen, in [0, 1].
        schedule: One of `SCHEDULES`.
        peak: Rate at the end of the warm-up.
        warmup_frac: Share of the run, in [0, 1), in which the rate climbs from 0 in a straight line.
    """
    if progress < warmup_frac:
        return peak * progress / warmup_frac
    return peak * SCHEDULES[schedule]((progress - warmup_frac) / (1.0 - warmup_frac))
