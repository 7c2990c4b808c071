"""From a clean set and a law to a folder of shards: atomic, resumable, the same bytes every time.

Shards are written as ``.part`` and renamed when they are on disk; the manifest comes last, so a folder without one
is unfinished and the same command finishes it. What an unfinished build knows of its finished shards lies in
``.dilute-build``, which goes when the manifest comes.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import multiprocessing
import os
import pickle
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import UInt16
from numpy import ndarray as Array

from pipeline.atomic import write_file
from pipeline.counts import NO_COUNTS, Counts
from pipeline.dataset import DilutedSet, ImageSplit, decode
from pipeline.errors import UserError
from pipeline.formats.png import encode_png
from pipeline.formats.tar import Record, Written, write_shard
from pipeline.laws import law_array, law_to_json
from pipeline.manifest import (
    FILE_NAME,
    INDEX_DTYPE,
    LAW_FILE,
    File,
    Manifest,
    Shard,
    SplitFiles,
    hash_file,
    read_manifest,
    to_json,
)
from pipeline.sources.types import ArraySplit, Item, Source

SHARD_IMAGES: Final = 2_048  # a multiple of the 1,024 images that `passes` permutes; 225 MB of ImageNet
_STATE: Final = ".dilute-build"  # a folder; its name is ours alone, because it is removed whole
_LOCK: Final = ".dilute-build.lock"
_OURS: Final = re.compile(
    r"((train|test)-\d{6}\.(tar|idx)|(train|test)\.index\.npy|counts\.npz|law\.npy|_info\.json|dataset\.json)(\.part)?"
)

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Plan:
    """Everything that the bytes of a data set depend on; two builds with equal plans write equal files.

    Args:
        dataset: The diluted set, in memory.
        source_sha256: Hash of the source, which tells others of the same name apart (see `plan_build`).
        shard_images: Images a shard.
    """

    dataset: DilutedSet
    source_sha256: str
    shard_images: int

    def describe(self) -> dict[str, Any]:
        """Return the plan as JSON, to compare it with what lies in a folder."""
        return _describe(self.dataset, self.dataset.test.num_images, self)


def _describe(named: DilutedSet | Manifest, num_test_images: int, cut: Plan | Manifest) -> dict[str, Any]:
    formula = named.formula
    return {
        "name": named.name,
        "num_images": formula.num_images,
        "num_test_images": num_test_images,
        "num_classes": formula.num_classes,
        "alpha": formula.alpha,
        "law": law_to_json(formula.law),
        "noise_seed": formula.noise_seed,
        "source_sha256": cut.source_sha256,
        "shard_images": cut.shard_images,
    }


def plan_build(source: Source, dataset: DilutedSet, *, shard_images: int = SHARD_IMAGES) -> Plan:
    """Plan the shards of a set that was diluted in memory.

    The source is hashed: its classes, labels and, where they lie in one array, pixels (files are too many to read).
    """
    digest = hashlib.sha256(json.dumps(source.classes).encode())
    for split in (source.train, source.test):
        digest.update(len(split).to_bytes(8, "little") + split.labels.astype("<u2").tobytes())
        if isinstance(split, ArraySplit):
            digest.update(repr(split.images.shape).encode())
            digest.update(split.images.tobytes())
    return Plan(dataset, digest.hexdigest(), shard_images)


def build(
    plan: Plan,
    folder: Path,
    *,
    workers: int = 1,
    force: bool = False,
    progress: Progress = lambda images, size: None,
) -> Manifest:
    """Write the shards of a plan, or finish what an interrupted build left.

    Args:
        plan: What to write.
        folder: Where; made if it is not there.
        workers: Processes that write shards; 1 writes them in this one.
        force: Replace another data set that lies there. Files that are not a data set's are never touched.
        progress: Called with (images, bytes) after each shard.

    Raises:
        UserError: If the folder holds something else, another build works there, or the disk refuses.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; give --out a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder):
            finished = _claim(plan, folder, force=force)
            return finished or _write(plan, folder, workers, progress)
    except OSError as error:
        raise UserError(
            f"cannot write {folder}: {error.strerror or error}; nothing unfinished was published: "
            "make room or give another --out, then run the same command again to go on"
        ) from error
    except MemoryError as error:
        raise UserError(
            f"out of memory for a shard of {plan.shard_images:,} images with {plan.dataset.formula.alpha:,} noisy "
            "labels each; lower --alpha, or --workers"
        ) from error


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Keep a second builder out of a folder; the lock goes with the process, however it ends."""
    path = folder / _LOCK
    busy = UserError(f"another build is working in {folder}; wait for it, or give another --out")
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy from None
        if os.fstat(file.fileno()).st_nlink == 0:  # locked just after its owner removed it: another may hold a new one
            raise busy
        try:
            yield
        finally:
            path.unlink()


def _claim(plan: Plan, folder: Path, *, force: bool) -> Manifest | None:
    """Make sure that the folder is ours to write; return its manifest if it is finished already.

    Raises:
        UserError: If it holds another data set, one that lacks files, or files that are no data set's, and `force`
            is not given.
    """
    state, finished = folder / _STATE, (folder / FILE_NAME).exists()
    wanted = plan.describe()
    present = sorted(path.name for path in folder.iterdir() if path.name not in (_STATE, _LOCK))
    if finished and not force:
        manifest = read_manifest(folder)
        _refuse_other(_describe(manifest, manifest.test.num_images, manifest), wanted, folder)
        _refuse_incomplete(manifest, folder)
        shutil.rmtree(state, ignore_errors=True)  # is there if a build was killed after its last file
        return manifest
    if (state / "plan.json").exists() and not finished:
        earlier = json.loads((state / "plan.json").read_text())
        if earlier == wanted:
            return None
        if present and not force:
            _refuse_other(earlier, wanted, folder)
    if present and not force:
        raise UserError(
            f"{folder} is not empty (it holds {present[0]}) and no data set of ours; "
            "give another --out, or --force to replace a data set that lies there"
        )
    (folder / FILE_NAME).unlink(missing_ok=True)  # first: what is left if we are killed here must not look finished
    for name in filter(_OURS.fullmatch, present):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(state, ignore_errors=True)
    state.mkdir()
    write_file(state / "plan.json", json.dumps(wanted).encode())
    return None


def _refuse_incomplete(manifest: Manifest, folder: Path) -> None:
    for file in manifest.files():
        path = folder / file.name
        if not path.exists() or path.stat().st_size != file.num_bytes:
            raise UserError(f"{path} is missing or has another size than {FILE_NAME} says; build it again with --force")


def _refuse_other(found: dict[str, Any], wanted: dict[str, Any], folder: Path) -> None:
    differences = [
        f"{key} is {found.get(key)!r}, asked for is {value!r}"
        for key, value in wanted.items()
        if found.get(key) != value
    ]
    if differences:
        raise UserError(
            f"{folder} holds another data set: {'; '.join(differences)}; give another --out, or --force to replace it"
        )


def _write(plan: Plan, folder: Path, workers: int, progress: Progress) -> Manifest:
    """Write what is missing of the shards, then all that is made from them, the manifest last."""
    dataset = plan.dataset
    tasks = [*_tasks(plan, folder, "train"), *_tasks(plan, folder, "test")]
    done: dict[str, tuple[Written, Counts]] = {}
    with _executor(plan, folder, workers) as run:
        for task, (written, cells) in zip(tasks, run(tasks), strict=True):
            done[task.path.name] = written, cells
            progress(len(task.image_ids), written.shard.num_bytes)
    counts = NO_COUNTS
    for task in tasks:
        if task.split == "train":
            counts = counts + done[task.path.name][1]
    train, test = (
        _split_files(folder, name, [done[task.path.name][0] for task in tasks if task.split == name])
        for name in ("train", "test")
    )
    data = counts.to_bytes(dataset.num_classes)
    write_file(folder / "counts.npz", data)
    info = _timm_info({"train": train, "test": test})
    write_file(folder / "_info.json", info)
    array, law_file = law_array(dataset.formula.law), None
    if array is not None:
        stream = BytesIO()
        np.save(stream, array)
        write_file(folder / LAW_FILE, stream.getvalue())
        law_file = _file(LAW_FILE, stream.getvalue())
    manifest = Manifest(
        name=dataset.name,
        classes=dataset.classes,
        formula=dataset.formula,
        train=train,
        test=test,
        image_shape=dataset.image_shape,
        mean=dataset.mean,
        std=dataset.std,
        augmentation=dataset.augmentation,
        num_right=counts.num_right,
        counts=_file("counts.npz", data),
        info=_file("_info.json", info),
        source_sha256=plan.source_sha256,
        shard_images=plan.shard_images,
        law_array=law_file,
        encoding=_encoded(dataset.train.item(0))[1],
    )
    write_file(folder / FILE_NAME, to_json(manifest).encode())
    shutil.rmtree(folder / _STATE)
    return manifest


@dataclass(frozen=True)
class _Task:
    """One shard to write."""

    split: Literal["train", "test"]
    path: Path
    image_ids: range


def _tasks(plan: Plan, folder: Path, split: Literal["train", "test"]) -> list[_Task]:
    num_images = _images_of(plan, split).num_images
    starts = range(0, num_images, plan.shard_images)
    return [
        _Task(
            split,
            folder / f"{split}-{number:06d}.tar",
            range(first, min(first + plan.shard_images, num_images)),
        )
        for number, first in enumerate(starts)
    ]


def _images_of(plan: Plan, split: Literal["train", "test"]) -> ImageSplit:
    return plan.dataset.train if split == "train" else plan.dataset.test


@contextmanager
def _executor(
    plan: Plan, folder: Path, workers: int
) -> Iterator[Callable[[list[_Task]], Iterator[tuple[Written, Counts]]]]:
    """Yield a map over tasks that keeps their order: in this process, or spread over others."""
    if workers == 1:
        yield lambda tasks: (_finish_shard(plan, task) for task in tasks)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy the threads of numba's pool half-way
    # By a file: handed over in a pipe, as arguments are, megabytes would block us for good if a worker dies reading.
    handover = folder / _STATE / "plan.pickle"
    handover.write_bytes(pickle.dumps(plan))
    with ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(handover,)) as pool:
        try:
            yield lambda tasks: pool.map(_finish_in_worker, tasks)
        except BrokenProcessPool:
            raise UserError(
                "a worker process was killed (out of memory?); run the same command again to go on, "
                "with fewer --workers if it happens again"
            ) from None


_worker_plan: Plan  # set once in each worker process


def _start_worker(handover: Path) -> None:
    global _worker_plan
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    _worker_plan = pickle.loads(handover.read_bytes())


def _exit_with_parent() -> None:
    """Wait for the end of a builder that was killed: its worker would hang, or write into the next build's files."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


