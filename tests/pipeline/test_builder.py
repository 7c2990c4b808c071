import dataclasses
import fcntl
import hashlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from photos import write_tree

from pipeline import builder as builder_module
from pipeline.builder import State, build
from pipeline.counts import Counts
from pipeline.dataset import decode, dilute, open_shards
from pipeline.errors import UserError
from pipeline.laws import Law
from pipeline.manifest import FILE_NAME, INDEX_DTYPE, read_manifest
from pipeline.plan import Options, Plan, plan_build
from pipeline.sources import open_source
from pipeline.sources.synthetic import synthetic
from pipeline.storage import Folder
from pipeline.verify import verify

ROOT = Path(__file__).parents[2]
STATE, LOCK = ".dilute-build", ".dilute-build.lock"


def plan(
    num_train: int = 40,
    *,
    alpha: int = 3,
    seed: int = 0,
    shard_images: int = 8,
    clean: int | None = None,
    noise_seed: int = 0,
    law: Law | None = None,
    **options: Any,
) -> Plan:
    source = synthetic(num_train=num_train, num_test=10, height=5, width=6, channels=1, seed=seed)
    dataset = dilute(source, alpha=alpha, law=law, clean=clean, noise_seed=noise_seed)
    return plan_build(source, dataset, Options(shard_images=shard_images, **options))


def content(folder: Path) -> dict[str, bytes]:
    """Read every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    build(plan(), folder)
    return content(folder)


# ---- what is written ----


def test_a_build_leaves_the_files_of_the_data_set_and_nothing_else(undisturbed: dict[str, bytes]) -> None:
    shards = [f"train-00000{number}" for number in range(5)] + ["test-000000", "test-000001"]
    assert set(undisturbed) == {
        *(f"{shard}.{suffix}" for shard in shards for suffix in ("tar", "idx")),
        *("train.index.npy", "test.index.npy", "counts.npz", "_info.json", FILE_NAME),
    }


def test_the_bytes_do_not_depend_on_when_and_where(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    build(plan(), tmp_path / "other" / "place")
    assert content(tmp_path / "other" / "place") == undisturbed


def test_the_bytes_do_not_depend_on_the_number_of_workers(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    seen = []
    manifest = build(plan(), tmp_path, workers=2, progress=lambda *now: seen.append(now))
    assert content(tmp_path) == undisturbed
    index = {split: np.load(tmp_path / files.index.name) for split, files in manifest.splits.items()}
    shards = [(index[split], shard) for split, files in manifest.splits.items() for shard in files.shards]
    assert [shard.count for _, shard in shards] == [8] * 6 + [2]
    assert seen == [
        ("write", shard.count, rows["size"][shard.first : shard.first + shard.count].sum()) for rows, shard in shards
    ]


FORMATS: dict[str, dict[str, Any]] = {
    "webdataset": {},
    "examples": {"index": "examples"},
    "expanded": {"layout": "expanded"},
    "ffcv": {"format": "ffcv"},
    "ffcv of examples": {"format": "ffcv", "index": "examples"},
    "shrunk": {"max_side": 4, "quality": 80},
}


@pytest.mark.slow
@pytest.mark.parametrize("options", FORMATS.values(), ids=FORMATS)
def test_the_bytes_of_every_format_do_not_depend_on_the_number_of_workers(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    build(plan(**options), tmp_path / "one")
    build(plan(**options), tmp_path / "three", workers=3)
    assert content(tmp_path / "one") == content(tmp_path / "three")
    assert verify(tmp_path / "one") == []


GOLDEN = {
    "webdataset": {
        "train-000000.tar": "c59ca119407d0a01",
        "train-000000.idx": "081a8e08d05eee98",
        "train.index.npy": "9751fa02b4fbf536",
        "test-000000.tar": "758f11b73a628bc9",
        "_info.json": "20fe665e8812db80",
    },
    "examples": {
        "train-000000.tar": "6d931cb3f8857936",
        "train-000000.diluted.idx": "e2d0671d9344e3e3",
        "test-000000.tar": "758f11b73a628bc9",
    },
    "expanded": {
        "train-000000.tar": "956700b68d775ced",
        "train-000000.idx": "e1287162ace1d84a",
        "train.index.npy": "155efe8290f90a7f",
        "_info.json": "8dd5ab201a13f6e1",
    },
    "ffcv": {
        "train.beton": "0cc43760533317be",
        "test.beton": "b4a5b59cc57a8990",
        "train.index.npy": "7e3b1bfa9d718086",
    },
    "ffcv of examples": {"train.beton": "b4b7a06208f61972", "test.beton": "b4a5b59cc57a8990"},
}


@pytest.mark.parametrize("name", GOLDEN)
def test_the_format_never_changes_silently(tmp_path: Path, name: str) -> None:
    source = open_source("mnist5k")
    build(plan_build(source, dilute(source, alpha=3, clean=100), Options(**FORMATS[name])), tmp_path)
    found = {file: hashlib.sha256((tmp_path / file).read_bytes()).hexdigest()[:16] for file in GOLDEN[name]}
    assert found == GOLDEN[name]


@pytest.mark.slow
@pytest.mark.parametrize("options", [FORMATS["webdataset"], FORMATS["ffcv"]], ids=["webdataset", "ffcv"])
def test_a_thousand_labels_an_image_take_the_memory_of_one(tmp_path: Path, options: dict[str, Any]) -> None:
    peaks = []
    for alpha in (1, 1_000):
        command = [sys.executable, "-c", MEASURED.format(options=options), str(alpha), str(tmp_path / str(alpha))]
        peaks.append(int(subprocess.check_output(command, cwd=ROOT, timeout=120)))
    assert peaks[1] < 1.1 * peaks[0]  # 5,000 images of 1,000 labels: 10 MB, of both twice, would not pass


MEASURED = """
import resource, sys
from pipeline.builder import build
from pipeline.dataset import dilute
from pipeline.plan import Options, plan_build
from pipeline.sources.synthetic import synthetic

