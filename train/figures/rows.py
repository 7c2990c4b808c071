"""The rows of finished runs: kept in a CSV file, averaged over seeds."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
from scipy import stats

from pipeline.atomic import write_file
from train.methods import METHODS
from train.outcome import percent

Row: TypeAlias = dict[str, Any]

# What a run is, what came out of it, and where it ran.
KEY: Final = [
    "experiment",
    "dataset",
    "scale",
    "law",
    "order",
    "delta",
    "foreign",
    "flip_rate",
    "alpha",
    "clean",
    "model",
    "method",
    "batch",
    "lr",
    "schedule",
    "ema",
    "examples",
    "log_every",
    "noise_seed",
    "seed",
]
FOUND: Final = [
    "rate",
    "top1_last",
    "top1_last10",
    "top1_best_noisy_val",
    "top1_best_test",
    "top5_last",
    "noisy_val_loss",
    "noisy_val_loss_se",
    "noisy_val_loss_last",
    "noisy_val_loss_last_se",
    "wrong_labels_said",
    "noise_scale",
    "clean_noisy_cosine",
    "vote",
    "fitted",
    *(f"{who}_{what}" for who in ("unseen", "early", "law") for what in ("accuracy", "precision", "recall")),
    "wall_s",
]
STAMP: Final = ["device", "versions", "commit", "command"]
# What changes in a run: after so many epochs, or after so many iterations of its selection, what was found.
CURVES: Final = ["curve_at", "curve_top1", "curve_label_precision", "curve_label_recall"]
FIELDS: Final = [*KEY, *FOUND, *STAMP, *CURVES]
_WORDS: Final = {"alpha": "α = {}", "batch": "batch {}", "lr": "rate {}", "order": "{} order", "law": "{} noise"}
_TEXT: Final = frozenset(
    [
        "experiment",
        "dataset",
        "scale",
        "law",
        "order",
        "foreign",
        "model",
        "method",
        "schedule",
        "rate",
        "device",
        "versions",
        "commit",
        "command",
    ]
)
_WHOLE: Final = frozenset(["alpha", "clean", "batch", "examples", "log_every", "noise_seed", "seed"])


def read_rows(path: Path) -> list[Row]:
    """Read rows; no file is no rows. An empty cell is None, of a curve no points."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: _value(name, row.get(name) or "") for name in FIELDS} for row in csv.DictReader(file)]


def _value(name: str, text: str) -> Any:
    if name in _TEXT:
        return text
    if name in CURVES:
        return tuple(map(float, text.split()))
    if not text:
        return None
    return int(text) if name in _WHOLE else float(text)


def merge_rows(path: Path, rows: Iterable[Row]) -> None:
    """Add rows to a file; one of the same settings and seeds takes the place of the old one.

    A run that was read again, not run again, keeps what was written of where it ran.

    Args:
        path: A CSV file, or none yet.
        rows: With all of `FIELDS`.
    """
    kept = {_key(row): row for row in read_rows(path)}
    for row in rows:
        old = kept.get(_key(row))
        if old is not None and _cell(old["wall_s"]) == _cell(row["wall_s"]):
            row = row | {name: old[name] for name in STAMP}
        kept[_key(row)] = row
    lines = [",".join(FIELDS), *(_line(row) for row in kept.values())]
    write_file(path, ("\n".join(lines) + "\n").encode())


