"""The figures as pictures."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Final

import numpy as np

from pipeline.pictures import Figure as Picture
from train.figures.points import Figure, Panel
from train.figures.rows import Row, curve, line_through, words

_WIDTH_IN: Final = 5.5
_HEIGHT_IN: Final = 4.2


def draw(figure: Figure, rows: list[Row]) -> Picture:
    """Draw the panels of a figure, or its fits where it has none; marks are means, bands those of `Mean`.

    Args:
        figure: What to draw.
        rows: Of its runs.
    """
    count = max(1, len(figure.panels))
    picture = Picture(figsize=(_WIDTH_IN * count, _HEIGHT_IN), layout="constrained")
    every = picture.subplots(1, count, squeeze=False)[0]
    for axes, panel in zip(every, figure.panels, strict=False):
        _draw_panel(axes, panel, panel.select(rows))
    if figure.fits is not None:
        _draw_fits(every[0], figure.fits(rows), figure.slopes)
    scales = sorted({row["scale"] for row in rows})
    data = sorted({row["dataset"] for row in rows})
    picture.suptitle(f"{figure.title}\n({', '.join(data)}; scale {', '.join(scales)})", fontsize=10)
    return picture


def _draw_panel(axes: Any, panel: Panel, rows: list[Row]) -> None:
    lines: dict[tuple[Hashable, ...], list[Row]] = {}
    for row in rows:
        lines.setdefault(tuple(row[name] for name in panel.series), []).append(row)
    if "x" in panel.log:
        axes.set_xscale("log")
        shown = sorted({row[panel.x] for row in rows})
        axes.set_xticks(shown, [f"{x:,}" for x in shown])  # its own labels would run into each other
        axes.minorticks_off()
    if "y" in panel.log:
        axes.set_yscale("log")
    first: dict[float, float] = {}
    for names, found in lines.items():
        means = curve(found, x=panel.x, y=panel.y)
        if not means:
            continue
        label = ", ".join(words(name, value) for name, value in zip(panel.series, names, strict=True))
        xs = [*means]
        (line,) = axes.plot(xs, [mean.value for mean in means.values()], marker=".", label=label)
        low, high = [mean.low for mean in means.values()], [mean.high for mean in means.values()]
        axes.fill_between(xs, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        if names in panel.published:
            paper = panel.published[names]
            axes.plot([*paper], [*paper.values()], color=line.get_color(), linestyle="--", linewidth=1)
        first = first or {at: mean.value for at, mean in means.items()}
    if panel.published.keys() & lines:
        axes.plot([], [], color="grey", linestyle="--", linewidth=1, label="the paper")  # one entry stands for all
    for name, reference in panel.references.items():
        if first:
            start = next(iter(first.values()))
            axes.plot([*first], [reference(at, start) for at in first], color="grey", linestyle=":", label=name)
    if panel.y.startswith("top1") and rows:
        heights = [row[panel.y] for row in rows]
        axes.set_ylim(max(0.0, min(heights) - 0.05), min(1.0, max(heights) + 0.05))
    if panel.x == "at":
        axes.xaxis.get_major_locator().set_params(integer=True)  # epochs or iterations
    axes.set(xlabel=panel.xlabel, ylabel=panel.ylabel)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, ncols=1 + len(lines) // 9)


def _draw_fits(axes: Any, fits: dict[str, dict[int, float]], slopes: Mapping[str, float]) -> None:
    for name, found in fits.items():
        if not found:
            continue
        xs, ys = np.array([*found]), np.array([*found.values()])
        (line,) = axes.plot(xs, ys, marker="o", linestyle="", label=name)
        if len(xs) >= 2:
            slope, base = line_through(found)
            axes.plot(xs, base + slope * xs, color=line.get_color(), label=f"{base:.0f} + {slope:.0f}·α")
    most = max((alpha for found in fits.values() for alpha in found), default=0)
    for name, slope in slopes.items() if most else ():
        axes.plot([0, most], [0, slope * most], color="grey", linestyle="--", linewidth=1, label=name)
    axes.set(xlabel="noisy labels a clean one, α", ylabel="clean labels needed")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
