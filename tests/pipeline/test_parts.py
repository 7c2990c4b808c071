"""Parts of one build, as the jobs of an array write them: in any order, or all at once."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from pipeline.builder import build, build_part
from pipeline.dataset import dilute
from pipeline.errors import UserError
from pipeline.manifest import FILE_NAME, Manifest, read_manifest
from pipeline.plan import Options, Plan, plan_build
from pipeline.sources.synthetic import synthetic
from pipeline.verify import verify

ROOT = Path(__file__).parents[2]
FORMATS: dict[str, dict[str, Any]] = {
    "webdataset": {},
    "examples": {"index": "examples"},
    "expanded": {"layout": "expanded"},
    "ffcv": {"format": "ffcv"},
}


def plan(*, alpha: int = 2, **options: Any) -> Plan:
    source = synthetic(num_train=40, num_test=10, height=5, width=6, channels=3)
    return plan_build(source, dilute(source, alpha=alpha), Options(shard_images=8, **options))


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """Build every format in one go."""
    folder = tmp_path_factory.mktemp("whole")
    for name, options in FORMATS.items():
        build(plan(**options), folder / name)
    return {name: content(folder / name) for name in FORMATS}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("order", list(permutations([1, 2, 3])))
def test_parts_in_any_order_are_the_whole(
    whole: dict[str, dict[str, bytes]], tmp_path: Path, order: tuple[int, ...], name: str
) -> None:
    wanted = plan(**FORMATS[name])
    for number in order[:-1]:
        assert build_part(wanted, tmp_path, (number, 3)) is None
        assert not (tmp_path / FILE_NAME).exists()
    manifest = build_part(wanted, tmp_path, (order[-1], 3))
    assert manifest == read_manifest(tmp_path)
    assert content(tmp_path) == whole[name]


def test_a_part_writes_its_own_shards_only(tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []
    build_part(plan(), tmp_path, (1, 3), progress=lambda stage, images, num_bytes: seen.append((stage, images)))
    assert {path.stem for path in tmp_path.glob("*.tar")} == {"train-000000", "train-000003", "test-000001"}
    assert seen == [("write", 8), ("write", 8), ("write", 2)]


@pytest.mark.parametrize("workers", [1, 2])
def test_more_parts_than_shards_are_no_harm(whole: dict[str, dict[str, bytes]], tmp_path: Path, workers: int) -> None:
    for number in range(1, 10):
        build_part(plan(), tmp_path, (number, 9), workers=workers if number == 1 else 1)
    assert content(tmp_path) == whole["webdataset"]


def at_once(calls: list[Any]) -> list[Any]:
    """Make some calls at the same moment; a lock of a file is a thread's as well as a process's."""
    gate = threading.Barrier(len(calls))

    def call(function: Any) -> Any:
        gate.wait()
        return function()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(call, calls))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("_", range(4))
def test_parts_that_start_and_end_at_once_are_the_whole(
    whole: dict[str, dict[str, bytes]], tmp_path: Path, name: str, _: int
) -> None:
    wanted = plan(**FORMATS[name])
    manifests = at_once([lambda number=number: build_part(wanted, tmp_path, (number, 7)) for number in range(1, 8)])
    assert content(tmp_path) == whole[name]
    assert set(map(type, manifests)) <= {Manifest, type(None)}
    assert {id(manifest) for manifest in manifests} != {id(None)}  # at least one of them finished it
    assert verify(tmp_path) == []


PART = """
import sys, time
from pathlib import Path
from pipeline.builder import build_part
from pipeline.dataset import dilute
from pipeline.plan import Options, plan_build
from pipeline.sources.synthetic import synthetic

