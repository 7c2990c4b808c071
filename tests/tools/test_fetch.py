import os
import subprocess
from pathlib import Path

import pytest

from pipeline.dataset import decode, open_shards
from pipeline.sources import open_source

ROOT = Path(__file__).parents[2]


def run(tool: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    # No address is reachable: a test that wrongly asks for one fails at once instead of downloading.
    environment = os.environ | {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    return subprocess.run(
        [ROOT / "tools" / tool, *map(str, arguments)], capture_output=True, text=True, timeout=120, env=environment
    )


@pytest.mark.slow
def test_a_synthetic_imagenet_builds_into_shards_with_its_bytes_untouched(tmp_path: Path) -> None:
    out = tmp_path / "images"
    found = run("fetch", "synthetic-imagenet", "--images", 12, "--classes", 3, "--out", out)
    assert (found.returncode, found.stderr) == (0, "")
    command = f"tools/build_shards imagenet --source {out}"
    assert command.split() == found.stdout.split()[-4:]  # wherever the console breaks the line
    built = run("build_shards", *command.split()[1:], "--alpha", 2, "--out", tmp_path / "shards")
    assert (built.returncode, built.stderr) == (0, "")
    source, dataset = open_source("imagenet", out), open_shards(tmp_path / "shards")
    assert dataset.classes == source.classes
    assert (dataset.train.num_images, dataset.test.num_images) == (12, 3)
    ours = sorted(source.train.item(i).data for i in range(12))
    assert sorted(dataset.train.item(i).data for i in range(12)) == ours
    assert decode(dataset.test.item(0)).shape[2] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["minst"], "error: no download 'minst': choose one of cifar10, cifar100, mnist, fashion_mnist"),
        (["synthetic-imagenet"], "error: synthetic-imagenet needs --out DIR, the folder to write"),
        (["mnist", "--images", 5], "error: --images is for synthetic-imagenet only; mnist comes as it is"),
        (["synthetic-imagenet", "--out", "x", "--classes", 0], "error: --classes 0: give 1 to 10,000"),
        (["synthetic-imagenet", "--out", "x", "--seed", -1], "error: --seed -1: give a whole number in [0, 2^64)"),
        ([], "Missing argument"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments: list[object], message: str) -> None:
    found = run("fetch", *arguments)
    assert found.returncode == 2
    assert message in found.stderr
    assert found.stderr.count("\n") == 1


def test_the_help_names_every_data_set() -> None:
    found = run("fetch", "--help")
    for name in ("cifar10", "cifar100", "mnist", "fashion_mnist", "synthetic-imagenet", "DILUTE_CACHE"):
        assert name in found.stdout
