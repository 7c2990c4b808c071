"""Every command that the README shows is run, word for word, in an empty folder."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Run by CI itself, or by a test of their own.
ELSEWHERE = {
    "tools/demo",
    "tools/test",
    "tools/test --fast",
    "tools/setup",
    "tools/reproduce digits",
    "tools/setup --peers",
    "tools/bench build",
    "tools/bench load",
    "source .venv/bin/activate",
}
SHORT = "--examples 1024 --eval-every 1024"


def commands() -> list[str]:
    blocks = re.findall(r"^```bash\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    lines = [line.split(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def test_the_readme_begins_with_the_two_commands() -> None:
    assert commands()[:2] == ["tools/demo", "tools/test"]


@pytest.mark.slow
def test_the_commands_of_the_readme_run(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": f"{ROOT / '.venv/bin'}:{os.environ['PATH']}"}
    ran = 0
    for command in commands():
        if command in ELSEWHERE or command.startswith(("git ", "cd ")):
            continue
        words = shlex.split(command)
        assert words[0] == "train" or words[0].startswith("tools/"), (
            f"the README shows '{command}', which this test cannot run"
        )
        if words[0] == "train" and "--help" not in words:
            if "--epochs" in words:
                at = words.index("--epochs")
                del words[at : at + 2]
            words += shlex.split(SHORT)
        if words[0] == "tools/bench":
            words += ["--rounds", "3", "--no-save"]
        if words[0] == "tools/reproduce":
            words += ["--no-save"]
        if words[0].startswith("tools/"):
            words[0] = str(ROOT / words[0])
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        ran += 1
    assert ran >= 8
    for block in re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL):
        done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{block}\n{done.stderr}"


def test_every_flag_that_the_readme_names_exists() -> None:
    flags: dict[str, set[str]] = {}
    for words in map(shlex.split, commands()):
        flags.setdefault(words[0], set()).update(word for word in words if word.startswith("--"))
    del flags["tools/test"], flags["tools/setup"]  # shell scripts whose flags their own headers list
    for program, named in flags.items():
        if named:
            path = ROOT / (".venv/bin/train" if program == "train" else program)
            text = subprocess.run([str(path), "--help"], capture_output=True, text=True, check=True).stdout
            assert {flag for flag in named if flag not in text} == set(), program
