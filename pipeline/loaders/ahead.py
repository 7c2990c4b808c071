"""Work that is done ahead of who needs it, in one thread that ends with him."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Generic, TypeAlias, TypeVar

Result = TypeVar("Result")
_Ready: TypeAlias = "queue.SimpleQueue[tuple[Any, BaseException | None]]"
_Room: TypeAlias = "queue.SimpleQueue[bool]"


class Ahead(Iterator[Result], Generic[Result]):
    """An endless iterator over make(0), make(1), … whose results are made beforehand by a thread.

    The thread ends with `close`, with the iterator's own life, and with the process. What `make` raises is raised where
    its result is asked for.

    Args:
        make: Makes a result; called in order, from the thread.
        depth: Results that may wait, at least 1.
    """

    def __init__(self, make: Callable[[int], Result], depth: int) -> None:
        # A KeyboardInterrupt that falls into queue.Queue or Condition may leave their lock held for good; these are C.
        ready: _Ready = queue.SimpleQueue()
        room: _Room = queue.SimpleQueue()
        for _ in range(depth + 1):  # one more is made while `depth` wait
            room.put(True)
        self._ready, self._room = ready, room
        self._thread = threading.Thread(target=_work, args=(make, ready, room), daemon=True)
        self.close = weakref.finalize(self, _stop, ready, room, self._thread)
        self._thread.start()

    def __next__(self) -> Result:
        if not self.close.alive:
            raise RuntimeError("the batches are closed")
        result, error = self._ready.get()
        self._room.put(True)
        if error is not None:
            self.close()
            raise error
        return result  # type: ignore[no-any-return]


def _work(make: Callable[[int], Any], ready: _Ready, room: _Room) -> None:
    number = 0
    while room.get():
        try:
            ready.put((make(number), None))
        except BaseException as error:
            ready.put((None, error))
            return
        number += 1


def _stop(ready: _Ready, room: _Room, thread: threading.Thread) -> None:
    _empty(room)  # of permission to make more
    room.put(False)
    if thread.ident and thread is not threading.current_thread():  # an interrupt may have come before its start
        thread.join()  # what it uses may be closed after this
    _empty(ready)


def _empty(waiting: queue.SimpleQueue[Any]) -> None:
    with suppress(queue.Empty):
        while True:
            waiting.get_nowait()
