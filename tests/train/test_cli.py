import inspect
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pipeline.console import run
from train.checkpoint import load_state
from train.cli import train

SMALL = ["mnist5k", "--alpha", "2", "--clean", "200", "--model", "perceptron", "--examples", "600", "--batch", "60"]


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the command in this process; return its exit code."""
    monkeypatch.setattr(sys, "argv", ["train", *arguments])
    with pytest.raises(SystemExit) as ended:
        run(train, name="train")
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_help_explains_every_flag_with_its_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert call(monkeypatch, "--help") == 0
    text = capsys.readouterr().out
    flags = text[text.index("--") :].split("\n  --")
    for name in inspect.signature(train).parameters:
        if name == "dataset":
            continue
        flag = next(part for part in flags if part.lstrip("- ").startswith(name.replace("_", "-") + " "))
        assert "[default:" in flag, flag
        assert len(flag.split()) > 5, flag


def test_the_command_line_is_the_one_that_was_agreed() -> None:
    # Later versions add flags; none of these may go or change its name.
    agreed = """dataset alpha law shards clean model method loader batch lr examples epochs seed noise_seed precision
        eval_every checkpoint_every out resume"""
    assert set(agreed.split()) <= set(inspect.signature(train).parameters)


def test_a_run_lands_in_a_folder_named_after_it_and_ends_with_a_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *SMALL, "--method", "h_alpha", "--seed", "3", "--noise-seed", "7", "--lr", "0.5") == 0
    text = capsys.readouterr().out
    for column in ("last", "mean of the last 10", "best by noisy validation", "best on test (oracle)", "vote"):
        assert column in text
    assert "uses clean labels" in text
    config = json.loads(Path("runs/mnist5k-h_alpha-alpha2-seed3/config.json").read_text())
    assert config["recipe"]["lr"] == 0.5
    assert config["recipe"]["examples"] == 600
    assert config["data"] | {"noise_seed": 7, "num_images": 200, "alpha": 2} == config["data"]


def test_epochs_count_the_training_part(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["mnist5k", "--alpha", "2", "--clean", "200", "--model", "perceptron", "--batch", "60"]
    assert call(monkeypatch, *arguments, "--epochs", "2", "--val-frac", "0.5", "--out", "r") == 0
    assert json.loads(Path("r/config.json").read_text())["recipe"]["examples"] == 2 * 100 * 3


def test_a_second_run_into_a_folder_needs_resume_which_shows_the_result(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *SMALL) == 0
    table = capsys.readouterr().out.split("mnist5k-plain-alpha2-seed0", 1)[1]
    assert call(monkeypatch, *SMALL) == 2
    assert "add --resume" in capsys.readouterr().err
    assert call(monkeypatch, *SMALL, "--resume") == 0
    assert capsys.readouterr().out.split("mnist5k-plain-alpha2-seed0", 1)[1] == table
    assert call(monkeypatch, *SMALL, "--resume", "--lr", "0.33") == 2
    assert "→ 0.33" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], ["nonsense", "mnist5k"]),
        (["mnist5k", "--law", "murphy"], ["murphy", "uniform"]),
        (["mnist5k", "--model", "resnet"], ["resnet", "conv4"]),
        (["mnist5k", "--method", "magic"], ["magic", "histogram"]),
        (["mnist5k", "--loader", "magic"], ["magic", "resident"]),
        (["mnist5k", "--optimizer", "lion"], ["lion", "adamw"]),
        (["mnist5k", "--schedule", "none"], ["none", "cosine"]),
        (["mnist5k", "--precision", "int8"], ["int8", "bf16"]),
        (["mnist5k", "--mixup-beta", "2"], ["mixup_beta", "2.0", "plain"]),
        (["mnist5k", "--method", "mixup", "--mixup-beta", "-2"], ["mixup_beta", "-2.0", "0 or more"]),
        (["mnist5k", "--measure", "width"], ["width", "noise-scale"]),
        (["mnist5k", "--measure", "noise-scale", "--method", "histogram"], ["noise-scale", "histogram", "plain"]),
        (["mnist5k", "--log-every", "0"], ["log_every", "0"]),
        (["mnist5k", "--alpha", "-1"], ["alpha", "-1"]),
        (["mnist5k", "--alpha", "1.5"], ["--alpha", "integer", "(given: 1.5)"]),
        (["mnist5k", "--law", "pair"], ["pair", "--rate"]),
        (["mnist5k", "--rate", "0.4"], ["--rate", "--law"]),
        (["mnist5k", "--law", "pair", "--rate", "0.4", "--method", "h_alpha"], ["h_alpha", "uniform", "pair"]),
        (["mnist5k", "--clean", "0"], ["clean", "0"]),
        (["mnist5k", "--clean", "4001"], ["4001", "4,000"]),
        (["mnist5k", "--batch", "0"], ["batch", "0"]),
        (["mnist5k", "--batch", "100000"], ["batch", "100000", "75600"]),
        (["mnist5k", "--lr", "-1"], ["lr", "-1"]),
        (["mnist5k", "--val-frac", "2"], ["val_frac", "2"]),
        (["mnist5k", "--epochs", "0"], ["epochs", "0"]),
        (["mnist5k", "--epochs", "1", "--examples", "5"], ["--epochs", "--examples"]),
        (["mnist5k", "--seed", "-1"], ["seed", "-1"]),
        (["mnist5k", "--shards", "nowhere"], ["nowhere", "no finished data set"]),
        (["synthetic"], ["tools/build_shards synthetic --alpha"]),
        (["mnist5k", "--frobnicate"], ["--frobnicate"]),
        ([], ["dataset"]),
    ],
    ids=" ".join,
)
def test_a_mistake_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]
) -> None:
    assert call(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert [word for word in words if word.lower() not in error.lower()] == []
    assert not Path("runs").exists()


# Long enough to be killed in the middle: 375 steps and a checkpoint every 40 of them.
KILLED = ["mnist5k", "--alpha", "3", "--method", "histogram", "--model", "mlp1", "--batch", "64"]
KILLED += ["--examples", "24000", "--eval-every", "8000", "--checkpoint-every", "2560", "--ema", "3"]


def start(*arguments: str) -> subprocess.Popen[str]:
    code = "from train.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *KILLED, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"},
    )


def wait_for_a_checkpoint(process: subprocess.Popen[str], folder: str) -> None:
    deadline = time.monotonic() + 120
    while not Path(folder, "checkpoint.pt").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    process = start("--out", str(folder))
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=lambda x: str(x)
)
def test_a_killed_run_goes_on_to_the_same_weights_bit_for_bit(
    uninterrupted: Path, number: signal.Signals, code: int
) -> None:
    process = start("--out", "killed")
    wait_for_a_checkpoint(process, "killed")
    process.send_signal(number)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors
    assert errors == ""
    assert ("--resume" in output) == (number != signal.SIGKILL)
    assert not Path("killed/result.json").exists(), "the run was over before it was killed"
    again = start("--out", "killed", "--resume")
    _, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    for name in ("last.pt", "best.pt"):
        first, second = (load_state(folder / name, torch.device("cpu")) for folder in (uninterrupted, Path("killed")))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)
    examples = [json.loads(row)["examples"] for row in Path("killed/metrics.jsonl").read_text().splitlines()]
    assert examples == [
        json.loads(row)["examples"] for row in (uninterrupted / "metrics.jsonl").read_text().splitlines()
    ]
