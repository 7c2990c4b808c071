"""A self-contained HTML page: what the paper claims, what is known of its numbers, what we found."""

from __future__ import annotations

import base64
import html
from collections import defaultdict
from typing import Final

from pipeline.pictures import picture_bytes
from train.figures.draw import draw
from train.figures.points import UNTOLD, Figure, Section
from train.figures.protocol import BANDS, LEGEND, hours_of, protocol_of, seeds_of
from train.figures.rows import KEY, Row, mean_of, words

STYLE: Final = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1f2328; max-width: 1100px; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; font-size: 13px; }
th, td { border-bottom: 1px solid #d0d7de; padding: 4px 10px; text-align: left; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
img { max-width: 100%; }
.holds { color: #1a7f37; } .not { color: #b3261e; } .part { color: #9a6700; } .run { color: #6b7078; }
summary { cursor: pointer; }
"""
_CLASS: Final = {"holds": "holds", "does not hold": "not", "in part": "part", UNTOLD: "run", "not run": "run"}
_UNSHOWN: Final = {"experiment", "dataset", "scale", "log_every", "noise_seed", "seed"}
_SETTING: Final = [*(name for name in KEY if name not in _UNSHOWN), "rate"]


def page(sections: list[Section]) -> str:
    """Lay figures out as one page that needs no other file.

    Args:
        sections: Of all figures, those without rows as well.
    """
    parts = [_section(section) for section in sections]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Dilute: the paper\'s experiments</title>'
        f"<style>{STYLE}</style></head><body><h1>Deep learning under massive label noise: the experiments</h1>"
        "<p>Claims of Rolnick et al. 2017 (arXiv 1705.10694), or of the paper that a figure names, beside our runs. "
        f"{BANDS} {LEGEND}</p>" + "\n".join(parts) + "</body></html>\n"
    )


def _section(section: Section) -> str:
    figure, rows = section.figure, section.rows
    ran = f" ({section.dataset}, scale {section.scale})" if rows else ""
    title = html.escape(f"{section.name}: {figure.title}{ran}")
    head = f'<h2 id="{section.label}">{title}</h2><p>{html.escape(protocol_of(section))}</p>'
    if not rows:
        return head + "<p>Not run.</p>" + _claims(figure, [])
    columns = ("device", "versions", "commit", "command")
    told = [", ".join(sorted({row[name] for row in rows})) for name in columns]
    facts = f"{len(rows)} runs, {hours_of(section)} in all; seeds {seeds_of(rows)}; {'; '.join(told)}"
    picture = ""
    if figure.is_drawn:
        encoded = base64.b64encode(picture_bytes(draw(figure, rows), "png")).decode()
        picture = f'<img alt="{html.escape(figure.title)}" src="data:image/png;base64,{encoded}">'
    return head + picture + _claims(figure, rows) + f"<p>{html.escape(facts)}</p>" + _table(rows)


def _claims(figure: Figure, rows: list[Row]) -> str:
    if not figure.claims:
        return ""
    lines = []
    for claim in figure.claims:
        found = claim.check(rows)
        cells = (claim.text, claim.known, found.ours)
        lines.append(
            "<tr>"
            + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
            + f'<td class="{_CLASS[found.verdict]}">{found.verdict}</td></tr>'
        )
    head = "".join(f"<th>{word}</th>" for word in ("claim", "known of the paper", "ours", "verdict"))
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def _table(rows: list[Row]) -> str:
    groups: dict[tuple[object, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[tuple(row[name] for name in _SETTING)].append(row)
    shown = [name for at, name in enumerate(_SETTING) if len({key[at] for key in groups}) > 1]
    results = ["last", "range", "best by noisy validation", "oracle", "noisy validation loss, lowest"]
    results += ["noisy validation loss, last", "vote", "n", "s a run"]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in (*shown, *results))
    lines = []
    for found in groups.values():
        cells = [_cell(found[0], name) for name in shown]
        last = mean_of([row["top1_last"] for row in found])
        cells += [f"{last.value:.4f}", f"{last.least:.4f} to {last.most:.4f}"]
        for name in ("top1_best_noisy_val", "top1_best_test", "noisy_val_loss", "noisy_val_loss_last", "vote"):
            values = [row[name] for row in found if row[name] is not None]
            cells.append(f"{mean_of(values).value:.5f}" if values else "")
        cells += [str(last.n), f"{mean_of([row['wall_s'] for row in found]).value:.0f}"]
        lines.append("<tr>" + "".join(f'<td class="number">{html.escape(cell)}</td>' for cell in cells) + "</tr>")
    common = ", ".join(
        f"{name} {value}" for name in _SETTING if name not in shown and (value := rows[0][name]) not in (None, "")
    )
    return (
        f"<details><summary>all {len(groups)} points</summary><p>Common to all: {html.escape(common)}</p>"
        f"<table><tr>{head}</tr>{''.join(lines)}</table></details>"
    )


def _cell(row: Row, name: str) -> str:
    value = row[name]
    return words(name, value) if name == "method" else "" if value is None else str(value)
