import csv
from io import StringIO
from typing import Any

import pytest
from figure_rows import row as figure_row
from rich.console import Console

from train.comparison.page import page
from train.comparison.table import ACCURACY, FIELDS, MEASURED, Line, csv_text, lines_of, table
from train.figures.rows import Row

STAMP = {"device": "a processor × 2", "versions": "python 3.11", "commit": "0123456", "command": "tools/compare"}
NAMES = ["plain", "coteaching", "h_alpha"]


def row(entry: str, seed: int, **given: Any) -> Row:
    measures = dict.fromkeys(MEASURED, 0.5) | {"label_precision": None, "label_recall": None, "kept_frac": None}
    curve = [{"epoch": epoch, "eval/top1_accuracy": 0.1 * epoch, "memorisation/given": 0.2} for epoch in (1, 2)]
    more = {"entry": entry, "budget": "epochs", "optimizer": "adamw", "weight_decay": 1.0, "label_smoothing": 0.0}
    more["told"] = f"what {entry} is told"
    return {**figure_row(seed=seed), **measures, **more, "epochs": 2.0, "curve": curve, **given}


def rows() -> list[Row]:
    return [
        row("plain", 0, top1_last=0.8, examples_per_s=4_000.0),
        row("coteaching", 0, top1_last=0.91, label_precision=0.7, label_recall=0.6, budget="time"),
        row("h_alpha", 0, top1_last=0.99),
        row("plain", 1, top1_last=0.9, examples_per_s=2_000.0),
    ]


def cells(text: str) -> dict[tuple[str, str], dict[str, str]]:
    return {(line["budget"], line["method"]): line for line in csv.DictReader(StringIO(text))}


def test_a_line_is_the_mean_over_seeds_with_its_range() -> None:
    found = cells(csv_text(lines_of(rows(), NAMES), STAMP))
    plain = found["epochs", "plain"]
    assert [*plain] == FIELDS
    assert [plain[f"top1_last{end}"] for end in ("", "_min", "_max")] == ["0.85", "0.8", "0.9"]
    assert (plain["examples_per_s"], plain["n"], plain["label_precision"]) == ("3000", "2", "")
    assert (plain["device"], plain["command"]) == (STAMP["device"], STAMP["command"])
    assert found["time", "coteaching"]["label_precision"] == "0.7"
    assert {key: line["uses_clean_labels"] for key, line in found.items()} == {
        ("epochs", "plain"): "False", ("epochs", "h_alpha"): "True", ("time", "coteaching"): "False",
    }  # fmt: skip


def test_the_table_of_a_budget_holds_its_methods_alone() -> None:
    console = Console(width=120, record=True)
    console.print(table(lines_of(rows(), NAMES), "epochs"))
    text = console.export_text()
    assert "85.0" in text
    assert "80.0–90.0" in text
    assert "uses clean labels" in text
    assert "coteaching" not in text
    assert "…" not in text  # nothing is cut off at the width of a log file


@pytest.mark.parametrize("missing", ["label_auroc", "wrong_labels_said"])
def test_what_one_seed_has_not_is_left_empty(missing: str) -> None:
    (line,) = lines_of([row("plain", 0), row("plain", 1, **{missing: None})], NAMES)
    assert line.means[missing] is None
    assert isinstance(line, Line)
    assert cells(csv_text([line], STAMP))["epochs", "plain"][missing] == ""


def test_the_page_needs_no_other_file_and_says_its_rules() -> None:
    text = page(lines_of(rows(), NAMES), rows(), STAMP)
    assert text.count("src=") == text.count('src="data:image/png;base64,') == 2
    assert "http" not in text
    for words in ("h_alpha (oracle: uses clean labels)", "Equal time", "slowest one", "80.0–90.0", "the clean labels"):
        assert words in text, words
    assert "<td>h_alpha</td>" not in text
    assert all(column.head in text for column in ACCURACY.values())


def test_a_page_of_equal_epochs_alone_says_nothing_of_equal_time() -> None:
    own = [each for each in rows() if each["budget"] == "epochs"]
    assert "Equal time" not in page(lines_of(own, NAMES), own, STAMP)
