"""The one place where numba enters.

``NUMBA_DISABLE_JIT=1`` runs the same kernels as plain Python.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

# numba's TBB threads are the ones that survive forks, several Python threads and a busy core (OpenMP's spin: a call of
# 0.3 ms took 10 ms beside another process). The package tbb puts the library where the loader does not look.
_TBB = Path(sys.prefix) / "lib" / "libtbb.so.12"
if _TBB.exists():
    ctypes.CDLL(str(_TBB), mode=ctypes.RTLD_GLOBAL)

import numba  # noqa: E402, TID251 - this is the place

__all__ = ["MAX_THREADS", "apart", "array_at", "inline", "jit", "narrow", "num_threads", "parallel", "prange", "widen"]


def _cache_folder() -> str:
    """Name a folder for compiled kernels after the content of this package.

    numba looks only at a kernel's own file: after a change of philox.py it would go on using labels.py's old code.
    """
    here = Path(__file__).parent
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(here.glob("*.py")))).hexdigest()[:16]
    home = here / "__pycache__" if os.access(here, os.W_OK) else Path.home() / ".cache" / "dilute"
    return str(home / f"numba-{digest}")


if "NUMBA_CACHE_DIR" not in os.environ:
    numba.config.CACHE_DIR = _cache_folder()  # type: ignore[attr-defined]

F = TypeVar("F", bound=Callable[..., Any])
prange = numba.prange
MAX_THREADS = numba.get_num_threads()  # as many as the machine has cores, before anyone lowers it


def jit(function: F) -> F:
    """Compile a single-threaded kernel; it releases the GIL and is cached on disk."""
    return numba.njit(function, cache=True, nogil=True, error_model="numpy")  # type: ignore[no-any-return]


def inline(function: F) -> F:
    """Compile a scalar piece of a kernel that its callers inline."""
    return numba.njit(function, cache=True, nogil=True, error_model="numpy", inline="always")  # type: ignore[no-any-return]


def parallel(function: F) -> F:
    """Compile a kernel whose ``prange`` loops run on all threads (see `num_threads`)."""
    return numba.njit(function, cache=True, nogil=True, error_model="numpy", parallel=True)  # type: ignore[no-any-return]


@numba.extending.intrinsic
def _pointer(typing_context: Any, address: Any) -> Any:
    """Turn an integer into a pointer."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], numba.core.cgutils.voidptr_t)

    return numba.types.voidptr(address), generate


@numba.extending.intrinsic
def _apart(typing_context: Any) -> Any:
    """Mark the arguments of the function that is being compiled, as numba does where it knows itself."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        for argument in context.call_conv.get_arguments(builder.function):
            if argument.type.is_pointer:
                argument.add_attribute("noalias")
        return context.get_dummy_value()

    return numba.types.void(), generate


if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]

    def apart() -> None:
        """Promise that the calling function reaches no value through two of its arrays: its loops need no checks."""

    def array_at(address: int, shape: tuple[int, int]) -> Any:
        """Look at the bytes at an address as an array; for use in kernels, on memory that outlives the call."""
        return np.ctypeslib.as_array(ctypes.cast(int(address), ctypes.POINTER(ctypes.c_uint8)), shape)

else:
    apart = _apart  # type: ignore[assignment]

    @inline
    def array_at(address: int, shape: tuple[int, int]) -> Any:
        """Look at the bytes at an address as an array; for use in kernels, on memory that outlives the call."""
        return numba.carray(_pointer(address), shape, np.uint8)  # type: ignore[attr-defined, call-arg]


@jit
def _from_bfloat16(bits: Any) -> Any:
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@jit
def _to_bfloat16(value: Any) -> Any:
    # Sums of numba have 64 bits where they are not cut. A nan that arithmetic made is one without its last bits too.
    bits = np.float32(value).view(np.uint32)
    odd = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
    half = np.uint32(odd + np.uint32(0x7FFF))
    half = np.uint32(0) if np.isnan(value) else half
    return np.uint16(np.uint32(bits + half) >> np.uint32(16))


def widen(value: Any) -> Any:
    """Turn a value of a kernel's array into float32; it is one, or a uint16, the bits of a bfloat16."""
    return _from_bfloat16(value) if value.dtype == np.uint16 else value


@numba.extending.overload(widen)
def _widen(value: Any) -> Any:
    def same(value: Any) -> Any:
        return value

    def from_bfloat16(value: Any) -> Any:
        return _from_bfloat16(value)

    return same if value is numba.types.float32 else from_bfloat16


def narrow(value: Any, like: Any) -> Any:
    """Turn a float32 into a value of the array `like`, which `widen` reads, rounded to nearest, ties to even."""
    return _to_bfloat16(value) if like.dtype == np.uint16 else value


@numba.extending.overload(narrow)
def _narrow(value: Any, like: Any) -> Any:
    def same(value: Any, like: Any) -> Any:
        return value

    def to_bfloat16(value: Any, like: Any) -> Any:
        return _to_bfloat16(value)

    return same if like.dtype is numba.types.float32 else to_bfloat16


@contextmanager
def num_threads(count: int) -> Iterator[None]:
    """Run the parallel kernels of this block on `count` threads.

    Args:
        count: At least 1; more than the machine's cores is cut to them.
    """
    before = numba.get_num_threads()
    numba.set_num_threads(max(1, min(count, MAX_THREADS)))
    try:
        yield
    finally:
        numba.set_num_threads(before)
