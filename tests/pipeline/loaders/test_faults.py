"""Bad images, bad files, and consumers and processes that end when they should not, on every loader."""

import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diluted import NAMES, ORDERS, photos, small_blocks
from photos import encode

from pipeline.builder import build
from pipeline.dataset import DilutedSet, dilute, open_shards, view
from pipeline.errors import DamagedImageError, UserError
from pipeline.loaders import LOADERS, open_batches, open_evaluation
from pipeline.loaders.replace import stand_ins
from pipeline.plan import Options, plan_build
from pipeline.types import Batch

ROOT = Path(__file__).parents[3]
ALPHA, BATCH, SEED = 2, 16, 4
LAYOUTS: dict[str, dict[str, Any]] = {"tar": {"shard_images": 16}, "beton": {"format": "ffcv"}}


def _spoilt() -> dict[str, bytes]:
    """JPEGs that no decoder reads, though each begins as one; a build without checks stores them."""
    good = encode(77, width=60, height=45)
    frame, tables = good.find(b"\xff\xc0"), good.find(b"\xff\xc4")
    return {
        "header.jpg": good[:3] + bytes(300) + good[303:],
        "tables.jpg": good[: tables + 4] + b"\x55" * 60 + good[tables + 64 :],  # its header is in order
        "frames.jpg": good[: frame + 19] + good[frame:],  # likewise: two frame headers
        "cut.jpg": good[:-60],
    }


