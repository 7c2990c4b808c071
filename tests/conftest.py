import os
from collections.abc import Iterator

import pytest
from hypothesis import settings
from s3 import ENVIRONMENT, Server, running

from kernels import jit

if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    # numba numbers the files of a kernel's signatures without a lock: of two processes that compile two of them at the
    # same moment, each may keep its code under the other's name. So each of ours, with its children, has a cache.
    jit.numba.config.CACHE_DIR = f"{jit.numba.config.CACHE_DIR}-{worker}"  # type: ignore[attr-defined]
    os.environ["NUMBA_CACHE_DIR"] = jit.numba.config.CACHE_DIR  # type: ignore[attr-defined]

# A first call compiles a kernel, which takes seconds: no deadline. Derandomised: a failure is the same failure again.
settings.register_profile("dilute", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("dilute")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Server]:
    """One server for all tests; ask for `s3`."""
    with running() as server:
        yield server


@pytest.fixture
def s3(s3_server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """An S3 server on loopback, without faults so far; see s3.py. This process and its children talk to it."""
    for name, value in (ENVIRONMENT | {"AWS_ENDPOINT_URL": s3_server.url}).items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pipeline.storage._PAUSE_S", 0.001)
    s3_server.reset()
    return s3_server
