"""Tasks in worker processes. What they run must be importable there, so it is taken from Python itself."""

import multiprocessing
import operator
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.workers import spread


@pytest.fixture
def handovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files that other tests, which may run at the same time, do not use."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_the_order_of_the_tasks_and_nothing_stays(handovers: Path, workers: int) -> None:
    with spread(10, workers) as run:
        assert list(run(operator.sub, range(20))) == [10 - task for task in range(20)]
        assert list(run(operator.mul, [1, 2])) == [10, 20]  # another function, the same workers
        assert list(run(operator.mul, [])) == []
    assert multiprocessing.active_children() == []
    assert list(handovers.iterdir()) == []


def test_an_interrupt_ends_what_workers_have_to_do_without_a_word_of_theirs(capfd: pytest.CaptureFixture[str]) -> None:
    with spread(10, 2) as run:
        assert list(run(operator.sub, range(20))) == [10 - task for task in range(20)]
        for worker in multiprocessing.active_children():
            assert worker.pid
            os.kill(worker.pid, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            list(run(operator.sub, range(20)))
    assert multiprocessing.active_children() == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "NUMBA_NUM_THREADS"])
@pytest.mark.parametrize("own", [None, "2"])
def test_only_the_workers_have_the_number_of_threads(
    monkeypatch: pytest.MonkeyPatch, name: str, own: str | None
) -> None:
    monkeypatch.delenv(name, raising=False)
    if own is not None:
        monkeypatch.setenv(name, own)
    with spread(name, 2, threads=3) as run:
        results = run(os.getenv, ["none"] * 4)
        assert os.environ.get(name) == own  # Numba here would fail on another number once its threads run
        assert list(results) == ["3"] * 4
    with spread(name, 2) as run:
        assert list(run(os.getenv, ["none"])) == [own or "none"]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_a_task_is_the_callers(workers: int) -> None:
    with pytest.raises(ZeroDivisionError), spread(10, workers) as run:
        list(run(operator.floordiv, [5, 0, 2]))
    assert multiprocessing.active_children() == []


def test_one_worker_works_in_this_process_and_only_when_asked() -> None:
    taken: list[int] = []
    with spread(taken, 1) as run:
        results = run(list.append, [1, 2, 3])
        assert taken == []
        next(results)
        assert taken == [1]


def test_what_is_shared_goes_to_every_worker() -> None:
    with spread("%s %s", 2) as run:
        assert list(run(operator.mod, [(1, 2), (3, 4)])) == ["1 2", "3 4"]


def test_what_was_not_begun_is_not_done_after_an_error_of_the_caller(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    copies = [tmp_path / str(number) for number in range(5_000)]
    with pytest.raises(ZeroDivisionError), spread(tmp_path / "file", 2) as run:
        sum(1 // 0 for _ in run(shutil.copy, copies))
    assert len(list(tmp_path.iterdir())) < len(copies)


def test_a_worker_that_is_killed_is_an_error_that_says_what_to_do(handovers: Path) -> None:
    with (
        pytest.raises(UserError, match=r"^a worker process was killed \(out of memory\?\); run the same command again"),
        spread(signal.raise_signal, 2) as run,
    ):
        list(run(operator.call, [signal.SIGKILL, signal.SIGKILL]))
    assert multiprocessing.active_children() == []
    assert list(handovers.iterdir()) == []
