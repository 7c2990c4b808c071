"""A run that ends in the middle of an epoch goes on as if nothing had been: every method, on every loader."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
from calls import CPU, call, rows, same, selection_for, start, stop_in_step, wait_for_a_checkpoint, weights
from diluted import BLOCK, WITHOUT_FFCV, photos, small_blocks

from pipeline.builder import build
from pipeline.dataset import dilute, open_shards
from pipeline.loaders import LOADERS
from pipeline.plan import Options, plan_build
from train.checkpoint import load_state
from train.experiment import Stopped, run_experiment
from train.methods import METHODS
from train.recipes import Recipe

ALPHA, TRAINED_ON = 3, 31  # images besides 3 that are held out: a prime, so that a checkpoint hardly ends an epoch
BATCH, STEPS = 8, 30
SETTINGS: tuple[dict[str, Any], ...] = (
    {"model": "mlp1", "accumulate": 2, "ema": 3.0},  # without batch norm
    {"model": "conv2", "optimizer": "adamw", "ema": 3.0, "precision": "bf16"},  # with
    {"model": "conv2", "accumulate": 2, "order": "passes", "window": 2, "reuse": 2},  # its statistics are the parts'
)


def cases(settings: tuple[dict[str, Any], ...]) -> list[Any]:
    """All methods on all loaders; three settings in turn on four loaders, so that each meets each of both.

    One loader of each method is fast; the others are slow.
    """
    pairs = product(enumerate(METHODS), enumerate(LOADERS))
    found = []
    for number, ((nth, method), (mth, loader)) in enumerate(pairs):
        slow = [] if nth % len(LOADERS) == mth else [pytest.mark.slow]
        given = settings[number % len(settings)]
        found.append(pytest.param(method, loader, given, marks=[*marks(loader), *slow], id=f"{method}-{loader}"))
    return found


def marks(loader: str) -> list[pytest.MarkDecorator]:
    return [WITHOUT_FFCV] if loader == "ffcv" else []


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Photos of differing sizes, in the format that each loader is for."""
    root = tmp_path_factory.mktemp("shards")
    source = photos(root / "tree", num_train=TRAINED_ON + 3)
    dataset = dilute(source, alpha=ALPHA)
    for format in ("webdataset", "ffcv"):
        build(plan_build(source, dataset, Options(format, shard_images=2 * BLOCK)), root / format)
    return {loader: root / ("ffcv" if loader == "ffcv" else "webdataset") for loader in LOADERS}


@pytest.mark.parametrize(("method", "loader", "given"), cases(SETTINGS))
def test_a_run_that_is_stopped_in_the_middle_of_an_epoch_goes_on_as_if_nothing_had_been(
    shards: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    loader: str,
    given: dict[str, Any],
) -> None:
    small_blocks(monkeypatch)
    selection = selection_for(method)
    if selection:  # its own run is over before the step that is stopped in
        selection |= {"select_epochs": 1.0, "window": None, "reuse": 1}
    recipe = Recipe(
        dataset="folder",
        method=method,
        loader=loader,
        batch=BATCH,
        examples=STEPS * BATCH,
        eval_every=12 * BATCH,
        log_every=6 * BATCH,
        lr=0.01,
        forget_epochs=1.0,
        mlnt_neighbours=3,
        **({"precision": "fp32"} | given | selection),
    )
    dataset = open_shards(shards[loader])
    run_experiment(recipe, dataset, tmp_path / "straight")
    with monkeypatch.context() as patch:
        stop_in_step(patch, 19)
        with pytest.raises(Stopped):
            run_experiment(recipe, dataset, tmp_path / "stopped")
    examples = load_state(tmp_path / "stopped" / "checkpoint.pt", CPU)["clock"]["examples"]
    assert examples == 20 * BATCH
    for every in (TRAINED_ON, (1 + ALPHA) * TRAINED_ON, recipe.eval_every, recipe.log_every):
        assert examples % every, "the run must end in the middle of everything"
    run_experiment(recipe, dataset, tmp_path / "stopped", resume=True)
    for name in ("last.pt", "best.pt"):
        assert same(weights(tmp_path / "straight", name), weights(tmp_path / "stopped", name)), name
    assert rows(tmp_path / "stopped") == rows(tmp_path / "straight")


# 120 steps and a checkpoint every 11 of them: none of these ends an epoch, or comes with an evaluation.
LONG = ["folder", "--model", "conv2", "--batch", f"{BATCH}", "--examples", f"{120 * BATCH}", "--ema", "3"]
LONG += ["--eval-every", f"{60 * BATCH}", "--checkpoint-every", f"{11 * BATCH}"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "loader"),
    [
        pytest.param(method, loader, marks=marks(loader))
        for method, loader in (("plain", "dali"), ("histogram", "ffcv"), ("plain", "webdataset"))
    ],
)
def test_a_process_that_is_killed_is_gone_on_from_to_the_same_weights_on_every_loader_of_photos(
    shards: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, loader: str
) -> None:
    command = [*LONG, "--shards", str(shards[loader]), "--method", method, "--loader", loader, "--out"]
    killed = start(*command, str(tmp_path / "killed"))
    wait_for_a_checkpoint(killed, tmp_path / "killed")
    killed.kill()
    killed.communicate(timeout=120)
    assert not (tmp_path / "killed" / "result.json").exists(), "the run was over before it was killed"
    assert load_state(tmp_path / "killed" / "checkpoint.pt", CPU)["clock"]["examples"] % TRAINED_ON
    # In this process, on one thread as there: starting another takes longer than what is left of the run.
    assert call(monkeypatch, *command, str(tmp_path / "killed"), "--resume") == 0
    assert call(monkeypatch, *command, str(tmp_path / "straight")) == 0
    for name in ("last.pt", "best.pt"):
        assert same(weights(tmp_path / "straight", name), weights(tmp_path / "killed", name)), name
    assert rows(tmp_path / "killed") == rows(tmp_path / "straight")
