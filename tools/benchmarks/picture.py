"""The rows of stage load as a picture: rate, cold start, CPU time and memory of every loader."""

from __future__ import annotations

from typing import Final

from pipeline.pictures import Figure

PANELS: Final = {  # unit: title
    "images/s": "images/s (-reuse-: examples/s)",
    "s": "first batch, s",
    "cpu-s/1000": "CPU s per 1,000",
    "MB": "peak memory, MB",
}
COLOURS: Final = {"ours": "#1a7f37", "peer": "#6b7078", "limit": "#d0d4d9"}


def draw(rows: list[dict[str, str]]) -> Figure:
    """Draw the whole loaders of a run, fastest first; bars are medians, lines reach from p20 to p80.

    Args:
        rows: Of one run of stage load, as they stand in tools/bench.csv.
    """
    found: dict[str, dict[str, dict[str, str]]] = {}
    for row in rows:
        if "-until-" not in row["variant"]:  # a part of a loader
            unit = row["unit"].replace("examples/s", "images/s")
            found.setdefault(row["variant"], {})[unit] = row
    names = sorted(found, key=lambda name: float(found[name]["images/s"]["p50"]))
    figure = Figure(figsize=(14, 1.2 + 0.28 * len(names)), layout="constrained")
    for axes, (unit, title) in zip(figure.subplots(1, len(PANELS), sharey=True), PANELS.items(), strict=True):
        p50, p20, p80 = ([float(found[name][unit][key]) for name in names] for key in ("p50", "p20", "p80"))
        spread = [[a - b for a, b in zip(p50, p20, strict=True)], [b - a for a, b in zip(p50, p80, strict=True)]]
        colours = [COLOURS[name.split("/")[0]] for name in names]
        axes.barh(names, p50, xerr=spread, color=colours, error_kw={"elinewidth": 1, "ecolor": "black"})
        axes.set_title(title, fontsize=10)
        axes.margins(y=0.01)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{rows[0]['command']}: {rows[0]['device']}, n = {rows[0]['n']}; {rows[0]['versions']}", fontsize=9)
    return figure
