"""The curves of a run as a picture."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.pictures import Figure, save
from pipeline.votes import vote_baseline


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
    left.plot(*_series(rows, "eval/top1_accuracy"), marker=".", label="test accuracy")
    if data["law"]["name"] == "uniform" and not data.get("observed_labels"):
        vote = vote_baseline(data["num_classes"], data["alpha"])
        left.axhline(vote, color="grey", linestyle=":", label=f"vote over an image's labels, {vote:.3f}")
    left.set(ylim=(0, 1), ylabel="top-1 accuracy, share of wrong labels")
    for name, label in (("given", "wrong labels said as given"), ("true", "wrong labels said as they were")):
        seen, share = _series(rows, f"memorisation/{name}")
        if seen:
            left.plot(seen, share, linewidth=1, label=label)
    right.plot(*_series(rows, "train/loss"), label="training labels")
    seen, loss = _series(rows, "eval/noisy_val_loss")
    if seen:
        right.plot(seen, loss, marker=".", label="noisy validation labels")
    right.set(ylabel="cross-entropy (nats)")
    for axis in (left, right):
        axis.set(xlabel="images seen" if recipe["method"] in ("histogram", "h_alpha") else "examples seen")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.suptitle(f"{recipe['dataset']}, α = {data['alpha']}, {recipe['method']}, {recipe['model']}")
    save(figure, picture)


def _series(rows: list[dict[str, float]], name: str) -> tuple[list[float], list[float]]:
    found = [(row["examples"], row[name]) for row in rows if name in row]
    return [examples for examples, _ in found], [value for _, value in found]
