import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from train.figures.menu import sections
from train.figures.protocol import hours_of, protocol_of, seeds_of

ROOT = Path(__file__).resolve().parent.parent.parent
FOUND = sections(ROOT / "tools/results.csv")


def report(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([str(ROOT / "tools/report"), *arguments], capture_output=True, text=True)


def test_the_tables_of_the_readme_are_current() -> None:
    done = report("--check")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_table_that_was_edited_by_hand_is_noticed_and_written_again(tmp_path: Path) -> None:
    copy = tmp_path / "README.md"
    shutil.copy(ROOT / "README.md", copy)
    before = copy.read_text()
    copy.write_text(before.replace("<!-- report:bench -->\n", "<!-- report:bench -->\n| labels | ours | 1e99 |\n"))
    assert report("--check", "--readme", str(copy)).returncode == 1
    assert report("--readme", str(copy)).returncode == 0
    assert copy.read_text() == before


def test_a_picture_that_is_not_there_is_noticed(tmp_path: Path) -> None:
    copy = tmp_path / "README.md"
    copy.write_text((ROOT / "README.md").read_text() + "![nothing](tools/figures/nothing.png)\n")
    done = report("--check", "--readme", str(copy))
    assert done.returncode == 1
    assert "no tools/figures/nothing.png" in done.stdout


@pytest.mark.slow
def test_a_picture_that_shows_something_else_is_noticed(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "tools", tmp_path / "tools")
    shutil.copy(ROOT / "README.md", tmp_path / "README.md")
    (tmp_path / ".venv").symlink_to(ROOT / ".venv")

    def check() -> "subprocess.CompletedProcess[str]":
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [str(tmp_path / "tools/report"), "--check"]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    done = check()
    assert done.returncode == 0, done.stdout + done.stderr
    shutil.copy(ROOT / "tools/figures/fig4.png", tmp_path / "tools/figures/fig6.png")
    done = check()
    assert done.returncode == 1
    assert "tools/figures/fig6.png shows something else" in done.stdout


def test_a_readme_without_marks_is_refused_and_left_alone(tmp_path: Path) -> None:
    copy = tmp_path / "README.md"
    copy.write_text("nothing here\n")
    done = report("--readme", str(copy))
    assert done.returncode == 2
    assert done.stderr.startswith("error:")
    assert copy.read_text() == "nothing here\n"


@pytest.mark.parametrize("name", ["nope.md", "", "data.bin"])
def test_a_readme_that_cannot_be_read_is_a_mistake_of_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "data.bin").write_bytes(b"\xff\xfe")
    done = report("--readme", str(tmp_path / name), "--check")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"error: --readme {tmp_path / name} cannot be read (")
    assert "give the file that holds the tables" in done.stderr


def test_every_figure_that_was_run_has_its_protocol_seeds_hours_and_command_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("<!-- report:figures -->")[1]
    text = text.split("<!-- report:end -->")[0]
    sections = [section for section in FOUND if section.rows]
    assert sections
    for section in sections:
        assert f"**{section.label}**: {section.figure.title}. {protocol_of(section)}" in text
        lines = [line for line in text.splitlines() if line.startswith(f"| {section.label} |")]
        assert len(lines) == len(section.figure.claims)
        for line in lines:
            assert f"| {seeds_of(section.rows)} | {hours_of(section)} | `tools/reproduce " in line


def test_the_hours_that_the_readme_promises_at_scale_cpu_are_about_those_of_the_rows() -> None:
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    told = re.search(r"about ([\d.]+) h a seed for fig6, ([\d.]+) for fig8 and ([\d.]+) for fig4", text)
    assert told
    rows = {section.label: section.rows for section in FOUND}
    for name, hours in zip(("fig6", "fig8", "fig4"), told.groups(), strict=True):
        num_seeds = len({row["seed"] for row in rows[name]})
        assert float(hours) == pytest.approx(sum(row["wall_s"] for row in rows[name]) / 3_600 / num_seeds, rel=0.25)