SPOILT = _spoilt()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For each layout a folder of good images, and one "spoilt-" that has bad ones among them."""
    root = tmp_path_factory.mktemp("faults")
    for layout, options in LAYOUTS.items():
        names = SPOILT if layout == "tar" else ("tables.jpg", "frames.jpg")  # a beton holds what headers say
        bad = {f"train/{'ab'[n % 2]}/{name}": SPOILT[name] for n, name in enumerate(names)}
        for name, more in ((layout, {}), (f"spoilt-{layout}", bad)):
            source = photos(root / f"{name}-tree", more=more)
            build(plan_build(source, dilute(source, alpha=ALPHA), Options(check="none", **options)), root / name)
    return root


@pytest.fixture(autouse=True)
def blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch)


def copy_of(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / folder.name))


def damage(folder: Path, image_ids: Sequence[int]) -> DilutedSet:
    """Flip a byte in the entropy-coded part of some training images: most decoders would not notice."""
    split = open_shards(folder).train
    for image_id in image_ids:
        row = split.index[image_id]  # type: ignore[attr-defined]
        path = folder / split.files.shards[split.shard_of(image_id)].name  # type: ignore[attr-defined]
        content = bytearray(path.read_bytes())
        data = bytes(content[int(row["offset"]) : int(row["offset"]) + int(row["size"])])
        content[int(row["offset"]) + data.find(b"\xff\xda") + 40] ^= 0x10
        path.write_bytes(content)
    return open_shards(folder)


def take(dataset: DilutedSet, loader: str, count: int, **options: Any) -> list[Batch]:
    with closing(open_batches(dataset, batch=BATCH, seed=SEED, loader=loader, **options)) as batches:
        return [next(batches) for _ in range(count)]


def check_replaced(clean: Batch, found: Batch, bad: Any) -> None:
    """Bad rows are the previous good one, in image, label and row; no other row has changed."""
    fill = stand_ins(bad)
    assert found.replaced.tolist() == np.flatnonzero(bad).tolist()
    for name in ("images", "labels", "rows"):
        assert torch.equal(getattr(found, name), getattr(clean, name)[fill]), name


@pytest.mark.parametrize(
    "places",
    [
        [0, 1, 4, 15],
        list(range(15)),
        *(pytest.param(each, marks=pytest.mark.slow) for each in ([0], [5], [15], [0, 1, 2], list(range(1, 16)))),
    ],
)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("loader", NAMES)
def test_a_flipped_byte_is_replaced_counted_and_changes_no_other_row(
    shards: Path, tmp_path: Path, loader: str, layout: str, places: list[int]
) -> None:
    clean_set = open_shards(shards / layout)
    num_images = clean_set.formula.num_images
    clean = take(clean_set, loader, 3)
    bad_ids = sorted({int(clean[0].rows[place]) % num_images for place in places})
    if len(places) == 15:  # the one image that shall be good may stand in the batch twice
        bad_ids = [i for i in bad_ids if i != int(clean[0].rows[({*range(16)} - {*places}).pop()]) % num_images]
    damaged = damage(copy_of(shards / layout, tmp_path), bad_ids)
    with closing(open_batches(damaged, batch=BATCH, seed=SEED, loader=loader)) as batches:
        num_replaced = 0
        for whole in clean:
            found = next(batches)
            check_replaced(whole, found, np.isin(whole.rows.numpy() % num_images, bad_ids))
            num_replaced += len(found.replaced)
        assert batches.num_replaced == num_replaced >= len(bad_ids)
    evaluation = list(open_evaluation(damaged, "train", batch=20, loader=loader))
    assert torch.cat([batch.replaced for batch in evaluation]).tolist() == bad_ids
    good_ids = np.setdiff1d(np.arange(num_images), bad_ids)
    assert torch.cat([batch.rows for batch in evaluation]).tolist() == good_ids.tolist()
    (expected,) = open_evaluation(clean_set, "train", batch=1000, loader=loader)
    assert torch.equal(torch.cat([batch.images for batch in evaluation]), expected.images[good_ids])


@pytest.mark.parametrize("loader", NAMES)
def test_without_checks_damage_that_decodes_is_shown(shards: Path, tmp_path: Path, loader: str) -> None:
    layout = "beton" if loader == "ffcv" else "tar"
    folder = copy_of(shards / layout, tmp_path)
    clean = take(open_shards(folder), loader, 1)[0]
    image_id = int(clean.rows[3]) % open_shards(folder).formula.num_images
    damage(folder, [image_id])
    shown = take(open_shards(folder, check_reads=False), loader, 1)[0]
    assert not len(shown.replaced)
    assert torch.equal(shown.rows, clean.rows)
    changed = [row for row in range(BATCH) if not torch.equal(shown.images[row], clean.images[row])]
    assert changed == [
        row for row in range(BATCH) if clean.rows[row] % open_shards(folder).formula.num_images == image_id
    ]


@pytest.mark.parametrize("loader", NAMES)
def test_a_batch_without_a_good_image_is_an_error_that_names_the_tool(
    shards: Path, tmp_path: Path, loader: str
) -> None:
    damaged = damage(copy_of(shards / "tar", tmp_path), range(31))
    with (
        closing(open_batches(damaged, batch=BATCH, loader=loader)) as batches,
        pytest.raises(DamagedImageError, match="none of the 16 images of this batch can be read: run tools/verify_sh"),
    ):
        next(batches)


@pytest.mark.parametrize("order", ["full", *(pytest.param(o, marks=pytest.mark.slow) for o in ("passes", "reuse"))])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("loader", NAMES)
def test_images_that_were_bad_when_they_were_stored_are_replaced(
    shards: Path, loader: str, layout: str, order: str
) -> None:
    dataset = open_shards(shards / f"spoilt-{layout}")
    num_images = dataset.formula.num_images
    bad_ids = [i for i in range(num_images) if dataset.train.item(i).data in SPOILT.values()]
    assert len(bad_ids) == {"tar": len(SPOILT), "beton": 2}[layout]
    reference = take(dataset, "resident", 8, **ORDERS[order])
    with closing(open_batches(dataset, batch=BATCH, seed=SEED, loader=loader, **ORDERS[order])) as batches:
        for number, expected in enumerate(reference):
            rows = batches.rows_at(number * BATCH)
            found = next(batches)
            bad = np.isin(rows % num_images, bad_ids)
            assert found.replaced.tolist() == np.flatnonzero(bad).tolist()
            assert found.rows.tolist() == rows[stand_ins(bad)].tolist()
            assert torch.equal(found.labels, expected.labels)
            gap = (found.images - expected.images).abs() * 0.225
            assert gap.mean(dim=(1, 2, 3)).max() <= 6 / 255
    (evaluation,) = open_evaluation(dataset, "train", batch=1000, loader=loader)
    assert evaluation.replaced.tolist() == bad_ids
    assert evaluation.rows.tolist() == np.setdiff1d(np.arange(num_images), bad_ids).tolist()


@pytest.mark.parametrize("change", [-1, 1, 512])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_shard_whose_size_has_changed_is_an_error_at_opening(
    shards: Path, tmp_path: Path, layout: str, change: int
) -> None:
    folder = copy_of(shards / layout, tmp_path)
    path = min(folder.glob("train*.tar" if layout == "tar" else "train*.beton"))
    os.truncate(path, path.stat().st_size + change)
    with pytest.raises(
        UserError, match=rf"{path.name} has [\d,]+ bytes; the manifest says [\d,]+ bytes: run tools/ver"
    ):
        open_shards(folder)


@pytest.mark.parametrize("loader", NAMES)
def test_what_a_shard_loses_after_opening_is_replaced(shards: Path, tmp_path: Path, loader: str) -> None:
    folder = copy_of(shards / "tar", tmp_path)
    clean = take(open_shards(folder), loader, 3)
    dataset = open_shards(folder)
    row = dataset.train.index[20]  # type: ignore[attr-defined]
    os.truncate(folder / "train-000001.tar", int(row["offset"]) + int(row["size"]) - 1)  # 20 to 30 are gone
    for whole, found in zip(clean, take(dataset, loader, 3), strict=True):
        check_replaced(whole, found, whole.rows.numpy() % dataset.formula.num_images >= 20)


def threads_end(before: set[threading.Thread]) -> bool:
    until = time.monotonic() + 5
    while set(threading.enumerate()) - before and time.monotonic() < until:
        time.sleep(0.01)
    return not set(threading.enumerate()) - before


@pytest.mark.parametrize("loader", NAMES[1:])
def test_an_error_in_the_background_reaches_the_consumer(shards: Path, tmp_path: Path, loader: str) -> None:
    before = set(threading.enumerate())
    folder = copy_of(shards / "tar", tmp_path)
    dataset = open_shards(folder)
    batches = open_batches(dataset, batch=BATCH, seed=SEED, loader=loader)
    for path in folder.glob("*.tar"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="train-0"):
        next(batches)
    with pytest.raises(RuntimeError, match="closed"):
        next(batches)
    batches.close()
    assert threads_end(before)


@pytest.mark.parametrize("end", ["close", "del", "exception"])
@pytest.mark.parametrize("loader", NAMES)
def test_no_thread_outlives_its_consumer(shards: Path, loader: str, end: str) -> None:
    before = set(threading.enumerate())
    batches = open_batches(open_shards(shards / "tar"), batch=BATCH, loader=loader)
    next(batches)
    if loader != "resident":
        assert set(threading.enumerate()) - before
    if end == "close":
        batches.close()
        batches.close()
    elif end == "exception":

        def consume(batches: Any) -> None:
            with closing(batches):
                for _ in batches:
                    raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            consume(batches)
    del batches
    gc.collect()
    assert threads_end(before)


def test_no_thread_outlives_an_evaluation(shards: Path) -> None:
    before = set(threading.enumerate())
    for loader in LOADERS:
        if loader != "ffcv" or find_spec("ffcv"):
            next(iter(open_evaluation(open_shards(shards / "tar"), batch=3, loader=loader)))
    gc.collect()
    assert threads_end(before)


READ_ON = """
import sys
sys.path[:0] = [".", "tests"]
from pipeline.dataset import open_shards
from pipeline.loaders import open_batches

