import inspect
import json
import re
import signal
from pathlib import Path
from typing import get_type_hints

import pytest
from calls import CPU, call, finish, rows, same, selection_for, start, wait_for_a_checkpoint, weights

from pipeline.builder import build
from pipeline.dataset import dilute
from pipeline.plan import plan_build
from pipeline.sources.synthetic import synthetic
from train.checkpoint import load_state
from train.cli import train
from train.methods import METHODS
from train.recipes import Recipe, recipe_for

SMALL = ["mnist5k", "--alpha", "2", "--clean", "200", "--model", "perceptron", "--examples", "600", "--batch", "60"]


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


def test_the_defaults_that_help_gives_as_numbers_are_those_of_every_method() -> None:
    told: dict[str, float] = {}
    hints = get_type_hints(train, include_extras=True)
    for name in inspect.signature(train).parameters:
        words = re.search(r"\[default: ([\d,.]+)\]$", hints[name].__metadata__[0].help)
        if words is not None and hasattr(Recipe, name):
            told[name] = float(words[1].replace(",", ""))
    assert len(told) > 15
    for method in METHODS:
        recipe = recipe_for("mnist5k", method, num_images=90, num_copies=4, **selection_for(method))
        assert {name: getattr(recipe, name) for name in told} == told


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


def test_warm_up_and_momentum_reach_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(monkeypatch, *SMALL, "--warmup", "60", "--momentum", "0.8", "--out", "r") == 0
    recipe = json.loads(Path("r/config.json").read_text())["recipe"]
    assert (recipe["warmup_frac"], recipe["momentum"]) == (0.1, 0.8)


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
        (["mnist5k", "--model", "resnet5O"], ["resnet5O", "nearest: ", "resnet50"]),
        (["mnist5k", "--method", "magic"], ["magic", "histogram"]),
        (["mnist5k", "--loader", "magic"], ["magic", "resident"]),
        (["mnist5k", "--optimizer", "lion"], ["lion", "adamw"]),
        (["mnist5k", "--schedule", "none"], ["none", "cosine"]),
        (["mnist5k", "--precision", "int8"], ["int8", "bf16"]),
        (["mnist5k", "--mixup-beta", "2"], ["mixup_beta", "2.0", "plain"]),
        (["mnist5k", "--method", "mixup", "--mixup-beta", "-2"], ["mixup_beta", "-2.0", "0 or more"]),
        (["mnist5k", "--method", "forward", "--label-smoothing", "0.1"], ["label_smoothing 0.1", "forward"]),
        (["mnist5k", "--method", "forward", "--law", "white"], ["forward", "law white", "another --method"]),
        (["mnist5k", "--forget-rate", "0.2"], ["forget_rate", "0.2", "plain"]),
        (["mnist5k", "--method", "coteaching", "--forget-rate", "1"], ["forget_rate", "1.0", "[0, 1)"]),
        (["mnist5k", "--method", "coteaching", "--forget-epochs", "0"], ["forget_epochs", "0.0", "above 0"]),
        (["mnist5k", "--mlnt-sets", "3"], ["mlnt_sets", "3", "plain"]),
        (["mnist5k", "--method", "mlnt", "--mlnt-order", "third"], ["third", "second, first"]),
        (["mnist5k", "--method", "mlnt", "--batch", "8"], ["mlnt_neighbours is 10", "7 or less", "--batch"]),
        (["mnist5k", "--measure", "width"], ["width", "noise-scale"]),
        (["mnist5k", "--measure", "noise-scale", "--method", "histogram"], ["noise-scale", "histogram", "plain"]),
        (["mnist5k", "--log-every", "0"], ["log_every", "0"]),
        (["mnist5k", "--alpha", "-1"], ["alpha", "-1"]),
        (["mnist5k", "--alpha", "100000000"], ["alpha 100,000,000", "1.3 GB", "lower --alpha, to 16,777,215 or less"]),
        (
            ["mnist5k", "--alpha", "16000000", "--method", "histogram", "--batch", "3600"],
            ["all labels of a batch of 3,600 images", "748.8 GB", "lower --alpha (here 16,000,000) or --batch"],
        ),
        (["mnist5k", "--alpha", "16000000", "--select", "rsl"], ["64,000,004,000 examples", "256.0 GB", "--alpha"]),
        (["mnist5k", "--alpha", "16000000", "--example-losses"], ["64,000,004,000 examples", "256.0 GB", "--alpha"]),
        (["mnist5k", "--alpha", "1.5"], ["--alpha", "integer", "(given: 1.5)"]),
        (["mnist5k", "--law", "pair"], ["pair", "--rate"]),
        (["mnist5k", "--rate", "0.4"], ["--rate", "--law"]),
        (["mnist5k", "--law", "pair", "--rate", "0.4", "--method", "h_alpha"], ["h_alpha", "uniform", "pair"]),
        (["mnist5k", "--clean", "0"], ["clean", "0"]),
        (["mnist5k", "--clean", "4001"], ["4001", "4,000"]),
        (["mnist5k", "--batch", "0"], ["batch", "0"]),
        (["mnist5k", "--batch", "100000"], ["batch", "100000", "75600"]),
        (["mnist5k", "--batch", "100", "--accumulate", "3"], ["accumulate is 3", "a divisor of 100", "auto"]),
        (["mnist5k", "--lr", "-1"], ["lr", "-1"]),
        (["mnist5k", "--val-frac", "2"], ["val_frac", "2"]),
        (["mnist5k", "--val-frac", "nan"], ["val_frac is nan", "[0, 1)"]),
        (["mnist5k", "--val-frac", "inf"], ["val_frac is inf", "[0, 1)"]),
        (["mnist5k", "--window", "8"], ["--window 8", "--order passes", "leave it out"]),
        (["mnist5k", "--reuse", "8"], ["--reuse 8", "--order passes"]),
        (["mnist5k", "--epochs", "0"], ["epochs", "0"]),
        (["mnist5k", "--epochs", "1", "--examples", "5"], ["--epochs", "--examples"]),
        (["mnist5k", "--seed", "-1"], ["seed", "-1"]),
        (["mnist5k", "--momentum", "1"], ["momentum is 1", "[0, 1)"]),
        (["mnist5k", "--examples", "500", "--warmup", "500"], ["warmup is 500", "500 examples", "fewer"]),
        (
            ["mnist5k", "--shards", "nowhere"],
            ["nowhere", "no finished data set", "'tools/build_shards mnist5k --alpha 20 --out nowhere'"],
        ),
        (["imagenet", "--shards", "no"], ["'tools/build_shards imagenet --source DIR --alpha 20 --out no'"]),
        (["magic", "--shards", "nowhere"], ["magic", "mnist5k, mnist"]),
        (["synthetic"], ["'tools/build_shards synthetic --alpha 20'"]),
        (["imagenet"], ["'tools/build_shards imagenet --source DIR --alpha 20'"]),
        (["folder"], ["'tools/build_shards folder --source DIR --alpha 20'"]),
        (["imagenet", "--alpha", "5"], ["imagenet needs --source DIR"]),
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


