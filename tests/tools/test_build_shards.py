import fcntl
import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from listed import write_webvision
from photos import encode, write_tree

from pipeline.builder import build
from pipeline.dataset import dilute
from pipeline.manifest import FILE_NAME, read_manifest
from pipeline.plan import Options, plan_build
from pipeline.sources import open_source
from pipeline.verify import verify

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "build_shards"


def build_shards(*arguments: object, cwd: Path = ROOT, limit: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run the tool in a process of its own.

    Args:
        arguments: Its command line.
        cwd: Where.
        limit: Bytes that a file may have, as if the disk were full then.
    """
    return subprocess.run(
        [TOOL, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=limit and (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))),
    )


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Build what `build_shards --alpha 2 --clean 50` asks for without the tool."""
    folder = tmp_path_factory.mktemp("undisturbed")
    source = open_source("mnist5k")
    build(plan_build(source, dilute(source, alpha=2, clean=50)), folder)
    return content(folder)


def test_the_tool_writes_the_default_data_set_where_it_says(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    found = build_shards("--alpha", 2, "--clean", 50, cwd=tmp_path)
    assert (found.returncode, found.stderr) == (0, "")
    assert content(tmp_path) == {f"shards/mnist5k-alpha2/{name}": data for name, data in undisturbed.items()}
    for words in (
        "50",
        "150 (α = 2, uniform)",
        "0.6667",
        "right labels",
        "MB in 1 shard, 50 png (w",
        "shards/mnist5k-alpha2",
    ):
        assert words in found.stdout
    again = build_shards("--alpha", 2, "--clean", 50, cwd=tmp_path)
    assert again.returncode == 0
    assert "nothing to do" in again.stdout


def test_all_flags_reach_the_manifest(tmp_path: Path) -> None:
    flags = ["--alpha", 1, "--law", "uniform", "--clean", 30, "--noise-seed", 2**64 - 1, "--workers", 2]
    found = build_shards("synthetic", *flags, "--out", tmp_path / "out")
    assert (found.returncode, found.stderr) == (0, "")
    manifest = read_manifest(tmp_path / "out")
    formula = manifest.formula
    assert (manifest.name, formula.alpha, formula.num_images, formula.noise_seed) == ("synthetic", 1, 30, 2**64 - 1)
    assert verify(tmp_path / "out") == []


def test_the_flags_of_formats_and_checks_reach_the_manifest(tmp_path: Path) -> None:
    bad = {"train/a/bad.jpg": encode()[:-9]}
    write_tree(tmp_path / "in", more=bad)
    flags = "--alpha 2 --format ffcv --index examples --check header --on-bad skip --max-side 21 --quality 70"
    found = build_shards("folder", "--source", tmp_path / "in", *flags.split(), "--out", tmp_path / "out")
    assert (found.returncode, found.stderr) == (0, "")
    source = open_source("folder", tmp_path / "in")
    options = Options("ffcv", index="examples", check="header", on_bad="skip", max_side=21, quality=70)
    build(plan_build(source, dilute(source, alpha=2), options), tmp_path / "wanted")
    assert content(tmp_path / "out") == content(tmp_path / "wanted")
    assert [entry["name"] for entry in read_manifest(tmp_path / "out").quarantine] == ["train/a/bad.jpg"]


def test_the_jobs_of_an_array_write_the_parts_and_the_last_one_the_manifest(
    undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    arguments = ["--alpha", 2, "--clean", 50, "--out", tmp_path]
    found = build_shards(*arguments, "--part", "2/2")
    assert (found.returncode, found.stderr) == (0, "")
    assert "part 2/2 is written; the others are not finished" in found.stdout
    found = build_shards(*arguments, "--part", "1/2")
    assert (found.returncode, found.stderr) == (0, "")
    assert "150 (α = 2, uniform)" in found.stdout
    assert content(tmp_path) == undisturbed


def check_error(found: subprocess.CompletedProcess[str], *words: str) -> None:
    assert found.returncode == 2, found.stderr
    assert found.stderr.startswith("error: ")
    assert found.stderr.count("\n") == 1
    assert "Traceback" not in found.stdout
    for word in words:
        assert word in found.stderr


MISTAKES: dict[str, list[str]] = {
    "minst": ["minst", "mnist5k", "mnist", "fashion_mnist", "synthetic"],
    "--law chaos": ["chaos", "uniform"],
    "--alpha -1": ["-1", "0 or more"],
    "--alpha 2.5": ["--alpha", "integer"],
    "--alpha many": ["--alpha", "integer"],
    "--clean 0": ["0", "4,000 images", "give 1 to 4000"],
    "--clean 4001": ["4001", "give 1 to 4000"],
    "--noise-seed -1": ["-1", "[0, 2^64)"],
    "--workers 0": ["--workers", "1"],
    "--sauce x": ["--sauce"],
    "mnist": ["--source", "train-images-idx3-ubyte"],
    "mnist --source /nowhere": ["/nowhere", "train-images-idx3-ubyte"],
    "mnist5k --source /nowhere": ["--source", "/nowhere"],
    "--format zip": ["--format zip", "webdataset, ffcv"],
    "--part 3": ["--part 3", "give I/M"],
    "--part 1/2 --force": ["--part", "--force"],
    "--engine slurm": ["--engine slurm", "local, ray"],
    "--address 10.0.0.1:6379": ["--address 10.0.0.1:6379", "--engine ray"],
    "--out file": ["file", "--out"],
    "--out file/below": ["file/below", "--out"],
    "--alpha 100000000000000": ["2^33", "alpha"],
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, subprocess.CompletedProcess[str]]]:
    """Make all mistakes at once, each in a folder of its own: one after the other takes a second each."""

    def answer(mistake: str) -> tuple[Path, subprocess.CompletedProcess[str]]:
        folder = tmp_path_factory.mktemp("mistake")
        (folder / "file").write_text("mine")
        return folder, build_shards(*mistake.split(), cwd=folder)

    with ThreadPoolExecutor(4) as pool:
        return dict(zip(MISTAKES, pool.map(answer, MISTAKES), strict=True))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_that_says_what_is_allowed(
    answers: dict[str, tuple[Path, subprocess.CompletedProcess[str]]], mistake: str
) -> None:
    folder, found = answers[mistake]
    check_error(found, *MISTAKES[mistake])
    assert {name: data for name, data in content(folder).items() if not name.startswith("shards/")} == {"file": b"mine"}
    assert not list(folder.rglob(FILE_NAME))


def test_another_data_set_stays_unless_it_is_forced(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    source = open_source("mnist5k")
    build(plan_build(source, dilute(source, alpha=7, clean=60)), tmp_path)
    before = content(tmp_path)
    arguments = ["--alpha", 2, "--clean", 50, "--out", tmp_path]
    check_error(build_shards(*arguments), "alpha is 7, asked for is 2", "num_images is 60", "--force")
    assert content(tmp_path) == before
    assert build_shards(*arguments, "--force").returncode == 0
    assert content(tmp_path) == undisturbed


def test_a_second_builder_is_sent_away(tmp_path: Path) -> None:
    with (tmp_path / ".dilute-build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        check_error(build_shards("--clean", 50, "--out", tmp_path), "another build is working", "--out")
    assert list(content(tmp_path)) == [".dilute-build.lock"]


def test_a_full_disk_is_an_error_that_leaves_no_data_set(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    arguments = ["--alpha", 2, "--clean", 50, "--out", tmp_path / "out"]
    check_error(build_shards(*arguments, limit=1_000_000), "File too large", "same command again")
    assert not (tmp_path / "out" / FILE_NAME).exists()
    assert build_shards(*arguments).returncode == 0
    assert content(tmp_path / "out") == undisturbed


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


@pytest.mark.slow
def test_the_tool_survives_the_death_of_a_worker_and_its_own(tmp_path: Path) -> None:
    command = [TOOL, "synthetic", "--alpha", "9", "--workers", "2", "--out", tmp_path / "out"]

    @contextmanager
    def started() -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            try:
                deadline = time.monotonic() + 60
                while len(workers := workers_of(process)) < 2:
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
                yield process, workers
            finally:
                process.kill()

    # Killed as it starts: while it is still being told what to do.
    with started() as (process, workers):
        os.kill(workers[0], signal.SIGKILL)
        out, err = process.communicate(timeout=60)
        check_error(subprocess.CompletedProcess(command, process.returncode, out, err), "a worker process was killed")
    with started() as (process, _):
        while not list((tmp_path / "out").glob("train-*.tar")):
            time.sleep(0.001)
        process.kill()
    assert not (tmp_path / "out" / FILE_NAME).exists()
    assert build_shards(*command[1:]).returncode == 0
    source = open_source("synthetic")
    build(plan_build(source, dilute(source, alpha=9)), tmp_path / "undisturbed")
    assert content(tmp_path / "out") == content(tmp_path / "undisturbed")


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["--workers 2 --force", "--format ffcv"])
def test_a_build_that_is_interrupted_says_that_the_same_command_goes_on_and_it_does(flags: str, tmp_path: Path) -> None:
    if "--force" in flags:
        assert build_shards("--clean", 50, "--out", tmp_path / "out").returncode == 0
    arguments = ["synthetic", "--alpha", "9", *flags.split(), "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        [TOOL, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not list((tmp_path / "out").glob(".dilute-build/train-*.npz")):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out.strip(), err) == (130, "stopped; the same command goes on from here", "")
    assert not (tmp_path / "out" / FILE_NAME).exists()
    noted = [path.stem for path in (tmp_path / "out").glob(".dilute-build/train-*.npz")]
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar") if path.stem in noted}
    assert build_shards(*arguments).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in written} == written
    source = open_source("synthetic")
    options = Options("ffcv" if "ffcv" in flags else "webdataset")
    build(plan_build(source, dilute(source, alpha=9), options), tmp_path / "undisturbed")
    assert content(tmp_path / "out") == content(tmp_path / "undisturbed")


def test_help_names_every_flag_and_its_default() -> None:
    found = build_shards("--help")
    assert (found.returncode, found.stderr) == (0, "")
    shown = " ".join(found.stdout.split())
    flags = ["--alpha", "--law", "--clean", "--noise-seed", "--source", "--out", "--workers", "--force", "--format"]
    flags += [
        "--layout",
        "--index",
        "--check",
        "--on-bad",
        "--max-side",
        "--quality",
        "--part",
        "--engine",
        "--address",
    ]
    for words in (*flags, "mnist5k", "[default: 20]", "[default: shards/DATASET-alphaA]"):
        assert words in shown


def test_the_mini_flag_builds_a_set_of_another_name_without_any_label_of_ours(tmp_path: Path) -> None:
    write_webvision(tmp_path / "in")
    found = build_shards("webvision", "--mini", "--source", tmp_path / "in", "--workers", 1, cwd=tmp_path)
    assert (found.returncode, found.stderr) == (0, "")
    assert "unknown: training images have the labels they were found with" in " ".join(found.stdout.split())
    manifest = read_manifest(tmp_path / "shards/mini_webvision-alpha0")
    assert (manifest.name, manifest.observed, manifest.formula.alpha) == ("mini_webvision", True, 0)
    refused = build_shards("mnist5k", "--mini", cwd=tmp_path)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "--mini is for webvision" in refused.stderr
