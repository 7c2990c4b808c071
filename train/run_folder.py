"""The folder that says everything about a run.

config.json      the complete recipe, and the facts of the data it ran on
versions.json    one entry for each process that worked on the run: its command, loader, versions, processor, threads
metrics.jsonl    one row per log interval and per evaluation; the same in TensorBoard event files
checkpoint.pt    where to go on; checkpoint-1.pt is the one before it
last.pt best.pt  weights at the end, and at the lowest noisy validation loss
result.json      what came out; a folder that has it is finished
"""

from __future__ import annotations

import fcntl
import json
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any, Final

import torch

from pipeline.atomic import replacing
from pipeline.errors import UserError
from train.recipes import difference, free_fields

# What nets are made of and what decodes; the full name of DALI says which CUDA it is for.
_OPTIONAL: Final = ("torchvision", "timm", "nvidia-dali", "ffcv", "webdataset")


class RunFolder:
    """Opens a folder for a run, a new one or one to go on with; until `close`, no other process can.

    Args:
        path: Where.
        config: {"recipe": …, "data": …}, plain values.
        resume: Whether to go on with a run that lies there.
        facts: What else versions.json is to say of this process, plain values.

    Raises:
        UserError: If there is a run and `resume` is not set, the run is another one, another process works on it, the
            folder holds something else, or it cannot be written.
    """

    def __init__(
        self, path: Path, config: dict[str, dict[str, Any]], *, resume: bool, facts: dict[str, Any] | None = None
    ) -> None:
        self.path = path
        with out_named(path):
            self._open(config, resume=resume, facts=facts or {})

    def _open(self, config: dict[str, dict[str, Any]], *, resume: bool, facts: dict[str, Any]) -> None:
        path = self.path
        if (path / "config.json").exists():
            if not resume:
                raise UserError(f"{path} holds a run already; add --resume to go on with it, or give another --out")
            self._check_same(config)
        elif path.exists() and (not path.is_dir() or any(each.suffix != ".part" for each in path.iterdir())):
            raise UserError(f"{path} exists and holds no run; give --out a new folder")
        else:  # a kill may have left a part of config.json
            path.mkdir(parents=True, exist_ok=True)
            self.write("config.json", config)
        self._lock = (path / "config.json").open("rb")  # goes with the process, however it ends
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise UserError(f"another process trains in {path}; wait for it, or give another --out") from None
        if not self.finished:
            entries = self.read("versions.json") if (path / "versions.json").exists() else []
            self.write("versions.json", [*entries, {**describe_process(), **facts}])

    def close(self) -> None:
        """Let other processes go on with the run."""
        self._lock.close()

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return (self.path / "result.json").exists()

    def read(self, name: str) -> Any:
        """Read one of the JSON files."""
        return read_json(self.path / name)

    def write(self, name: str, content: Any) -> None:
        """Write one of the JSON files, atomically."""
        with replacing(self.path / name) as file:
            file.write((json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())

    def _check_same(self, config: dict[str, dict[str, Any]]) -> None:
        before = self.read("config.json")
        now = json.loads(json.dumps(config))  # tuples become lists, as they did on disk
        changes = difference(before["data"], now["data"])
        changes += difference(before["recipe"], now["recipe"], free=free_fields(now["recipe"]["method"]))
        if changes:
            raise UserError(
                f"{self.path} holds a run of another recipe ({'; '.join(changes)}); "
                "resume it with its own flags, or give another --out"
            )


def read_json(path: Path) -> Any:
    """Read a JSON file of a folder that --out gave.

    Raises:
        UserError: If it is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); give another --out") from None


@contextmanager
def out_named(path: Path) -> Iterator[None]:
    """Say which folder it is where the disk refuses one.

    Args:
        path: What --out gave.

    Raises:
        UserError: In place of the system's error.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); give another --out") from None


def begun(path: Path) -> Path | None:
    """Return a folder if it is there, where a run may go on.

    Raises:
        UserError: If its name cannot be one.
    """
    with out_named(path):
        return path if path.exists() else None


def describe_process() -> dict[str, Any]:
    """Return what a repetition depends on besides the recipe, down to the bits."""
    return {
        "command": shlex.join(sys.argv),
        "commit": commit_of(Path(__file__).parents[1]),
        "python": platform.python_version(),
        **{name: version(name) for name in ("dilute", "torch", "numpy", "numba")},
        **{each.name: each.version for each in distributions() if each.name.startswith(_OPTIONAL)},
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def commit_of(checkout: Path) -> str | None:
    """Return the git commit of a checkout, + behind it where files differ; None of a folder that is none."""
    if not (checkout / ".git").exists() or shutil.which("git") is None:
        return None
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
