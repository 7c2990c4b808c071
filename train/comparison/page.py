"""A self-contained HTML page of a comparison: its rules, its tables, its curves."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from statistics import fmean
from typing import Any, Final

from pipeline.pictures import Figure as Picture
from pipeline.pictures import picture_bytes
from train.comparison.labels import LOOKED_AT
from train.comparison.runs import BUDGETS, EVALUATIONS
from train.comparison.table import MEASURED, Line, cell
from train.figures.page import STYLE
from train.figures.points import VAL_FRAC
from train.figures.rows import Row

_RULES: Final = (
    f"All methods see the same images with the same labels; of the images, {VAL_FRAC:.0%} are held out for the noisy "
    "validation. Nothing is tuned for any of them here: each has its recipe's learning rate, batch and decay, or those "
    "that the command gives to all. No method has averaged weights unless its name says ema, but for mlnt, whose "
    "teacher is an average of weights and is what is evaluated.",
    f"Accuracy is top-1 on test images, looked at {EVALUATIONS} times a run, or at every step of a shorter one. Last, "
    "and the mean of the last 10, choose nothing; best by noisy validation takes the evaluation with the lowest "
    "cross-entropy on held-out images' noisy labels (for selections, coteaching and forward, whose nets say the class, "
    "through the law's transition matrix, which nothing else of a selection or of coteaching is told); best on test is "
    "an oracle: nobody has it, and papers that report it report a maximum over test images.",
    "Every number is the mean over n seeds, which draw labels and training anew; under it stands the range over them.",
    "AUROC: how often the loss of a right label is smaller than that of a wrong one, over all labels of up to "
    f"{LOOKED_AT:,} training images, under the net's last weights; for a selection, of the scores that it gave all "
    "labels, which are of other nets, and for incv of nets that had not seen these labels.",
    "Label precision and recall: of what a selection keeps, whatever is done with it later; else of the labels that a "
    "method still trains on at its end, for methods that leave some out; for coteaching those of smallest loss among "
    "all that are looked at, the share that it keeps at its end, averaged over its two nets. Wrong labels said: how "
    "often the net predicts the wrong label of a training image. All of these read the clean labels to know; no method "
    "does, unless it is called an oracle.",
    "Examples/s is the median over a run; wall time has evaluations in it, and the start of the process in its first "
    "run.",
)
_BUDGET_RULES: Final = {
    "epochs": "Every method goes over what it streams equally often: over all examples, or, for methods that see an "
    "image with all its labels at once, over all images. After a selection a method sees as many examples as without "
    "one, in more passes over fewer (column epochs); what the selection trains before comes on top.",
    "time": "Every method sees as many examples as it can in the time that the slowest one trained for equal epochs, "
    "at the speed that its fastest seed had there, evaluations left out; in whole steps. A method that costs twice as "
    "much a step stands beside a baseline that trains twice as long.",
}
_STYLE: Final = "td small { color: #6b7078; white-space: nowrap; } th { max-width: 9em; }"
_COLOURS: Final = 10


def page(lines: Sequence[Line], rows: Sequence[Row], stamp: dict[str, str]) -> str:
    """Lay a comparison out as one page that needs no other file.

    Args:
        lines: Of `train.comparison.table.lines_of`.
        rows: What they were made of.
        stamp: Where and how it was made.
    """
    first = lines[0].row
    flips = "" if first["flip_rate"] is None else f" at rate {first['flip_rate']:g}"
    title = f"{first['dataset']}: methods under {first['law']} noise{flips}, α = {first['alpha']}"
    about = f"{first['clean']:,} images, {first['model']}; {'; '.join(stamp.values())}"
    parts = [_section(lines, rows, budget) for budget in BUDGETS if any(line.budget == budget for line in lines)]
    rules = "".join(f"<li>{html.escape(rule)}</li>" for rule in _RULES)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}{_STYLE}</style></head><body><h1>{html.escape(title)}</h1><p>{html.escape(about)}</p>"
        + "\n".join(parts)
        + f"<h2>How to read this</h2><ul>{rules}</ul></body></html>\n"
    )


def _section(lines: Sequence[Line], rows: Sequence[Row], budget: str) -> str:
    shown = [line for line in lines if line.budget == budget]
    picture = base64.b64encode(picture_bytes(curves(shown, rows), "png")).decode()
    return (
        f"<h2>{html.escape(BUDGETS[budget].capitalize())}</h2><p>{html.escape(_BUDGET_RULES[budget])}</p>"
        + _table(shown)
        + f'<img alt="{html.escape(BUDGETS[budget])}: curves" src="data:image/png;base64,{picture}">'
        + _settings(shown)
    )


def _table(lines: Sequence[Line]) -> str:
    titles = ("method", "is told", *(column.head for column in MEASURED.values()), "epochs", "n")
    head = "".join(f"<th>{html.escape(title)}</th>" for title in titles)
    body = []
    for line in lines:
        cells = "".join(
            f'<td class="number">{value}<br><small>{ends}</small></td>'
            for value, ends in (cell(line, name) for name in MEASURED)
        )
        names = f"<td>{html.escape(line.title)}</td><td>{html.escape(line.row['told'])}</td>"
        ends = f'<td class="number">{line.row["epochs"]:.1f}</td><td class="number">{line.n}</td>'
        body.append(f"<tr>{names}{cells}{ends}</tr>")
    return f"<table><tr>{head}</tr>{''.join(body)}</table>"


def _settings(lines: Sequence[Line]) -> str:
    names = ("examples", "epochs", "batch", "lr", "schedule", "optimizer", "weight_decay", "ema", "label_smoothing")
    head = "".join(f"<th>{name}</th>" for name in ("method", *names, "kept_frac"))
    body = []
    for line in lines:
        cells = "".join(f'<td class="number">{_setting(line.row[name])}</td>' for name in (*names, "kept_frac"))
        body.append(f"<tr><td>{html.escape(line.title)}</td>{cells}</tr>")
    return f"<details><summary>settings</summary><table><tr>{head}</tr>{''.join(body)}</table></details>"


def _setting(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:,.6g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def curves(lines: Sequence[Line], rows: Sequence[Row]) -> Picture:
    """Draw test accuracy and wrong labels said, means over seeds, against the part of the run that is over.

    Args:
        lines: What to draw, of one budget.
        rows: The runs of all.
    """
    picture = Picture(figsize=(11, 4.2), layout="constrained")
    panels = {"eval/top1_accuracy": "top-1 test accuracy", "memorisation/given": "wrong labels said"}
    for axes, (name, title) in zip(picture.subplots(1, 2), panels.items(), strict=True):
        for number, line in enumerate(lines):
            runs = [row["curve"] for row in rows if (row["budget"], row["entry"]) == (line.budget, line.name)]
            at_once = [*zip(*runs, strict=False)]
            passes = [each[0]["epoch"] for each in at_once]
            means = [fmean(row.get(name, float("nan")) for row in each) for each in at_once]
            style = "-" if number < _COLOURS else "--"
            axes.plot(passes, means, style, marker=".", markersize=3, linewidth=1, label=line.title)
        axes.set(xlabel="passes over what is streamed", ylabel=title)
        axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    return picture
