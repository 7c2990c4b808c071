"""Work that is done ahead of who needs it, in one thread that ends with him."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")


class Ahead(Iterator[Result], Generic[Result]):
    """An endless iterator over make(0), make(1), … whose results are made beforehand by a thread.

    The thread ends with `close`, with the iterator's own life, and with the process. What `make` raises is raised where
    its result is asked for.

    Args:
        make: Makes a result; called in order, from the thread.
        depth: Results that may wait, at least 1.
    """

    def __init__(self, make: Callable[[int], Result], depth: int) -> None:
        ready: queue.Queue[tuple[Result | None, BaseException | None]] = queue.Queue(depth)
        stop = threading.Event()
        self._ready = ready
        self._thread = threading.Thread(target=_work, args=(make, ready, stop), daemon=True)
        self._thread.start()
        self.close = weakref.finalize(self, _stop, ready, stop, self._thread)

    def __next__(self) -> Result:
        if not self.close.alive:
            raise RuntimeError("the batches are closed")
        result, error = self._ready.get()
        if error is not None:
            self.close()
            raise error
        return result  # type: ignore[return-value]


def _work(make: Callable[[int], Result], ready: queue.Queue[Any], stop: threading.Event) -> None:
    number = 0
    while not stop.is_set():
        try:
            done: tuple[Result | None, BaseException | None] = make(number), None
        except BaseException as error:
            done = None, error
        while not stop.is_set():
            try:
                ready.put(done, timeout=0.1)
                break
            except queue.Full:
                continue
        if done[1] is not None:
            return
        number += 1


def _stop(ready: queue.Queue[Any], stop: threading.Event, thread: threading.Thread) -> None:
    stop.set()
    _empty(ready)  # a thread that waits for room goes on at once
    if thread is not threading.current_thread():
        thread.join()  # what it uses may be closed after this
    _empty(ready)


def _empty(ready: queue.Queue[Any]) -> None:
    while not ready.empty():
        ready.get_nowait()
