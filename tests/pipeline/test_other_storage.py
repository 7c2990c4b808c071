"""Builds in, and reads from, a real S3 server on loopback that fails some requests."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import s3 as server

from pipeline.builder import build, build_part
from pipeline.claim import STATE
from pipeline.dataset import dilute, open_shards
from pipeline.errors import UserError
from pipeline.manifest import FILE_NAME
from pipeline.plan import Options, Plan, plan_build
from pipeline.sources.synthetic import synthetic
from pipeline.storage import open_folder
from pipeline.verify import verify

ROOT = Path(__file__).parents[2]


def plan(*, alpha: int = 3, **options: object) -> Plan:
    source = synthetic(num_train=40, num_test=10, height=5, width=6, channels=1, seed=0)
    return plan_build(source, dilute(source, alpha=alpha), Options(shard_images=8, **options))  # type: ignore[arg-type]


def content(where: str | Path) -> dict[str, bytes]:
    folder = open_folder(where)
    return {name: folder.read(name) for name in folder.names()}


@pytest.mark.parametrize("options", [{}, {"layout": "expanded"}, {"index": "examples"}])
def test_a_build_through_failing_requests_is_the_one_on_a_disk(
    s3: server.Server, tmp_path: Path, options: dict[str, str]
) -> None:
    for requests in ("PUT .*000001.tar", "PUT .*index", "GET", "PUT .*dataset.json", "HEAD"):
        s3.fail(requests, times=2, status=503)
    where = f"{s3.bucket()}/shards"
    manifest = build(plan(**options), where)
    assert build(plan(**options), tmp_path) == manifest
    assert content(where) == content(tmp_path)
    assert open_folder(where).names(STATE) == []
    assert build(plan(**options), where) == manifest  # nothing to do
    dataset, local = open_shards(where), open_shards(tmp_path)
    assert [dataset.train.item(i) for i in (0, 39)] == [local.train.item(i) for i in (0, 39)]
    np.testing.assert_array_equal(dataset.train.source_labels, local.train.source_labels)


def test_an_error_that_stays_publishes_nothing_and_the_same_command_goes_on(s3: server.Server) -> None:
    where = s3.bucket()
    s3.fail("PUT .*train-000003.tar", times=None, status=503)
    with pytest.raises(UserError, match=r"cannot write .*train-000003.tar.*SlowDown.*run the same command again"):
        build(plan(), where)
    assert open_folder(where).size(FILE_NAME) is None
    assert s3.uploads(where) == []
    s3.reset()
    build(plan(), where)
    written = [request for request in s3.requests() if request.startswith("PutObject") and ".tar" in request]
    assert not any("train-000000.tar" in request for request in written)  # it was there already
    assert verify(where) == []


def test_another_plan_is_refused_and_parts_make_a_whole(s3: server.Server, tmp_path: Path) -> None:
    where = s3.bucket()
    assert build_part(plan(), where, (2, 3)) is None
    with pytest.raises(UserError, match="alpha is 3, asked for is 4"):
        build(plan(alpha=4), where)
    assert build_part(plan(), where, (3, 3)) is None
    manifest = build_part(plan(), where, (1, 3))
    assert manifest == build(plan(), tmp_path)
    assert content(where) == content(tmp_path)


def test_a_flipped_byte_is_found(s3: server.Server) -> None:
    where = s3.bucket()
    build(plan(), where)
    folder = open_folder(where)
    data = bytearray(folder.read("train-000002.tar"))
    data[600] ^= 1
    folder.write("train-000002.tar", bytes(data))
    problems = list(map(str, verify(where)))
    assert any(problem.startswith("train-000002.tar: its sha256 differs") for problem in problems)
    assert any(problem.startswith("train-000002.tar: image 16:") for problem in problems)


def test_a_storage_that_refuses_is_no_damaged_shard(s3: server.Server) -> None:
    where = s3.bucket()
    build(plan(), where)
    s3.fail("GET .*train-000001.tar", times=None, status=403)
    with pytest.raises(UserError, match=r"cannot read .*train-000001.tar.*AccessDenied"):
        verify(where)


def test_a_beton_is_for_a_disk(s3: server.Server) -> None:
    where = s3.bucket()
    with pytest.raises(UserError, match="FFCV reads local files only"):
        build(plan(format="ffcv"), where)
    assert content(where) == {}


@pytest.mark.slow
def test_the_commands_take_addresses(s3: server.Server) -> None:
    where = f"{s3.bucket()}/digits"

    def run(*words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(words, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=120)

    built = run("tools/build_shards", "mnist5k", "--alpha", "2", "--clean", "300", "--out", where)
    assert built.returncode == 0, built.stderr
    assert where in built.stdout
    checked = run("tools/verify_shards", where)
    assert (checked.returncode, checked.stdout.split(":")[0].strip()) == (0, "ok"), checked.stderr
    missing = run("tools/verify_shards", f"{where}-not")
    assert missing.returncode == 2
    assert len(missing.stderr.splitlines()) == 1
