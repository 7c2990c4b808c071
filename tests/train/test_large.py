"""The page on the large-dataset regime: its numbers are those of the product, and its commands run."""

import math
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from calls import call
from s3 import Server
from torch.distributed.run import get_args_parser

from pipeline.formats.tar import BLOCK_BYTES, write_shard
from pipeline.formats.types import Record
from pipeline.loaders import RESIDENT_BYTES, batches_ahead
from pipeline.manifest import INDEX_DTYPE
from pipeline.passes import BLOCK_IMAGES, DEFAULT_WINDOW, Passes
from pipeline.sources.synthetic_imagenet import write_synthetic_imagenet
from pipeline.sources.types import Item
from pipeline.storage import open_folder
from pipeline.stream import rank_positions
from train.assemble import MEMORISED, train_images
from train.clock import Clock
from train.models import build_model
from train.recipes import Recipe, recipe_for

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "train" / "LARGE.md").read_text(encoding="utf-8")
NUM_IMAGES, NUM_TEST, IMAGE_BYTES, BATCH = 1_281_167, 50_000, 110_000, 1_024
HELD_IN = train_images(NUM_IMAGES, Recipe.val_frac)
ALPHAS = (5, 50)
UNITS = {"": 1, "×": 1, "MB": 1e6, "GB": 1e9, "TB": 1e12}


def recipe(method: str, alpha: int) -> Recipe:
    return recipe_for("imagenet", method, num_images=HELD_IN, num_copies=1 + alpha, batch=BATCH)


def record_bytes(folder: Path, num_noisy: int) -> int:
    """Write two images, and return what the second one adds."""
    item = Item(bytes(IMAGE_BYTES), "jpg", 375, 500, 3)
    sizes = []
    for count in (1, 2):
        records = [Record(f"{number:09d}", item, number, 0) for number in range(count)]
        labels = np.zeros((count, 1 + num_noisy), dtype=np.uint16)
        sizes.append(write_shard(open_folder(folder), f"{num_noisy}-{count}", records, labels, first=0).shard.num_bytes)
    return sizes[1] - sizes[0]


