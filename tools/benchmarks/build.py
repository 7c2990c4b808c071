"""Stage build: shards of 2,000 synthetic ImageNet JPEGs listed ten times, beside the peers' writers.

Every writer reads the same files from a warm page cache and leaves its own on the disk (fsync). The time of ours runs
from the first read to the manifest's rename, with two worker processes that were started before.
"""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import UInt16
from numpy import ndarray as Array
from PIL import Image

from benchmarks.measure import Settings, Timed, Variant
from pipeline.builder import Engine, Job, build
from pipeline.dataset import dilute
from pipeline.plan import Options, Plan, plan_build
from pipeline.sources import Source, Split, open_source
from pipeline.sources.synthetic_imagenet import write_synthetic_imagenet
from pipeline.sources.types import Item
from pipeline.workers import Run, spread

IMAGES: Final = 2_000
TIMES: Final = 10
ALPHA: Final = 50
SMALL_SHARD: Final = 125  # so that both workers have enough of the 2,000 images
EXPANDED: Final = 10_000  # examples, for both who write every one of them
FEW: Final = 1_000  # for what takes long
ROOT: Final = Path(__file__).resolve().parents[2]


class Repeated:
    """A split whose images are listed several times over."""

    def __init__(self, split: Split, times: int) -> None:
        self.split = split
        self.labels: UInt16[Array, " n"] = np.tile(split.labels, times)

    def __len__(self) -> int:
        return len(self.labels)

    def item(self, index: int) -> Item:
        """Return one image."""
        return self.split.item(index % len(self.split))

    def name_of(self, index: int) -> str:
        """Name its file."""
        return self.split.name_of(index % len(self.split))

    def fingerprint(self, update: Callable[[bytes], object]) -> None:
        """Hash what the images hash to."""
        self.split.fingerprint(update)


def synthetic_tree() -> Path:
    """Return the folder of synthetic ImageNet JPEGs; the first use writes it."""
    tree = Path(tempfile.gettempdir()) / f"dilute-bench-imagenet-{IMAGES}"
    if not tree.exists():
        write_synthetic_imagenet(tree, num_images=IMAGES, num_classes=20)
    return tree


