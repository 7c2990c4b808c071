"""What changes as a run goes on: by epochs, or by the iterations of its selection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from train.metrics import rows_with


def curves_of(result: dict[str, Any], folder: Path) -> dict[str, tuple[float, ...]]:
    """Read the curves of a finished run.

    Args:
        result: What came out of it.
        folder: Of the run, whose metrics were read as often as it was evaluated.

    Returns:
        The columns `train.figures.rows.CURVES`. Of a run with a selection: label precision and recall of what was
        selected up to the end of each iteration; a selector without iterations has one. Of any other run: test accuracy
        after so many epochs and, where its method leaves labels out, label precision and recall of those that it kept
        since the reading before.
    """
    if "selection" in result:
        found = result["selection"].get("by_iteration", [result["selection"]])
        at = range(1, 1 + len(found))
        return {"curve_at": (*map(float, at),), "curve_top1": (), **_label_quality(found, "")}
    evaluations = rows_with(folder, "eval/top1_accuracy")
    readings = {row["examples"]: row for row in rows_with(folder, "coteaching/label_precision")}
    return {
        "curve_at": tuple(row["epoch"] for row in evaluations),
        "curve_top1": tuple(row["eval/top1_accuracy"] for row in evaluations),
        **_label_quality([readings[row["examples"]] for row in evaluations if readings], "coteaching/"),
    }


def _label_quality(found: list[dict[str, float]], prefix: str) -> dict[str, tuple[float, ...]]:
    names = ("label_precision", "label_recall")
    return {f"curve_{name}": tuple(each[f"{prefix}{name}"] for each in found) for name in names}
