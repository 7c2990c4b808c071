import os
from typing import Any

import pytest
import torch

from train.determinism import determinism, seed_step


def settings() -> dict[str, Any]:
    return {
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "cudnn.deterministic": torch.backends.cudnn.deterministic,
        "cudnn.benchmark": torch.backends.cudnn.benchmark,
    }


def test_bits_or_speed_and_afterwards_what_was_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = settings()
    with determinism(False):
        assert settings()["cudnn.benchmark"]
        assert not settings()["deterministic"]
        assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
        with determinism(True):
            found = settings()
        assert settings()["cudnn.benchmark"]
    assert settings() == before
    assert found["deterministic"]
    assert found["warn_only"]
    assert found["cudnn.deterministic"]
    assert not found["cudnn.benchmark"]
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")


def test_what_a_net_draws_depends_on_seed_step_and_rank_alone() -> None:
    def drawn(seed: int, step: int, rank: int) -> tuple[float, ...]:
        seed_step(seed, step, rank, torch.device("cpu"))
        return tuple(torch.rand(4).tolist())

    where = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    first = [drawn(*each) for each in where]
    assert len(set(first)) == 4
    assert [drawn(*each) for each in reversed(where)] == first[::-1]