def _finish_in_worker(task: _Task) -> tuple[Written, Counts]:
    return _finish_shard(_worker_plan, task)


def _finish_shard(plan: Plan, task: _Task) -> tuple[Written, Counts]:
    """Write one shard and note in `.dilute-build` that it is finished, unless an earlier build did."""
    if earlier := _load_state(task.path):
        return earlier
    formula, split, image_ids = plan.dataset.formula, _images_of(plan, task.split), task.image_ids
    source_labels = split.source_labels[image_ids.start : image_ids.stop]
    labels = source_labels[:, None]
    if task.split == "train":
        labels = formula.all_labels(np.arange(image_ids.start, image_ids.stop), source_labels)
    written = write_shard(task.path, _records(split, image_ids, labels), alpha=labels.shape[1] - 1)
    written.records["label"] = source_labels  # also where the label of copy 0 is another one
    cells = Counts.of(source_labels, labels)
    state = {"shard": asdict(written.shard), "dali_index": asdict(written.dali_index)}
    data = BytesIO()
    np.savez(data, state=json.dumps(state), index=written.records, **cells._asdict())
    write_file(_state_path(task.path), data.getvalue())
    return written, cells


def _split_files(folder: Path, name: str, shards: list[Written]) -> SplitFiles:
    """Write the index over all shards of a split."""
    index = np.concatenate([written.records for written in shards])
    data = BytesIO()
    np.save(data, index)
    index_file = _file(f"{name}.index.npy", data.getvalue())
    write_file(folder / index_file.name, data.getvalue())
    parts = [(written.shard, written.dali_index) for written in shards]
    return SplitFiles(len(index), index_file, tuple(p[0] for p in parts), tuple(p[1] for p in parts))


