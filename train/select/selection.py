"""Which examples are trained on: chosen by their scores, written for people and for programs."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8, UInt16
from numpy import ndarray as Array

from pipeline.atomic import replacing
from pipeline.console import console
from pipeline.dataset import DilutedSet
from pipeline.errors import UserError
from pipeline.stream import Late
from train.diagnostics import label_auroc, label_precision, label_recall
from train.theory.incv import candidates_of_batch

LARGEST_TABLE: Final = 5_000_000  # rows of selected.csv; selected.npy holds any number
_ROW: Final = np.dtype(
    [("example_id", "<i8"), ("score", "<f4"), ("kept", "?"), ("iteration", "u1"), ("candidate", "?")]
)


@dataclass(frozen=True)
class Selection:
    """A part of the examples of a data set.

    Args:
        kept: Whether each example is in it, by example id (copy · n + image id).
        scores: Higher for labels that are taken for right; nan for examples that were not judged, as held-out ones.
        wrong_share: Share of wrong labels to expect among the kept ones; None if the selector does not say.
        told: What the selector found on its way, plain values.
        iterations: The iteration, from 1 on, in which each example was selected, 0 for those that were not; None for a
            selector that has just one.
        candidates: Whether each example is left undecided, neither kept nor dropped; None is none.
        late_from: Share of a run after which a method that can use them takes them in, in [0, 1].
    """

    kept: Bool[Array, " n"]
    scores: Float32[Array, " n"]
    wrong_share: float | None
    told: dict[str, Any]
    iterations: UInt8[Array, " n"] | None = None
    candidates: Bool[Array, " n"] | None = None
    late_from: float = 1.0

    @property
    def example_ids(self) -> Int64[Array, " e"]:
        """Ids of the kept examples, ascending."""
        return np.flatnonzero(self.kept)

    @property
    def words(self) -> dict[str, Any]:
        """What it says of itself, plain values."""
        return {"wrong_share": self.wrong_share, "late_from": self.late_from, **self.told}


def late_candidates(selection: Selection, *, batch: int, examples: int) -> Late | None:
    """Return which examples join a run, how many in a batch and when; None if there are none or they come too late.

    Args:
        selection: Of the run.
        batch: Of the run.
        examples: Length of the run.
    """
    if selection.candidates is None:
        return None
    ids = np.flatnonzero(selection.candidates)
    rows = candidates_of_batch(batch, num_selected=len(selection.example_ids), num_candidates=len(ids))
    start = math.ceil(selection.late_from * examples / batch)
    return Late(ids, rows, start) if rows and start * batch < examples else None


def check_selection(selection: Selection, labels: UInt16[Array, " n"], num_classes: int, name: str) -> None:
    """Refuse a selection that nobody can learn all classes from.

    Args:
        selection: To look at.
        labels: Of all examples, as they come.
        num_classes: K.
        name: Of the selector.

    Raises:
        UserError: If a label is left without an example, of those that some judged example carries.
    """
    judged = ~np.isnan(selection.scores)
    before = np.bincount(labels[judged], minlength=num_classes)
    after = np.bincount(labels[selection.kept], minlength=num_classes)
    lost = np.flatnonzero((before > 0) & (after == 0))
    if len(lost):
        more = f" and {len(lost) - 1} more labels" if len(lost) > 1 else ""
        raise UserError(
            f"selection {name} keeps none of the {before[lost[0]]:,} examples with label {lost[0]}{more}, and a net "
            "would never learn it; give more --select-epochs, or train without a selection"
        )


def quality(selection: Selection, right: Bool[Array, " n"]) -> dict[str, float]:
    """Hold a selection against the truth.

    Args:
        selection: To look at.
        right: Whether the label of each example is that of its true class.

    Returns:
        Label precision, label recall among what was judged, and how well scores part right labels from wrong ones; nan
        where that is not defined.
    """
    judged = ~np.isnan(selection.scores)
    return {
        "label_precision": label_precision(selection.kept, right),
        "label_recall": label_recall(selection.kept[judged], right[judged]),
        "auroc": label_auroc(selection.scores[judged], right[judged]),
    }


def quality_by_iteration(selection: Selection, right: Bool[Array, " n"]) -> list[dict[str, float]]:
    """Hold what was selected up to the end of each iteration against the truth.

    Args:
        selection: To look at.
        right: Whether the label of each example is that of its true class.

    Returns:
        Label precision and label recall of `quality`, an entry an iteration; none for a selector that has just one.
    """
    if selection.iterations is None:
        return []
    judged, found = ~np.isnan(selection.scores), []
    for iteration in range(1, int(selection.iterations.max()) + 1):
        kept = (selection.iterations > 0) & (selection.iterations <= iteration)
        precision, recall = label_precision(kept, right), label_recall(kept[judged], right[judged])
        found.append({"label_precision": precision, "label_recall": recall})
    return found


def write_selection(folder: Path, selection: Selection, dataset: DilutedSet, facts: dict[str, Any]) -> None:
    """Write selected.npy, selected.csv and, last of all, selection.json.

    Args:
        folder: Where.
        selection: All of it; examples that were not judged are left out of the table.
        dataset: What was selected from.
        facts: What selection.json says besides the selection's own words.
    """
    table = np.empty(len(selection.kept), dtype=_ROW)
    table["example_id"], table["score"] = np.arange(len(table)), selection.scores
    table["kept"] = selection.kept
    table["iteration"] = selection.kept if selection.iterations is None else selection.iterations
    table["candidate"] = False if selection.candidates is None else selection.candidates
    with replacing(folder / "selected.npy") as file:
        np.save(file, table)
    judged = np.flatnonzero(~np.isnan(selection.scores))
    if len(judged) > LARGEST_TABLE:
        console.print(
            f"selected.csv is left out: {len(judged):,} rows are more than {LARGEST_TABLE:,}; "
            "selected.npy has them all",
            highlight=False,
        )
    else:
        copies, image_ids = np.divmod(judged, dataset.formula.num_images)
        labels = dataset.formula.labels(image_ids, copies, dataset.train.source_labels[image_ids])
        marks = (table[name][judged].astype(int) for name in ("kept", "iteration", "candidate"))
        columns = (judged, image_ids, copies, labels, selection.scores[judged], *marks)
        with (folder / "selected.csv").open("w", newline="", encoding="utf-8") as text:
            rows = csv.writer(text, lineterminator="\n")
            rows.writerow(["example_id", "image_id", "copy", "label", "score", "kept", "iteration", "candidate"])
            rows.writerows(zip(*(column.tolist() for column in columns), strict=True))
    with replacing(folder / "selection.json") as file:
        file.write((json.dumps({**facts, **selection.words}, indent=1, ensure_ascii=False) + "\n").encode())


def read_selection(folder: Path) -> tuple[Selection, dict[str, Any]] | None:
    """Read what `write_selection` wrote, and the facts; None if it did not come to its end."""
    if not (folder / "selection.json").exists():
        return None
    said = json.loads((folder / "selection.json").read_text(encoding="utf-8"))
    table = np.load(folder / "selected.npy")
    marks = {"iterations": table["iteration"], "candidates": table["candidate"], "late_from": said["late_from"]}
    return Selection(table["kept"], table["score"], said["wrong_share"], {}, **marks), said
