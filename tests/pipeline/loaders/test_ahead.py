import gc
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.loaders.ahead import Ahead


def ends(thread: threading.Thread) -> bool:
    thread.join(5)
    return not thread.is_alive()


@given(st.integers(1, 5), st.integers(0, 30))
def test_results_come_in_order(depth: int, count: int) -> None:
    ahead = Ahead(lambda number: number**2, depth)
    assert [next(ahead) for _ in range(count)] == [number**2 for number in range(count)]
    ahead.close()


def test_it_runs_so_far_ahead_and_no_further() -> None:
    made: list[int] = []
    ahead = Ahead(made.append, 3)
    for taken in range(4):
        wanted = list(range(taken + 4))  # three wait, and one more is ready to wait
        until = time.monotonic() + 5
        while made != wanted and time.monotonic() < until:
            time.sleep(0.001)
        time.sleep(0.02)
        assert made == wanted
        next(ahead)
    ahead.close()


def test_an_error_is_raised_where_its_result_is_asked_for() -> None:
    def make(number: int) -> int:
        if number == 2:
            raise OSError("no more")
        return number

    ahead = Ahead(make, 4)
    thread = ahead._thread
    assert [next(ahead), next(ahead)] == [0, 1]
    with pytest.raises(OSError, match="no more"):
        next(ahead)
    assert ends(thread)
    with pytest.raises(RuntimeError, match="closed"):
        next(ahead)


def test_close_ends_the_thread_wherever_it_is_and_may_be_called_again() -> None:
    for taken in range(3):
        ahead = Ahead(lambda number: number, 2)
        thread = ahead._thread
        for _ in range(taken):
            next(ahead)
        ahead.close()
        assert not thread.is_alive()  # what it uses may be closed after this
        ahead.close()
        with pytest.raises(RuntimeError, match="closed"):
            next(ahead)


def test_close_waits_for_what_is_being_made() -> None:
    done = threading.Event()
    begun = threading.Event()

    def make(number: int) -> None:
        begun.set()
        time.sleep(0.05)
        done.set()

    ahead = Ahead(make, 1)
    begun.wait(5)
    ahead.close()
    assert done.is_set()


def test_the_thread_ends_with_the_iterator() -> None:
    ahead = Ahead(lambda number: number, 2)
    thread = ahead._thread
    next(ahead)
    del ahead
    gc.collect()
    assert ends(thread)


def test_results_that_nobody_takes_are_let_go() -> None:
    class Result:
        alive = 0

        def __init__(self) -> None:
            Result.alive += 1

        def __del__(self) -> None:
            Result.alive -= 1

    ahead = Ahead(lambda number: Result(), 3)
    next(ahead)
    ahead.close()
    del ahead
    gc.collect()
    assert Result.alive == 0


def test_a_process_ends_though_nobody_closes() -> None:
    code = (
        "import sys; sys.path.insert(0, '.')\n"
        "from pipeline.loaders.ahead import Ahead\n"
        "ahead = Ahead(lambda number: number, 2)\n"
        "next(ahead)\n"
        "raise SystemExit(7)\n"
    )
    code = code.replace("pipeline.loaders.ahead", "ahead").replace("'.'", "'pipeline/loaders'")  # imports no torch
    root = Path(__file__).parents[3]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, timeout=20).returncode == 7
