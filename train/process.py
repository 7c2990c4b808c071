"""What a training process settles before torch is loaded: idle threads, and how the C library hands out memory."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Final

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # names of mallopt(3)
_KEEP_BYTES: Final = 1 << 30


def settle() -> None:
    """Let idle OpenMP threads sleep, and let glibc keep freed activations; call it before torch is imported.

    Threads that spin while they wait starve each other when another process wants a core too: conv4 at batch 512
    (28 px, bf16, 2 cores of AMD EPYC, torch 2.15) trained 500 examples/s beside a busy process, and 3,600 asleep.
    A user's own OMP_WAIT_POLICY stands.

    By default each large tensor is a new mapping whose pages fault in again: at batch 1024 that was 1,300 examples/s
    against 4,600. Elsewhere than on glibc, and on GPUs, whose memory torch itself keeps, nothing changes.

    Processes that torchrun starts on one host share its cores among their kernels and decoders, unless Numba is loaded
    already.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not sys.platform.startswith("linux"):
        return
    num_local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # torchrun's
    if num_local > 1 and "numba" not in sys.modules:  # whose threads run by then: another number is an error
        os.environ.setdefault("NUMBA_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // num_local)))
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        for option, value in (
            (_MMAP_THRESHOLD, _KEEP_BYTES),
            (_TRIM_THRESHOLD, 2 * _KEEP_BYTES - 1),
            (_TOP_PAD, 64 << 20),
        ):
            mallopt(option, value)
