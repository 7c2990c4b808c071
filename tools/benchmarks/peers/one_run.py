"""What every variant of stage load does, in a process of its own: open a loader, take batches, print a line of JSON.

Cold start runs from the loader's construction to its first batch; Python's start and its imports lie before it. The
steady rate is that of `--batches` batches after the first few. CPU time is that of the process and its workers in those
batches. Memory is the sum of what each of them held at most (VmHWM), pages that they share and mapped files included.

Every script here is run by the Python of its own environment, so this file needs nothing but Python.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
SIZE_PX = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WARM = 4  # batches after the first one


def parser() -> argparse.ArgumentParser:
    """Return what every script understands; each adds its own."""
    made = argparse.ArgumentParser()
    made.add_argument("data", type=Path)
    made.add_argument("--batch", type=int, default=128)
    made.add_argument("--batches", type=int, default=40)
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--warm", type=int, default=WARM, help="batches after the first one that do not count")
    made.add_argument("--write", type=Path, help="write the images of this folder to DATA in the library's own format")
    return made


def epoch_images(batch: int, batches: int) -> int:
    """Return how many images an epoch needs to have that no loader reaches the end of, whatever it prefetches."""
    return batch * (batches + WARM + 32)


def one_run(open_loader: Callable[[], Iterable[Any]], batch: int, batches: int, warm: int = WARM) -> None:
    """Open a loader, time it, print the line."""
    sys.path.append(str(ROOT))
    from train.process import settle

    settle()  # how memory is handed out, for ours and the peers alike
    began = time.perf_counter()
    loader = iter(open_loader())
    next(loader)
    first_batch_s = time.perf_counter() - began
    for _ in range(warm):
        next(loader)
    cpu_s, start = _cpu_s(), time.perf_counter()
    for _ in range(batches):
        next(loader)
    seconds, cpu_s = time.perf_counter() - start, _cpu_s() - cpu_s
    line = {"images": batch * batches, "seconds": seconds, "first_batch_s": first_batch_s, "cpu_s": cpu_s}
    print(json.dumps({**line, "peak_mb": _peak_mb()}), flush=True)


def _processes() -> dict[int, list[str]]:
    """Return what /proc/PID/stat says, from the state on, of this process and all that descend from it."""
    stats = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            stats[int(path.parent.name)] = path.read_text().rpartition(") ")[2].split()
    found = {os.getpid()}
    while more := {pid for pid, stat in stats.items() if int(stat[1]) in found} - found:
        found |= more
    return {pid: stats[pid] for pid in found}


def _cpu_s() -> float:
    ticks = sum(int(field) for stat in _processes().values() for field in stat[11:15])  # user, system; ended children
    return ticks / os.sysconf("SC_CLK_TCK")


def _peak_mb() -> float:
    lines = [line for pid in _processes() for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e6