def table() -> list[tuple[str, str, list[str]]]:
    """Return name, formula and what the page says of α = 5 and α = 50, line by line."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line[:1] == "|"]
    return [(row[0], row[1], row[2:]) for row in rows if len(row) == 4 and row[1] not in ("formula", "---")]


def value(formula: str, names: dict[str, float]) -> float:
    """Compute a formula as it is written for people, who leave out the sign of multiplication."""
    text = re.sub(r"(?<=\d),(?=\d)", "", formula)
    text = re.sub(r"(?<=[\w)]) (?=[\w(⌈])", " * ", text)
    text = text.replace("⌈", "ceil(").replace("⌉", ")").replace("²", "**2")
    return float(eval(text, {"ceil": math.ceil}, names))


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    return [shlex.split(line) for block in blocks("bash") for line in block.splitlines()]


@pytest.mark.parametrize("alpha", ALPHAS)
def test_every_line_of_the_tables_follows_from_its_formula(alpha: int) -> None:
    names: dict[str, float] = {"n": NUM_IMAGES, "m": HELD_IN, "B": BATCH, "α": alpha}
    for name, formula, cells in table():
        found = value(formula, names)
        number, _, unit = cells[ALPHAS.index(alpha)].partition(" ")
        decimals = len(number.partition(".")[2])
        assert number == f"{found / UNITS[unit]:,.{decimals}f}", name
        for kind in ("shown", "decoded"):  # what the lines below it begin with
            if name.endswith(f"images {kind}"):
                names["images" if kind == "shown" else "decoded"] = found
    assert len(table()) == 25


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_lengths_of_the_page_are_those_of_the_recipes(alpha: int) -> None:
    said = {name: cells[ALPHAS.index(alpha)] for name, _, cells in table()}
    for method in ("plain", "histogram"):
        made = recipe(method, alpha)
        assert said[f"`{method}`: images shown"] == f"{made.examples:,}"
        assert said[f"`{method}`: steps"] == f"{Clock(BATCH, made.examples, 1).total_examples // BATCH:,}"
        assert made.examples // made.eval_every == 30
        assert (made.schedule, made.ema) == ("constant", 3)
    assert said["30 evaluations: images"] == f"{30 * (NUM_TEST + NUM_IMAGES - HELD_IN + MEMORISED):,}"


def test_the_numbers_of_the_text_are_those_of_the_product(tmp_path: Path) -> None:
    expanded, *shared = (record_bytes(tmp_path, alpha) for alpha in (0, *ALPHAS, 192))
    assert shared == [112_640] * 3
    assert record_bytes(tmp_path, 193) > 112_640
    formulas = {name: formula for name, formula, _ in table()}
    assert formulas["training shards, layout `shared`"] == f"{shared[0]:,} n"
    assert formulas["training shards, layout `expanded`"] == f"{expanded:,} n (1 + α)"
    assert formulas["our index, mapped into memory"] == f"{INDEX_DTYPE.itemsize} n"
    block = BLOCK_IMAGES * shared[0] / 1e9
    for fact in (
        f"n = {NUM_IMAGES:,} training images of {IMAGE_BYTES:,} bytes on average",
        f"(`--val-frac {Recipe.val_frac}`), which\nleaves m = {HELD_IN:,} to train on; B = {BATCH:,}",
        f"{expanded * NUM_TEST / 1e9:.1f} GB ({expanded:,} bytes each, {NUM_TEST:,} of them)",
        "up to α = 192, so that α costs no disk",
        f"rounded up to {-(-IMAGE_BYTES // BLOCK_BYTES) * BLOCK_BYTES:,}",
        f"a window of {DEFAULT_WINDOW}\nblocks of {BLOCK_IMAGES:,} images ({DEFAULT_WINDOW * block:.1f} GB)",
        f"at 10,000 images/s that is {10_000 * IMAGE_BYTES / 1e9:.1f} GB/s",
        f"up to {3 * DEFAULT_WINDOW} blocks, {3 * DEFAULT_WINDOW * block:.1f} GB",
        f"{3 * block:.1f} GB with `--window 1`",
        f"images whole and keeps them: {BLOCK_IMAGES * 500 * 375 * 3 / 1e6:.0f} MB at 500 × 375 px",
        f"within {8 * BLOCK_IMAGES:,} examples, eight\nsteps of {BATCH:,}",
        f"at most {RESIDENT_BYTES >> 30} GiB of pixels",
        f"take {(2 + batches_ahead('dali')) * BATCH * 224 * 224 * 3 * 4 / 1e9:.1f} GB, shared among the processes",
        f"`--checkpoint-every` examples ({Recipe.checkpoint_every:,})",
        f"`--keep {Recipe.keep}` of them stay",
        f"{BATCH // 8} for each of eight",
    ):
        assert fact in PAGE, fact


@pytest.mark.parametrize(
    ("num_processes", "decodes"), [(1, "once on one"), (2, "2.0 times on two"), (4, "3.6 on four"), (8, "5.3 on eight")]
)
def test_reuse_saves_what_the_page_says(num_processes: int, decodes: str) -> None:
    reuse, num_images, batch = 8, 4 * BLOCK_IMAGES, 256
    order = Passes(range(num_images), reuse, seed=0, window=1, reuse=reuse)
    showing = np.zeros((num_images, num_processes), dtype=bool)
    for start in range(0, len(order), batch):
        for rank in range(num_processes):
            places = order.at(rank_positions(start, batch, rank=rank, world_size=num_processes))
            showing[places.image_ids, rank] = True
    expected = num_processes * (1 - (1 - 1 / num_processes) ** reuse)
    assert abs(showing.sum() / num_images - expected) < 0.05  # the mean of 4,096 images, whose deviation is below 0.02
    number = "once" if num_processes == 1 else f"{expected:.1f}"
    assert decodes.startswith(number)
    assert decodes in PAGE


def test_a_checkpoint_of_resnet18_has_the_size_that_the_page_says() -> None:
    count = sum(parameter.numel() for parameter in build_model("resnet18", (64, 64, 3), 1_000, seed=0).parameters())
    assert recipe("plain", 5).optimizer == "adamw"
    assert recipe("plain", 5).ema > 0
    assert f"{4 * 4 * count / 1e6:.0f} MB: {count:,} weights" in PAGE


def test_every_flag_of_the_page_exists() -> None:
    flags: dict[str, set[str]] = {"train": set()}
    script = blocks("sbatch")[0].replace("\\\n", " ")
    launched = [shlex.split(line.strip(" &")) for line in script.splitlines() if line.startswith("srun ")]
    for words in [*commands(), *launched]:
        at = words.index("$(which train)") if "$(which train)" in words else 0
        if at:
            launcher = words[words.index("torchrun") + 1 : at]
            get_args_parser().parse_args([*launcher, "train"])
        program = "train" if at else words[0]
        flags.setdefault(program, set()).update(word for word in words[at:] if word.startswith("--"))
    assert set(flags) == {"train", "tools/build_shards", "tools/bench"}
    for program, named in flags.items():
        command = [sys.executable, *(["-c", "from train.cli import main; main()"] if program == "train" else [program])]
        text = subprocess.run([*command, "--help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert {flag for flag in named if flag not in text} == set(), program


@pytest.mark.slow
def test_the_commands_of_the_page_run_on_a_small_tree(
    s3: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_synthetic_imagenet(Path("data/imagenet"), num_images=48, num_classes=4)
    address = s3.bucket()
    small = ["--model", "conv2", "--size", "32", "--batch", "16", "--examples", "32", "--eval-every", "32"]
    ran = 0
    for words in sorted(commands(), key=lambda words: words[0] == "train"):  # shards first
        if words[0] in ("torchrun", "tools/bench"):  # eight GPUs; half an hour
            continue
        words = [word.replace("s3://my-bucket", address) for word in words]
        if words[0] == "train":
            assert call(monkeypatch, *words[1:], *small) == 0, words
        else:
            done = subprocess.run([str(ROOT / words[0]), *words[1:]], capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, done.stderr
        ran += 1
    assert ran == 7, "rate, build, plain, histogram, reuse, build on S3, S3"
    for run in ("rate", "plain", "histogram", "reuse", "s3"):
        assert (tmp_path / "runs" / run / "result.json").exists()


STAND_INS = {
    "scontrol": 'if [ "$1" = show ]; then echo host-1; echo host-2; else echo "$@" >> scontrol.log; fi',
    "srun": """
        trap 'kill $!; echo saved >> srun.log; exit 143' TERM
        echo "$@" > srun.log
        sleep "$NAP" &
        echo $$ > pid; mv pid srun.pid
        wait
    """,
    "scancel": 'kill -TERM "$(cat srun.pid)"',
}


@pytest.mark.parametrize("in_time", [True, False])
def test_a_slurm_job_that_is_cut_off_saves_its_run_and_queues_again(tmp_path: Path, in_time: bool) -> None:
    script = blocks("sbatch")[0]
    for name, body in {**STAND_INS, "train": ""}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "host-[1-2]", "SLURM_NNODES": "2"}
    environment |= {"PATH": f"{tmp_path}:/usr/bin:/bin", "NAP": "0.01" if in_time else "60"}
    job = subprocess.Popen(["bash", "-c", script], cwd=tmp_path, env=environment)
    if not in_time:
        while not (tmp_path / "srun.pid").exists():
            time.sleep(0.01)
        job.send_signal(signal.SIGUSR1)
    job.communicate(timeout=20)
    started, *saved = (tmp_path / "srun.log").read_text().splitlines()
    assert started.startswith("torchrun --nnodes 2 --nproc-per-node 8 --rdzv-id 7 --rdzv-backend c10d")
    assert f"--rdzv-endpoint host-1:29500 {tmp_path}/train imagenet" in started
    assert saved == ([] if in_time else ["saved"])
    assert (tmp_path / "scontrol.log").exists() != in_time
