"""The table of a comparison: one line a method, means over seeds with their range; for people and as CSV."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.table import Table

from train.comparison.entries import Entry, entry_of
from train.comparison.runs import BUDGETS
from train.figures.rows import STAMP, Mean, Row, mean_of


@dataclass(frozen=True)
class Column:
    """One number of every run.

    Args:
        title: For people.
        unit: "%" for shares; "" and "s" as they are.
        digits: Behind the point.
    """

    title: str
    unit: str = "%"
    digits: int = 1

    def write(self, value: float) -> str:
        """Write a value for people, without its unit."""
        return f"{100 * value if self.unit == '%' else value:,.{self.digits}f}"

    @property
    def head(self) -> str:
        """Title with unit."""
        return f"{self.title} ({self.unit})" if self.unit else self.title


ACCURACY: Final = {
    "top1_last": Column("test accuracy, last"),
    "top1_last10": Column("mean of last 10"),
    "top1_best_noisy_val": Column("best by noisy val."),
    "top1_best_test": Column("best on test: oracle"),
}
MEASURED: Final = {
    **ACCURACY,
    "label_precision": Column("label precision"),
    "label_recall": Column("label recall"),
    "label_auroc": Column("AUROC", unit="", digits=3),
    "wrong_labels_said": Column("wrong labels said"),
    "examples_per_s": Column("examples/s", unit="", digits=0),
    "wall_s": Column("wall time", unit="s", digits=0),
}
_SETTINGS: Final = [
    *("dataset", "law", "flip_rate", "alpha", "clean", "model", "batch", "lr", "schedule", "optimizer"),
    *("weight_decay", "ema", "label_smoothing", "kept_frac", "examples", "epochs"),
]
_RANGES: Final = [name + end for name in MEASURED for end in ("", "_min", "_max")]
FIELDS: Final = ["budget", "method", "uses_clean_labels", "told", "n", *_RANGES, *_SETTINGS, *STAMP]


@dataclass(frozen=True)
class Line:
    """A method under a budget.

    Args:
        budget: One of `BUDGETS`.
        name: The method's in the comparison.
        entry: The method.
        row: That of its first run, for what all seeds share.
        n: Seeds.
        means: Of `MEASURED`, over seeds; None where a run has none.
    """

    budget: str
    name: str
    entry: Entry
    row: Row
    n: int
    means: dict[str, Mean | None]

    @property
    def title(self) -> str:
        """Name it; every mention of an oracle says that it is one."""
        return f"{self.name} (oracle: uses clean labels)" if self.entry.uses_clean_labels else self.name


def lines_of(rows: Sequence[Row], names: Sequence[str]) -> list[Line]:
    """Average runs over seeds.

    Args:
        rows: Of `train.comparison.runs.measured`, as far as there are any yet.
        names: Of the methods, in the order of the table.
    """
    lines = []
    for budget in BUDGETS:
        for name in names:
            found = [row for row in rows if (row["budget"], row["entry"]) == (budget, name)]
            if found:
                means = {column: _mean([row[column] for row in found]) for column in MEASURED}
                lines.append(Line(budget, name, entry_of(name), found[0], len(found), means))
    return lines


def _mean(values: list[float | None]) -> Mean | None:
    known = [value for value in values if value is not None]
    return mean_of(known) if len(known) == len(values) else None


def table(lines: Sequence[Line], budget: str) -> Table:
    """Lay out one budget's lines, within 120 columns: the range of an accuracy over seeds stands under its mean."""
    heads = ("method", *(column.head.replace(" ", "\n") for column in MEASURED.values()), "n")
    made = Table(*heads, title=BUDGETS[budget], box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for line in lines:
        if line.budget == budget:
            cells = {name: cell(line, name) for name in MEASURED}
            shown = [f"{mean}\n{ends}" if name in ACCURACY else mean for name, (mean, ends) in cells.items()]
            made.add_row(line.title, *(text.strip() for text in shown), str(line.n))
    return made


def cell(line: Line, name: str) -> tuple[str, str]:
    """Write a mean and its range, without units; nothing where nothing was measured, and no range of one seed."""
    mean, column = line.means[name], MEASURED[name]
    if mean is None:
        return "", ""
    ends = f"{column.write(mean.least)}–{column.write(mean.most)}"
    return column.write(mean.value), ends if mean.n > 1 else ""


def csv_text(lines: Sequence[Line], stamp: dict[str, str]) -> str:
    """Write lines as CSV: shares in [0, 1], each measure with its smallest and largest value over the seeds.

    Args:
        lines: Of `lines_of`.
        stamp: Where and how they were made, by `train.figures.rows.STAMP`.
    """
    text = StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    for line in lines:
        fields: dict[str, Any] = {"budget": line.budget, "method": line.name, "n": line.n, "told": line.row["told"]}
        fields |= {"uses_clean_labels": line.entry.uses_clean_labels, **stamp}
        fields |= {name: line.row[name] for name in _SETTINGS}
        for name, mean in line.means.items():
            if mean is not None:
                fields |= {name: mean.value, f"{name}_min": mean.least, f"{name}_max": mean.most}
        writer.writerow({name: f"{value:.6g}" if isinstance(value, float) else value for name, value in fields.items()})
    return text.getvalue()
