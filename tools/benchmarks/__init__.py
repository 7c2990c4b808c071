"""What tools/bench measures, one file per stage: each has a function `variants`."""

from __future__ import annotations

from importlib import import_module
from typing import Final

from benchmarks.measure import Settings, Variant

STAGES: Final = ("labels", "order", "build", "open", "load", "load-alpha", "load-small", "train", "methods")


def variants(stage: str, settings: Settings) -> list[Variant]:
    """Prepare a stage; only its own libraries are imported, so that a usage error answers at once."""
    found: list[Variant] = import_module(f"benchmarks.{stage.replace('-', '_')}").variants(settings)
    return found
