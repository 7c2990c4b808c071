import csv
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from benchmarks import measure  # noqa: E402
from benchmarks.measure import FIELDS, Variant  # noqa: E402


def bench(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([str(ROOT / "tools/bench"), *arguments], capture_output=True, text=True)


def test_variants_take_turns_and_the_first_round_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    calls: list[str] = []

    def work(name: str, seconds: list[float]) -> Variant:
        times = iter(seconds)

        def run() -> float:
            nonlocal now
            calls.append(name)
            now += next(times)
            return 100

        return Variant(name, "items/s" if name.startswith("ours") else "ms", run)

    monkeypatch.setattr(measure.time, "perf_counter", lambda: now)
    rows = measure.measure("stage", [work("ours/a", [9, 1, 4, 2]), work("peer/b", [9, 0.5, 0.25, 1])], 3)
    assert calls == ["ours/a", "peer/b"] * 4
    assert [float(row["p50"]) for row in rows] == [50, 500]  # items/s of 2 s; ms of 0.5 s
    assert [(row["variant"], row["n"], row["stage"]) for row in rows] == [
        ("ours/a", 3, "stage"),
        ("peer/b", 3, "stage"),
    ]
    assert rows[0]["run"] == rows[1]["run"]
    assert set(rows[0]) == set(FIELDS)


def test_rows_are_appended_under_one_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "CSV", tmp_path / "bench.csv")
    row = dict.fromkeys(FIELDS, "1")
    measure.keep([row])
    measure.keep([row, row])
    with (tmp_path / "bench.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert found == [row] * 3


def test_the_kept_rows_have_the_agreed_columns_and_variants() -> None:
    with (ROOT / "tools/bench.csv").open(newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert reader.fieldnames == FIELDS
    assert rows
    for row in rows:
        assert row["variant"].split("/")[0] in {"ours", "peer", "limit"}
        assert float(row["p20"]) <= float(row["p50"]) <= float(row["p80"])
        assert int(row["n"]) >= 3


def test_an_unknown_stage_lists_the_menu() -> None:
    done = bench("lables")
    assert done.returncode == 2
    assert done.stderr.startswith("error:")
    assert "labels, order, build, open, load, train" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["open", "load"])
def test_a_stage_runs_and_shows_every_variant(stage: str) -> None:
    done = bench(stage, "--rounds", "3", "--no-save", "--batch", "256")
    assert done.returncode == 0, done.stderr
    assert "ours/" in done.stdout
