"""The same function over many items, in this process or spread over several, with the results in order."""

from __future__ import annotations

import multiprocessing
import multiprocessing.util
import os
import pickle
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar, runtime_checkable

from pipeline.errors import UserError

_THREADS: Final = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")

Shared = TypeVar("Shared")
SharedBy = TypeVar("SharedBy", covariant=True)
Task = TypeVar("Task")
Result = TypeVar("Result")


@runtime_checkable
class Run(Protocol[SharedBy]):
    """Calls a function with what all workers share and one task; yields the results in the tasks' order."""

    def __call__(self, function: Callable[[SharedBy, Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
        """Run all tasks."""


@contextmanager
def spread(shared: Shared, workers: int, *, threads: int | None = None) -> Iterator[Run[Shared]]:
    """Open worker processes; 1 works in this process.

    Args:
        shared: Given to every call; must survive pickling if there is more than one worker.
        workers: Processes, at least 1.
        threads: Of OpenMP and of Numba in each of several processes; None for their defaults.

    Raises:
        UserError: If a worker is killed.
    """
    if workers == 1:
        yield lambda function, tasks: (function(shared, task) for task in tasks)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy the threads of numba's pool half-way
    with tempfile.TemporaryDirectory(prefix="dilute-") as folder:
        # By a file: in a pipe, where arguments go, megabytes would block us for good if a worker dies reading them.
        handover = Path(folder) / "shared.pickle"
        handover.write_bytes(pickle.dumps(shared))
        with ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(handover,)) as pool:

            def run(function: Callable[[Shared, Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
                with _environment(_THREADS, threads), _interrupts_later():  # a process has both from its start, now
                    return pool.map(_call, [function] * len(tasks), tasks)

            try:
                yield run
            except BrokenProcessPool:
                raise UserError(
                    "a worker process was killed (out of memory?); run the same command again to go on, "
                    "with fewer --workers if it happens again"
                ) from None
            finally:
                pool.shutdown(cancel_futures=True)  # after an error, what is queued is of no use


@contextmanager
def _environment(names: Sequence[str], value: int | None) -> Iterator[None]:
    """Set variables for the processes started in this block; Numba here fails if they change once its threads run."""
    if value is None:
        yield
        return
    before = {name: os.environ.get(name) for name in names}
    os.environ |= dict.fromkeys(names, str(value))
    try:
        yield
    finally:
        for name, own in before.items():
            if own is None:
                del os.environ[name]
            else:
                os.environ[name] = own


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """Keep Ctrl-C from the processes started in this block until `_start_worker`; this one gets it afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_shared: Any  # set once in each worker process
_busy = _interrupted = False


def _start_worker(handover: Path) -> None:
    global _shared
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    multiprocessing.util.Finalize(None, _exit, exitpriority=0)
    signal.signal(signal.SIGINT, _interrupt)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    _shared = pickle.loads(handover.read_bytes())


def _exit() -> None:
    """End at once: the interpreter would take 0.4 s to free what the kernel takes back anyway."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _exit_with_parent() -> None:
    """Wait for the end of a parent that was killed: its worker would hang, or write into the next build's files."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


def _interrupt(*_: object) -> None:
    """End the task that runs, as Ctrl-C does, and those that wait; between tasks the pool would print a traceback."""
    global _interrupted
    _interrupted = True
    if _busy:
        raise KeyboardInterrupt


def _call(function: Callable[[Any, Any], Any], task: Any) -> Any:
    global _busy
    _busy = True
    try:
        if _interrupted:
            raise KeyboardInterrupt
        return function(_shared, task)
    finally:
        _busy = False