def test_a_rate_that_breaks_the_weights_is_one_line_and_the_last_good_checkpoint_stays(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*SMALL, "--lr", "1e30", "--checkpoint-every", "60", "--precision", "fp32", "--out", "r"]
    assert call(monkeypatch, *command) == 2
    error = capsys.readouterr().err
    step = re.search(r"step (\d+) is not finite", error)
    assert step is not None, error
    assert error.count("\n") == 1
    assert "example ids " in error
    assert "the last good checkpoint is kept in r: " in error
    saved = load_state(Path("r/checkpoint.pt"), CPU)
    assert 0 < saved["clock"]["examples"] <= 60 * int(step[1])
    assert all(tensor.isfinite().all() for tensor in saved["learner"]["net"].values())
    before = Path("r/checkpoint.pt").read_bytes()
    assert call(monkeypatch, *command, "--resume") == 2
    assert capsys.readouterr().err == error
    assert Path("r/checkpoint.pt").read_bytes() == before


def test_shards_of_another_set_or_of_other_classes_leave_a_run_as_it_was(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for num_classes in (4, 3):
        source = synthetic(num_train=60, num_test=12, height=8, width=8, channels=1, num_classes=num_classes)
        build(plan_build(source, dilute(source, alpha=2)), Path(f"shards-{num_classes}"))
    small = ["--model", "perceptron", "--batch", "20", "--examples", "200", "--eval-every", "100", "--out", "r"]
    assert call(monkeypatch, "synthetic", "--shards", "shards-4", *small) == 0
    before = {path: path.read_bytes() for path in Path("r").iterdir()}
    capsys.readouterr()
    for arguments, words in (
        (["mnist5k", "--shards", "shards-4", *small], "shards-4 holds synthetic, not mnist5k"),
        (["synthetic", "--shards", "shards-3", *small, "--resume"], "num_classes: 4 → 3"),
        (["synthetic", "--shards", "shards-4", "--alpha", "5", *small, "--resume"], "alpha: 2 → 5"),
        (["synthetic", "--shards", "shards-4", *small], "r holds a run already; add --resume"),
    ):
        assert call(monkeypatch, *arguments) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
    assert {path: path.read_bytes() for path in Path("r").iterdir()} == before


# Long enough to be killed in the middle: 375 steps and a checkpoint every 40 of them.
KILLED = ["mnist5k", "--alpha", "3", "--method", "histogram", "--model", "mlp1", "--batch", "64"]
KILLED += ["--examples", "24000", "--eval-every", "8000", "--checkpoint-every", "2560", "--ema", "3"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    finish(start(*KILLED, "--out", str(folder)))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=lambda x: str(x)
)
def test_a_killed_run_goes_on_to_the_same_weights_bit_for_bit(
    uninterrupted: Path, number: signal.Signals, code: int
) -> None:
    process = start(*KILLED, "--out", "killed")
    wait_for_a_checkpoint(process, Path("killed"))
    process.send_signal(number)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors
    assert errors == ""
    assert ("--resume" in output) == (number != signal.SIGKILL)
    assert not Path("killed/result.json").exists(), "the run was over before it was killed"
    finish(start(*KILLED, "--out", "killed", "--resume"))
    for name in ("last.pt", "best.pt"):
        assert same(weights(uninterrupted, name), weights(Path("killed"), name))
    assert rows(Path("killed")) == rows(uninterrupted)
