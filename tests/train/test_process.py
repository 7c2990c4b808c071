import os
import subprocess
import sys

import pytest

PROBE = """
import os, resource, sys
from train.process import settle
if sys.argv[1] == "settle":
    settle()
import numpy as np
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    np.ones(4_000_000, dtype=np.uint8)
before = faults()
for _ in range(20):
    np.ones(4_000_000, dtype=np.uint8)
print(faults() - before, os.environ.get("OMP_WAIT_POLICY"))
"""


def probe(how: str, **environment: str) -> tuple[int, str]:
    outer = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", PROBE, how], capture_output=True, text=True, check=True, env={**outer, **environment}
    )
    faults, policy = done.stdout.split()
    return int(faults), policy


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_freed_tensors_are_kept_and_idle_threads_sleep() -> None:
    # Twenty arrays of 4 MB: about 1,000 page faults each when they are mapped anew (fewer with huge pages).
    plain, _ = probe("plain")
    settled, policy = probe("settle")
    assert settled < 20 + plain / 4
    assert policy == "PASSIVE"


def test_a_users_own_wait_policy_stands() -> None:
    assert probe("settle", OMP_WAIT_POLICY="ACTIVE")[1] == "ACTIVE"


@pytest.mark.parametrize("first", ["settle()", "import kernels.jit"])
def test_kernels_compile_in_processes_of_torchrun_whatever_came_first(first: str) -> None:
    """Numba refuses another number of threads once they run, and only looks when it compiles."""
    code = f"""
import os
from train.process import settle
{first}
import kernels.jit, numba
settle()
print(numba.njit(lambda x: x + 1)(1), numba.config.NUMBA_NUM_THREADS)
"""
    outer = {name: value for name, value in os.environ.items() if name != "NUMBA_NUM_THREADS"}
    cores = len(os.sched_getaffinity(0))
    environment = {**outer, "LOCAL_WORLD_SIZE": str(2 * cores)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["2", "1" if first == "settle()" else str(cores)]
