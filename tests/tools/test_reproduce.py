import csv
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from train.figures.menu import FIGURES

ROOT = Path(__file__).resolve().parent.parent.parent
TOOL = str(ROOT / "tools/reproduce")


def reproduce(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [TOOL, *arguments, "--no-save", "--out", str(folder)]
    return subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, timeout=300)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_figure_at_scale_smoke_leaves_rows_pictures_and_a_page(tmp_path: Path) -> None:
    before = (ROOT / "tools/results.csv").read_bytes()
    done = reproduce(tmp_path / "out", "fig8", "--scale", "smoke")
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "out").iterdir() if path.is_file()}
    assert names == {"results.csv", "fig8-smoke.png", "fig8-smoke.svg", "report.html"}
    found = rows(tmp_path / "out")
    assert len(found) == 8  # two α × (two batches, the limit, the histogram)
    assert {row["experiment"] for row in found} == {"fig8"}
    assert found[0]["command"] == f"tools/reproduce fig8 --scale smoke --no-save --out {tmp_path / 'out'}"
    assert "Larger batches are better under noise." in (tmp_path / "out/report.html").read_text()
    assert "verdict" in done.stdout
    assert (ROOT / "tools/results.csv").read_bytes() == before
    folders = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/result.json")}
    assert reproduce(tmp_path / "out", "fig9", "--scale", "smoke").returncode == 0  # runs of its own: none
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/result.json")} == folders
    assert {row["experiment"] for row in rows(tmp_path / "out")} == {"fig8", "fig9"}


def test_rows_of_scale_smoke_are_never_saved(tmp_path: Path) -> None:
    path = ROOT / "tools/results.csv"
    before = path.read_bytes()
    try:
        command = [TOOL, "digits", "--scale", "smoke", "--save", "--out", str(tmp_path / "out")]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert len(rows(tmp_path / "out")) == 2
        assert path.read_bytes() == before
    finally:
        if path.read_bytes() != before:
            path.write_bytes(before)


@pytest.mark.parametrize(("name", "why"), [("file", "Not a directory"), ("/proc/x", "No such file or directory")])
def test_a_folder_that_cannot_be_written_is_one_line_before_anything_runs(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "file").write_text("mine")
    done = reproduce(tmp_path / name, "fig9", "--scale", "smoke")
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path / name} cannot be written ({why}); give another --out\n"
    assert done.stdout == ""
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.slow
def test_a_killed_grid_goes_on_and_finds_what_it_would_have_found(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    command = [TOOL, "fig6", "--scale", "smoke", "--no-save", "--out", str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True) as process:
        until = time.monotonic() + 120
        while not (tmp_path / "out/results.csv").exists() and time.monotonic() < until:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
    assert 1 <= len(rows(tmp_path / "out")) < 4
    for folder in ("out", "straight"):
        assert reproduce(tmp_path / folder, "fig6", "--scale", "smoke").returncode == 0
    told = [[row["clean"], row["alpha"], row["top1_last"], row["noisy_val_loss"]] for row in rows(tmp_path / "out")]
    straight = [
        [row["clean"], row["alpha"], row["top1_last"], row["noisy_val_loss"]] for row in rows(tmp_path / "straight")
    ]
    assert sorted(told) == sorted(straight)
    assert len(told) == 4


@pytest.mark.slow
def test_what_cannot_be_run_leaves_a_page_that_says_so_and_no_picture(tmp_path: Path) -> None:
    done = reproduce(tmp_path / "out", "all", "--scale", "smoke", "--source", str(tmp_path / "nowhere"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("not run: ") == len(FIGURES)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.html"]
    text = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert text.count("<p>Not run.</p>") == len(FIGURES)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["fig99"], ("fig99", "fig1", "massive", "all")),
        (["fig1", "--scale", "huge"], ("huge", "smoke, cpu, full")),
        (["fig1", "--seeds", "0"], ("--seeds",)),
        (["fig1", "--dataset", "mnist6k"], ("mnist6k", "mnist5k")),
        (["fig2", "--source", "nowhere"], ("nowhere",)),
        (["fig5", "--dataset", "imagenet"], ("imagenet", "fashion_mnist", "cifar10")),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path: Path, arguments: list[str], named: tuple[str, ...]) -> None:
    done = reproduce(tmp_path / "out", *arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in named), done.stderr
    assert not (tmp_path / "out/results.csv").exists()
