"""The losses of right and of wrong labels as a picture."""

from __future__ import annotations

import math

from pipeline.pictures import Figure
from train.diagnostics import LossHistograms


def draw_losses(histograms: LossHistograms, auroc: float) -> Figure:
    """Draw how often right and wrong labels have some loss; the counts' axis is logarithmic.

    Args:
        histograms: Of a net's losses.
        auroc: How well the loss parts them; nan if one kind is missing.
    """
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for counts, name, color in (
        (histograms.right, "right labels", "#1a7f37"),
        (histograms.wrong, "wrong labels", "#b3261e"),
    ):
        axes.stairs(counts, histograms.edges, label=f"{name}, {counts.sum():,}", color=color, fill=True, alpha=0.5)
    axes.set(xlabel="cross-entropy of the label (nats)", ylabel="labels", yscale="log")
    axes.set_title("loss under the last weights" + ("" if math.isnan(auroc) else f", AUROC {auroc:.3f}"))
    axes.legend()
    return figure
