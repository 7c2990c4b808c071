import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.builder import build
from pipeline.dataset import dilute
from pipeline.manifest import FILE_NAME, FORMAT_VERSION
from pipeline.plan import Options, plan_build
from pipeline.sources.synthetic import synthetic

ROOT = Path(__file__).parents[2]


def verify_shards(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [ROOT / "tools" / "verify_shards", *map(str, arguments)]
    found = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)
    assert "Traceback" not in found.stdout + found.stderr
    return found


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pristine") / "set"
    source = synthetic(num_train=14, num_test=3, height=5, width=6, channels=1)
    build(plan_build(source, dilute(source, alpha=4), Options(shard_images=5)), folder)
    return folder


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    return shutil.copytree(pristine, tmp_path / "copy")


def test_a_sound_data_set_is_ok(pristine: Path) -> None:
    found = verify_shards(pristine.name, cwd=pristine.parent)
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.strip() == "ok: 12 files, 17 images, 70 labels as the formula gives them"


def test_one_flipped_byte_is_named_with_its_file_and_image(folder: Path) -> None:
    shard = folder / "train-000001.tar"
    data = bytearray(shard.read_bytes())
    data[520] ^= 4  # in the first image of the shard, behind its header of 512 bytes
    shard.write_bytes(data)
    found = verify_shards(folder)
    assert (found.returncode, found.stderr) == (1, "")
    lines = found.stdout.strip().splitlines()
    assert lines == [
        "train-000001.tar: its sha256 differs from the manifest's",
        "train-000001.tar: image 5: its size or crc32 differs from the index",
    ]


def test_every_problem_is_one_line(folder: Path) -> None:
    (folder / "train-000002.tar").unlink()
    (folder / "counts.npz").write_bytes(b"x" * 9)
    (folder / "test-000000.idx").write_bytes(b"\xff")
    found = verify_shards(folder)
    assert (found.returncode, found.stderr) == (1, "")
    named = [line.split(":")[0] for line in found.stdout.strip().splitlines()]
    assert sorted(set(named)) == ["counts.npz", "test-000000.idx", "train-000002.tar"]


@pytest.mark.parametrize("damage", ["flipped", "newer", "none", "no folder", "a file"])
def test_what_cannot_be_verified_is_an_error_of_one_line(folder: Path, damage: str) -> None:
    path, target = folder / FILE_NAME, folder
    if damage == "flipped":
        data = bytearray(path.read_bytes())
        data[300] ^= 1
        path.write_bytes(data)
    elif damage == "newer":
        version = '"format_version": '
        path.write_text(path.read_text().replace(f"{version}{FORMAT_VERSION}", f"{version}{FORMAT_VERSION + 1}"))
    elif damage == "none":
        path.unlink()
    elif damage == "no folder":
        target = folder / "nowhere"
    else:
        target = path
    found = verify_shards(target)
    assert found.returncode == 2
    assert found.stderr.startswith("error: ")
    assert found.stderr.count("\n") == 1
    assert str(target) in found.stderr
    newer = f"format version {FORMAT_VERSION + 1}; this Dilute reads {FORMAT_VERSION}: use"
    words = {"newer": newer, "flipped": "was changed", "none": "missing", "a file": "is a file; give the folder"}
    assert words.get(damage, "") in found.stderr
