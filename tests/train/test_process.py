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
