"""How the labels of a data set came out: of each class, and as a matrix of source class and label."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray as Array
from rich.table import Table
from rich.text import Text

from pipeline.dataset import DilutedSet
from pipeline.errors import UserError
from pipeline.laws import law_to_json, noisy_share
from pipeline.manifest import Manifest
from pipeline.votes import known_vote

MAX_BINS: Final = 1_000  # a picture has no more pixels a side, and int64 cells take 8 MB
MAX_SHOWN: Final = 20  # classes that a table shows all of
MAX_NAME: Final = 24  # characters
_CHUNK_LABELS: Final = 1 << 22  # 34 MB of cell numbers at once


class Histograms(NamedTuple):
    """Counts of a training split.

    Args:
        source: Images of each source class.
        noisy: Labels drawn for each class: copies 1..α, or copy 0 under a flip.
        carried: All labels of each class.
        right: Those of them that equal the source label of the image that they stand on.
        cells: All labels on images of the classes by (source class, label), as in the manifest's counts; above
            `MAX_BINS` classes, neighbours share a row and a column.
    """

    source: Int64[Array, " k"]
    noisy: Int64[Array, " k"]
    carried: Int64[Array, " k"]
    right: Int64[Array, " k"]
    cells: Int64[Array, "bins bins"]

    @property
    def right_share(self) -> Float64[Array, " k"]:
        """Of the labels of each class, the share that equals the source label; NaN of a class that has none."""
        with np.errstate(invalid="ignore"):
            share: Float64[Array, " k"] = self.right / self.carried
        return share

    @property
    def transitions(self) -> Float64[Array, "bins bins"]:
        """Of the labels of each source class, the share that each label has; NaN of a class without images."""
        with np.errstate(invalid="ignore"):
            share: Float64[Array, "bins bins"] = self.cells / self.cells.sum(axis=1, keepdims=True)
        return share


def count_labels(dataset: DilutedSet, progress: Callable[[int], Any] = lambda images: None) -> Histograms:
    """Count all labels of a training split, in memory that does not depend on n and α.

    Args:
        dataset: Whose formula gives the labels.
        progress: Called with the number of images counted since the last call.
    """
    formula, source_labels = dataset.formula, dataset.train.source_labels
    num_classes = formula.num_classes
    bins = min(num_classes, MAX_BINS)
    source, carried, right = (np.zeros(num_classes, dtype=np.int64) for _ in range(3))
    cells = np.zeros(bins * bins, dtype=np.int64)
    chunk = max(1, _CHUNK_LABELS // (1 + formula.alpha))
    for first in range(0, formula.num_images, chunk):
        ids = np.arange(first, min(first + chunk, formula.num_images))
        true = np.asarray(source_labels[ids])
        source += np.bincount(true, minlength=num_classes)
        carried += np.bincount(formula.all_labels(ids, true).reshape(-1), minlength=num_classes)
        labels = formula.labels_of_images(ids, true)
        right += np.bincount(labels[labels == true[:, None]], minlength=num_classes)
        rows, columns = (x.astype(np.int64) * bins // num_classes for x in (true[:, None], labels))
        cells += np.bincount((rows * bins + columns).reshape(-1), minlength=bins * bins)
        progress(len(ids))
    noisy = carried if formula.law.replaces else carried - source
    return Histograms(source, noisy, carried, right, cells.reshape(bins, bins))


class Fit(NamedTuple):
    """How well counts fit a law.

    Args:
        ratio: Chi-square a degree of freedom; 1 is expected.
        spread: Standard deviation of `ratio` where chance alone is at work.
    """

    ratio: float
    spread: float


def fit_of(dataset: DilutedSet, histograms: Histograms) -> Fit | None:
    """Compare the drawn labels of every source class with the law's distribution.

    Returns:
        None if no label was drawn for an image of a class, the law knows no distribution, only one label is possible,
        or K > `MAX_BINS`.

    Source: Pearson's chi-square; its exact variance under a multinomial (Haldane 1937), which counts where most cells
        expect less than one label.
    """
    formula, law = dataset.formula, dataset.formula.law
    if formula.num_classes > MAX_BINS or law.adds_images or not (formula.alpha or law.replaces):
        return None
    try:
        matrix = law.matrix(formula.alpha, formula.num_classes)
    except UserError:
        return None
    drawn, identity = histograms.cells, np.eye(formula.num_classes)
    if not law.replaces:
        matrix = ((1 + formula.alpha) * matrix - identity) / formula.alpha
        drawn = drawn - np.diag(histograms.source)
    totals = drawn.sum(axis=1)
    expected = matrix * totals[:, None]
    possible = expected > 1e-9 * totals[:, None]  # below that it is the rounding of the line above
    if drawn[~possible].any():
        return Fit(math.inf, 0.0)
    num_cells = possible.sum(axis=1)[totals > 0]
    freedom = int((num_cells - 1).sum())
    if not freedom:
        return None
    chi_square = float(((drawn - expected)[possible] ** 2 / expected[possible]).sum())
    rare = (1 / expected[possible]).sum() - ((num_cells**2 + 2 * num_cells - 2) / totals[totals > 0]).sum()
    return Fit(chi_square / freedom, math.sqrt(2 * freedom + float(rare)) / freedom)


def source_word(dataset: DilutedSet) -> str:
    """Say what to call source labels: where nobody checked them, they are observed ones."""
    return "observed" if dataset.observed else "source"


def class_name(dataset: DilutedSet, label: int, length: int = MAX_NAME) -> str:
    """Name a class for people: its number, and its name, cut, where that is another one."""
    name = dataset.classes[label]
    return name if name == str(label) else f"{label} {cut(name, length)}"


def cut(text: str, length: int) -> str:
    """Shorten a text that is too long for its place."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def class_table(dataset: DilutedSet, histograms: Histograms) -> Table:
    """Lay out the labels of every class; of many classes, the ten most and the ten least frequent ones."""
    num_classes = dataset.num_classes
    columns = (histograms.source, histograms.noisy, histograms.right_share)
    table = Table(title="labels of each class", box=None)
    table.add_column("class", no_wrap=True)
    share = "as observed" if dataset.observed else "share right"
    for name in (f"{source_word(dataset)} labels", "noisy labels", share):
        table.add_column(name, justify="right", no_wrap=True)

    def add(rows: Iterable[int]) -> None:
        for k in rows:
            table.add_row(Text(class_name(dataset, k)), *_cells(column[k] for column in columns))

    if num_classes <= MAX_SHOWN:
        add(range(num_classes))
    else:
        order = np.argsort(-histograms.carried, kind="stable").tolist()
        add(order[: MAX_SHOWN // 2])
        table.add_row(f"… {num_classes - MAX_SHOWN:,} more")
        add(order[-(MAX_SHOWN // 2) :])
    table.add_section()
    for name, value in (("least", np.nanmin), ("median", np.nanmedian), ("most", np.nanmax)):
        table.add_row(name, *_cells(value(column) for column in columns), style="dim")
    return table


def _cells(values: Iterable[Any]) -> list[str]:
    source, noisy, share = values
    return [f"{source:,.0f}", f"{noisy:,.0f}", "none" if np.isnan(share) else f"{share:.4f}"]


def matrix_table(dataset: DilutedSet, histograms: Histograms) -> Table:
    """Lay out the realised transition matrix: a row for each source class, in per cent of its labels."""
    rows = f"{source_word(dataset)} class"
    table = Table(title=f"labels of each {rows}, in %", box=None, padding=(0, 1, 0, 0))
    table.add_column(rows, no_wrap=True)
    for k in range(dataset.num_classes):
        table.add_column(str(k), justify="right", no_wrap=True, min_width=4)
    for k, row in enumerate(histograms.transitions):
        shares = ("-" if np.isnan(share) else f"{100 * share:.1f}" for share in row)
        table.add_row(Text(class_name(dataset, k, 10)), *shares)
    return table


def to_json(manifest: Manifest, dataset: DilutedSet, histograms: Histograms) -> dict[str, Any]:
    """Return what is known of a data set as plain values; the matrix of counts up to 100 classes, as in counts.npz."""
    formula, source_labels = dataset.formula, dataset.train.source_labels
    fit = fit_of(dataset, histograms)
    shares = [None if np.isnan(share) else share for share in histograms.right_share.tolist()]
    return {
        "name": dataset.name,
        "format": manifest.format,
        "layout": manifest.layout,
        "rows": manifest.rows,
        "encodings": manifest.encodings,
        "num_classes": formula.num_classes,
        "num_images": formula.num_images,
        "num_test_images": dataset.test.num_images,
        "num_examples": formula.num_examples,
        "alpha": formula.alpha,
        "law": law_to_json(formula.law),
        "noise_seed": formula.noise_seed,
        "observed_labels": dataset.observed,
        "noisy_share": None if formula.law.replaces else noisy_share(formula.alpha),
        "right_share": int(histograms.right.sum()) / formula.num_examples,
        "expected_right_share": formula.right_share(source_labels),
        "vote_baseline": known_vote(dataset),
        "chi_square_ratio": fit and fit.ratio,
        "chi_square_ratio_spread": fit and fit.spread,
        "train_bytes": sum(shard.num_bytes for shard in manifest.train.shards),
        "num_train_shards": len(manifest.train.shards),
        "quarantine": list(manifest.quarantine),
        "classes": [
            {"name": name, "source_labels": source, "noisy_labels": noisy, "right_share": share}
            for name, source, noisy, share in zip(
                dataset.classes, histograms.source.tolist(), histograms.noisy.tolist(), shares, strict=True
            )
        ],
        "counts": histograms.cells.tolist() if formula.num_classes <= 100 else None,
    }
