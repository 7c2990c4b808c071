"""From a clean set to weights, through the real commands."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


def run(*words: str, cwd: Path) -> str:
    environment = {**os.environ, "PATH": f"{ROOT / '.venv/bin'}:{os.environ['PATH']}"}
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(folder / "last.pt", weights_only=True)
    return state


@pytest.mark.slow
def test_shards_and_memory_give_the_same_weights_and_another_seed_does_not(tmp_path: Path) -> None:
    run(str(ROOT / "tools/build_shards"), "--alpha", "20", "--noise-seed", "5", "--clean", "600", cwd=tmp_path)
    assert "ok:" in run(str(ROOT / "tools/verify_shards"), "shards/mnist5k-alpha20", cwd=tmp_path)
    common = ["train", "mnist5k", "--model", "conv2", "--examples", "2048", "--batch", "256", "--eval-every", "2048"]
    run(*common, "--shards", "shards/mnist5k-alpha20", "--out", "a", cwd=tmp_path)
    run(*common, "--out", "b", cwd=tmp_path)  # the only shards there are
    shutil.rmtree(tmp_path / "shards")
    run(*common, "--alpha", "20", "--noise-seed", "5", "--clean", "600", "--out", "c", cwd=tmp_path)
    run(*common, "--alpha", "20", "--noise-seed", "6", "--clean", "600", "--out", "d", cwd=tmp_path)
    a, b, c, d = (weights(tmp_path / name) for name in "abcd")
    for name in a:
        assert torch.equal(a[name], b[name]), name
        assert torch.equal(a[name], c[name]), name
    assert not all(torch.equal(a[name], d[name]) for name in a)