opened = [
    open_batches(open_shards(sys.argv[1]), batch=8, loader=loader, **options)
    for loader in sys.argv[2].split(",")
    for options in ({}, {"order": "passes", "reuse": 2})
]
while True:
    for batches in opened:
        next(batches)
    print("on", flush=True)
"""


def reading(folder: Path, loaders: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", READ_ON, str(folder), loaders]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_process_is_gone_at_once_and_leaves_nothing_in_shared_memory(
    shards: Path, how: signal.Signals
) -> None:
    names = [name for name in LOADERS if name != "ffcv" or find_spec("ffcv")]
    with reading(shards / "tar", ",".join(names)) as process:
        assert process.stdout is not None
        for _ in range(3):
            assert process.stdout.readline() == "on\n"
        folder = Path(f"/proc/{process.pid}")
        opened = [os.readlink(path) for path in (folder / "fd").iterdir() if path.is_symlink()]
        shared = [name for name in opened if name.startswith("/dev/shm")]
        shared += [line for line in (folder / "maps").read_text().splitlines() if "/dev/shm" in line]
        assert [
            name for name in shared if "(deleted)" not in name
        ] == []  # what is not there while it runs is not left when it dies
        process.send_signal(how)
        begun = time.monotonic()
        process.wait(20)
        assert time.monotonic() - begun < 10


# A process of its own: Python swallows an interrupt that falls into the collection of garbage with finalizers, and a
# process that ran a thousand other tests has such garbage.
INTERRUPTED = """
import faulthandler, signal, sys
sys.path[:0] = [".", "tests"]
import torch
from pipeline.dataset import open_shards
from pipeline.loaders import open_batches

def interrupt(number, frame):
    raise KeyboardInterrupt

lost = []
sys.unraisablehook = lost.append  # where Python tells of errors that it swallowed
signal.signal(signal.SIGALRM, interrupt)
batches = open_batches(open_shards(sys.argv[1]), batch=2, loader=sys.argv[2])
for count in range(300):
    faulthandler.dump_traceback_later(60, exit=True)  # a lock that is held for good
    try:
        signal.setitimer(signal.ITIMER_REAL, (count % 97 + 1) * 1e-4)
        while not lost:
            next(batches)
    except KeyboardInterrupt:
        pass
    wanted = batches.rows_at(batches.position)
    assert torch.equal(next(batches).rows, torch.from_numpy(wanted))
assert lost == [], lost
assert batches.position > 2 * 300  # many were taken in between
batches.close()
"""


@pytest.mark.slow
@pytest.mark.parametrize("loader", NAMES)
def test_no_ctrl_c_is_lost_and_none_disturbs_the_stream(shards: Path, loader: str) -> None:
    command = [sys.executable, "-c", INTERRUPTED, str(shards / "tar"), loader]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("reuse", [1, 2])
@pytest.mark.parametrize("loader", NAMES[1:])
def test_memory_is_flat_and_does_not_depend_on_alpha(shards: Path, loader: str, reuse: int) -> None:
    def resident_bytes() -> int:
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    dataset = open_shards(shards / "tar")
    grown = {}
    for alpha in (0, 0, 1000):  # the first one warms everything up
        options: dict[str, Any] = {"order": "passes", "window": 1, "reuse": reuse}
        with closing(open_batches(view(dataset, alpha=alpha), batch=BATCH, loader=loader, **options)) as batches:
            for _ in range(50):
                next(batches)
            before = resident_bytes()
            for _ in range(300):
                next(batches)
            grown[alpha] = resident_bytes() - before
    assert all(grown_bytes < 8 << 20 for grown_bytes in grown.values()), grown
