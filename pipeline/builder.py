"""From a plan to a folder of shards: atomic, resumable, the same bytes every time.

Shards appear under their names when they are whole and in storage; the manifest comes last, so a folder without one is
unfinished and the same command finishes it. What an unfinished build knows of its finished shards lies in
``.dilute-build``, which goes when the manifest comes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
from jaxtyping import Int64, UInt16
from numpy import ndarray as Array

from pipeline.claim import STATE, claimed, turn
from pipeline.counts import NO_COUNTS, Counts
from pipeline.errors import DamagedImageError, UserError
from pipeline.formats.beton import write_beton
from pipeline.formats.hashed import hashed_file, write_hashed
from pipeline.formats.tar import write_shard
from pipeline.formats.types import Record
from pipeline.images import check_item
from pipeline.laws import law_array
from pipeline.manifest import (
    ENCODINGS,
    FILE_NAME,
    INDEX_DTYPE,
    LAW_FILE,
    File,
    Manifest,
    Shard,
    SplitFiles,
    read_manifest,
    to_json,
)
from pipeline.pieces import StoredImages, pieces_are_intact, write_pieces
from pipeline.plan import Plan, name_image
from pipeline.storage import Folder, LocalFolder, open_folder
from pipeline.stream import expanded_rows
from pipeline.workers import Run, spread


@runtime_checkable
class Progress(Protocol):
    """Hears how a build goes on."""

    def __call__(self, stage: str, images: int, num_bytes: int) -> None:
        """After each shard: what was done to it ("check" or "write"), its images and its bytes."""


@dataclass(frozen=True)
class Job:
    """What all workers of a build share."""

    plan: Plan
    folder: Folder


@dataclass(frozen=True)
class Task:
    """One shard to write: rows of a split's index."""

    split: str
    number: int
    rows: range

    @property
    def stem(self) -> str:
        """The shard's name without its ending."""
        return f"{self.split}-{self.number:06d}"

    @property
    def state(self) -> str:
        """Where it is noted that the shard is finished."""
        return f"{STATE}/{self.stem}.npz"


Engine = Callable[[Job], AbstractContextManager[Run[Job]]]


class State(dict[str, Any]):
    """What is known of a finished shard: `files`, a list of `File`, and arrays."""


def build(
    plan: Plan,
    where: str | Path,
    *,
    workers: int = 1,
    engine: Engine | None = None,
    force: bool = False,
    progress: Progress = lambda stage, images, num_bytes: None,
) -> Manifest:
    """Write the shards of a plan, or finish what an interrupted build left.

    Args:
        plan: What to write.
        where: A folder, made if it is not there, or an address of other storage.
        workers: Processes that write shards; 1 writes them in this one.
        engine: What else runs the tasks, in place of worker processes.
        force: Replace another data set that lies there. Files that are not a data set's are never touched.
        progress: Called after each shard.

    Raises:
        UserError: If the folder holds something else, another build works there, an image is bad, or the storage
            refuses.
    """
    manifest = _claim_and_build(plan, where, None, workers, engine, force, progress)
    if manifest is None:
        raise UserError(f"shards vanished from {where} while they were written; run the same command again")
    return manifest


def build_part(
    plan: Plan,
    where: str | Path,
    part: tuple[int, int],
    *,
    workers: int = 1,
    progress: Progress = lambda stage, images, num_bytes: None,
) -> Manifest | None:
    """Write one part of the shards of a plan; other processes write the others, at the same time or not.

    Args:
        plan: What to write; the same for all parts.
        where: A folder or an address that all of them reach.
        part: (I, M): every M-th shard from the I-th on, I from 1.
        workers: Processes that write shards.
        progress: Called after each shard.

    Returns:
        The manifest, which the part writes that finds all shards there; None if some are missing.

    Raises:
        UserError: As `build`, or if there is no such part, or bad images are to be skipped.
    """
    number, num_parts = part
    if not 1 <= number <= num_parts:
        raise UserError(f"--part {number}/{num_parts}: give I/M with I from 1 to M")
    if plan.options.on_bad == "skip":
        raise UserError("--on-bad skip has to see all images before the first shard; leave --part or --on-bad out")
    return _claim_and_build(plan, where, part, workers, None, False, progress)