source = synthetic(num_train=40, num_test=10, height=5, width=6, channels=3)
plan = plan_build(source, dilute(source, alpha=2), Options(shard_images=8, format=sys.argv[3]))
print("ready", flush=True)
sys.stdin.readline()
build_part(plan, sys.argv[1], (int(sys.argv[2]), 3))
"""


@pytest.mark.slow
@pytest.mark.parametrize("format", ["webdataset", "ffcv"])
def test_parts_of_three_processes_at_once_are_the_whole(
    whole: dict[str, dict[str, bytes]], tmp_path: Path, format: str
) -> None:
    commands = [[sys.executable, "-c", PART, str(tmp_path), str(number), format] for number in (1, 2, 3)]
    processes = [
        subprocess.Popen(
            command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for command in commands
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        answers = []
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in processes:
            answers.append((*process.communicate(timeout=60), process.returncode))
    finally:
        for process in processes:
            process.kill()
    assert answers == [("", "", 0)] * 3
    assert content(tmp_path) == whole[format]


# ---- what is refused ----


def test_a_whole_build_and_a_part_do_not_meet(whole: dict[str, dict[str, bytes]], tmp_path: Path) -> None:
    refused = []

    def during_a_part(stage: str, images: int, num_bytes: int) -> None:
        with pytest.raises(UserError, match=r"^another build is working in .*; wait for it, or give another --out"):
            build(plan(), tmp_path)
        with pytest.raises(UserError, match=r"^another build is working in "):
            build_part(plan(), tmp_path, (1, 3))  # the same part again
        refused.append("part")

    def during_a_whole(stage: str, images: int, num_bytes: int) -> None:
        with pytest.raises(UserError, match=r"^another build is working in "):
            build_part(plan(), tmp_path, (2, 3))
        refused.append("whole")

    build_part(plan(), tmp_path, (1, 3), progress=during_a_part)
    build(plan(), tmp_path, progress=during_a_whole)  # goes on where the part ended
    assert refused == ["part"] * 3 + ["whole"] * 7
    assert content(tmp_path) == whole["webdataset"]


def test_another_part_may_work_at_the_same_time(whole: dict[str, dict[str, bytes]], tmp_path: Path) -> None:
    def meanwhile(stage: str, images: int, num_bytes: int) -> None:
        build_part(plan(), tmp_path, (2, 2))

    build_part(plan(), tmp_path, (1, 2), progress=meanwhile)
    assert content(tmp_path) == whole["webdataset"]


@pytest.mark.parametrize("finished", [True, False])
def test_a_part_of_another_plan_is_refused(tmp_path: Path, finished: bool) -> None:
    for number in (1, 2) if finished else (1,):
        build_part(plan(), tmp_path, (number, 2))
    before = content(tmp_path)
    with pytest.raises(UserError, match="holds another data set: alpha is 2, asked for is 3"):
        build_part(plan(alpha=3), tmp_path, (2, 2))
    assert content(tmp_path) == before


def test_a_part_of_a_finished_build_has_nothing_to_do(whole: dict[str, dict[str, bytes]], tmp_path: Path) -> None:
    first = build(plan(), tmp_path)
    assert build_part(plan(), tmp_path, (2, 5), progress=lambda *_: pytest.fail("it wrote")) == first
    assert content(tmp_path) == whole["webdataset"]


@pytest.mark.parametrize("part", [(0, 3), (4, 3), (-1, 3), (1, 0), (0, 0)])
def test_a_part_that_does_not_exist_is_refused(tmp_path: Path, part: tuple[int, int]) -> None:
    with pytest.raises(UserError, match=rf"^--part {part[0]}/{part[1]}: give I/M with I from 1 to M$"):
        build_part(plan(), tmp_path, part)
    assert content(tmp_path) == {}


def test_a_part_cannot_skip_bad_images(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--on-bad skip has to see all images before the first shard; leave --part or"):
        build_part(plan(on_bad="skip"), tmp_path, (1, 2))
    assert content(tmp_path) == {}


def test_a_part_that_was_killed_is_finished_by_the_same_part(
    whole: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    def stop(stage: str, images: int, num_bytes: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_part(plan(), tmp_path, (1, 2), progress=stop)
    assert build_part(plan(), tmp_path, (2, 2)) is None
    assert build_part(plan(), tmp_path, (1, 2)) is not None
    assert content(tmp_path) == whole["webdataset"]
