import csv
import json
import os
import signal
import subprocess
import time
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
TOOL = str(ROOT / "tools/compare")
SMALL = ["mnist5k", "--law", "symmetric", "--rate", "0.5", "--model", "perceptron", "--images", "300", "--batch", "90"]


def compare(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [TOOL, *arguments, "--out", str(folder)]
    return subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, timeout=300)


def lines(folder: Path) -> list[dict[str, str]]:
    with (folder / "compare.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.mark.slow
def test_lines_are_the_means_of_what_the_runs_left(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = compare(out, *SMALL, "--methods", "plain,smoothing,coteaching", "--epochs", "6", "--seeds", "2")
    assert done.returncode == 0, done.stderr
    assert all(word in done.stdout for word in ("equal epochs", "coteaching", "report.html"))
    found: dict[tuple[Any, ...], list[Path]] = defaultdict(list)
    for config in out.glob("*/config.json"):
        recipe = read(config)["recipe"]
        found[recipe["method"], recipe["label_smoothing"]].append(config.parent)
    told = {"plain": ("plain", 0.0), "smoothing": ("plain", 0.1), "coteaching": ("coteaching", 0.0)}
    assert [line["method"] for line in lines(out)] == [*told]
    for line in lines(out):
        folders = found[told[line["method"]]]
        results, scores = (
            [read(path / "result.json") for path in folders],
            [read(path / "labels.json") for path in folders],
        )
        values = {
            **{f"top1_{name}": [each["top1_accuracy"][name] for each in results] for name in ("last", "last10")},
            **{
                f"top1_{name}": [each["top1_accuracy"][name] for each in results]
                for name in ("best_noisy_val", "best_test")
            },
            **{name: [each[name] for each in scores] for name in ("label_auroc", "label_precision", "label_recall")},
            "wrong_labels_said": [each["memorisation"]["given"] for each in results],
            "wall_s": [each["wall_s"] for each in results],
        }
        assert line["n"] == "2"
        for name, each in values.items():
            if each[0] is None:
                assert line["method"] != "coteaching"
                assert line[name] == ""
            else:
                ends = [float(line[name + end]) for end in ("", "_min", "_max")]
                assert ends == pytest.approx([fmean(each), min(each), max(each)], rel=1e-4), (line["method"], name)
    assert len({line["top1_last"] for line in lines(out)}) == 3  # were they mixed up, it would show
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/result.json")}
    again = compare(
        out, *SMALL, "--methods", "plain,smoothing,coteaching", "--epochs", "6", "--seeds", "2", "--equal-time"
    )
    assert again.returncode == 0, again.stderr
    after = {path: path.stat().st_mtime_ns for path in out.glob("*/result.json")}
    assert after.items() >= before.items()  # the runs of equal epochs were read
    of_time = [line for line in lines(out) if line["budget"] == "time"]
    assert [line["method"] for line in of_time] == [*told]
    for line, equal in zip(of_time, lines(out), strict=False):
        assert int(line["examples"]) >= int(equal["examples"])
    assert any(line["examples"] == equal["examples"] for line, equal in zip(of_time, lines(out), strict=False))


@pytest.mark.slow
def test_a_killed_comparison_goes_on_and_finds_what_it_would_have_found(tmp_path: Path) -> None:
    out, arguments = tmp_path / "out", [*SMALL, "--methods", "plain,ema,mixup", "--seeds", "2", "--epochs", "3"]
    with subprocess.Popen([TOOL, *arguments, "--out", str(out)], stdout=subprocess.DEVNULL) as process:
        until = time.monotonic() + 120
        while not [*out.glob("*/result.json")] and time.monotonic() < until:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    kept = {path: path.read_bytes() for path in out.glob("*/result.json")}
    assert 1 <= len(kept) < 6
    for folder in (out, tmp_path / "straight"):
        assert compare(folder, *arguments).returncode == 0
    assert all(path.read_bytes() == content for path, content in kept.items())
    timed = {"examples_per_s", "wall_s", "command"}
    told = [
        [{name: value for name, value in line.items() if not name.startswith(tuple(timed))} for line in lines(folder)]
        for folder in (out, tmp_path / "straight")
    ]
    assert told[0] == told[1]
    assert len(told[0]) == 3


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["mnist5k", "--alpha", "1", "--methods", "plain,mixpu"], ("mixpu", "did you mean mixup?")),
        (["mnist5k", "--law", "uniform"], ("uniform", "--alpha")),
        (["mnist5k", "--law", "white", "--alpha", "2"], ("white", "uniform, symmetric")),
        (["mnist5k", "--alpha", "1", "--images", "5000"], ("--images 5000", "4,000")),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path: Path, arguments: list[str], named: tuple[str, ...]) -> None:
    done = compare(tmp_path / "out", *arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in named), done.stderr
    assert not (tmp_path / "out").exists()


def test_another_comparison_is_not_written_over(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "compare.csv").write_text("mine\n")
    done = compare(out, *SMALL)
    assert done.returncode == 2
    assert "holds no comparison" in done.stderr
    assert (out / "compare.csv").read_text() == "mine\n"