def variants(settings: Settings) -> list[Variant]:
    """Compare our builder with tar, WebDataset's and FFCV's writers, and with the cost of decoding."""
    tree = synthetic_tree()
    out = Path(tempfile.mkdtemp(prefix="dilute-bench-"))
    atexit.register(shutil.rmtree, out)
    once = open_source("imagenet", tree)
    listed = Source(once.name, once.classes, Repeated(once.train, TIMES), once.test, once.augmentation)
    files = [str(tree / once.train.name_of(index)) for index in range(len(once.train))]
    dataset = dilute(listed, alpha=ALPHA)
    examples = dataset.formula.all_labels(np.arange(len(listed.train)), np.asarray(dataset.train.source_labels))

    def clear() -> None:
        shutil.rmtree(out)
        out.mkdir()

    def ours(source: Source, alpha: int, **options: Any) -> Callable[[], Timed]:
        made = plan_build(source, dilute(source, alpha=alpha), Options(**{"check": "header", **options}))
        return lambda: _build(made, out / "ours", settings.threads)

    def per_example(run: Callable[[], Timed], labels: int) -> Callable[[], Timed]:
        def examples_of() -> Timed:
            timed = run()
            return Timed(timed.amount * labels, timed.seconds)

        return examples_of

    shared = ours(listed, ALPHA)
    decoding = ours(once, ALPHA, check="decode", shard_images=SMALL_SHARD)
    return [
        Variant("ours/tar-shared", "images/s", shared, "peer/tar", clear),
        Variant("peer/tar", "images/s", lambda: _tar(files * TIMES, out), prepare=clear),
        Variant(
            "ours/tar-shared-labelled",
            "examples/s",
            per_example(shared, 1 + ALPHA),
            "peer/webdataset-every-example",
            clear,
        ),
        Variant(
            "ours/tar-expanded",
            "examples/s",
            ours(once, EXPANDED // IMAGES - 1, layout="expanded", shard_images=EXPANDED // 10),
            "peer/webdataset-every-example",
            clear,
        ),
        Variant(
            "peer/webdataset-every-example",
            "examples/s",
            lambda: _shard_writer(files, examples, out),
            prepare=clear,
        ),
        Variant("ours/ffcv-shared", "images/s", ours(listed, ALPHA, format="ffcv"), "peer/ffcv-datasetwriter", clear),
        Variant(
            "peer/ffcv-datasetwriter",
            "images/s",
            lambda: dataset_writer(
                files[:FEW], np.asarray(dataset.train.source_labels), out / "peer.beton", settings.threads
            ),
            prepare=clear,
        ),
        Variant("ours/check-decode", "images/s", decoding, "limit/decode", clear),
        Variant("ours/check-header", "images/s", ours(once, ALPHA, shard_images=SMALL_SHARD), prepare=clear),
        Variant("limit/decode", "images/s", lambda: _decode(once, settings.threads)),
        Variant("ours/size-over-jpegs", "ratio", lambda: _size_ratio(shared, out, files), prepare=clear),
        Variant(
            "ours/peak-memory-alpha-1000",
            "MB",
            lambda: _peak_mb(tree, 1000, out, settings.threads),
            "ours/peak-memory-alpha-1",
            clear,
        ),
        Variant("ours/peak-memory-alpha-1", "MB", lambda: _peak_mb(tree, 1, out, settings.threads), prepare=clear),
    ]


def _build(plan: Plan, out: Path, workers: int) -> Timed:
    began: list[float] = []

    @contextmanager
    def started(job: Job) -> Iterator[Run[Job]]:
        with spread(job, workers) as run:
            list(run(_ready, range(4 * workers)))
            began.append(time.perf_counter())
            yield run

    engine: Engine = started
    build(plan, out, engine=engine)
    return Timed(plan.num_rows("train"), time.perf_counter() - began[0])


def _ready(job: Job, _: int) -> None:
    """Compile, in a worker process, what labels are drawn with."""
    job.plan.dataset.formula.all_labels(np.arange(8), np.zeros(8, dtype=np.uint16))
    time.sleep(0.05)  # so that every process gets some of these tasks


def _tar(files: list[str], out: Path) -> float:
    listing, archive = out / "files.txt", out / "peer.tar"
    listing.write_text("\n".join(files))
    # Without --hard-dereference, tar stores a file that is listed again as a link.
    subprocess.run(["tar", "--hard-dereference", "-cPf", str(archive), "-T", str(listing)], check=True)
    _sync(archive)
    return len(files)


def _shard_writer(files: list[str], labels: Array, out: Path) -> float:
    import webdataset

    with webdataset.ShardWriter(str(out / "peer-%06d.tar"), maxcount=2_048, verbose=False) as writer:
        for example in range(EXPANDED):
            number = example % len(files)
            data = Path(files[number]).read_bytes()
            writer.write({"__key__": f"{example:012d}", "jpg": data, "cls": int(labels[number, example % 51])})
    for path in out.glob("peer-*.tar"):
        _sync(path)
    return EXPANDED


class _Pictures:
    """What FFCV's writer reads: (image, label)."""

    def __init__(self, files: list[str], labels: Array) -> None:
        self.files, self.labels = files, labels

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.open(self.files[index]).convert("RGB"), int(self.labels[index])


def dataset_writer(files: list[str], labels: Array, path: Path, workers: int) -> float:
    """Write a beton as FFCV's users do: each image is decoded and encoded anew, quality 90."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    fields = {"image": RGBImageField(write_mode="jpg"), "label": IntField()}
    writer = DatasetWriter(str(path), fields, num_workers=workers)
    writer.from_indexed_dataset(_Pictures(files, labels))
    _sync(path)
    return len(files)


def _decode(source: Source, workers: int) -> Timed:
    with spread(source, workers) as run:
        list(run(_decode_some, [range(0)] * 4 * workers))
        began = time.perf_counter()
        done = sum(run(_decode_some, [range(first, first + 100) for first in range(0, len(source.train), 100)]))
    return Timed(done, time.perf_counter() - began)


def _decode_some(source: Source, indices: range) -> int:
    for index in indices:
        Image.open(BytesIO(source.train.item(index).data)).convert("RGB")
    if not indices:
        time.sleep(0.05)  # so that every process gets some of these tasks
    return len(indices)


def _size_ratio(build_it: Callable[[], Timed], out: Path, files: list[str]) -> float:
    build_it()
    stored = sum(path.stat().st_size for path in (out / "ours").glob("train*"))
    return stored / (TIMES * sum(os.path.getsize(file) for file in files))


def _peak_mb(tree: Path, alpha: int, out: Path, workers: int) -> float:
    command = ["tools/build_shards", "imagenet", "--source", str(tree), "--alpha", str(alpha), "--check", "header"]
    command += ["--out", str(out / "ours"), "--workers", str(workers)]
    code = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
    code += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3)"  # the largest of all processes
    done = subprocess.run(["python3", "-c", code, *command], cwd=ROOT, check=True, capture_output=True, text=True)
    return float(done.stdout)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
