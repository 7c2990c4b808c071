"""Memory over many batches; in a process of its own, because checks of types keep something of every inner function."""

import subprocess
import sys
from pathlib import Path

import pytest
from diluted import NAMES
from photos import write_tree

from pipeline.builder import build
from pipeline.dataset import dilute
from pipeline.plan import Options, plan_build
from pipeline.sources import open_source

ROOT = Path(__file__).parents[3]
PROGRAM = """
import dataclasses, gc, sys
from pathlib import Path
from pipeline.dataset import open_shards
from pipeline.loaders import open_batches

def resident_mb():
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4_096 / 1e6

dataset = open_shards(sys.argv[1])
small = dataclasses.replace(dataset, augmentation=dataclasses.replace(dataset.augmentation, size_px=64))
batches = open_batches(small, batch=2, loader=sys.argv[2], order=sys.argv[3])
for number in range(20_000):
    next(batches)
    if number == 2_000:
        before = resident_mb()
print(resident_mb() - before)
batches.close()
"""


@pytest.mark.slow
@pytest.mark.parametrize("loader", NAMES)
def test_twenty_thousand_batches_leave_no_memory_behind(tmp_path: Path, loader: str) -> None:
    source = open_source("folder", write_tree(tmp_path / "tree", num_train=40))
    options = Options(format="ffcv" if loader == "ffcv" else "webdataset")
    build(plan_build(source, dilute(source, alpha=3), options), tmp_path / "shards")
    order = "passes" if loader == "webdataset" else "full"
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "shards"), loader, order]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 5  # 300 bytes a batch; measured: 0.1 to 1.1