def _claim_and_build(
    plan: Plan,
    where: str | Path,
    part: tuple[int, int] | None,
    workers: int,
    engine: Engine | None,
    force: bool,
    progress: Progress,
) -> Manifest | None:
    folder = open_folder(where)
    if plan.options.format == "ffcv" and folder.local is None:
        raise UserError(f"{where}: FFCV reads local files only; give --format ffcv a local --out")
    try:
        with claimed(folder, plan.describe(), part=part, force=force) as finished:
            return finished or _build(plan, folder, part or (1, 1), workers, engine, progress)
    except OSError as error:
        raise UserError(
            f"cannot write {where}: {error.strerror or error}; nothing unfinished was published: "
            "make room or give another --out, then run the same command again to go on"
        ) from error
    except MemoryError as error:
        raise UserError(
            f"out of memory for a shard of {plan.options.shard_images:,} images with "
            f"{plan.dataset.formula.alpha:,} noisy labels each; lower --alpha, or --workers"
        ) from error


def _build(
    plan: Plan,
    folder: Folder,
    part: tuple[int, int],
    workers: int,
    engine: Engine | None,
    progress: Progress,
) -> Manifest | None:
    good = plan if plan.options.on_bad == "error" else _without_bad(plan, folder, workers, progress)
    job = Job(good, folder)
    tasks = [task for split in good.splits for task in _tasks(good, split, good.num_rows(split))]
    with engine(job) if engine else spread(job, workers) as run:
        for images, num_bytes in run(finish_shard, tasks[part[0] - 1 :: part[1]]):
            progress("write", images, num_bytes)
    with turn(folder):
        return _publish(job, tasks, plan.describe())


# ---- what to write ----


def _tasks(plan: Plan, split: str, num_rows: int) -> list[Task]:
    size = plan.options.shard_images
    return [
        Task(split, number, range(first, min(first + size, num_rows)))
        for number, first in enumerate(range(0, num_rows, size))
    ]


def labels_of(plan: Plan, split: str, image_ids: Int64[Array, " b"]) -> UInt16[Array, "b copies"]:
    """Return the labels that go with some images of a split, one column a copy."""
    source_labels = np.ascontiguousarray(plan.splits[split].source_labels[image_ids])
    return (
        plan.dataset.formula.labels_of_images(image_ids, source_labels) if split == "train" else source_labels[:, None]
    )


# ---- bad images ----


def _without_bad(plan: Plan, folder: Folder, workers: int, progress: Progress) -> Plan:
    """Look at every image, or at the list that an interrupted build left, and take out the bad ones."""
    name = f"{STATE}/quarantine.json"
    if folder.size(name) is None:
        bad: dict[str, list[tuple[int, str]]] = {split: [] for split in plan.splits}
        tasks = [task for split, images in plan.splits.items() for task in _tasks(plan, split, images.num_images)]
        with spread(Job(plan, folder), workers) as run:
            for task, found in zip(tasks, run(_find_bad, tasks), strict=True):
                bad[task.split] += found
                progress("check", len(task.rows), 0)
        folder.write(name, json.dumps(bad).encode())
    left: dict[str, list[tuple[int, str]]] = json.loads(folder.read(name))
    return plan.without({split: [(image_id, reason) for image_id, reason in found] for split, found in left.items()})


def _find_bad(job: Job, task: Task) -> list[tuple[int, str]]:
    bad = []
    for image_id in task.rows:
        try:
            check_item(job.plan.splits[task.split].item(image_id), job.plan.options.check)
        except DamagedImageError as error:
            bad.append((image_id, str(error)))
    return bad


# ---- shards ----


def finish_shard(job: Job, task: Task) -> tuple[int, int]:
    """Write one shard and note that it is finished, unless an earlier build did; return its images and bytes."""
    if (state := _load_state(job, task)) is None:
        state = _write_pieces(job, task) if job.plan.options.format == "ffcv" else _write_tar(job, task)
        _write_state(job.folder, task.state, state)
    return len(state["index"]), int(state["index"]["size"].sum())


