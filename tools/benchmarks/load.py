"""Stage load: photos, cropped at random to 224 px, from every loader and its peers; each in a process of its own.

All of them decode the same bytes (`-own`: the same images as FFCV's writer encodes them anew), draw windows by the same
law (8 to 100 % of the area, 3/4 to 4/3 wide), flip, and run in as many threads or workers as asked for, on as many
cores. What differs is said in peers/*.py. The page cache is warm: the first round does not count.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.build import ROOT, dataset_writer, synthetic_tree
from benchmarks.measure import Settings, Timed, Variant
from pipeline.builder import build
from pipeline.console import UserError, console
from pipeline.dataset import dilute, open_shards
from pipeline.formats.beton_reader import read_beton
from pipeline.plan import Options, plan_build
from pipeline.sources import open_source

ALPHA: Final = 100
BATCHES: Final = 40  # that are timed
SHARD_IMAGES: Final = 256  # webdataset needs several shards for its workers
REUSE: Final = 8
SCRIPTS: Final = Path(__file__).parent / "peers"
PEERS_PYTHON: Final = ROOT / ".venv-peers" / "bin" / "python"  # made by tools/setup --peers
TIMEOUT_S: Final = 600


@dataclass(frozen=True)
class Data:
    """The same images in the format of each loader; None is what there is not.

    Args:
        tar: Our WebDataset shards.
        beton: Our shards in FFCV's format.
        tree: Folders of files.
        own: FFCV's own beton, of JPEGs that it encoded itself.
        own_shards: Those JPEGs in a beton of ours.
        litdata: LitData's chunks.
        mds: MosaicML's shards.
    """

    tar: Path | None = None
    beton: Path | None = None
    tree: Path | None = None
    own: Path | None = None
    own_shards: Path | None = None
    litdata: Path | None = None
    mds: Path | None = None


@dataclass
class Process:
    """A loader in a process of its own, run once a round whatever is asked of it.

    Args:
        name: For messages.
        command: The script and its arguments.
        threads: Cores and threads that it may use.
        found: The line that it printed last.
    """

    name: str
    command: list[str]
    threads: int
    found: dict[str, float] = field(default_factory=dict)

    def start(self) -> None:
        """Run it to its end.

        Raises:
            UserError: If it fails.
        """
        cores = sorted(os.sched_getaffinity(0))[: self.threads]
        command = ["taskset", "-c", ",".join(map(str, cores)), *self.command]
        threads = {"NUMBA_NUM_THREADS": str(self.threads), "OMP_NUM_THREADS": str(self.threads)}
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **threads}, capture_output=True, text=True, timeout=TIMEOUT_S
        )
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"{self.name} failed: {reason}; to see all of it: {' '.join(command)}")
        self.found = json.loads(done.stdout.splitlines()[-1])

    def variants(self, against: str | None) -> list[Variant]:
        """Return what is shown of it; the first of them runs it."""
        rate = "examples/s" if "-reuse-" in self.name else "images/s"
        return [
            Variant(self.name, rate, lambda: Timed(self.found["images"], self.found["seconds"]), against, self.start),
            Variant(self.name, "cpu-s/1000", self.cpu_s),
            Variant(self.name, "s", lambda: self.found["first_batch_s"]),
            Variant(self.name, "MB", lambda: self.found["peak_mb"]),
        ]

    def cpu_s(self) -> float:
        """Return the CPU seconds of 1,000 images."""
        return 1_000 * self.found["cpu_s"] / self.found["images"]


def variants(settings: Settings) -> list[Variant]:
    """Compare our loaders with stock ones on synthetic ImageNet, or on the user's own shards."""
    if settings.shards:
        data = shards_of(settings.shards)
    else:
        data = lay_out(synthetic_tree(), temporary_folder(), settings.threads)
    known, found = commands(data), []
    for name, line in known.items():
        stock = name.removesuffix("-linear").replace("ours/", "peer/")
        against = stock if name.startswith("ours/") and stock in known else None
        shown = process(name, line, settings).variants(against)
        found += shown[:2] if "-until-" in name else shown
    return found


def process(name: str, line: list[str], settings: Settings, batches: int = BATCHES) -> Process:
    """Say how a script is run."""
    numbers = ["--batch", str(settings.batch), "--batches", str(batches), "--threads", str(settings.threads)]
    return Process(name, [*line, *numbers], settings.threads)


def temporary_folder() -> Path:
    """Make a folder that goes with this process."""
    folder = Path(tempfile.mkdtemp(prefix="dilute-bench-load-"))
    atexit.register(shutil.rmtree, folder)
    return folder


def commands(data: Data) -> dict[str, list[str]]:
    """Return the command of every variant that these data and what is installed allow."""
    found = _ours(data)
    if data.tar:
        found["peer/dali"] = command("dali_stock", data.tar)
        found["peer/webdataset"] = command("webdataset_torchvision", data.tar)
        found["limit/decode-dali"] = command("dali_stock", data.tar, "--decode")
    for name, beton in (("ffcv", data.beton and data.beton / "train.beton"), ("ffcv-own", data.own)):
        if beton and installed("ffcv"):
            found[f"peer/{name}-uint8"] = command("ffcv_stock", beton)
            found[f"peer/{name}"] = command("ffcv_stock", beton, "--float")
    if data.tree:
        found["peer/torchvision-imagefolder"] = command("image_folder", data.tree)
    if data.tree and PEERS_PYTHON.exists():
        found["limit/decode-simplejpeg"] = command("simplejpeg_decode", data.tree, python=PEERS_PYTHON)
    if data.litdata and data.mds:
        found["peer/litdata"] = command("litdata_streaming", data.litdata, python=PEERS_PYTHON)
        found["peer/mosaicml-streaming"] = command("mosaic_streaming", data.mds, python=PEERS_PYTHON)
    return found


