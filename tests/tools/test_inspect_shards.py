import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import s3
from numpy import ndarray as Array
from PIL import Image

from pipeline.builder import build
from pipeline.dataset import dilute
from pipeline.plan import Options, plan_build
from pipeline.sources.synthetic import synthetic

ROOT = Path(__file__).parents[2]


def inspect_shards(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [ROOT / "tools" / "inspect_shards", *map(str, arguments)]
    found = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)
    assert "Traceback" not in found.stdout + found.stderr
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 images in 3 classes, alpha = 4."""
    where = tmp_path_factory.mktemp("shards") / "three"
    source = synthetic(num_train=30, num_test=3, height=5, width=6, channels=1, num_classes=3)
    build(plan_build(source, dilute(source, alpha=4)), where)
    return where


@pytest.fixture(scope="module")
def counts(folder: Path) -> Array:
    matrix: Array = np.load(folder / "counts.npz")["counts"]
    return matrix


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_tables_are_those_of_the_manifests_counts(folder: Path, counts: Array, tmp_path: Path) -> None:
    before = files(folder)
    found = inspect_shards(folder, cwd=tmp_path)
    assert (found.returncode, found.stderr) == (0, "")
    lines = [line.split() for line in found.stdout.splitlines()]
    for k in range(3):
        carried = counts[:, k].sum()
        share = f"{counts[k, k] / carried:.4f}"
        assert [str(k), "pattern", str(k), "10", str(carried - 10), share] in lines
        assert [str(k), "pattern", str(k), *(f"{cell / 0.5:.1f}" for cell in counts[k])] in lines  # of 50 labels, in %
    assert "150 (α = 4, uniform)" in found.stdout
    assert files(folder) == before
    assert files(tmp_path) == {"inspect/three/matrix.png", "inspect/three/samples.png"}
    with Image.open(tmp_path / "inspect/three/matrix.png") as image:
        assert image.size == (900, 800)


def test_json_is_all_that_is_printed_and_has_the_exact_counts(folder: Path, counts: Array, tmp_path: Path) -> None:
    found = inspect_shards(folder, "--json", "--out", "pictures", "--images", 2, "--seed", 1, cwd=tmp_path)
    assert (found.returncode, found.stderr) == (0, "")
    facts: dict[str, Any] = json.loads(found.stdout)
    assert facts["counts"] == counts.tolist()
    assert [k["noisy_labels"] for k in facts["classes"]] == (counts.sum(axis=0) - 10).tolist()
    assert (facts["num_images"], facts["num_test_images"], facts["alpha"]) == (30, 3, 4)
    assert facts["right_share"] == np.trace(counts) / 150
    assert (facts["format"], facts["layout"], facts["rows"]) == ("webdataset", "shared", "images")
    assert facts["pictures"] == ["pictures/matrix.png", "pictures/samples.png"]
    with Image.open(tmp_path / "pictures/samples.png") as image:
        assert image.size[0] == 480  # two samples side by side


@pytest.mark.slow
def test_every_format_layout_and_storage_shows_the_same(folder: Path, tmp_path: Path, s3: s3.Server) -> None:
    source = synthetic(num_train=30, num_test=3, height=5, width=6, channels=1, num_classes=3)
    dataset, places = dilute(source, alpha=4), [str(tmp_path / "beton" / "three"), f"{s3.bucket()}/three"]
    for options, place in zip([Options(format="ffcv"), Options(layout="expanded")], places, strict=True):
        build(plan_build(source, dataset, options), place)
    first, *others = (json.loads(inspect_shards(x, "--json", cwd=tmp_path).stdout) for x in (folder, *places))
    stored = ("format", "layout", "encodings", "train_bytes", "num_train_shards")
    for other in others:
        assert {name for name in first if first[name] != other[name]} <= set(stored)
        assert other["pictures"] == ["inspect/three/matrix.png", "inspect/three/samples.png"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["DIR"]),
        (["nowhere"], ["nowhere", "no finished data set"]),
        (["three", "--out", "three/below"], ["three/below", "another --out"]),
        (["three", "--out", "file"], ["file", "another --out"]),
        (["three", "--seed", "-1"], ["-1"]),
    ],
    ids=" ".join,
)
def test_a_mistake_is_one_line_and_writes_nothing(
    folder: Path, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    (tmp_path / "three").symlink_to(folder)
    (tmp_path / "file").write_text("mine")
    before = files(folder)
    found = inspect_shards(*arguments, cwd=tmp_path)
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith("error: ")
    assert found.stderr.count("\n") == 1
    assert [word for word in words if word.lower() not in found.stderr.lower()] == []
    assert files(folder) == before
    assert (tmp_path / "file").read_text() == "mine"
