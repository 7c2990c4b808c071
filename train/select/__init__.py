"""Selectors: phases that decide which examples a run is trained on; this is the menu."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from train.select.incv import select_incv
from train.select.rate import select_all
from train.select.rsl import select_rsl
from train.select.selection import Selection
from train.select.task import Judged, Part, Task

__all__ = ["SELECTORS", "Judged", "Part", "Selection", "Task"]

SELECTORS: Final[dict[str, Callable[[Task], Selection]]] = {"incv": select_incv, "rsl": select_rsl, "all": select_all}
