"""Several processes on one run: real ones, started by torchrun, over gloo."""

import contextlib
import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import world_checks
from calls import weights
from torch import nn

from pipeline.console import console
from pipeline.errors import UserError
from train.distributed import World, joined
from train.experiment import run_experiment
from train.methods import METHODS
from train.models import build_model

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CHECKS = Path(world_checks.__file__)
TRAIN = Path(sys.executable).with_name("train")
# A net without batch norm, and plain float32 sums: what is left between 1 and W processes is their order.
FLAGS = [
    *("mnist5k", "--alpha", "2", "--clean", "500", "--model", "mlp1", "--precision", "fp32", "--batch", "48"),
    *("--optimizer", "sgd", "--lr", "0.01", "--schedule", "constant", "--seed", "3"),
]
# Weights lie near 0.05; after 200 steps the processes' other order of summation had moved them by 1e-6.
TOLERANCE = 2e-5


def torchrun(num_processes: int, *command: str | Path) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes)]
    return [*launcher, *map(str, command)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def finish(command: list[str], expect: int = 0) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == expect, done.stderr[-3000:]
    return done


@contextlib.contextmanager
def started(command: list[str]) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def examples_done(run: Path) -> int:
    path = run / "metrics.jsonl"
    rows = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return int(json.loads(rows[-1])["examples"]) if rows else 0


def wait_for_examples(run: Path, examples: int) -> None:
    until = time.monotonic() + 120
    while examples_done(run) < examples:
        assert time.monotonic() < until
        time.sleep(0.02)


def assert_close(run: Path, other: Path) -> None:
    ours, theirs = weights(run), weights(other)
    assert ours.keys() == theirs.keys()
    assert max((ours[name] - theirs[name]).abs().max().item() for name in ours) < TOLERANCE


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes of world_checks.py wrote."""
    folder = tmp_path_factory.mktemp("world")
    done = finish(torchrun(2, CHECKS, folder))
    assert "Warning" not in done.stderr, done.stderr
    return folder


@pytest.fixture
def seen(two: Path) -> list[dict[str, Any]]:
    """What each of them saw."""
    return [json.loads((two / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]


def test_both_processes_hold_the_net_of_their_mean_gradient(seen: list[dict[str, Any]]) -> None:
    for accumulate in (1, 2):
        net = world_checks.net()
        statistics = []
        for rank in range(2):  # what world_checks.py does, in one process: gradients add up
            norm = net.get_submodule("1")
            assert isinstance(norm, nn.BatchNorm2d)
            norm.reset_running_stats()
            for part in range(accumulate):
                (net(world_checks.images(rank, part)).square().mean() / (2 * accumulate)).backward()
            assert norm.running_mean is not None
            statistics.append(norm.running_mean.clone())
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None
            gradient = parameter.grad + (0.01 * parameter if parameter.ndim > 1 else 0)
            wanted = (parameter - 0.1 * 1.9 * gradient).detach()  # Nesterov's first step with momentum 0.9
            for rank in range(2):
                found = torch.tensor(seen[rank][f"state{accumulate}"][name])
                assert torch.allclose(found, wanted.flatten(), atol=1e-6)
        assert not torch.allclose(*statistics)
        for rank in range(2):
            found = torch.tensor(seen[rank][f"state{accumulate}"]["1.running_mean"])
            assert torch.allclose(found, (statistics[0] + statistics[1]) / 2, atol=1e-6)


def test_a_bad_loss_in_one_process_stops_the_updates_of_all(seen: list[dict[str, Any]]) -> None:
    assert [each["first_bad_step"] for each in seen] == [1, 1]
    assert [each["weights_kept"] for each in seen] == [True, True]


def test_processes_agree(seen: list[dict[str, Any]]) -> None:
    for each in seen:
        assert each["meter"] == [{"loss": (1.5 + 1.0) / 2}, 7]  # means over processes, then over two steps
        assert each["largest"] == [1, 5]
        assert each["sum"] == [3, 20]
        assert each["rows"] == [[0, 0], [0, 1], [1, 0], [1, 1]]
        assert each["gather"] == ["r0", "r1"]
        assert each["from_first"] == {"rank": 0}
    assert [each["together"] for each in seen] == [
        ["0", "exit 2", "error: no good in 0"],
        ["1", "error: no good in 1", "exit 2"],
    ]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_the_same_net_in_two_processes(two: Path, tmp_path: Path, method: str) -> None:
    asked = world_checks.recipe(method, "mlp1")
    result = run_experiment(dataclasses.replace(asked, accumulate=1), world_checks.data(), tmp_path / "one")
    assert_close(two / method, tmp_path / "one")
    theirs = json.loads((two / method / "result.json").read_text(encoding="utf-8"))
    for name in ("top1_accuracy", "class_accuracy", "num_test_images", "num_noisy_val_images"):
        assert theirs[name] == result[name]
    assert theirs["memorisation"] == pytest.approx(result["memorisation"], abs=1e-3)


@pytest.mark.parametrize("name", ["incv", "rsl"])
def test_two_processes_select_the_same_examples(two: Path, tmp_path: Path, name: str) -> None:
    asked = dataclasses.replace(world_checks.selecting(name), accumulate=1)
    run_experiment(asked, world_checks.data(), tmp_path / name)
    ours, theirs = (np.load(folder / name / f"select-{name}" / "selected.npy") for folder in (two, tmp_path))
    np.testing.assert_array_equal(ours["kept"], theirs["kept"])
    assert 0 < ours["kept"].sum() < len(ours)
    np.testing.assert_allclose(ours["score"], theirs["score"], rtol=1e-4)
    assert_close(two / name, tmp_path / name)


def test_batch_norm_sees_each_process_own_part(two: Path, tmp_path: Path) -> None:
    """The stated difference: with batch norm, two processes train as two parts of a batch do, not as one batch."""
    asked = world_checks.recipe("plain", "conv2")
    for name, accumulate in (("whole", 1), ("parts", 2)):
        run_experiment(dataclasses.replace(asked, accumulate=accumulate), world_checks.data(), tmp_path / name)
    ours, parts, whole = (weights(folder) for folder in (two / "conv2", tmp_path / "parts", tmp_path / "whole"))
    names = [name for name, _ in build_model("conv2", (8, 8, 1), 4, seed=0).named_parameters()]
    assert max((ours[name] - parts[name]).abs().max().item() for name in names) < TOLERANCE
    assert max((ours[name] - whole[name]).abs().max().item() for name in names) > 100 * TOLERANCE


def test_steps_of_mlnt_are_those_of_the_parts_of_a_batch(two: Path, tmp_path: Path) -> None:
    run_experiment(world_checks.meta_recipe(accumulate=2), world_checks.data(), tmp_path / "parts")
    assert_close(two / "meta", tmp_path / "parts")
    ours, plain = weights(two / "meta"), weights(two / "mlnt")  # whose weight is 0
    assert max((ours[name] - plain[name]).abs().max().item() for name in ours) > 100 * TOLERANCE


def test_two_processes_choose_among_the_data_what_one_chooses(two: Path, tmp_path: Path) -> None:
    run_experiment(world_checks.ranking_recipe(accumulate=1), world_checks.data(), tmp_path / "one")
    assert_close(two / "ranking", tmp_path / "one")
    ours, theirs = (torch.load(run / "checkpoint.pt")["method"] for run in (two / "ranking", tmp_path / "one"))
    assert ours["totals"][:, -1].sum() == 480
    torch.testing.assert_close(ours["totals"], theirs["totals"], rtol=1e-3, atol=1e-4)
    rows = [json.loads(row) for row in (two / "ranking" / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if "train/loss" in row][-1]
    assert 0.3 < last["coteaching/kept_frac"] < 0.8


def test_two_processes_choose_among_a_batch_what_one_chooses(two: Path, tmp_path: Path) -> None:
    asked = world_checks.ranking_recipe(accumulate=1, rank_over="batch")
    run_experiment(asked, world_checks.data(), tmp_path / "one")
    assert_close(two / "in-batches", tmp_path / "one")
    found = [json.loads(row) for row in (two / "in-batches" / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in found if "train/loss" in row][-1]
    assert last["coteaching/kept_frac"] == pytest.approx(0.5, abs=0.1)  # all of them in the first of 1.25 epochs


def test_a_single_process_is_a_world_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined() as world:
        assert world == World()
        assert world.is_first
        assert world.largest(3, 4) == [3, 4]
        assert world.gather("x") == ["x"]


WHOLE = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29400"}


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2, but the environment lacks RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT;"),
        ({**WHOLE, "LOCAL_RANK": ""}, "WORLD_SIZE is 2, but the environment lacks LOCAL_RANK;"),
        ({**WHOLE, "WORLD_SIZE": "two", "RANK": "-1"}, "WORLD_SIZE is two, RANK is -1, no whole number;"),
        ({**WHOLE, "RANK": "2"}, "RANK is 2 and WORLD_SIZE is 2; ranks are 0 to 1;"),
    ],
)
def test_what_a_launcher_left_in_the_environment_is_named(
    monkeypatch: pytest.MonkeyPatch, told: dict[str, str], words: str
) -> None:
    for name in WHOLE:
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(UserError, match=f"^{words} start several processes with torchrun, or unset WORLD_SIZE"),
        joined(),
    ):
        pass


def test_processes_that_do_not_meet_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for name, value in {**WHOLE, "RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
        with (
            pytest.raises(
                UserError, match=rf"rank 0: the 2 processes did not meet at 127\.0\.0\.1:{port} \(.*EADDRINUSE"
            ),
            joined(),
        ):
            pass


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("[/gloo/transport/tcp/pair.cc:5] Connection closed by peer [127.0.0.1]:1"), "another process"),
        (RuntimeError("[/gloo/transport/tcp/pair.cc:5] Read error [127.0.0.1]:1: Connection reset by peer"), "another"),
        (RuntimeError("[/gloo/buffer.cc:8] Timed out waiting 600000ms for recv operation to complete"), "another"),
        (
            dist.DistBackendError("NCCL error in: x.cpp:77, remote process exited or there was a network error"),
            "another",
        ),
        (dist.DistNetworkError("failed to recv, got 0 bytes. Connection was likely closed."), "another process"),
        (
            dist.DistBackendError("NCCL error in: x.cpp:77, unhandled system error (run with NCCL_DEBUG=INFO)\nmore"),
            r"the processes cannot work together: NCCL error in: x.cpp:77, unhandled system error \(run with",
        ),
        (
            dist.DistBackendError("NCCL error in: x.cpp:77, invalid usage (run with NCCL_DEBUG=WARN)"),
            "the processes cannot",
        ),
        (RuntimeError("[/gloo/transport/tcp/device.cc:8] Unable to find address for: host"), "the processes cannot"),
    ],
)
def test_only_what_says_so_is_a_process_that_ended(
    monkeypatch: pytest.MonkeyPatch, error: RuntimeError, words: str
) -> None:
    for name, value in WHOLE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(console, "quiet", False)
    with pytest.raises(UserError, match=f"^rank 1: {words}") as raised, joined():
        raise error
    assert "\n" not in str(raised.value)


def test_an_error_of_our_own_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in WHOLE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(console, "quiet", False)
    with pytest.raises(RuntimeError, match=r"^a timeout of something else$"), joined():
        raise RuntimeError("a timeout of something else")


def test_one_two_and_changing_numbers_of_processes_train_the_same_net(tmp_path: Path) -> None:
    """B = 48: stopped by SIGTERM with 2 processes, resumed with 1 and stopped by SIGTERM again, resumed with 3."""
    flags = [*FLAGS, "--examples", "9600", "--eval-every", "2400"]
    one, two, elastic = (tmp_path / name for name in ("one", "two", "elastic"))
    finish([str(TRAIN), *flags, "--out", str(one)])
    done = finish(torchrun(2, TRAIN, *flags, "--out", two))
    assert_close(two, one)
    assert done.stdout.count("run folder:") == 1  # one process speaks
    assert len(list(two.glob("events.*"))) == 1  # and writes
    rows = [[json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines()] for run in (one, two)]
    assert [row["examples"] for row in rows[1]] == [row["examples"] for row in rows[0]]
    for mine, theirs in zip(*rows, strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine.keys() & {"train/loss", "train/top1_accuracy", "eval/loss", "eval/noisy_val_loss_se"}:
            assert mine[name] == pytest.approx(theirs[name], rel=1e-3), name
    results = [json.loads((run / "result.json").read_text()) for run in (one, two)]
    for name in ("num_test_images", "num_noisy_val_images", "examples"):
        assert results[0][name] == results[1][name]

    first = torchrun(2, TRAIN, *flags, "--out", elastic)
    second = [str(TRAIN), *flags, "--out", str(elastic), "--resume"]
    for command, after in ((first, 2400), (second, 4800)):
        with started(command) as process:
            wait_for_examples(elastic, after)
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)
            assert process.returncode != 0
        assert not (elastic / "result.json").exists()
        saved = torch.load(elastic / "checkpoint.pt", weights_only=True)["clock"]["examples"]
        assert after <= saved < 9600
    finish(torchrun(3, TRAIN, *flags, "--out", elastic, "--resume"))
    assert_close(elastic, one)
    versions = json.loads((elastic / "versions.json").read_text())
    assert [entry["num_processes"] for entry in versions] == [2, 1, 3]


def workers(process: "subprocess.Popen[str]") -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in children if b"train" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_others_and_the_run_goes_on_from_its_checkpoint(tmp_path: Path, victim: int) -> None:
    flags = [*FLAGS, "--eval-every", "4800", "--checkpoint-every", "2400", "--out", str(tmp_path / "run")]
    with started(torchrun(2, TRAIN, *flags, "--examples", "20000000")) as process:
        wait_for_examples(tmp_path / "run", 4800)
        pids = workers(process)
        os.kill(pids[victim], signal.SIGKILL)
        begun = time.monotonic()
        _, errors = process.communicate(timeout=60)
        assert time.monotonic() - begun < 60
        assert process.returncode != 0
    assert f"rank {1 - victim}: another process of this run ended" in errors
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    saved = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["clock"]["examples"]
    assert saved >= 2400
    with started([str(TRAIN), *flags, "--examples", "20000000", "--resume"]) as process:
        wait_for_examples(tmp_path / "run", saved + 2400)


def test_a_mistake_is_named_once(tmp_path: Path) -> None:
    done = finish(torchrun(2, TRAIN, *FLAGS, "--batch", "47", "--out", tmp_path / "run"), expect=1)
    assert done.stderr.count("error: ") == 1
    assert "rank 0: batch 47 does not divide by the 2 processes that share it; give a multiple of 2" in done.stderr
    assert not (tmp_path / "run").exists()
    broken = ["--lr", "1e30", "--examples", "4800", "--out", tmp_path / "broken"]
    done = finish(torchrun(2, TRAIN, *FLAGS, *broken), expect=1)
    assert done.stderr.count("error: ") == 1
    told = re.search(r"rank 0: \D+ step (\d+) is not finite \(positions (\d+) to (\d+) of the stream", done.stderr)
    assert told is not None
    step, start, end = map(int, told.groups())
    assert (start, end) == (48 * step, 48 * step + 47)  # those of both