def _write_tar(job: Job, task: Task) -> State:
    plan = job.plan
    formula, split = plan.dataset.formula, plan.splits[task.split]
    if task.split == "train" and plan.options.layout == "expanded":
        image_ids, copies = expanded_rows(
            task.rows.start, len(task.rows), num_images=formula.num_images, num_copies=1 + formula.alpha
        )
        source_labels = np.ascontiguousarray(split.source_labels[image_ids])
        labels = formula.labels(image_ids, copies, source_labels)[:, None]
        keys = [f"{example_id:012d}" for example_id in (copies * formula.num_images + image_ids).tolist()]
    else:
        image_ids = np.arange(task.rows.start, task.rows.stop)
        labels = labels_of(plan, task.split, image_ids)
        keys = [f"{image_id:09d}" for image_id in task.rows]
    written = write_shard(
        job.folder,
        task.stem,
        _records(plan, task.split, image_ids, keys),
        labels,
        first=task.rows.start,
        dictionary=formula.num_classes if plan.options.index == "examples" and task.split == "train" else 0,
    )
    counts = Counts.of(np.ascontiguousarray(written.index["label"]), labels)
    return State(files=[written.shard, *written.extras], index=written.index, **counts._asdict())


def _write_pieces(job: Job, task: Task) -> State:
    """Look at the images of a part of a beton, which is put together when the sizes of all are known."""
    image_ids = np.arange(task.rows.start, task.rows.stop)
    records = _records(job.plan, task.split, image_ids, [""] * len(image_ids))
    index, kept = write_pieces(_pieces(job, task), records)
    labels = labels_of(job.plan, task.split, image_ids)
    counts = Counts.of(np.ascontiguousarray(index["label"]), labels)
    return State(files=[], index=index, kept=kept, **counts._asdict())


def _pieces(job: Job, task: Task) -> Path:
    return cast(LocalFolder, job.folder).local / STATE / f"{task.stem}.images"


def _records(plan: Plan, name: str, image_ids: Int64[Array, " n"], keys: list[str]) -> Iterator[Record]:
    split = plan.splits[name]
    source_ids, source_labels = split.source_ids[image_ids].tolist(), split.source_labels[image_ids].tolist()
    for key, image_id, source, source_label in zip(keys, image_ids.tolist(), source_ids, source_labels, strict=True):
        try:
            found = split.item(image_id)
            item = plan.stored(found)
        except DamagedImageError as error:
            flag = "--on-bad skip" if plan.options.on_bad == "error" else "--check decode"
            raise UserError(
                f"{name} image {name_image(split, image_id)['name']}: {error}; mend or remove it, "
                f"or give {flag} to leave out all images like it"
            ) from error
        yield Record(key, item, source, source_label, item.data is found.data)


def _load_state(job: Job, task: Task) -> State | None:
    """Return what an earlier build noted of a shard, if its files are still as it left them."""
    state = _read_state(job.folder, task.state)
    if state is None:
        return None
    if job.plan.options.format == "ffcv":
        intact = pieces_are_intact(_pieces(job, task), state["index"], state["kept"])
    else:
        intact = all(_is_intact(job.folder, file) for file in state["files"])
    return state if intact else None


def _write_state(folder: Folder, name: str, state: State) -> None:
    stream = BytesIO()
    np.savez(stream, **{**state, "files": json.dumps([dataclasses.asdict(file) for file in state["files"]])})
    folder.write(name, stream.getvalue())


def _read_state(folder: Folder, name: str) -> State | None:
    try:
        with np.load(BytesIO(folder.read(name))) as data:
            state = State(data)
    except FileNotFoundError:
        return None
    state["index"] = state["index"].astype(INDEX_DTYPE)
    state["files"] = [(Shard if "first" in file else File)(**file) for file in json.loads(str(state["files"]))]
    return state


def _is_intact(folder: Folder, file: File) -> bool:
    return folder.size(file.name) == file.num_bytes and folder.digest(file.name)[1] == file.sha256


# ---- the rest of the data set ----


