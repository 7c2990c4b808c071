"""The curves of a run as a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.pictures import Figure, save
from pipeline.votes import vote_baseline
from train.methods import METHODS


def plot_curves(folder: Path, picture: Path) -> None:
    """Draw test accuracy, what was memorised and the losses of a run against the examples seen.

    Args:
        folder: A run folder with metrics.jsonl and config.json.
        picture: A .png to write.
    """
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    data, recipe = config["data"], config["recipe"]
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw(left, rows, "eval/top1_accuracy", "test accuracy", marker=".")
    if data["law"]["name"] == "uniform" and not data.get("observed_labels"):
        vote = vote_baseline(data["num_classes"], data["alpha"])
        left.axhline(vote, color="grey", linestyle=":", label=f"vote over an image's labels, {vote:.3f}")
    left.set(ylim=(0, 1), ylabel="top-1 accuracy, share of wrong labels")
    for name, label in (("given", "wrong labels said as given"), ("true", "wrong labels said as they were")):
        _draw(left, rows, f"memorisation/{name}", label, linewidth=1)
    _draw(right, rows, "train/loss", "training labels")
    _draw(right, rows, "eval/noisy_val_loss", "noisy validation labels", marker=".")
    right.set(ylabel="cross-entropy (nats)")
    for axis in (left, right):
        axis.set(xlabel=f"{METHODS[recipe['method']].stream} seen")
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend()
    figure.suptitle(f"{recipe['dataset']}, α = {data['alpha']}, {recipe['method']}, {recipe['model']}")
    save(figure, picture)


def _draw(axis: Any, rows: list[dict[str, float]], name: str, label: str, **style: Any) -> None:
    """Draw a value of some rows, if any has it; a single one has no line, but a marker."""
    found = [(row["examples"], row[name]) for row in rows if name in row]
    if found:
        axis.plot(*zip(*found, strict=True), label=label, **(style if len(found) > 1 else style | {"marker": "."}))
