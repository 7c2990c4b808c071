"""Pictures for people; the one place where matplotlib enters."""

from __future__ import annotations

import hashlib
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Int64, UInt8
from matplotlib import rc_context
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from numpy import ndarray as Array
from PIL import Image

from pipeline.atomic import write_file
from pipeline.dataset import DilutedSet, decode
from pipeline.errors import DamagedImageError
from pipeline.histograms import MAX_SHOWN, Histograms, class_name, cut, source_word

__all__ = ["Figure", "content_of", "heat_map", "is_current", "picture_bytes", "sample_grid", "save"]

DPI: Final = 100
_MAX_NAMES: Final = 50  # class names that fit beside the heat map
_COLUMNS: Final = 4  # of sample images
_COLUMN_IN: Final = 2.4  # 26 characters of the captions' font are at most as wide
_IMAGE_IN: Final = 2.1
_LINE_IN: Final = 0.155
_HEAD_IN: Final = 0.35
_MAX_LABELS: Final = 5  # labels named under a sample
_CONTENT: Final = "Content"  # the text of a PNG that has `content_of` it
_GREEN: Final = "#1a7f37"
_GREY: Final = "#6b7078"


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG or SVG, by the path's suffix, whole or not at all."""
    write_file(path, picture_bytes(figure, path.suffix[1:]))


def picture_bytes(figure: Figure, kind: str) -> bytes:
    """Return a figure as a PNG or SVG, of the same bytes whenever it is drawn.

    Args:
        figure: What is drawn.
        kind: "png" or "svg".
    """
    stream = BytesIO()
    with (
        warnings.catch_warnings(),  # the font lacks some scripts: a box stands for the sign, the number names the class
        rc_context({"svg.hashsalt": "dilute"}),
    ):
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        metadata = {"Date": None} if kind == "svg" else {_CONTENT: content_of(figure)}
        figure.savefig(stream, format=kind, dpi=DPI, metadata=metadata)
    return stream.getvalue()


def content_of(figure: Figure) -> str:
    """Sum up what a chart shows: its words, lines, bands and bars, to six digits.

    The bytes of a picture depend on matplotlib's and FreeType's versions as well; this does not.
    """
    told = [figure.get_suptitle()]
    for axes in figure.axes:
        told += [axes.get_title(), axes.get_xlabel(), axes.get_ylabel(), axes.get_xscale(), axes.get_yscale()]
        legend = axes.get_legend()
        told += [text.get_text() for text in (*axes.texts, *(legend.get_texts() if legend is not None else ()))]
        for axis in (axes.xaxis, axes.yaxis):
            if axis.have_units():  # names in place of numbers
                told += [label.get_text() for label in axis.get_ticklabels()]
        for line in axes.lines:
            told += [str(line.get_label()), str(line.get_color()), str(line.get_linestyle())]
            told += _digits(line.get_xydata())
        for collection in axes.collections:
            told += _digits(collection.get_facecolor())
            told += [each for path in collection.get_paths() for each in _digits(path.vertices)]
        for patch in axes.patches:
            outline = patch.get_patch_transform().transform(patch.get_path().vertices)
            told += [*_digits(patch.get_facecolor()), *_digits(outline)]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()


def is_current(figure: Figure, path: Path) -> bool:
    """Whether a PNG that `save` wrote shows what a chart shows.

    Args:
        figure: A chart.
        path: The PNG, or nothing.
    """
    if not path.exists():
        return False
    with Image.open(path) as image:
        return bool(image.info.get(_CONTENT) == content_of(figure))


def _digits(numbers: Any) -> list[str]:
    return [f"{number:.6g}" for number in np.ravel(numbers)]


def heat_map(dataset: DilutedSet, histograms: Histograms) -> Figure:
    """Draw the realised transition matrix, rows = source class; no label of a kind is white.

    Up to `MAX_SHOWN` classes the cells carry their value in per cent, above that colours follow its square root, so
    that the rare ones are seen beside the right ones; above `histograms.MAX_BINS` classes, neighbours share a cell.
    """
    num_classes, few = dataset.num_classes, dataset.num_classes <= MAX_SHOWN
    rows = f"{source_word(dataset)} class"
    shares = 100 * np.nan_to_num(histograms.transitions)
    figure = Figure(figsize=(9, 8), layout="constrained")
    axes = figure.add_subplot()
    place = (-0.5, num_classes - 0.5, num_classes - 0.5, -0.5)
    norm = PowerNorm(1 if few else 0.5, vmin=0, vmax=shares.max())
    drawn = axes.imshow(shares, cmap="Blues", norm=norm, extent=place)
    figure.colorbar(drawn, ax=axes, shrink=0.8, label=f"% of the labels of the {rows}")
    axes.set(xlabel="label", ylabel=rows)
    axes.set_title(_title(dataset), parse_math=False)
    if num_classes <= _MAX_NAMES:
        names, size = [class_name(dataset, k, 16) for k in range(num_classes)], 9 if few else 6
        turned = 90 if max(map(len, names)) > 3 else 0
        axes.set_xticks(range(num_classes), names, rotation=turned, fontsize=size, parse_math=False)
        axes.set_yticks(range(num_classes), names, fontsize=size, parse_math=False)
    if few:
        size = 9 if num_classes <= 12 else 7
        for row, column in np.argwhere(shares).tolist():
            share = shares[row, column]
            color = "white" if share > 0.6 * shares.max() else "black"
            axes.text(column, row, f"{share:.1f}", ha="center", va="center", fontsize=size, color=color)
    return figure


