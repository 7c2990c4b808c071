"""Training on labels that nobody checked, from the user's own files and from shards."""

import json
from pathlib import Path

import pytest
from calls import call, same, weights
from listed import write_clothing1m, write_webvision

from pipeline.builder import build
from pipeline.dataset import dilute
from pipeline.plan import plan_build
from pipeline.sources import open_source
from train.curves import plot_curves
from train.outcome import vote_words

SMALL = ["--model", "conv2", "--size", "16", "--batch", "2", "--examples", "8", "--val-frac", "0.25"]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("alpha", [0, 3])
def test_files_and_shards_train_the_same_weights(alpha: int, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source("mini_webvision", write_webvision(Path("in")))
    build(plan_build(source, dilute(source, alpha=alpha)), Path(f"shards/mini_webvision-alpha{alpha}"))
    added = ["--alpha", str(alpha)] if alpha else []  # none by default
    assert call(monkeypatch, "webvision", "--mini", "--source", "in", *added, *SMALL, "--out", "files") == 0
    assert call(monkeypatch, "webvision", "--mini", *SMALL, "--out", "found") == 0
    assert call(monkeypatch, "mini_webvision", *SMALL, "--out", "named") == 0
    assert same(weights(Path("files")), weights(Path("found")))
    assert same(weights(Path("files")), weights(Path("named")))
    config = json.loads(Path("found/config.json").read_text())
    assert config["recipe"]["dataset"] == config["data"]["name"] == "mini_webvision"
    assert config["data"]["alpha"] == alpha


def test_a_run_claims_nothing_that_needs_the_truth(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_clothing1m(Path("in"))
    assert call(monkeypatch, "clothing1m", "--source", "in", "--alpha", "2", *SMALL) == 0
    folder = Path("runs/clothing1m-plain-alpha2-seed0")
    result = json.loads((folder / "result.json").read_text())
    assert result["observed_labels"] is True
    assert result["vote_baseline"] is None
    assert result["memorisation"] == {"given": None, "true": None}
    assert 0 <= result["top1_accuracy"]["last"] <= 1
    assert result["noisy_val_loss"] > 0
    assert vote_words(result) in capsys.readouterr().out
    assert "memorisation" not in (folder / "metrics.jsonl").read_text()
    plot_curves(folder, Path("curves.svg"))
    assert "vote" not in Path("curves.svg").read_text()


def test_how_many_labels_are_wrong_has_to_be_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_clothing1m(Path("in"))
    command = ["clothing1m", "--source", "in", *SMALL, "--method", "coteaching"]
    assert call(monkeypatch, *command, "--out", "unsaid") == 2
    assert "give --forget-rate" in capsys.readouterr().err
    assert call(monkeypatch, *command, "--forget-rate", "0.4", "--out", "said") == 0


def test_a_selection_is_told_the_share_of_wrong_labels_and_not_held_against_a_truth(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_clothing1m(Path("in"))
    command = ["clothing1m", "--source", "in", "--alpha", "6", *SMALL, "--val-frac", "0", "--select", "rsl"]
    assert call(monkeypatch, *command, "--out", "unsaid") == 2
    assert "none fits the 7 of each image" in (error := capsys.readouterr().err)
    assert error.rstrip().endswith("give --select-rate")
    assert call(monkeypatch, *command, "--select-rate", "0.4", "--select-epochs", "1", "--out", "said") == 0
    found = json.loads(Path("said/select-rsl/selection.json").read_text())
    assert found["kept"] < found["judged"] == 20 * 7
    assert not found.keys() & {"label_precision", "label_recall", "auroc"}


def test_the_mini_flag_and_the_whole_set_do_not_mix(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = open_source("webvision", write_webvision(Path("in")))
    build(plan_build(source, dilute(source, alpha=0)), Path("shards/webvision-alpha0"))
    for arguments, words in (
        (["webvision", "--mini"], "'tools/build_shards mini_webvision --source DIR --alpha 0'"),
        (["webvision", "--mini", "--shards", "shards/webvision-alpha0"], "holds webvision, not mini_webvision"),
        (["mnist5k", "--mini"], "--mini is for webvision, and mnist5k has no such part; leave it out"),
    ):
        assert call(monkeypatch, *arguments) == 2
        assert words in capsys.readouterr().err
