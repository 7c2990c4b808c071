"""The one place where numba enters.

``NUMBA_DISABLE_JIT=1`` runs the same kernels as plain Python.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numba  # noqa: TID251 - this is the place

__all__ = ["inline", "jit", "num_threads", "parallel", "prange"]

F = TypeVar("F", bound=Callable[..., Any])
prange = numba.prange
_MAX_THREADS = numba.get_num_threads()  # as many as the machine has cores, before anyone lowers it


def jit(function: F) -> F:
    """Compile a single-threaded kernel; it releases the GIL and is cached on disk."""
    return numba.njit(function, cache=True, nogil=True, error_model="numpy")  # type: ignore[no-any-return]


def inline(function: F) -> F:
    """Compile a scalar piece of a kernel that its callers inline."""
    return numba.njit(function, cache=True, nogil=True, error_model="numpy", inline="always")  # type: ignore[no-any-return]


def parallel(function: F) -> F:
    """Compile a kernel whose ``prange`` loops run on all threads (see `num_threads`)."""
    return numba.njit(function, cache=True, nogil=True, error_model="numpy", parallel=True)  # type: ignore[no-any-return]


@contextmanager
def num_threads(count: int) -> Iterator[None]:
    """Run the parallel kernels of this block on `count` threads.

    Args:
        count: At least 1; more than the machine's cores is cut to them.
    """
    before = numba.get_num_threads()
    numba.set_num_threads(max(1, min(count, _MAX_THREADS)))
    try:
        yield
    finally:
        numba.set_num_threads(before)
