import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


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


def test_a_readme_without_marks_is_refused_and_left_alone(tmp_path: Path) -> None:
    copy = tmp_path / "README.md"
    copy.write_text("nothing here\n")
    done = report("--readme", str(copy))
    assert done.returncode == 2
    assert done.stderr.startswith("error:")
    assert copy.read_text() == "nothing here\n"
