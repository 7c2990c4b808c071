"""What tools/bench measures, one file per stage; this is the menu."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks import labels, load, opening, order, train
from benchmarks.measure import Settings, Variant

STAGES: dict[str, Callable[[Settings], list[Variant]]] = {
    "labels": labels.variants,
    "order": order.variants,
    "open": opening.variants,
    "load": load.variants,
    "train": train.variants,
}
