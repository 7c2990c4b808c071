"""Runs of the trainer, and what they left: in this process, as the command does them, and in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.console import run
from train.checkpoint import load_state
from train.cli import train
from train.clock import Clock
from train.methods import METHODS, Method

CPU = torch.device("cpu")


def selection_for(method: str) -> dict[str, Any]:
    """Return what a recipe adds for a method that learns only after a selection; nothing for others."""
    return {"select": "rsl", "order": "full"} if METHODS[method].rest_views else {}


def weights(folder: Path, name: str = "last.pt") -> dict[str, Tensor]:
    return load_state(folder / name, CPU)


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    assert first.keys() == second.keys()
    return all(torch.equal(first[key], second[key]) for key in first)


def rows(folder: Path) -> list[dict[str, float]]:
    """Read what was logged, without what depends on how fast the machine is."""
    timed = ("wall_s", "speed/", "data/wait_frac")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith(timed)} for line in lines]


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the command in this process; return its exit code."""
    monkeypatch.setattr(sys, "argv", ["train", *arguments])
    with pytest.raises(SystemExit) as ended:
        run(train, name="train")
    assert isinstance(ended.value.code, int)
    return ended.value.code


@contextmanager
def interrupted(method: type[Method], at: int) -> Iterator[None]:
    """Expect that what is run here is interrupted, as by Ctrl-C, when a method is to make its `at`-th step."""
    step, steps = method.step, count(1)

    def step_or_stop(*arguments: Any) -> Any:
        if next(steps) == at:
            raise KeyboardInterrupt
        return step(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(method, "step", step_or_stop)
        with pytest.raises(KeyboardInterrupt):
            yield


def stop_in_step(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let a signal ask this process to stop while it makes some step of a run."""
    tick = Clock.tick

    def stopping(self: Clock) -> None:
        if self.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        tick(self)

    monkeypatch.setattr(Clock, "tick", stopping)


def start(*arguments: str) -> subprocess.Popen[str]:
    """Start the command in a process of its own, on one core."""
    code = "from train.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"},
    )


def wait_for_a_checkpoint(process: subprocess.Popen[str], folder: Path) -> None:
    deadline = time.monotonic() + 120
    while not (folder / "checkpoint.pt").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def finish(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
