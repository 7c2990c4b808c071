"""A build that is spread over a Ray cluster of two nodes, in a process of its own: Ray leaves threads behind."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from photos import encode, write_tree

from pipeline.builder import build
from pipeline.dataset import dilute
from pipeline.errors import UserError
from pipeline.plan import Options, plan_build
from pipeline.ray_engine import spread_over_ray
from pipeline.sources import open_source
from pipeline.verify import verify

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install 'dilute[ray]'"
    ),
]

SCRIPT = """
import dataclasses, json, os, signal, sys, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from pipeline.builder import build
from pipeline.dataset import dilute
from pipeline.errors import UserError
from pipeline.plan import Options, plan_build
from pipeline.ray_engine import spread_over_ray
from pipeline.sources import open_source

folder = Path(sys.argv[1])
seen = folder / "seen"

class Slow:
    # A split that takes its time, and leaves a note of where and by which process it is read.
    def __init__(self, split):
        self.split, self.labels = split, split.labels

    def __len__(self):
        return len(self.split)

    def item(self, index):
        if ray.is_initialized():
            (seen / f"{ray.get_runtime_context().get_node_id()}-{os.getpid()}").touch()
        time.sleep(0.1)
        return self.split.item(index)

    def name_of(self, index):
        return self.split.name_of(index)

    def fingerprint(self, update):
        self.split.fingerprint(update)

def plan(name):
    source = open_source("folder", folder / name)
    slow = dataclasses.replace(source, train=Slow(source.train))
    return plan_build(slow, dilute(slow, alpha=3), Options(shard_images=2))

def processes_of(node):
    return [int(path.name.rpartition("-")[2]) for path in seen.glob(node.node_id + "-*")]

def wait_for(node):
    while not processes_of(node):
        time.sleep(0.01)

seen.mkdir()
resources = dict(num_cpus=1, object_store_memory=80_000_000)
cluster = Cluster(initialize_head=True, head_node_args=dict(include_dashboard=False, **resources))
second = cluster.add_node(**resources)
cluster.wait_for_nodes()
engine = lambda job: spread_over_ray(job, cluster.address)
found = dict(done=[])

def progress(stage, images, num_bytes):
    found["done"].append((stage, images))
    if len(found["done"]) == 3:
        wait_for(cluster.head_node)
        os.kill(processes_of(cluster.head_node)[0], signal.SIGKILL)
    if len(found["done"]) == 6:
        wait_for(second)
        cluster.remove_node(second, allow_graceful=False)

try:
    try:
        build(plan("bad"), folder / "bad-out", engine=engine)
    except UserError as error:
        found["error"] = str(error)
    for path in seen.iterdir():
        path.unlink()
    build(plan("good"), folder / "good-out", engine=engine, progress=progress)
    found["nodes"] = len({path.name.partition("-")[0] for path in seen.iterdir()})
    (folder / "found.json").write_text(json.dumps(found))
finally:
    cluster.shutdown()
"""


@contextmanager
def every_process_with(mark: str) -> Iterator[None]:
    """Look, when the block ends, for processes that inherited an environment variable; end and report them."""

    def found() -> list[int]:
        pids = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                marked = mark.encode() in path.read_bytes()
            except OSError:  # it ended just now, or is another user's
                continue
            if marked:
                pids.append(int(path.parent.name))
        return pids

    yield
    deadline = time.monotonic() + 20
    while found() and time.monotonic() < deadline:
        time.sleep(0.1)
    left = found()
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, "Ray's processes outlived the build"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build on two nodes, first with a bad image, then killing a worker process, then one of the nodes."""
    folder = tmp_path_factory.mktemp("ray")
    write_tree(folder / "good", num_train=40)
    write_tree(folder / "bad", num_train=6, more={"train/b/bad.jpg": encode()[:-9]})
    (folder / "script.py").write_text(SCRIPT)
    mark = uuid.uuid4().hex
    environment = {**os.environ, "DILUTE_TEST": mark, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}
    with every_process_with(mark):
        command = [sys.executable, "script.py", str(folder)]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_build_whose_node_is_killed_half_way_writes_the_bytes_of_one_process(
    folder: Path, found: dict[str, Any]
) -> None:
    source = open_source("folder", folder / "good")
    build(plan_build(source, dilute(source, alpha=3), Options(shard_images=2)), folder / "one-process")
    assert content(folder / "good-out") == content(folder / "one-process")
    assert verify(folder / "good-out") == []
    assert found["nodes"] == 2
    assert found["done"] == [["write", 2]] * 22


def test_a_cluster_that_does_not_answer_is_an_error_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"  # free again, and nobody listens
    with pytest.raises(UserError, match=rf"^cannot join a Ray cluster at {address} .*refused.*; see --address$"):
        spread_over_ray(None, address).__enter__()


def test_a_bad_image_is_named_as_by_one_process(folder: Path, found: dict[str, Any]) -> None:
    assert found["error"].startswith(
        "train image train/b/bad.jpg: truncated: a JPEG without its end-of-image marker; mend"
    )
    assert not (folder / "bad-out" / "dataset.json").exists()