def _publish(job: Job, tasks: list[Task], description: dict[str, Any]) -> Manifest | None:
    """Write all that is made from the shards, the manifest last; None if a shard of another part is missing."""
    plan, folder = job.plan, job.folder
    missing = [task for task in tasks if folder.size(task.state) is None]
    if missing:
        return read_manifest(folder) if folder.size(FILE_NAME) is not None else None
    split_files = {
        split: (_join_beton if plan.options.format == "ffcv" else _join_index)(
            job, split, [task for task in tasks if task.split == split]
        )
        for split in plan.splits
    }
    counts, encodings = NO_COUNTS, np.zeros(len(ENCODINGS), dtype=np.int64)
    for task, state in _states(folder, tasks):
        if task.split == "train":
            counts = counts + Counts(state["true"], state["label"], state["num"])
        encodings += np.bincount(state["index"]["encoding"], minlength=len(ENCODINGS))
    dataset = plan.dataset
    array, law_file = law_array(dataset.formula.law), None
    if array is not None:
        stream = BytesIO()
        np.save(stream, array)
        law_file = write_hashed(folder, LAW_FILE, stream.getvalue())
    manifest = Manifest(
        name=dataset.name,
        classes=dataset.classes,
        formula=dataset.formula,
        train=split_files["train"],
        test=split_files["test"],
        foreign=split_files.get("foreign"),
        image_shape=dataset.image_shape,
        mean=dataset.mean,
        std=dataset.std,
        augmentation=dataset.augmentation,
        num_right=counts.num_right,
        counts=write_hashed(folder, "counts.npz", counts.to_bytes(dataset.num_classes)),
        info=None if plan.options.format == "ffcv" else write_hashed(folder, "_info.json", _timm_info(split_files)),
        build=description,
        encodings={name: int(number) for name, number in zip(ENCODINGS, encodings, strict=True) if number},
        format=plan.options.format,
        layout=plan.options.layout,
        rows=plan.options.index,
        law_array=law_file,
        encoder=plan.encoder,
        quarantine=plan.quarantine,
        observed=dataset.observed,
    )
    folder.write(FILE_NAME, to_json(manifest).encode())
    folder.remove_folder(STATE)
    return manifest


def _states(folder: Folder, tasks: Iterable[Task]) -> Iterator[tuple[Task, State]]:
    for task in tasks:
        state = _read_state(folder, task.state)
        if state is None:
            raise UserError(f"{folder} is being finished by another process; look again in a moment")
        yield task, state


def _join_index(job: Job, split: str, tasks: list[Task]) -> SplitFiles:
    """Write the index over all shards of a split, shard by shard."""
    shards: list[Shard] = []
    extras: list[File] = []
    with hashed_file(job.folder, f"{split}.index.npy") as out:
        out.write((_index_header(tasks[-1].rows.stop),))
        for _, state in _states(job.folder, tasks):
            out.write((state["index"].tobytes(),))
            shards.append(state["files"][0])
            extras += state["files"][1:]
        file = out.finish()
    return SplitFiles(job.plan.splits[split].num_images, file, tuple(shards), tuple(extras))


def _index_header(num_rows: int) -> bytes:
    stream = BytesIO()
    fields: dict[str, Any] = {"descr": INDEX_DTYPE.descr, "fortran_order": False, "shape": (num_rows,)}
    np.lib.format.write_array_header_1_0(stream, fields)
    return stream.getvalue()


def _join_beton(job: Job, split: str, tasks: list[Task]) -> SplitFiles:
    """Put a beton together, unless an earlier build did."""
    plan, folder = job.plan, job.folder
    images = plan.splits[split]
    name = f"{STATE}/{split}.beton.npz"
    state = _read_state(folder, name)
    if state is None or not _is_intact(folder, state["files"][0]):
        states = [state for _, state in _states(folder, tasks)]
        indices, kept = [state["index"] for state in states], [state["kept"] for state in states]
        stored = StoredImages(images, [_pieces(job, task) for task in tasks], indices, kept)
        try:
            file, index = write_beton(
                cast(LocalFolder, folder).local / f"{split}.beton",
                np.concatenate(indices),
                stored,
                lambda image_ids: labels_of(plan, split, image_ids),
                num_copies=plan.num_labels(split),
                rows="examples" if plan.options.index == "examples" and split == "train" else "images",
            )
        except UserError:
            for task in tasks:
                folder.remove(task.state)  # the next build looks at the images again
            raise
        state = State(files=[Shard(file.name, file.num_bytes, file.sha256, 0, images.num_images)], index=index)
        _write_state(folder, name, state)
    stream = BytesIO()
    np.save(stream, state["index"])
    index_file = write_hashed(folder, f"{split}.index.npy", stream.getvalue())
    return SplitFiles(images.num_images, index_file, (state["files"][0],))


def _timm_info(splits: dict[str, SplitFiles]) -> bytes:
    """Describe the shards for timm's WebDataset reader, which looks for `_info.json`."""
    info = {
        name: {
            "name": name,
            "num_samples": files.num_rows,
            "filenames": [shard.name for shard in files.shards],
            "shard_lengths": [shard.count for shard in files.shards],
        }
        for name, files in splits.items()
    }
    return (json.dumps({"splits": info}, indent=1) + "\n").encode()