def sample_grid(dataset: DilutedSet, image_ids: Int64[Array, " n"]) -> Figure:
    """Draw training images, under each its source class and its labels, those that equal it green and ticked.

    Args:
        dataset: Whose images, in any size.
        image_ids: Which, at least one.
    """
    captions = [_caption(dataset, image_id) for image_id in image_ids.tolist()]
    num_columns = min(_COLUMNS, len(image_ids))
    num_rows = -(-len(image_ids) // num_columns)
    row_in = _IMAGE_IN + _LINE_IN * max(map(len, captions)) + 0.3
    width, height = _COLUMN_IN * num_columns, row_in * num_rows + _HEAD_IN
    figure = Figure(figsize=(width, height))
    head = 1 - 0.5 * _HEAD_IN / height
    figure.text(0.5, head, _title(dataset), ha="center", va="center", fontsize=9, parse_math=False)
    for place, (image_id, caption) in enumerate(zip(image_ids.tolist(), captions, strict=True)):
        row, column = divmod(place, num_columns)
        left, bottom = _COLUMN_IN * column + 0.15, height - _HEAD_IN - row_in * row - _IMAGE_IN
        box = (left / width, bottom / height, _IMAGE_IN / width, _IMAGE_IN / height)
        axes = figure.add_axes(box, xticks=[], yticks=[], anchor="SW")
        try:
            axes.imshow(_thumbnail(decode(dataset.train.item(image_id))), cmap="gray", vmin=0, vmax=255)
        except DamagedImageError:
            axes.text(0.5, 0.5, "damaged", ha="center", va="center", transform=axes.transAxes, color=_GREY)
        for line, (text, style) in enumerate(caption):
            y = bottom - 0.08 - line * _LINE_IN
            figure.text(left / width, y / height, text, va="top", fontsize=8, parse_math=False, **style)
    return figure


def _title(dataset: DilutedSet) -> str:
    formula = dataset.formula
    return f"{cut(dataset.name, 40)}: n = {formula.num_images:,}, α = {formula.alpha:,}, law {formula.law.name}"


def _thumbnail(pixels: UInt8[Array, "h w c"]) -> UInt8[Array, ...]:
    """Shrink a large photo to what the picture can show."""
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    image.thumbnail((2 * DPI * _IMAGE_IN, 2 * DPI * _IMAGE_IN))
    return np.asarray(image)


def _caption(dataset: DilutedSet, image_id: int) -> list[tuple[str, dict[str, Any]]]:
    """Return the lines under an image: its source class, how many labels are right, and the most frequent ones."""
    formula, ids = dataset.formula, np.array([image_id])
    true = np.asarray(dataset.train.source_labels[ids])
    labels = formula.labels_of_images(ids, true)[0, 0 if formula.law.replaces else 1 :]
    source, num_right = int(true[0]), int((labels == true).sum())
    right, wrong = ("as observed", "another") if dataset.observed else ("right", "wrong")
    if formula.law.replaces:
        found = f"its label is {right if num_right else wrong}"
    elif formula.law.adds_images:
        found = f"{formula.alpha:,} noisy labels stand on others"
    else:
        found = f"{len(labels):,} noisy label{'' if len(labels) == 1 else 's'}, {num_right:,} {right}"
    lines: list[tuple[str, dict[str, Any]]] = [
        (class_name(dataset, source, 20), {"weight": "bold"}),
        (f"image {image_id}: {found}", {"color": _GREY}),
    ]
    classes, counts = np.unique(labels, return_counts=True)
    shown = np.lexsort((classes, -counts))[:_MAX_LABELS]
    if num_right and source not in classes[shown]:
        shown[-1] = np.flatnonzero(classes == source)[0]
    for label, count in zip(classes[shown].tolist(), counts[shown].tolist(), strict=True):
        times = f" × {count:,}" if count > 1 else ""
        tick, color = (" ✓", _GREEN) if label == source else ("", "black")
        lines.append((class_name(dataset, label, 22) + times + tick, {"color": color}))
    if rest := len(labels) - int(counts[shown].sum()):
        lines.append((f"… {rest:,} more", {"color": _GREY}))
    return lines
