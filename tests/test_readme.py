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
    "tools/bench methods",
    "source .venv/bin/activate",
}
SHORT = {"--examples": "512", "--eval-every": "512"}


def commands() -> list[str]:
    blocks = re.findall(r"^```bash\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    lines = [line.split(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def test_the_readme_begins_with_the_two_commands() -> None:
    assert commands()[:2] == ["tools/demo", "tools/test"]


def test_git_ignores_what_the_commands_write() -> None:
    folders = set(re.findall(r"--out (\S+/\S+)", "\n".join(commands())))
    assert "data/imagenet" in folders
    done = subprocess.run(["git", "check-ignore", *folders], cwd=ROOT, capture_output=True, text=True)
    assert set(done.stdout.split()) == folders


def to_run() -> list[str]:
    return [command for command in commands() if command not in ELSEWHERE]


def programs() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


# What is shown needs only what was shown before it about the same: each of these has a folder of its own. The first
# pattern that a command matches decides.
SUBJECTS = {
    "photos": "imagenet",
    "confusion": r"confusion\.csv",
    "shards": r"shards/|build_shards",
    "memory": "^train ",
    "speed": "^tools/(bench|reproduce|compare) ",
}


def subject(command: str) -> str | None:
    return next((name for name, pattern in SUBJECTS.items() if re.search(pattern, command)), None)


def test_every_command_of_the_readme_is_run() -> None:
    assert {subject(command) for command in to_run()} == set(SUBJECTS)
    assert [subject(program) for program in programs()] == ["shards"] * 2


@pytest.mark.slow
@pytest.mark.parametrize("about", SUBJECTS)
def test_the_commands_of_the_readme_run(tmp_path: Path, about: str) -> None:
    environment = {**os.environ, "PATH": f"{ROOT / '.venv/bin'}:{os.environ['PATH']}"}

    def check(shown: str, words: list[str]) -> None:
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{shown}\n{done.stdout}\n{done.stderr}"

    for command in filter(lambda command: subject(command) == about, to_run()):
        words = shlex.split(command)
        if words[0] == "train":
            if "--epochs" in words:
                at = words.index("--epochs")
                del words[at : at + 2]
            words += [word for flag, value in SHORT.items() if flag not in words for word in (flag, value)]
        if words[0] == "tools/bench":
            words += ["--rounds", "3", "--no-save"]
        if words[0] == "tools/reproduce":
            words += ["--no-save"]
        if words[0] == "tools/compare":
            words += ["--epochs", "0.2", "--seeds", "1"]
        if words[0] != "train":
            words[0] = str(ROOT / words[0])
        check(command, words)
    for program in filter(lambda program: subject(program) == about, programs()):
        check(program, [sys.executable, "-c", program])


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
