"""What one training step does; this is the menu."""

from __future__ import annotations

from train.methods.coteaching import Coteaching
from train.methods.forward import Forward
from train.methods.h_alpha import HAlpha
from train.methods.histogram import Histogram
from train.methods.marginal import Marginal
from train.methods.mixmatch import MixMatch
from train.methods.mixup import Mixup
from train.methods.mlnt import MLNT
from train.methods.plain import Method, Plain, Setting

__all__ = ["METHODS", "Method", "Setting"]

METHODS: dict[str, type[Method]] = {
    "plain": Plain,
    "h_alpha": HAlpha,
    "histogram": Histogram,
    "marginal": Marginal,
    "mixup": Mixup,
    "forward": Forward,
    "coteaching": Coteaching,
    "mlnt": MLNT,
    "mixmatch": MixMatch,
}
