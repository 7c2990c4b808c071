"""Shards in other storage: read once, block by block, into a bounded cache that nothing is left of."""

import gc
import os
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diluted import BLOCK, ORDERS, photos, small_blocks
from s3 import Server

from pipeline.builder import build
from pipeline.dataset import DilutedSet, dilute, open_shards
from pipeline.errors import UserError
from pipeline.loaders import open_batches, open_evaluation
from pipeline.loaders.replace import stand_ins
from pipeline.loaders.webdataset import CachedSplit
from pipeline.plan import Options, Plan, plan_build

BATCH, NUM_IMAGES, ALPHA = (
    10,
    69,
    2,
)  # nine blocks, two of them in two shards each; a pass ends in a shorter window


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    source = photos(tmp_path_factory.mktemp("remote") / "tree", num_train=NUM_IMAGES)
    return plan_build(source, dilute(source, alpha=ALPHA), Options(shard_images=30))


@pytest.fixture(scope="module")
def local(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> DilutedSet:
    folder = tmp_path_factory.mktemp("local")
    build(plan, folder)
    return open_shards(folder)


@pytest.fixture
def remote(plan: Plan, s3: Server, monkeypatch: pytest.MonkeyPatch) -> DilutedSet:
    small_blocks(monkeypatch)
    url = f"{s3.bucket()}/set"
    build(plan, url)
    dataset = open_shards(url)
    s3.reset()
    return dataset


def reads(s3: Server) -> list[str]:
    return [request for request in s3.requests() if ".tar" in request]


@pytest.mark.parametrize("order", ["passes", "reuse"])
def test_batches_are_those_of_local_shards_and_a_block_is_read_once_a_pass(
    remote: DilutedSet, local: DilutedSet, s3: Server, order: str
) -> None:
    options = ORDERS[order] | {"batch": BATCH, "seed": 3}
    per_pass = NUM_IMAGES * options.get("reuse", 1)
    with (
        closing(open_batches(remote, **options)) as batches,
        closing(open_batches(local, loader="webdataset", **options)) as reference,
    ):
        assert (batches.loader, batches.why) == ("webdataset", "the shards lie in other storage")
        for _ in range(batches.num_examples // BATCH + 3):
            found, expected = next(batches), next(reference)
            for name in ("images", "labels", "rows", "replaced"):
                assert torch.equal(getattr(found, name), getattr(expected, name)), name
        last = batches.position + 3 * BATCH + 2 * BLOCK * options.get("reuse", 1)  # made ahead, and expected then
    assert {request.split()[0] for request in reads(s3)} == {"GetObject"}
    assert 9 + 2 <= len(reads(s3)) <= -(-last // per_pass) * (9 + 2)


def cached_files() -> int:
    """How many files without a name this process has open."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            count += "(deleted)" in os.readlink(f"/proc/self/fd/{name}")
    return count


def test_the_cache_is_bounded_and_what_leaves_it_comes_again(remote: DilutedSet) -> None:
    split = CachedSplit(remote.train, 3)  # type: ignore[arg-type]
    before = cached_files()
    for image_id in [*range(NUM_IMAGES), *np.random.default_rng(0).permutation(NUM_IMAGES).tolist()]:
        assert split.item(image_id) == remote.train.item(image_id)
        assert cached_files() - before <= 3
    split.close()
    split.close()
    assert cached_files() == before
    with pytest.raises(RuntimeError, match="closed"):
        split.item(0)


@pytest.mark.parametrize("world_size", [1, 3])
def test_evaluation_reads_every_image_once(remote: DilutedSet, local: DilutedSet, world_size: int) -> None:
    parts = [
        batch
        for rank in range(world_size)
        for batch in open_evaluation(remote, "train", batch=9, rank=rank, world_size=world_size)
    ]
    (expected,) = open_evaluation(local, "train", batch=1000, loader="webdataset")
    assert torch.equal(torch.cat([batch.rows for batch in parts]), expected.rows)
    assert torch.equal(torch.cat([batch.images for batch in parts]), expected.images)


def test_evaluation_sends_for_the_next_block_while_one_is_shown(remote: DilutedSet, s3: Server) -> None:
    batches = iter(open_evaluation(remote, "train", batch=2))
    next(batches)  # of the first block
    deadline = time.monotonic() + 10
    while len(reads(s3)) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(reads(s3)) == 2
    assert sum(1 for _ in batches) == -(-NUM_IMAGES // 2) - 1


def test_failing_requests_are_made_again(remote: DilutedSet, local: DilutedSet, s3: Server) -> None:
    s3.fail(r"GetObject .*tar", times=3)
    s3.fail(r"GetObject .*tar", cut=500, times=2)
    options: dict[str, Any] = {"batch": BATCH, "order": "passes", "loader": "webdataset"}
    with closing(open_batches(remote, **options)) as batches, closing(open_batches(local, **options)) as reference:
        for _ in range(5):
            assert torch.equal(next(batches).images, next(reference).images)


def test_an_error_that_stays_is_one_clear_line(remote: DilutedSet, s3: Server) -> None:
    before = set(threading.enumerate())
    batches = open_batches(remote, batch=BATCH, order="passes")
    s3.fail(r"GetObject .*tar", times=None)
    with pytest.raises(UserError, match=r"cannot read s3://bucket-\d+/set/train-\d+\.tar, 6 times: .*SlowDown"):
        next(batches)
    batches.close()
    assert threads_end(before)


def test_a_shard_cut_short_costs_the_images_that_it_lost_and_no_other(remote: DilutedSet, local: DilutedSet) -> None:
    split: Any = remote.train
    name, row = split.files.shards[1].name, split.index[41]
    split.folder.write(name, split.folder.read(name)[: int(row["offset"]) + int(row["size"]) - 1])
    lost = range(41, 60)
    options: dict[str, Any] = {"batch": BATCH, "order": "passes", "window": 2, "loader": "webdataset"}
    with closing(open_batches(remote, **options)) as batches, closing(open_batches(local, **options)) as reference:
        for _ in range(8):
            expected, rows = next(reference), batches.rows_at(batches.position)
            bad = np.isin(rows % NUM_IMAGES, lost)
            if bad.all():
                break
            found = next(batches)
            assert found.replaced.tolist() == np.flatnonzero(bad).tolist()
            assert torch.equal(found.images, expected.images[stand_ins(bad)])
            assert torch.equal(found.rows, expected.rows[stand_ins(bad)])


def test_order_full_is_refused(remote: DilutedSet) -> None:
    with pytest.raises(UserError, match="read block by block; give --order passes, or copy them to a disk"):
        open_batches(remote, batch=BATCH)


def threads_end(before: set[threading.Thread]) -> bool:
    until = time.monotonic() + 5
    while {t for t in threading.enumerate() if t.name != "fsspecIO"} - before and time.monotonic() < until:
        time.sleep(0.01)
    return not {t for t in threading.enumerate() if t.name != "fsspecIO"} - before


@pytest.mark.parametrize("end", ["close", "del"])
def test_threads_and_cache_end_with_their_consumer(remote: DilutedSet, end: str) -> None:
    before, files = set(threading.enumerate()), cached_files()
    batches = open_batches(remote, batch=BATCH, order="passes")
    next(batches)
    assert cached_files() > files
    assert len(set(threading.enumerate()) - before) >= 5
    if end == "close":
        batches.close()
    del batches
    gc.collect()
    assert threads_end(before)
    assert cached_files() == files


STOP = """
import os, signal, sys
sys.path[:0] = [".", "tests"]
from pipeline.dataset import open_shards
from pipeline.loaders import open_batches

batches = open_batches(open_shards(sys.argv[1]), batch=10, order="passes")
next(batches)
print("on", flush=True)
if sys.argv[2] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
raise SystemExit(7)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("how", "code"), [("kill", -9), ("exit", 7)])
def test_nothing_is_left_of_a_process_that_ends_without_closing(
    remote: DilutedSet, tmp_path: Path, how: str, code: int
) -> None:
    command = [sys.executable, "-c", STOP, remote.origin, how]
    root, environment = Path(__file__).parents[3], os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(command, cwd=root, env=environment, timeout=60, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (code, "on\n"), done.stderr
    assert list(tmp_path.iterdir()) == []