def _records(split: ImageSplit, image_ids: range, labels: UInt16[Array, "n copies"]) -> Iterator[Record]:
    for row, image_id in enumerate(image_ids):
        item = split.item(image_id)
        data, encoding = _encoded(item)
        source = int(split.source_ids[image_id])
        yield Record(image_id, data, encoding, int(labels[row, 0]), labels[row, 1:], source)


def _encoded(item: Item) -> tuple[bytes, str]:
    """Return an image's file: its own bytes, untouched, or a PNG of raw pixels."""
    return (encode_png(decode(item)), "png") if item.encoding == "raw" else (item.data, item.encoding)


def _file(name: str, data: bytes) -> File:
    return File(name, len(data), hashlib.sha256(data).hexdigest())


def _state_path(shard: Path) -> Path:
    return shard.parent / _STATE / f"{shard.name}.npz"


def _load_state(path: Path) -> tuple[Written, Counts] | None:
    """Return what an earlier build noted of a shard, if both its files are still as it left them."""
    try:
        with np.load(_state_path(path)) as data:
            state = json.loads(str(data["state"]))
            cells = Counts(data["true"], data["label"], data["num"])
            index = data["index"].astype(INDEX_DTYPE)
    except FileNotFoundError:
        return None
    written = Written(Shard(**state["shard"]), File(**state["dali_index"]), index)
    for file in (written.shard, written.dali_index):
        there = path.with_name(file.name)
        if not there.exists() or hash_file(there).sha256 != file.sha256:
            return None
    return written, cells


def _timm_info(splits: dict[str, SplitFiles]) -> bytes:
    """Describe the shards for timm's WebDataset reader, which looks for `_info.json`."""
    info = {
        name: {
            "name": name,
            "num_samples": files.num_images,
            "filenames": [shard.name for shard in files.shards],
            "shard_lengths": [shard.count for shard in files.shards],
        }
        for name, files in splits.items()
    }
    return (json.dumps({"splits": info}, indent=1) + "\n").encode()
