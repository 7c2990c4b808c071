"""Measure variants side by side in one run, interleaved, and keep the rows."""

from __future__ import annotations

import csv
import gc
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

import numpy as np

from pipeline.console import console

CSV: Final = Path(__file__).resolve().parent.parent / "bench.csv"
FIELDS: Final = (
    "run stage variant unit p50 p20 p80 n device versions commit command".split()  # noqa: SIM905 - the CSV's own header line
)


@dataclass(frozen=True)
class Settings:
    """What the user asked to measure.

    Args:
        shards: Their own data; the stage's default if None.
        model: For stage train; all of its own if empty.
        batch: Examples a step; 0 leaves it to stage train.
        threads: For every variant.
        rounds: Times that each variant runs.
        compile: Whether stage train also measures what torch compiles.
        peak_tflops: What the device can do in the precision of training, for stage train; None if not known.
    """

    shards: Path | None
    model: str
    batch: int
    threads: int
    rounds: int
    compile: bool = False
    peak_tflops: float | None = None


class Timed(NamedTuple):
    """What a variant did that starts and stops the clock itself.

    Args:
        amount: How much.
        seconds: In which time.
    """

    amount: float
    seconds: float


@dataclass(frozen=True)
class Variant:
    """One thing to measure.

    Args:
        name: ours/NAME, peer/NAME or limit/NAME; once for each unit.
        unit: What is counted, such as "labels/s"; "ms" for a duration; anything else is what `run` returns.
        run: Does the work once and returns how much it did; a duration counts 1.
        against: The variant of the same unit that the table compares it with, or several.
        prepare: Done before each round, outside the time.
    """

    name: str
    unit: str
    run: Callable[[], float | Timed]
    against: str | tuple[str, ...] | None = None
    prepare: Callable[[], object] = lambda: None


def measure(stage: str, variants: list[Variant], rounds: int) -> list[dict[str, Any]]:
    """Run all variants in turn, `rounds` times after a warm-up, and return one row for each."""
    samples: dict[tuple[str, str], list[float]] = {(variant.name, variant.unit): [] for variant in variants}
    for round_number in range(rounds + 1):
        for variant in variants:
            variant.prepare()
            gc.collect()
            start = time.perf_counter()
            amount = variant.run()
            timed = amount if isinstance(amount, Timed) else Timed(amount, time.perf_counter() - start)
            if round_number:  # the first round compiles and warms caches
                samples[variant.name, variant.unit].append(_value(timed, variant.unit))
    shared: dict[str, Any] = {
        "run": uuid.uuid4().hex[:8],
        "stage": stage,
        "n": rounds,
        "device": device(),
        "versions": versions(),
        "commit": commit(),
        "command": shlex.join(["tools/bench", *sys.argv[1:]]),
    }
    rows = []
    for variant in variants:
        values = samples[variant.name, variant.unit]
        low, high = np.percentile(values, [20, 80])
        numbers = {"p50": f"{median(values):.5g}", "p20": f"{low:.5g}", "p80": f"{high:.5g}"}
        rows.append({**shared, "variant": variant.name, "unit": variant.unit, **numbers})
    return rows


def _value(timed: Timed, unit: str) -> float:
    if unit == "ms":
        return timed.seconds * 1e3
    return timed.amount / timed.seconds if unit.endswith("/s") else timed.amount


def keep(rows: list[dict[str, Any]]) -> None:
    """Append rows to tools/bench.csv."""
    append_rows(CSV, FIELDS, rows)


def append_rows(path: Path, fields: list[str], rows: list[dict[str, Any]]) -> None:
    """Append rows to a CSV file, under a header if it is new."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fields, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


def show(rows: list[dict[str, Any]], variants: list[Variant]) -> None:
    """Print a table: median, spread, and how each variant compares with the one it is measured against."""
    from rich.table import Table

    table = Table("variant", "median", "p20 to p80", "unit", "compared")
    found = {(row["variant"], row["unit"]): row for row in rows}
    for variant in variants:
        row = found[variant.name, variant.unit]
        against = (variant.against,) if isinstance(variant.against, str) else variant.against or ()
        ratios = ((float(row["p50"]) / float(found[name, variant.unit]["p50"]), name) for name in against)
        compared = "\n".join(f"{ratio:.2f} × {name}" for ratio, name in ratios)
        spread = f"{float(row['p20']):,.4g} to {float(row['p80']):,.4g}"
        table.add_row(variant.name, f"{float(row['p50']):,.4g}", spread, variant.unit, compared)
    console.print(table)


def device() -> str:
    """Name the processor and, where there is one, the GPU."""
    import torch

    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    count = len(os.sched_getaffinity(0))
    return f"{model} × {count}" + (f" + {torch.cuda.get_device_name()}" if torch.cuda.is_available() else "")


def versions() -> str:
    """Name the versions that speed depends on."""
    names = ("torch", "torchvision", "numba", "numpy")
    return f"python {platform.python_version()} " + " ".join(f"{n} {importlib.metadata.version(n)}" for n in names)


def commit() -> str:
    """Name the commit, with a + where the tree differs from it."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--exclude=*"], cwd=CSV.parent, capture_output=True, text=True
    )
    return described.stdout.strip() or "unknown"
