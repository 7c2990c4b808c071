"""What one training step does; this is the menu."""

from __future__ import annotations

from train.methods.h_alpha import HAlpha
from train.methods.histogram import Histogram
from train.methods.plain import Method, Plain

__all__ = ["METHODS", "Method"]

METHODS: dict[str, type[Method]] = {"plain": Plain, "h_alpha": HAlpha, "histogram": Histogram}