def _key(row: Row) -> tuple[str, ...]:
    return tuple(_cell(row[name]) for name in KEY)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, tuple):
        return " ".join(map(_cell, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _line(row: Row) -> str:
    cells = [_cell(row[name]) for name in FIELDS]
    return ",".join(f'"{cell}"' if "," in cell else cell for cell in cells)


def words(column: str, value: Any) -> str:
    """Write a cell for people; every mention of an oracle says that it is one."""
    if column == "method" and METHODS[value].uses_clean_labels:
        return f"{value} (uses clean labels)"
    return _WORDS.get(column, "{}").format("" if value is None else value)


class Mean(NamedTuple):
    """A mean over seeds.

    Args:
        value: The mean.
        low: Lower end of its 95 % confidence interval (Student's t). Of two seeds it says next to nothing, as wide as
            it is, and their range stands here; nan for one seed.
        high: Upper end.
        least: Of the seeds.
        most: Of the seeds.
        n: How many seeds.
    """

    value: float
    low: float
    high: float
    least: float
    most: float
    n: int


def mean_of(values: Sequence[float]) -> Mean:
    """Average over seeds.

    Args:
        values: At least one.
    """
    centre, n = fmean(values), len(values)
    least, most = min(values), max(values)
    if n == 2:
        return Mean(centre, least, most, least, most, n)
    half = math.nan if n < 2 else float(stats.t.ppf(0.975, n - 1)) * stdev(values) / math.sqrt(n)
    return Mean(centre, centre - half, centre + half, least, most, n)


def spread(mean: Mean) -> str:
    """Write a mean over seeds with its range."""
    return f"{percent(mean.value)} ({100 * mean.least:.1f} to {100 * mean.most:.1f}, n = {mean.n})"


def where(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """Return the rows whose columns have some values; a tuple stands for any of its values."""
    kept = list(rows)
    for name, value in wanted.items():
        allowed = value if isinstance(value, tuple) else (value,)
        kept = [row for row in kept if row[name] in allowed]
    return kept


def grouped(rows: Iterable[Row], *, candidates: bool = False) -> dict[tuple[str, str], list[Row]]:
    """Return the rows of each data set and scale: the runs that count, or the candidates of a learning rate.

    Runs on other data, or of another length, answer another question: nothing averages, draws or judges them together.
    """
    found: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if (row["rate"] == "candidate") == candidates:
            found[row["dataset"], row["scale"]].append(row)
    return found


def line_through(points: dict[int, float] | dict[float, float]) -> tuple[float, float]:
    """Fit a line by least squares and return its slope and its value at 0.

    Args:
        points: y by x, at least two.
    """
    slope, base = np.polyfit([*points], [*points.values()], 1)
    return float(slope), float(base)


def curve(rows: Iterable[Row], *, x: str = "alpha", y: str = "top1_last") -> dict[float, Mean]:
    """Return the mean of y at every x, in ascending order of x; rows without one of them are left out."""
    found: dict[float, list[float]] = defaultdict(list)
    for row in rows:
        if row[x] is not None and row[y] is not None:
            found[row[x]].append(row[y])
    return {at: mean_of(found[at]) for at in sorted(found)}


def along(rows: Iterable[Row], what: str) -> list[Row]:
    """Return a row for every point of the curves of some rows: epoch or iteration is `at`, what was found `value`.

    Args:
        rows: Those without such a curve add none.
        what: "top1", "label_precision" or "label_recall".
    """
    return [
        {**row, "at": at, "value": value}
        for row in rows
        for at, value in zip(row["curve_at"], row[f"curve_{what}"], strict=False)  # some methods leave no labels out
    ]


def by_noise(rows: Iterable[Row], noises: Iterable[tuple[str, float]], what: str) -> dict[str, dict[float, float]]:
    """Return the means over seeds of curves, by what the noise is called; where there are two points or more.

    Args:
        rows: Of one method.
        noises: Laws, and the share of labels that they draw anew.
        what: As `along` has it.
    """
    found = {}
    kept = list(rows)
    for law, rate in noises:
        means = curve(along(where(kept, law=law, flip_rate=rate), what), x="at", y="value")
        if len(means) > 1:
            found[f"{law} {rate:g}"] = {at: mean.value for at, mean in means.items()}
    return found


def best_curve(rows: Iterable[Row], *, by: Callable[[Row], Any], x: str = "alpha") -> dict[float, list[Row]]:
    """Return, for every x, the rows of the setting whose mean noisy validation loss is the lowest.

    The loss is that of a run's last evaluation, whose accuracy is what is reported. Rows that were written before it
    was kept have the lowest of a run's evaluations; where one of them is compared, all are compared by that.

    Args:
        rows: Those without a noisy validation loss are left out.
        by: Names the setting of a row.
        x: Column to go along.

    Returns:
        The rows, with that loss as `loss` and its standard error over held-out images as `loss_se`.
    """
    return {at: min(found.values(), key=_loss) for at, found in _settings(rows, by, x).items()}


def as_good(rows: Iterable[Row], *, by: Callable[[Row], Any], x: str = "alpha") -> dict[float, list[Any]]:
    """Return, for every x, the settings whose mean noisy validation loss is within a standard error of the lowest.

    What is within it is a tie. Runs of the same seeds have the same noisy labels, held-out ones too: of three pairs or
    more it is the error of their mean difference; of fewer that of the lowest loss, over seeds or held-out images,
    whichever is larger.

    Args:
        rows: As `best_curve` has them.
        by: Names the setting of a row by something that can be sorted.
        x: Column to go along.
    """
    ties = {}
    for at, found in _settings(rows, by, x).items():
        best = min(found.values(), key=_loss)
        ties[at] = sorted(setting for setting, some in found.items() if _ties(some, best))
    return ties


def _ties(rows: list[Row], best: list[Row]) -> bool:
    """Whether a mean loss is within a standard error of the lowest one."""
    losses = {(row["noise_seed"], row["seed"]): row["loss"] for row in best}
    pairs = [(row["noise_seed"], row["seed"]) for row in rows]
    above = [row["loss"] - losses[pair] for row, pair in zip(rows, pairs, strict=True) if pair in losses]
    if len(above) > 2:
        return bool(fmean(above) <= stdev(above) / math.sqrt(len(above)))
    over_seeds = stdev(losses.values()) / math.sqrt(len(losses)) if len(losses) > 1 else 0.0
    return _loss(rows) - _loss(best) <= max(over_seeds, fmean(row["loss_se"] or 0.0 for row in best))


def shift(before: Sequence[float], after: Sequence[float]) -> int:
    """Say where settings that tie went: 1 is up, -1 is down, 0 is nowhere as far as can be told, they overlap.

    Args:
        before: At least one.
        after: Likewise.
    """
    return int(min(after) > max(before)) - int(max(after) < min(before))


def _settings(rows: Iterable[Row], by: Callable[[Row], Any], x: str) -> dict[float, dict[Any, list[Row]]]:
    groups: dict[float, dict[Any, list[Row]]] = defaultdict(lambda: defaultdict(list))
    held_out = [row for row in rows if row["noisy_val_loss"] is not None]
    last = all(row["noisy_val_loss_last"] is not None for row in held_out)
    name = "noisy_val_loss_last" if last else "noisy_val_loss"
    for row in held_out:
        groups[row[x]][by(row)].append({**row, "loss": row[name], "loss_se": row[f"{name}_se"]})
    return {at: groups[at] for at in sorted(groups)}


def _loss(rows: list[Row]) -> float:
    return fmean(row["loss"] for row in rows)