source = synthetic(num_train=5_000, num_test=10, height=5, width=6, channels=3)
build(plan_build(source, dilute(source, alpha=int(sys.argv[1])), Options(**{options})), sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_the_manifest_says_what_was_asked_and_what_came_out(tmp_path: Path) -> None:
    wanted = plan(alpha=20, noise_seed=7, clean=33)
    manifest = build(wanted, tmp_path)
    assert manifest == read_manifest(tmp_path)
    assert manifest.formula == wanted.dataset.formula
    assert (manifest.train.num_images, manifest.test.num_images) == (33, 10)
    cuts = [(shard.first, shard.count) for shard in manifest.train.shards]
    assert cuts == [(0, 8), (8, 8), (16, 8), (24, 8), (32, 1)]
    labels = manifest.formula.all_labels(np.arange(33), wanted.dataset.train.source_labels)
    counts = Counts.of(wanted.dataset.train.source_labels, labels)
    assert manifest.num_right == int((labels == labels[:, :1]).sum())
    with np.load(tmp_path / "counts.npz") as file:
        assert np.array_equal(file["counts"], counts.dense(10))
    assert manifest.build == wanted.describe()
    assert manifest.encodings == {"png": 43}
    index = np.load(tmp_path / "train.index.npy")
    assert index.dtype == INDEX_DTYPE
    assert {tuple(row) for row in index[["height", "width", "channels"]].tolist()} == {(5, 6, 1)}
    fields = ("name", "classes", "image_shape", "mean", "std", "augmentation")
    assert [getattr(manifest, name) for name in fields] == [getattr(wanted.dataset, name) for name in fields]


def stored_labels(folder: Path) -> list[list[int]]:
    """Read the noisy labels of every training image with stock Python."""
    rows = []
    for path in sorted(folder.glob("train-*.tar")):
        with tarfile.open(path) as archive:
            members = [member for member in archive if member.name.endswith(".labels.npy")]
            rows += [np.load(BytesIO(archive.extractfile(m).read())).tolist() for m in members]  # type: ignore[union-attr]
    return rows


def test_labels_of_a_smaller_alpha_are_a_prefix_of_those_of_a_larger_one(tmp_path: Path) -> None:
    build(plan(alpha=10), tmp_path / "10")
    build(plan(alpha=20), tmp_path / "20")
    ten, twenty = stored_labels(tmp_path / "10"), stored_labels(tmp_path / "20")
    assert len(ten) == 40
    assert ten == [row[:10] for row in twenty]
    assert {len(row) for row in twenty} == {20}


def test_a_set_of_fewer_clean_images_is_a_prefix_of_the_whole(tmp_path: Path) -> None:
    build(plan(), tmp_path / "all")
    build(plan(clean=16), tmp_path / "few")
    whole, few = content(tmp_path / "all"), content(tmp_path / "few")
    same = {"train-000000.tar", "train-000001.tar", "train-000000.idx", "train-000001.idx"}
    assert {name for name in few if few[name] == whole[name]} >= {*same, "test-000000.tar", "test.index.npy"}
    assert {name for name in few if name.startswith("train-")} == same


def test_alpha_zero_is_the_clean_set(tmp_path: Path) -> None:
    manifest = build(plan(alpha=0), tmp_path)
    assert stored_labels(tmp_path) == []
    assert manifest.num_right == 40
    assert verify(tmp_path) == []


def test_encoded_images_pass_through_untouched(tmp_path: Path) -> None:
    source = open_source("folder", write_tree(tmp_path / "in", num_train=9))
    manifest = build(plan_build(source, dilute(source, alpha=2), Options(shard_images=4)), tmp_path / "out")
    assert (manifest.encodings, manifest.image_shape, manifest.encoder) == ({"jpg": 13}, None, None)
    assert verify(tmp_path / "out") == []
    dataset = open_shards(tmp_path / "out")
    index = np.load(tmp_path / "out" / "train.index.npy")
    for image_id in range(9):
        item = dataset.train.item(image_id)
        assert (item.data, item.encoding) == (source.train.item(int(index[image_id]["source"])).data, "jpg")
        assert decode(item).shape == (item.height, item.width, item.channels)


# ---- what is interrupted ----


class StopError(Exception):
    pass


def stop_after(shards: int) -> Any:
    def progress(stage: str, images: int, num_bytes: int) -> None:
        nonlocal shards
        shards -= 1
        if not shards:
            raise StopError

    return progress


def times_of(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("workers", [1, 2])
def test_the_same_command_goes_on_where_a_build_stopped(
    undisturbed: dict[str, bytes], tmp_path: Path, workers: int, force: bool
) -> None:
    with pytest.raises(StopError):
        build(plan(), tmp_path, progress=stop_after(3))
    assert not (tmp_path / FILE_NAME).exists()
    with pytest.raises(UserError, match="holds no finished data set"):
        open_shards(tmp_path)
    before = times_of(tmp_path)
    build(plan(), tmp_path, workers=workers, force=force)
    assert content(tmp_path) == undisturbed
    after = times_of(tmp_path)
    assert all(after[f"train-00000{number}.tar"] == before[f"train-00000{number}.tar"] for number in range(3))


def test_a_finished_shard_that_was_damaged_since_is_written_again(
    undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    with pytest.raises(StopError):
        build(plan(), tmp_path, progress=stop_after(3))
    data = bytearray((tmp_path / "train-000001.tar").read_bytes())
    data[700] ^= 1
    (tmp_path / "train-000001.tar").write_bytes(data)
    (tmp_path / "train-000002.idx").unlink()
    build(plan(), tmp_path)
    assert content(tmp_path) == undisturbed


def test_a_finished_build_is_not_done_again(tmp_path: Path) -> None:
    first = build(plan(), tmp_path)
    before = times_of(tmp_path)
    assert build(plan(), tmp_path, progress=stop_after(1)) == first
    assert times_of(tmp_path) == before


def test_a_build_that_was_killed_after_its_manifest_is_finished(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    build(plan(), tmp_path)
    (tmp_path / STATE).mkdir()
    (tmp_path / STATE / "plan.json").write_text("{}")
    build(plan(), tmp_path)
    assert content(tmp_path) == undisturbed


def test_a_build_that_was_killed_before_it_noted_its_plan_starts(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / STATE).mkdir()
    (tmp_path / LOCK).touch()
    (tmp_path / STATE / "plan.json.part").write_text('{"na')
    build(plan(), tmp_path)
    assert content(tmp_path) == undisturbed


@pytest.fixture(scope="module")
def beton(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("beton")
    build(plan(format="ffcv"), folder)
    return content(folder)


def test_a_build_for_ffcv_leaves_one_beton_a_split_and_nothing_else(beton: dict[str, bytes]) -> None:
    betons, indices = {"train.beton", "test.beton"}, {"train.index.npy", "test.index.npy"}
    assert set(beton) == betons | indices | {"counts.npz", FILE_NAME}


@pytest.mark.parametrize(
    "damage", ["none", "a piece is gone", "a piece was changed", "a piece is cut", "a piece has more"]
)
def test_a_beton_is_finished_from_the_pieces_that_an_interrupted_build_left(
    beton: dict[str, bytes], tmp_path: Path, damage: str
) -> None:
    with pytest.raises(StopError):
        build(plan(format="ffcv"), tmp_path, progress=stop_after(4))
    assert not list(tmp_path.glob("*.beton"))
    pieces = sorted((tmp_path / STATE).glob("*.images"))
    assert len(pieces) == 4
    data = pieces[1].read_bytes()
    if damage == "a piece is gone":  # as when the build was killed while it put the beton together
        pieces[1].unlink()
    elif damage == "a piece was changed":
        pieces[1].write_bytes(b"?" + data[1:])
    elif damage == "a piece is cut":
        pieces[1].write_bytes(data[:-1])
    elif damage == "a piece has more":
        pieces[1].write_bytes(data + b"?")
    before = times_of(tmp_path / STATE)
    kept: list[bool] = []

    def progress(stage: str, images: int, num_bytes: int) -> None:
        kept[:] = [times_of(tmp_path / STATE).get(piece.name, 0) == before.get(piece.name) for piece in pieces]

    build(plan(format="ffcv"), tmp_path, progress=progress)
    assert kept == [True, damage == "none", True, True]
    assert content(tmp_path) == beton


@pytest.mark.parametrize("change", ["another image", "a longer file", "no image", "no file"])
def test_an_image_that_changes_before_its_page_is_written_is_named_and_publishes_nothing(
    tmp_path: Path, change: str
) -> None:
    source = open_source("folder", write_tree(tmp_path / "in", num_train=9))
    wanted = plan_build(source, dilute(source, alpha=3), Options(shard_images=4, format="ffcv"))
    number = int(wanted.dataset.train.source_ids[2])  # of the first shard
    path = tmp_path / "in" / source.train.name_of(number)
    before = path.read_bytes()

    def progress(stage: str, images: int, num_bytes: int) -> None:
        if change == "no file":
            path.unlink(missing_ok=True)
        else:
            path.write_bytes(
                {"another image": before[:15] + b"?" + before[16:], "a longer file": before + b"a", "no image": b""}[
                    change
                ]
            )

    with pytest.raises(UserError, match=f"image {number} of the source changed"):
        build(wanted, tmp_path / "out", progress=progress)
    assert not list((tmp_path / "out").glob("train.beton"))
    assert all(piece.stat().st_size == 0 for piece in (tmp_path / "out" / STATE).glob("train-*.images"))  # JPEGs
    if change != "another image":  # which no size betrays: the next build has to look again
        path.write_bytes(before)
    build(wanted, tmp_path / "out")
    build(wanted, tmp_path / "again")
    assert content(tmp_path / "out") == content(tmp_path / "again")


@pytest.mark.parametrize("noted", [True, False])
@pytest.mark.parametrize("damaged", [True, False])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_build_that_was_killed_after_it_published_a_beton_goes_on(
    beton: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str, noted: bool, damaged: bool
) -> None:
    def note_and_stop(folder: Folder, name: str, state: State) -> None:
        last = name == f"{STATE}/{split}.beton.npz"
        if noted or not last:
            write_state(folder, name, state)
        if last:
            raise StopError

    write_state = builder_module._write_state
    with monkeypatch.context() as patched:
        patched.setattr(builder_module, "_write_state", note_and_stop)
        with pytest.raises(StopError):
            build(plan(format="ffcv"), tmp_path)
    path = tmp_path / f"{split}.beton"
    assert path.read_bytes() == beton[path.name]
    if damaged:
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    before = path.stat().st_mtime_ns
    build(plan(format="ffcv"), tmp_path)
    assert content(tmp_path) == beton
    assert (path.stat().st_mtime_ns == before) == (noted and not damaged)  # not written again without need


BUILD = """
import time
from pathlib import Path
from pipeline.builder import build
from pipeline.dataset import dilute
from pipeline.plan import Options, plan_build
from pipeline.sources.synthetic import synthetic

def progress(stage, images, num_bytes):
    print("shard", flush=True)
    time.sleep({pause})

if __name__ == "__main__":
    source = synthetic(num_train=40, num_test=10, height=5, width=6, channels=1)
    plan = plan_build(source, dilute(source, alpha=3), Options(shard_images={shard_images}, format={format!r}))
    build(plan, Path({folder!r}), workers={workers}, progress=progress)
"""


@contextmanager
def builder(
    folder: Path, script: Path, *, workers: int, pause: float, shard_images: int = 8, format: str = "webdataset"
) -> Iterator[subprocess.Popen[str]]:
    """Run a build in a process of its own that pauses after each shard; the file is what its workers import."""
    values = {"workers": workers, "pause": pause, "shard_images": shard_images, "format": format}
    script.write_text(BUILD.format(folder=str(folder), **values))
    process = subprocess.Popen([sys.executable, script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process:
        try:
            assert process.stdout.readline() == "shard\n"
            yield process
        finally:
            process.kill()


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_killed_build_is_finished_by_the_same_command(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with builder(folder, tmp_path / "script.py", workers=1, pause=60) as process:
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    left = content(folder)
    assert {"train-000000.tar", f"{STATE}/plan.json", LOCK} <= set(left)
    assert FILE_NAME not in left
    build(plan(), folder)
    assert content(folder) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("delay_s", [0.0, 0.001, 0.003, 0.005, 0.008, 0.01, 0.012, 0.015])
@pytest.mark.parametrize("format", ["webdataset", "ffcv"])
def test_a_build_that_is_killed_anywhere_is_finished_by_the_same_command(
    tmp_path: Path, delay_s: float, format: str
) -> None:
    folder = tmp_path / "out"
    with builder(folder, tmp_path / "script.py", workers=1, pause=0, shard_images=1, format=format) as process:
        time.sleep(delay_s)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL  # it had not ended by itself
    build(plan(shard_images=1, format=format), folder)
    build(plan(shard_images=1, format=format), tmp_path / "undisturbed")
    assert content(folder) == content(tmp_path / "undisturbed")


def test_the_workers_of_a_killed_build_end_with_it(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with builder(folder, tmp_path / "script.py", workers=2, pause=60) as process:
        workers = workers_of(process)
        assert len(workers) == 2
        os.kill(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while not all(map(gone, workers)):
        assert time.monotonic() < deadline, "a worker outlived its builder"
        time.sleep(0.05)
    build(plan(), folder)
    assert content(folder) == undisturbed


def test_a_killed_worker_is_an_error_that_says_how_to_go_on(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    def kill_a_worker(stage: str, images: int, num_bytes: int) -> None:
        me = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
        for child in me:
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                os.kill(int(child), signal.SIGKILL)

    many = plan(200, shard_images=2)  # more shards than can be finished before the kill is noticed
    with pytest.raises(UserError, match=r"^a worker process was killed .* run the same command again to go on"):
        build(many, tmp_path / "out", workers=2, progress=kill_a_worker)
    assert not (tmp_path / "out" / FILE_NAME).exists()
    build(many, tmp_path / "out")
    build(many, tmp_path / "undisturbed")
    assert content(tmp_path / "out") == content(tmp_path / "undisturbed")


# ---- what is refused ----


def test_two_builds_in_one_folder_do_not_meet(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    refused = []

    def second(stage: str, images: int, num_bytes: int) -> None:
        with pytest.raises(UserError, match=r"^another build is working in .*; wait for it, or give another --out"):
            build(plan(), tmp_path)
        refused.append(True)

    build(plan(), tmp_path, progress=second)
    assert len(refused) == 7
    assert content(tmp_path) == undisturbed


def test_a_lock_that_a_killed_build_left_locks_nobody_out(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / LOCK).touch()
    build(plan(), tmp_path)
    assert content(tmp_path) == undisturbed


def test_a_lock_that_was_removed_while_we_took_it_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock_of_one_that_came_late(descriptor: int, operation: int) -> None:
        (tmp_path / LOCK).unlink()  # the earlier build ends here, between our open and our lock
        (tmp_path / LOCK).touch()  # and a third one begins

    monkeypatch.setattr(fcntl, "flock", flock_of_one_that_came_late)
    with pytest.raises(UserError, match=r"^another build is working"):
        build(plan(), tmp_path)
    assert list(content(tmp_path)) == [LOCK]


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ({"alpha": 4}, "alpha is 3, asked for is 4"),
        ({"noise_seed": 1}, "noise_seed is 0, asked for is 1"),
        ({"clean": 39}, "num_images is 40, asked for is 39"),
        ({"shard_images": 16}, "shard_images is 8, asked for is 16"),
        ({"seed": 1}, "source_sha256 is "),  # the same labels, other pixels
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_another_data_set_is_neither_touched_nor_continued(
    tmp_path: Path, other: dict[str, Any], difference: str, finished: bool
) -> None:
    if finished:
        build(plan(), tmp_path)
    else:
        with pytest.raises(StopError):
            build(plan(), tmp_path, progress=stop_after(2))
    before = content(tmp_path)
    with pytest.raises(UserError, match=f"holds another data set: {difference}.*give another --out, or --force"):
        build(plan(**other), tmp_path)
    assert content(tmp_path) == before


@pytest.mark.parametrize("finished", [True, False])
def test_force_replaces_another_data_set_and_leaves_foreign_files_alone(
    undisturbed: dict[str, bytes], tmp_path: Path, finished: bool
) -> None:
    foreign = {"notes.txt": b"mine", "train-1.tar": b"mine too", ".build/x": b"", "deep/train-000000.tar": b"my own"}
    if finished:
        build(plan(100, alpha=9), tmp_path)
    else:
        with pytest.raises(StopError):
            build(plan(100, alpha=9), tmp_path, progress=stop_after(9))
        (tmp_path / "train-000009.tar.part").write_bytes(b"half a shard")
    for name, data in foreign.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    build(plan(), tmp_path, force=True)
    assert content(tmp_path) == {**undisturbed, **foreign}


def test_force_builds_a_damaged_data_set_again(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    build(plan(), tmp_path)
    (tmp_path / FILE_NAME).write_text("{")
    with pytest.raises(UserError, match=r"no data set manifest.* build the data set again with --force"):
        build(plan(), tmp_path)
    build(plan(), tmp_path, force=True)
    assert content(tmp_path) == undisturbed


def test_force_that_is_interrupted_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    build(plan(), tmp_path)
    with pytest.raises(StopError):
        build(plan(), tmp_path, force=True, progress=stop_after(1))
    assert not (tmp_path / FILE_NAME).exists()


def test_force_that_fails_half_way_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    build(plan(), tmp_path)
    (tmp_path / "_info.json").unlink()
    (tmp_path / "_info.json").mkdir()  # cannot be removed as a file; it comes first in the alphabet
    with pytest.raises(UserError, match="Is a directory"):
        build(plan(), tmp_path, force=True)
    assert not (tmp_path / FILE_NAME).exists()


@pytest.mark.parametrize("damage", ["missing", "truncated"])
@pytest.mark.parametrize("name", ["train-000001.tar", "test-000000.idx", "train.index.npy", "counts.npz"])
def test_a_data_set_that_lost_a_file_is_not_called_finished(tmp_path: Path, name: str, damage: str) -> None:
    build(plan(), tmp_path)
    if damage == "missing":
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1])
    with pytest.raises(UserError, match=rf"{name} is missing or has another size .* build it again with --force"):
        build(plan(), tmp_path)


def test_a_folder_of_other_things_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match=r"is not empty \(it holds thesis.tex\) and no data set of ours; give another"):
        build(plan(), tmp_path)
    assert content(tmp_path) == {"thesis.tex": b"mine"}


def test_a_file_as_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=r"give (--out a folder|another --out)"):
            build(plan(), path)
    assert content(tmp_path) == {"file": b"mine"}


@contextmanager
def files_limited_to(num_bytes: int) -> Iterator[None]:
    """Make the kernel refuse to write beyond so many bytes of a file, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


# A plan has 390 bytes, a shard 25,600, an index 1,008 and the manifest 3,800.
@pytest.mark.parametrize(("shards", "limit"), [(0, 100), (0, 5_000), (3, 5_000), (7, 500), (7, 2_000)])
def test_a_full_disk_publishes_nothing_unfinished_and_the_same_command_goes_on(
    undisturbed: dict[str, bytes], tmp_path: Path, shards: int, limit: int
) -> None:
    with ExitStack() as disk:
        done = 0

        def progress(stage: str, images: int, num_bytes: int) -> None:
            nonlocal done
            done += 1
            if done == shards:
                disk.enter_context(files_limited_to(limit))

        if not shards:
            disk.enter_context(files_limited_to(limit))
        with pytest.raises(
            UserError, match=r"^cannot write .*File too large; nothing unfinished .* same command again"
        ):
            build(plan(), tmp_path, progress=progress)
    assert done == shards
    published = {name: data for name, data in content(tmp_path).items() if name in undisturbed}
    assert len([name for name in published if name.endswith(".tar")]) == shards
    assert FILE_NAME not in published
    assert published == {name: undisturbed[name] for name in published}
    build(plan(), tmp_path)
    assert content(tmp_path) == undisturbed


@contextmanager
def disk_of(num_bytes: int, where: Path) -> Iterator[None]:
    """Mount a small file system; skips the test where that is not allowed."""
    where.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(where)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(where)], check=True)


@pytest.mark.parametrize("format", ["webdataset", "ffcv"])
@pytest.mark.parametrize("kb", [4, 60, 120])
def test_a_disk_that_is_really_full_leaves_a_build_that_goes_on_elsewhere(
    undisturbed: dict[str, bytes], beton: dict[str, bytes], tmp_path: Path, format: str, kb: int
) -> None:
    whole = beton if format == "ffcv" else undisturbed
    with disk_of(kb << 10, tmp_path / "disk"):
        folder = tmp_path / "disk" / "out"
        with pytest.raises(UserError, match=r"^cannot write .*No space left on device; .* same command again to go on"):
            build(plan(format=format), folder)
        left = content(folder)
        assert FILE_NAME not in left
        assert {name: data for name, data in left.items() if name in whole} == {
            name: data for name, data in whole.items() if name in left
        }
        shutil.copytree(folder, tmp_path / "moved")
    build(plan(format=format), tmp_path / "moved")
    assert content(tmp_path / "moved") == whole


def test_a_full_disk_stops_the_workers_too(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    with files_limited_to(5_000), pytest.raises(UserError, match=r"^cannot write .*File too large"):
        build(plan(), tmp_path, workers=2)
    assert not [name for name in content(tmp_path) if name.endswith(".tar")]
    build(plan(), tmp_path)
    assert content(tmp_path) == undisturbed


def test_more_labels_than_memory_are_refused(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)  # whatever the machine overcommits, 256 GB are the end here
    request.addfinalizer(lambda: resource.setrlimit(resource.RLIMIT_AS, before))
    resource.setrlimit(resource.RLIMIT_AS, (1 << 38, before[1]))
    with pytest.raises(UserError, match=r"^out of memory for a shard .* 8,000,000,000 noisy labels .*lower --alpha"):
        build(plan(alpha=8 * 10**9), tmp_path)
    build(plan(), tmp_path)  # nothing of that one was written, so nothing stands in the way


def test_plans_of_other_classes_differ() -> None:
    source = synthetic(num_train=4, num_test=2, height=2, width=2, channels=1, num_classes=2)
    renamed = dataclasses.replace(source, classes=("left", "right"))
    one, other = (plan_build(s, dilute(s, alpha=1)).describe() for s in (source, renamed))
    assert one != other
