"""The page on the large-dataset regime: its numbers are those of the product, and its commands run."""

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

from pipeline.formats.tar import npy_header, write_shard
from pipeline.formats.types import Record
from pipeline.loaders import RESIDENT_BYTES
from pipeline.manifest import INDEX_DTYPE
from pipeline.passes import BLOCK_IMAGES, DEFAULT_WINDOW, Passes
from pipeline.sources.synthetic_imagenet import write_synthetic_imagenet
from pipeline.sources.types import Item
from pipeline.storage import open_folder
from pipeline.stream import rank_positions
from train.clock import Clock
from train.experiment import MEMORISED, train_images
from train.models import build_model
from train.recipes import Recipe, recipe_for

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "train" / "LARGE.md").read_text(encoding="utf-8")
NUM_IMAGES, NUM_TEST, IMAGE_BYTES, BATCH = 1_281_167, 50_000, 110_000, 1_024
HELD_IN = train_images(NUM_IMAGES, Recipe.val_frac)
ALPHAS = (5, 50)


def recipe(method: str, alpha: int) -> Recipe:
    return recipe_for("imagenet", method, num_images=HELD_IN, num_copies=1 + alpha, batch=BATCH)


def steps(of: Recipe) -> int:
    return Clock(of.batch, of.examples, 1).total_examples // of.batch


def record_bytes(folder: Path, num_noisy: int) -> int:
    """Write two images, and return what the second one adds."""
    item = Item(bytes(IMAGE_BYTES), "jpg", 375, 500, 3)
    sizes = []
    for count in (1, 2):
        records = [Record(f"{number:09d}", item, number, 0) for number in range(count)]
        labels = np.zeros((count, 1 + num_noisy), dtype=np.uint16)
        sizes.append(write_shard(open_folder(folder), f"{num_noisy}-{count}", records, labels, first=0).shard.num_bytes)
    return sizes[1] - sizes[0]


def cells(name: str) -> list[str]:
    """Return what the page says of α = 5 and α = 50."""
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in row.strip("|").split("|")][2:]


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    return [shlex.split(line) for block in blocks("bash") for line in block.splitlines()]


def both(form: str, *values: float) -> list[str]:
    return [form.format(value) for value in values]


def test_the_sizes_of_the_page_are_those_of_the_formats(tmp_path: Path) -> None:
    expanded, *shared = (record_bytes(tmp_path, alpha) for alpha in (0, *ALPHAS))
    assert shared == [112_640, 112_640]
    assert expanded == 111_616
    assert cells("training shards, layout `shared`") == both("{:.1f} GB", *(size * NUM_IMAGES / 1e9 for size in shared))
    rows = [expanded * NUM_IMAGES * (1 + alpha) / 1e9 for alpha in ALPHAS]
    assert cells("training shards, layout `expanded`") == both("{:,.1f} GB", *rows)
    assert cells("bytes of labels, two each") == both("{:.1f} MB", *(2 * alpha * NUM_IMAGES / 1e6 for alpha in ALPHAS))
    index = INDEX_DTYPE.itemsize * NUM_IMAGES / 1e6
    assert (INDEX_DTYPE.itemsize, cells("our index, mapped into memory")) == (28, both("{:.1f} MB", index, index))
    assert [len(npy_header(alpha)) + 2 * alpha <= 512 for alpha in (192, 193)] == [True, False]
    block = BLOCK_IMAGES * shared[0] / 1e9
    for fact in (
        f"{expanded * NUM_TEST / 1e9:.1f} GB ({expanded:,} bytes each, {NUM_TEST:,} of them)",
        f"a window of {DEFAULT_WINDOW}\nblocks of 1,024 images ({DEFAULT_WINDOW * block:.1f} GB)",
        f"at 10,000 images/s that is {10_000 * IMAGE_BYTES / 1e9:.1f} GB/s",
        f"up to {3 * DEFAULT_WINDOW} blocks, {3 * DEFAULT_WINDOW * block:.1f} GB",
        f"{3 * block:.1f} GB with `--window 1`",
        f"images whole and keeps them: {BLOCK_IMAGES * 500 * 375 * 3 / 1e6:.0f} MB at 500 × 375 px",
        f"at most {RESIDENT_BYTES >> 30} GiB of pixels",
        f"within {8 * BLOCK_IMAGES:,} examples, eight\nsteps of {BATCH:,}",
    ):
        assert fact in PAGE, fact


def test_the_lengths_of_the_page_are_those_of_the_recipes() -> None:
    assert f"m = {HELD_IN:,}" in PAGE
    assert cells("examples of the data set") == both("{:,}", *(NUM_IMAGES * (1 + alpha) for alpha in ALPHAS))
    assert cells("examples in an epoch of `plain`") == both("{:,}", *(HELD_IN * (1 + alpha) for alpha in ALPHAS))
    shown = {method: [recipe(method, alpha).examples for alpha in ALPHAS] for method in ("plain", "histogram")}
    decoded = [shown["plain"][i] // (1 + alpha) * -(-(1 + alpha) // 8) for i, alpha in enumerate(ALPHAS)]
    for method, images in shown.items():
        assert cells(f"`{method}`: images shown") == both("{:,}", *images)
        assert cells(f"`{method}`: steps") == both("{:,}", *(steps(recipe(method, alpha)) for alpha in ALPHAS))
        for rate in (1_000, 10_000):
            hours = [count / rate / 3600 for count in images]
            assert cells(f"`{method}`: hours at {rate:,} images/s") == both("{:.1f}", *hours)
        read = [IMAGE_BYTES * count / 1e12 for count in images]
        assert cells(f"`{method}`: bytes of images read") == both("{:.1f} TB", *read)
    reuse = "`plain --order passes --reuse 8`"
    assert cells(f"{reuse}: images decoded") == both("{:,}", *decoded)
    assert cells(f"{reuse}: bytes of images read") == both("{:.1f} TB", *(IMAGE_BYTES * n / 1e12 for n in decoded))
    fewer = [plain / histogram for plain, histogram in zip(*shown.values(), strict=True)]
    assert cells("`histogram` shows fewer images than `plain` by") == both("{:.1f} ×", *fewer)
    assert {
        recipe(method, alpha).examples // recipe(method, alpha).eval_every for method in shown for alpha in ALPHAS
    } == {30}
    evaluated = 30 * (NUM_TEST + NUM_IMAGES - HELD_IN + MEMORISED)
    assert cells("30 evaluations: images") == both("{:,}", evaluated, evaluated)


def test_the_batches_of_the_page_follow_from_its_formulas() -> None:
    per_image = [BATCH / (1 + alpha) for alpha in ALPHAS]
    assert cells("source labels in a batch of 1,024") == both("{:.1f}", *per_image)
    assert cells("`histogram`: effective batch of 1,024") == both("{:.1f}", *per_image)
    assert cells("`plain`: effective batch of 1,024") == both("{:.1f}", *(BATCH / (1 + alpha) ** 2 for alpha in ALPHAS))
    worth = both("{:,}", *(32 * (1 + alpha) ** 2 for alpha in ALPHAS))
    assert cells("`plain`: batch that is worth 32 clean examples") == worth
    assert cells("`histogram`: batch that is worth 32 clean images") == both("{:,}", *(32 * (1 + a) for a in ALPHAS))


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
