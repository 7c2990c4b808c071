"""The same bits from every run, on GPUs too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from kernels.philox import TORCH, word


def seed_step(seed: int, step: int, rank: int, device: torch.device) -> None:
    """Let what a net draws in a step (dropout, drop path) depend on nothing before it: a resumed run draws it again.

    Every process draws for its own rows, and the parts of a batch draw one after the other. It takes 5 microseconds.

    Args:
        seed: The run's.
        step: Of the run.
        rank: Of the process.
        device: Where the net computes.
    """
    drawn = word(seed, TORCH, step, rank)
    torch.default_generator.manual_seed(drawn)  # torch.manual_seed asks every kind of device: 90 microseconds
    if device.type == "cuda":
        torch.cuda.manual_seed(drawn)


@contextmanager
def determinism(wanted: bool) -> Iterator[None]:
    """Choose what torch computes with: algorithms that give the same bits every time, or the fastest it can find.

    On a CPU both are the same. On a GPU torch warns where it has nothing deterministic for an operation, and goes on:
    the backward pass of a max-pool is named there, which adds in any order, but adds nothing up where windows do not
    overlap. Call it before anything runs on the GPU.

    Args:
        wanted: Whether bits matter more than speed.
    """
    if wanted:  # cuBLAS reads it when it is first used
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    settings = {"deterministic": wanted, "benchmark": not wanted}  # of cuDNN; images have one size
    old = {name: getattr(torch.backends.cudnn, name) for name in settings}
    torch.use_deterministic_algorithms(wanted, warn_only=True)
    for name, value in settings.items():
        setattr(torch.backends.cudnn, name, value)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        for name, value in old.items():
            setattr(torch.backends.cudnn, name, value)
