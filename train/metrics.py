"""From numbers on the device to a log that people and tools read."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from rich.progress import BarColumn, Progress, TextColumn
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from pipeline.atomic import replacing
from pipeline.console import console
from pipeline.errors import UserError
from train.clock import Clock
from train.distributed import ALONE, World

_BAR_EVERY_S: Final = 0.2
_LINE_EVERY_S: Final = 10.0  # where there is no terminal


class Meter:
    """Means of device metrics over a log interval and over processes; adding never waits, reading does, once."""

    def __init__(self, world: World = ALONE) -> None:
        self.world = world
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Count one step's metrics."""
        for name, value in metrics.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.count += 1

    def read(self, flag: Tensor) -> tuple[dict[str, float], int]:
        """Return the means and the flag, and begin a new interval.

        Args:
            flag: A whole number on the same device, read in the same breath.
        """
        self.share()
        values = torch.stack([*(value.double() for value in self.sums.values()), flag.double()])
        *sums, raised = values.tolist()  # device-to-host synchronization, the only one of a log interval
        means = {name: total / self.count for name, total in zip(self.sums, sums, strict=True)}
        self.sums, self.count = {}, 0
        return means, int(raised)

    def share(self) -> None:
        """Make every process's sums their mean over processes, which any number of processes can go on with."""
        if self.world.size > 1 and self.sums:
            means = self.world.sum(torch.stack([*self.sums.values()])) / self.world.size
            self.sums = dict(zip(self.sums, means, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, so that a resumed run logs the same means."""
        return {"sums": self.sums, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.sums, self.count = dict(state["sums"]), state["count"]


class Pace:
    """Examples a second and the share of time spent waiting for data, since the last reading.

    Evaluations and checkpoints are not training and do not count.
    """

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._waited_s = 0.0
        self._paused_s = 0.0
        self._examples = 0
        self.total_examples = 0
        self.total_s = 0.0
        self.total_waited_s = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of this block as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited_s += time.perf_counter() - start

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """Leave the time of this block out."""
        start = time.perf_counter()
        yield
        self._paused_s += time.perf_counter() - start

    def add(self, examples: int) -> None:
        """Count examples that were trained on."""
        self._examples += examples

    def read(self) -> dict[str, float]:
        """Return speed and share of waiting, and begin a new interval."""
        now = time.perf_counter()
        busy_s = max(now - self._began - self._paused_s, 1e-9)
        values = {"speed/examples_per_s": self._examples / busy_s, "data/wait_frac": self._waited_s / busy_s}
        self.total_examples += self._examples
        self.total_s += busy_s
        self.total_waited_s += self._waited_s
        self._began, self._waited_s, self._paused_s, self._examples = now, 0.0, 0.0, 0
        return values

    def totals(self) -> dict[str, float]:
        """Return the means over all intervals of the run that were read."""
        seconds = max(self.total_s, 1e-9)
        return {
            "speed/examples_per_s": self.total_examples / seconds,
            "data/wait_frac": self.total_waited_s / seconds,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"examples": self.total_examples, "s": self.total_s, "waited_s": self.total_waited_s}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.total_examples, self.total_s = state["examples"], state["s"]
        self.total_waited_s = state["waited_s"]


class Log:
    """metrics.jsonl and TensorBoard events.

    Args:
        folder: The run's.
        examples: Where the run goes on: rows beyond it, which a killed process wrote, are dropped.

    Raises:
        UserError: If a row before the last one cannot be read.
    """

    def __init__(self, folder: Path, *, examples: int) -> None:
        path = folder / "metrics.jsonl"
        try:
            rows = kept_rows(path.read_bytes(), examples) if path.exists() else []
        except ValueError as error:
            raise UserError(
                f"{path} is damaged ({error}); mend or remove that line, then go on with --resume"
            ) from None
        with replacing(path) as file:
            file.write(b"".join(row + b"\n" for row in rows))
        self.file = path.open("a", encoding="utf-8")
        self.events = SummaryWriter(str(folder), purge_step=examples + 1 if examples else None)

    def write(self, clock: Clock, values: dict[str, float]) -> None:
        """Append one row; values that are not defined are left out, for JSON has no nan."""
        values = {name: value for name, value in values.items() if math.isfinite(value)}
        time_of_run = {"examples": clock.examples, "step": clock.step, "epoch": round(clock.epoch, 6)}
        self.file.write(json.dumps({**time_of_run, "wall_s": round(clock.wall_s, 3), **values}) + "\n")
        self.file.flush()
        for name, value in values.items():
            self.events.add_scalar(name, value, clock.examples)

    def close(self) -> None:
        """Put everything on disk."""
        self.file.close()
        self.events.close()


def kept_rows(written: bytes, examples: int) -> list[bytes]:
    """Return the rows of a metrics.jsonl that lie at or before a point of the run.

    Args:
        written: What a process, perhaps killed while it wrote, left.
        examples: That point.

    Raises:
        ValueError: If a row before the last one, which the kill may have torn, is none.
    """
    rows, kept = written.splitlines(), []
    for number, row in enumerate(rows, 1):
        try:
            if json.loads(row)["examples"] <= examples:
                kept.append(row)
        except (ValueError, KeyError, TypeError):
            if number < len(rows):
                raise ValueError(f"line {number} of {len(rows)} is no row of metrics") from None
    return kept


class Display:
    """A progress bar on a terminal; elsewhere a line every ten seconds."""

    def __init__(self, clock: Clock) -> None:
        self.bar = Progress(
            BarColumn(), TextColumn("{task.percentage:.0f} %  {task.fields[line]}"), console=console, transient=True
        )
        self.task = self.bar.add_task("", total=clock.total_examples, completed=clock.examples, line="")
        self._shown_at = -math.inf
        if console.is_terminal:
            self.bar.start()

    def show(self, clock: Clock, values: dict[str, float]) -> None:
        """Show how far the run is; costs nothing if it was shown a moment ago.

        Args:
            clock: The run's.
            values: What was last read.
        """
        now = time.monotonic()
        if not clock.finished and now - self._shown_at < (_BAR_EVERY_S if console.is_terminal else _LINE_EVERY_S):
            return
        self._shown_at, line = now, progress_line(clock, values)
        if console.is_terminal:
            self.bar.update(self.task, completed=clock.examples, line=line)
        else:
            console.print(f"{clock.examples:,}/{clock.total_examples:,} examples  {line}".rstrip(), soft_wrap=True)

    def close(self) -> None:
        """Leave the terminal clean."""
        self.bar.stop()


def progress_line(clock: Clock, values: dict[str, float]) -> str:
    """Write speed, data-wait share, loss, accuracy and time to go; what is not known yet is left out."""
    parts = []
    if speed := values.get("speed/examples_per_s"):
        left_s = round((clock.total_examples - clock.examples) / speed)
        parts.append(f"{speed:,.0f} examples/s")
        parts.append(f"data wait {values['data/wait_frac']:.0%}")
        parts.append(f"loss {values['train/loss']:.4f}")
        parts.append(f"ETA {left_s // 3600}:{left_s // 60 % 60:02d}:{left_s % 60:02d}")
    if "eval/top1_accuracy" in values:
        parts.append(f"test accuracy {values['eval/top1_accuracy']:.4f}")
    return "  ".join(parts)


def rows_with(folder: Path, name: str) -> list[dict[str, float]]:
    """Read the rows of a run's metrics that have some value: readings, or evaluations."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if name in row]