def _ours(data: Data) -> dict[str, list[str]]:
    found = {}
    passes = ("--order", "passes", "--reuse", str(REUSE))
    for loader, folder in (("dali", data.tar), ("ffcv", data.beton if installed("ffcv") else None)):
        if folder:
            choice = ("--loader", loader)
            found[f"ours/{loader}"] = command("ours", folder, *choice)
            found[f"ours/{loader}-linear"] = command("ours", folder, *choice, "--resize", "linear")
            found[f"ours/{loader}-reuse-{REUSE}"] = command("ours", folder, *choice, *passes)
    if data.own_shards:
        found["ours/ffcv-own"] = command("ours", data.own_shards, "--loader", "ffcv")
        found["ours/ffcv-own-linear"] = command("ours", data.own_shards, "--loader", "ffcv", "--resize", "linear")
    if data.tar:
        found["ours/webdataset"] = command("ours", data.tar, "--loader", "webdataset", "--order", "passes")
        found["ours/dali-until-read-unchecked"] = command("ours", data.tar, "--until", "read", "--no-check")
        for step in ("read", "decode", "augment", *(["copy"] if _gpu() else [])):  # each with those before it
            found[f"ours/dali-until-{step}"] = command("ours", data.tar, "--until", step)
    return found


def shards_of(folder: Path) -> Data:
    """Say which loaders can read a user's own shards.

    Raises:
        UserError: If they are not photos that are cropped.
    """
    dataset = open_shards(folder)
    if dataset.augmentation.kind != "window":
        raise UserError(f"{folder}: stage load crops photos; measure {dataset.name} with tools/bench load-small")
    console.print("left out, as they read files or formats of their own: torchvision, litdata, MosaicML streaming")
    beton = (folder / "train.beton").exists()
    return Data(beton=folder) if beton else Data(tar=folder)


def lay_out(tree: Path, folder: Path, threads: int) -> Data:
    """Write the images of a tree in the format of every loader that is installed."""
    tar, beton = build_ours(tree, folder)
    own = own_shards = litdata = mds = None
    if installed("ffcv"):
        own, own_shards = folder / "peer.beton", folder / "own"
        files = sorted((tree / "train").glob("*/*"))
        dataset_writer([str(file) for file in files], np.zeros(len(files), dtype=np.int64), own, threads)
        write_shards(_encoded_anew(own, files, tree, folder / "tree"), own_shards, "ffcv")
    else:
        console.print("left out: loader ffcv and its peer; tools/setup says what FFCV lacks")
    if PEERS_PYTHON.exists():
        litdata, mds = folder / "litdata", folder / "mds"
        for script, out in (("litdata_streaming", litdata), ("mosaic_streaming", mds)):
            write = command(script, out, "--write", str(tree), "--threads", str(threads), python=PEERS_PYTHON)
            subprocess.run(write, check=True, capture_output=True)
    else:
        console.print("left out: litdata, MosaicML streaming, simplejpeg; tools/setup --peers installs them")
    return Data(tar, beton, tree, own, own_shards, litdata, mds)


def build_ours(tree: Path, folder: Path) -> tuple[Path, Path]:
    """Write the images of a tree into tars and into a beton."""
    tar, beton = folder / "tar", folder / "beton"
    write_shards(tree, tar, "webdataset")
    write_shards(tree, beton, "ffcv")
    return tar, beton


def write_shards(tree: Path, out: Path, kind: str) -> None:
    """Write the images of a tree as shards of one format."""
    source = open_source("imagenet", tree)
    made = plan_build(
        source, dilute(source, alpha=ALPHA), Options(format=kind, shard_images=SHARD_IMAGES, check="header")
    )
    build(made, out)


def _encoded_anew(beton: Path, files: list[Path], tree: Path, out: Path) -> Path:
    """Write the JPEGs in a beton of FFCV's writer as files, so that ours decode the same bytes."""
    opened = read_beton(beton)
    sizes = {int(each["ptr"]): int(each["size"]) for each in opened.allocations}
    for file, start in zip(files, opened.rows["image"]["data_ptr"].tolist(), strict=True):
        path = out / file.relative_to(tree)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(opened.data[start : start + sizes[start]].tobytes())
    (out / "val").symlink_to(tree / "val")
    return out


def command(script: str, data: Path, *arguments: str, python: str | Path = sys.executable) -> list[str]:
    """Return how a script of peers/ is started."""
    return [str(python), str(SCRIPTS / f"{script}.py"), str(data.absolute()), *arguments]


def installed(package: str) -> bool:
    """Say whether a package is there, without importing it."""
    return importlib.util.find_spec(package) is not None


def _gpu() -> bool:
    import torch

    return torch.cuda.is_available()
