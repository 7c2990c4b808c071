import dataclasses
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from calls import CPU, interrupted, rows, same, selection_for, stop_in_step, weights
from torch import Tensor, nn

import train.experiment
from pipeline.builder import build
from pipeline.dataset import DilutedSet, dilute, open_shards, view
from pipeline.errors import UserError
from pipeline.laws import Given, Law, Pair, StoredArray, Symmetric, Uniform
from pipeline.loaders import open_batches, open_evaluation
from pipeline.plan import plan_build
from pipeline.sources.synthetic import synthetic
from pipeline.sources.types import Augmentation
from pipeline.types import Batch
from train.assemble import build_learner, evaluation_of, train_images
from train.checkpoint import load_state
from train.clock import Clock
from train.evaluate import evaluate
from train.experiment import Stopped, check_compiler, run_experiment
from train.learner import Learner
from train.loop import kept_quality, stop_signals
from train.methods import METHODS
from train.methods.coteaching import Coteaching
from train.methods.plain import Plain
from train.noise_scale import NoiseScale
from train.outcome import result_table
from train.recipes import Recipe, recipe_for
from train.select import Part

Result = dict[str, Any]


def recipe(**given: Any) -> Recipe:
    """Forty steps of 12 examples: evaluations every 8 steps, a checkpoint every 10."""
    fields: dict[str, Any] = {"model": "mlp1", "batch": 12, "examples": 480, "eval_every": 96, "log_every": 36}
    fields |= {"checkpoint_every": 120, "precision": "fp32", "lr": 0.01, "ema": 0.0}
    fields |= selection_for(given.get("method", "plain"))
    return Recipe(**{"dataset": "synthetic", **fields, **given})


def before_step(monkeypatch: pytest.MonkeyPatch, method: str, at: int, what: Callable[[], None]) -> None:
    """Let something happen when a run is at some step."""
    step = METHODS[method].step

    def disturbed(self: Any, learner: Learner, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        if clock.step == at:
            what()
        return step(self, learner, batch, clock)

    monkeypatch.setattr(METHODS[method], "step", disturbed)


def break_losses(monkeypatch: pytest.MonkeyPatch, at: int) -> list[int]:
    """Make the loss of one step NaN; return a list of the steps that are made."""
    update = Learner.update
    steps: list[int] = []

    def broken(self: Learner, loss: Tensor, clock: Clock) -> None:
        steps.append(clock.step)
        update(self, loss * float("nan") if clock.step == at else loss, clock)

    monkeypatch.setattr(Learner, "update", broken)
    return steps


@pytest.mark.parametrize("method", list(METHODS))
def test_a_run_folder_says_everything_about_a_run(tiny: DilutedSet, tmp_path: Path, method: str) -> None:
    run = tmp_path / "run"
    result = run_experiment(recipe(method=method), tiny, run)
    assert json.loads((run / "result.json").read_text()) == result
    selected = ["select-rsl"] if method == "mixmatch" else []
    names = {path.name for path in run.iterdir() if not path.name.startswith("events.")}
    assert names == {
        *("config.json", "versions.json", "metrics.jsonl", "result.json"),
        *("checkpoint.pt", "checkpoint-1.pt", "last.pt", "best.pt"),
        *selected,
    }
    assert len(list(run.glob("events.*"))) == 1
    config = json.loads((run / "config.json").read_text())
    assert config["recipe"]["method"] == method
    assert config["data"]["alpha"] == 3
    assert result["examples"] == 480
    assert result["uses_clean_labels"] == (method == "h_alpha")
    evaluations = [row for row in rows(run) if "eval/top1_accuracy" in row]
    assert [row["examples"] for row in evaluations] == [96, 192, 288, 384, 480]
    logged = [row for row in rows(run) if "train/loss" in row]
    assert [row["examples"] for row in logged] == [*range(36, 480, 36), 480]
    assert ("speed/labels_per_s" in (run / "metrics.jsonl").read_text()) == (method in ("histogram", "marginal"))


def test_kept_weights_have_the_accuracy_that_was_reported(tiny: DilutedSet, tmp_path: Path) -> None:
    asked = recipe(ema=2.0, method="histogram")
    result = run_experiment(asked, tiny, tmp_path / "run")
    for name, column in (("last.pt", "last"), ("best.pt", "best_noisy_val")):
        learner = build_learner(asked, tiny, CPU)
        learner.evaluated.load_state_dict(weights(tmp_path / "run", name))
        scores = evaluate(learner, open_evaluation(tiny))
        assert scores.top1_accuracy == result["top1_accuracy"][column]


@pytest.mark.parametrize("method", list(METHODS))
def test_training_learns_from_diluted_labels(tmp_path: Path, method: str) -> None:
    source = synthetic(num_train=400, num_test=200, height=8, width=8, channels=1, num_classes=4)
    # A shift of 4 px moves these patterns out of an 8 px image: without it they can be learnt.
    learnable = dataclasses.replace(dilute(source, alpha=3), augmentation=Augmentation("none"))
    lr = 0.04 if method == "forward" else 0.01  # its gradients begin 1 + α times smaller
    asked = recipe(method=method, batch=40, examples=4_000, eval_every=4_000, lr=lr)
    result = run_experiment(asked, learnable, tmp_path / "run")
    # Chance is 0.25, a vote over the labels is right for 0.66; measured: plain 0.76, h_alpha 0.91, histogram 0.79,
    # forward 0.85, marginal 0.87.
    assert result["top1_accuracy"]["last"] > 0.6


@pytest.mark.parametrize("optimizer", ["adamw", "adadelta"])
def test_a_recipe_learns_with_whichever_optimizer_is_asked_for(tmp_path: Path, optimizer: str) -> None:
    source = synthetic(num_train=400, num_test=200, height=8, width=8, channels=1, num_classes=4)
    learnable = dataclasses.replace(dilute(source, alpha=3), augmentation=Augmentation("none"))
    given: dict[str, Any] = {"model": "mlp1", "batch": 40, "examples": 8_000, "eval_every": 8_000, "precision": "fp32"}
    asked = recipe_for("synthetic", "plain", num_images=360, num_copies=4, optimizer=optimizer, **given)
    result = run_experiment(asked, learnable, tmp_path / "run")
    assert result["top1_accuracy"]["last"] > 0.6  # chance is 0.25


@pytest.mark.parametrize("method", list(METHODS))
def test_held_out_images_are_never_trained_on(
    tiny: DilutedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    seen: set[int] = set()
    step = METHODS[method].step

    def spy(self: Any, learner: Learner, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        seen.update((batch.rows % 120).tolist())  # example_id = copy * n + image_id
        return step(self, learner, batch, clock)

    monkeypatch.setattr(METHODS[method], "step", spy)
    result = run_experiment(recipe(method=method, val_frac=0.25), tiny, tmp_path / "run")
    assert seen == set(range(90))
    assert result["num_noisy_val_images"] == 30


@pytest.mark.parametrize(("law", "alpha"), [(Pair(0.4), 0), (Symmetric(0.4), 0), (Uniform(), 3)])
def test_a_part_of_the_examples_is_validated_on_their_labels_as_they_come(law: Law, alpha: int, tmp_path: Path) -> None:
    source = synthetic(num_train=120, num_test=40, height=8, width=8, channels=1, num_classes=4)
    dataset = dilute(source, alpha=alpha, law=law)
    ids = np.arange(120 * (1 + alpha))
    halves = Part(ids[ids % 120 < 60], ids[ids % 120 >= 60])
    run_experiment(recipe(), dataset, tmp_path / "run", part=halves)
    last = [row for row in rows(tmp_path / "run") if "eval/noisy_val_loss" in row][-1]
    learner = build_learner(recipe(), dataset, CPU)
    learner.net.load_state_dict(weights(tmp_path / "run"))
    (images,) = open_evaluation(dataset, "train", images=range(60, 120))
    with learner.evaluating() as logits_of:
        logits = logits_of(images.images).log_softmax(dim=1).repeat(1 + alpha, 1).numpy()
    labels = dataset.formula.labels_by_example(dataset.train.source_labels)[ids % 120 >= 60]
    loss = -logits[np.arange(len(labels)), labels].mean()
    assert last["eval/noisy_val_loss"] == pytest.approx(loss, rel=1e-5)  # sums of float32


def test_an_evaluation_holds_so_many_labels_at_once(tiny: DilutedSet) -> None:
    learner = build_learner(recipe(), tiny, CPU)
    for alpha, wanted in ((0, 1_000), (16_000, 1_000), (10**6, 16), (10**7, 1)):
        dataset = dilute(
            synthetic(num_train=60, num_test=20, height=8, width=8, channels=1, num_classes=4), alpha=alpha
        )
        for split, rows_each in (("train", wanted), ("test", 1_000)):
            assert evaluation_of(recipe(batch=5_000), dataset, learner, split).batch == rows_each


def test_a_compiler_that_is_not_there_is_named_at_the_start(
    tiny: DilutedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = torch.device("cuda")
    for variable, device, none in (("CXX", CPU, r"no g\+\+"), ("CC", gpu, "no gcc or clang")):
        monkeypatch.setenv(variable, str(tmp_path / "cc"))
        with pytest.raises(UserError, match=rf"--compile needs a compiler, and \${variable} is .*cc, which is none; "):
            check_compiler(device)
        monkeypatch.setenv(variable, sys.executable)
        check_compiler(device)
        monkeypatch.delenv(variable)
        with monkeypatch.context() as patch:
            patch.setenv("PATH", str(tmp_path))
            with pytest.raises(UserError, match=f"a compiler, and there is {none}; install"):
                check_compiler(device)
    monkeypatch.setenv("CXX", str(tmp_path / "cc"))
    monkeypatch.setenv("CC", str(tmp_path / "cc"))
    with pytest.raises(UserError, match="--compile needs a compiler"):
        run_experiment(recipe(compile=True), tiny, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_without_a_held_out_part_all_images_are_trained_on(tiny: DilutedSet, tmp_path: Path) -> None:
    result = run_experiment(recipe(val_frac=0.0, method="h_alpha"), tiny, tmp_path / "run")
    assert result["epochs"] == 4.0
    assert result["top1_accuracy"]["best_noisy_val"] is None
    assert result["noisy_val_loss"] is None
    assert not (tmp_path / "run" / "best.pt").exists()
    result_table(result, "no column may need what was not measured")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    "given",
    [
        {"method": "plain"},
        {"method": "h_alpha", "optimizer": "adamw", "ema": 3.0},
        {"method": "histogram", "model": "conv2", "precision": "bf16", "ema": 3.0},
        {"method": "mixup", "label_smoothing": 0.1},
        {"method": "coteaching", "model": "conv2", "forget_epochs": 0.5, "ema": 3.0},
        {"method": "coteaching", "model": "conv2", "forget_epochs": 0.5, "rank_over": "data"},
        {"method": "mlnt", "model": "conv2", "mlnt_sets": 2},
        {"method": "plain", "model": "conv2", "measure": "noise-scale"},
    ],
    ids=lambda given: given.get("measure", given["method"]),
)
def test_a_stopped_run_goes_on_as_if_nothing_had_been(
    tiny: DilutedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], number: signal.Signals
) -> None:
    run_experiment(recipe(**given), tiny, tmp_path / "straight")
    with monkeypatch.context() as patch:
        before_step(patch, given["method"], 13, lambda: os.kill(os.getpid(), number))
        with pytest.raises(Stopped) as stopped:
            run_experiment(recipe(**given), tiny, tmp_path / "stopped")
    assert stopped.value.signal_number == number
    assert load_state(tmp_path / "stopped" / "checkpoint.pt", CPU)["clock"]["examples"] == 14 * 12
    with monkeypatch.context() as patch:
        steps = break_losses(patch, at=-1)
        run_experiment(recipe(**given), tiny, tmp_path / "stopped", resume=True)
    assert steps == list(range(14, 40))
    for name in ("last.pt", "best.pt"):
        assert same(weights(tmp_path / "straight", name), weights(tmp_path / "stopped", name))
    assert rows(tmp_path / "stopped") == rows(tmp_path / "straight")
    straight, again = (json.loads((tmp_path / run / "result.json").read_text()) for run in ("straight", "stopped"))
    for timed in ("wall_s", "speed/examples_per_s", "data/wait_frac"):
        assert straight.pop(timed) >= 0
        assert again.pop(timed) >= 0
    assert again == straight


@pytest.mark.parametrize(
    "given", [{}, {"accumulate": 2, "precision": "bf16", "method": "mixup"}], ids=["plain", "mixup"]
)
def test_measuring_the_noise_scale_changes_no_weight(tiny: DilutedSet, tmp_path: Path, given: dict[str, Any]) -> None:
    given = {"model": "conv2", "ema": 3.0, "examples": 240, **given}
    run_experiment(recipe(**given), tiny, tmp_path / "plain")
    run_experiment(recipe(**given, measure="noise-scale"), tiny, tmp_path / "measured")
    for name in ("last.pt", "best.pt"):
        assert same(weights(tmp_path / "plain", name), weights(tmp_path / "measured", name))
    without, measured = rows(tmp_path / "plain"), rows(tmp_path / "measured")
    found = [{k: row.pop(k) for k in list(row) if k.startswith("noise_scale/")} for row in measured]
    assert measured == without
    names = {f"noise_scale/{name}" for name in ("grad_sq", "trace", "clean_noisy_cosine", "simple_examples")}
    logged = [values for values, row in zip(found, without, strict=True) if "train/loss" in row]
    assert all(names - values.keys() <= {"noise_scale/simple_examples"} for values in logged)
    assert all(not values for values, row in zip(found, without, strict=True) if "train/loss" not in row)
    # Ratio of averages in which probe s weighs s.
    grad_sq, trace = (
        sum(s * values[f"noise_scale/{name}"] for s, values in enumerate(logged, 1)) for name in ("grad_sq", "trace")
    )
    assert logged[-1]["noise_scale/simple_examples"] == pytest.approx(trace / grad_sq)


def test_a_probe_sees_the_batch_of_the_logged_step_before_it_is_trained_on(
    tiny: DilutedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Tensor] = []
    probed: list[tuple[int, Tensor]] = []
    probe, step = NoiseScale.probe, Plain.step

    def noted_probe(self: NoiseScale, learner: Learner, batch: Batch, right: Tensor) -> None:
        probed.append((len(trained), batch.rows))
        probe(self, learner, batch, right)

    def noted_step(self: Plain, learner: Learner, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        trained.append(batch.rows)
        return step(self, learner, batch, clock)

    monkeypatch.setattr(NoiseScale, "probe", noted_probe)
    monkeypatch.setattr(Plain, "step", noted_step)
    run_experiment(recipe(measure="noise-scale"), tiny, tmp_path / "run")
    assert [number for number, _ in probed] == [*range(2, 39, 3), 39]  # every third of forty steps, and the last
    assert all(torch.equal(trained[number], rows) for number, rows in probed)


def test_mixup_that_mixes_nothing_is_plain(tiny: DilutedSet, tmp_path: Path) -> None:
    run_experiment(recipe(model="conv2", examples=120), tiny, tmp_path / "plain")
    run_experiment(recipe(model="conv2", examples=120, method="mixup", mixup_beta=0.0), tiny, tmp_path / "unmixed")
    run_experiment(recipe(model="conv2", examples=120, method="mixup"), tiny, tmp_path / "mixed")
    assert same(weights(tmp_path / "plain"), weights(tmp_path / "unmixed"))
    assert not same(weights(tmp_path / "plain"), weights(tmp_path / "mixed"))


def test_mixup_draws_from_seed_and_step_of_the_run_in_every_part_of_a_batch(
    tiny: DilutedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[int, int, float]] = []

    def noted(seed: int, step: int, *, beta: float) -> float:
        drawn.append((seed, step, beta))
        return 0.5

    monkeypatch.setattr("train.methods.mixup.mixup_weight", noted)
    run_experiment(recipe(method="mixup", mixup_beta=0.3, seed=5, accumulate=3), tiny, tmp_path / "run")
    assert drawn == [(5, step, 0.3) for step in range(40) for _ in range(3)]


def test_forward_follows_the_law_of_the_data_set(tiny: DilutedSet, tmp_path: Path) -> None:
    for name, dataset in (("diluted", tiny), ("clean", view(tiny, alpha=0))):
        run_experiment(recipe(examples=120), dataset, tmp_path / name / "plain")
        run_experiment(recipe(examples=120, method="forward"), dataset, tmp_path / name / "forward")
    plain, forward = (weights(tmp_path / "clean" / method) for method in ("plain", "forward"))
    # Without noise it is plain, but for the rounding of another order of operations: ten steps in float32.
    assert all(torch.allclose(plain[key], forward[key], rtol=1e-4, atol=1e-5) for key in plain)
    plain, forward = (weights(tmp_path / "diluted" / method) for method in ("plain", "forward"))
    assert not all(torch.allclose(plain[key], forward[key], rtol=1e-2, atol=1e-3) for key in plain)


@pytest.mark.parametrize(
    "given",
    [
        {"model": "conv2", "ema": 3.0, "optimizer": "adamw"},
        {"model": "mlp1", "accumulate": 3, "label_smoothing": 0.1},
    ],
    ids=lambda given: given["model"],
)
def test_coteaching_that_forgets_nothing_is_plain(tiny: DilutedSet, tmp_path: Path, given: dict[str, Any]) -> None:
    plain = run_experiment(recipe(**given), tiny, tmp_path / "plain")
    for name, rate in (("nothing", 0.0), ("half", 0.5)):
        asked = recipe(**given, method="coteaching", forget_rate=rate, forget_epochs=0.1)
        run_experiment(asked, tiny, tmp_path / name)
    truth = weights(tmp_path / "plain")
    nothing, half = (weights(tmp_path / name) for name in ("nothing", "half"))
    assert nothing.keys() == {f"{net}.{key}" for net in ("first", "second") for key in truth}
    # Losses are summed in another way than the mean of plain's: forty steps in float32 carry the last bit on.
    assert all(torch.allclose(nothing[f"first.{key}"], truth[key], rtol=1e-4, atol=1e-5) for key in truth)
    assert not all(torch.allclose(half[f"first.{key}"], truth[key], rtol=1e-2, atol=1e-3) for key in truth)
    assert not all(torch.allclose(nothing[f"second.{key}"], truth[key], rtol=1e-2, atol=1e-3) for key in truth)
    result = json.loads((tmp_path / "nothing" / "result.json").read_text())
    assert result["top1_accuracy"] == plain["top1_accuracy"]  # that of the first net


def last_kept(run: Path) -> float:
    return [row["coteaching/kept_frac"] for row in rows(run) if "train/loss" in row][-1]


def test_coteaching_keeps_in_every_part_of_a_batch_what_the_law_leaves_right(tiny: DilutedSet, tmp_path: Path) -> None:
    run_experiment(recipe(method="coteaching", forget_epochs=0.1, accumulate=2), tiny, tmp_path / "run")
    # Of 4 labels an image 1 is right and each of 3 is with chance 1/4: 0.4375 of them, of 6 rows in a part 3.
    assert last_kept(tmp_path / "run") == 0.5


@pytest.mark.parametrize("accumulate", [1, 2])
def test_coteaching_logs_how_much_of_what_it_keeps_is_right(
    tiny: DilutedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulate: int
) -> None:
    step, seen = Coteaching.step, list[tuple[np.ndarray, np.ndarray]]()

    def spied(self: Coteaching, learner: Learner, batch: Batch, clock: Clock) -> Any:
        metrics = step(self, learner, batch, clock)
        assert self.kept_rows is not None
        right = batch.labels.numpy() == tiny.train.source_labels[batch.rows.numpy() % 120]
        seen.append((self.kept_rows.numpy(), right))
        return metrics

    monkeypatch.setattr(Coteaching, "step", spied)
    asked = recipe(method="coteaching", forget_rate=0.75, forget_epochs=0.1, accumulate=accumulate, log_every=240)
    run_experiment(asked, tiny, tmp_path / "run")
    read = [row for row in rows(tmp_path / "run") if "train/loss" in row]
    each = len(seen) // len(read)
    assert len(read) == 2
    for row, first in zip(read, (0, each), strict=True):
        kept, right = (np.concatenate(part, axis=-1) for part in zip(*seen[first : first + each], strict=True))
        assert 0.3 < right.mean() < 0.6
        assert row["coteaching/label_precision"] == pytest.approx(right[None].repeat(2, 0)[kept].mean(), abs=1e-6)
        assert row["coteaching/label_recall"] == pytest.approx(kept[:, right].mean(), abs=1e-6)
        assert row["coteaching/label_precision"] > 1.1 * row["coteaching/label_recall"]


def test_nobody_says_how_much_is_right_where_nobody_knows(tiny: DilutedSet, tmp_path: Path) -> None:
    observed = dataclasses.replace(tiny, observed=True)
    run_experiment(recipe(method="coteaching", forget_rate=0.25), observed, tmp_path / "run")
    found = {name for row in rows(tmp_path / "run") for name in row if name.startswith("coteaching/")}
    assert found == {"coteaching/kept_frac"}


def test_quality_that_is_not_defined_is_left_out() -> None:
    none_right = {"coteaching/kept_frac": 0.5, "coteaching/right_frac": 0.0, "coteaching/right_kept_frac": 0.0}
    assert kept_quality(none_right) == {"coteaching/label_precision": 0.0}
    assert kept_quality({"train/loss": 1.0}) == {}


def test_labels_of_an_unknown_law_are_wrong_as_often_as_the_user_says(tiny: DilutedSet, tmp_path: Path) -> None:
    given = view(tiny, law=Given(StoredArray(np.zeros(120, dtype=np.uint16))))
    with pytest.raises(UserError, match="law given does not say; give --forget-rate"):
        run_experiment(recipe(method="coteaching"), given, tmp_path / "refused")
    asked = recipe(method="coteaching", forget_rate=0.25, forget_epochs=0.1)
    run_experiment(asked, given, tmp_path / "run")
    assert last_kept(tmp_path / "run") == 0.75


def test_a_second_ctrl_c_ends_the_process_at_once(request: pytest.FixtureRequest) -> None:
    # A process that was started in the background ignores Ctrl-C; this test wants Python's own handler.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with stop_signals() as received:
        os.kill(os.getpid(), signal.SIGINT)
        assert received == [signal.SIGINT]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_signal_handlers_are_given_back(tiny: DilutedSet, tmp_path: Path) -> None:
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    run_experiment(recipe(), tiny, tmp_path / "run")
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("given", [{}, {"accumulate": 2}, {"measure": "noise-scale"}, {"method": "mlnt"}], ids=str)
def test_a_net_that_draws_at_random_goes_on_as_if_nothing_had_been(
    tiny: DilutedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any]
) -> None:
    def dropping(*_: object, **__: object) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 4))

    monkeypatch.setattr("train.assemble.build_model", dropping)
    asked = recipe(mlnt_sets=2, mlnt_neighbours=3, examples=240, **given)
    run_experiment(asked, tiny, tmp_path / "straight")
    with monkeypatch.context() as patch:
        stop_in_step(patch, 7)
        with pytest.raises(Stopped):
            run_experiment(asked, tiny, tmp_path / "stopped")
    torch.rand(3)  # whatever else the process draws
    run_experiment(asked, tiny, tmp_path / "stopped", resume=True)
    assert same(weights(tmp_path / "straight"), weights(tmp_path / "stopped"))
    assert rows(tmp_path / "straight") == rows(tmp_path / "stopped")


def test_a_checkpoint_with_a_flipped_bit_gives_way_to_the_one_before_it(
    tiny: DilutedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_experiment(recipe(), tiny, tmp_path / "straight")
    with monkeypatch.context() as patch:
        before_step(patch, "plain", 33, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Stopped):
            run_experiment(recipe(), tiny, tmp_path / "stopped")
    newest = tmp_path / "stopped" / "checkpoint.pt"
    data = bytearray(newest.read_bytes())
    layer = max(load_state(newest, CPU)["learner"]["net"].values(), key=Tensor.numel)
    data[data.index(layer.numpy().tobytes()) + 1] ^= 1
    newest.write_bytes(data)
    capsys.readouterr()
    run_experiment(recipe(), tiny, tmp_path / "stopped", resume=True)
    said = capsys.readouterr().out
    assert "checkpoint.pt cannot be read (the checksum of" in said
    assert "going on from checkpoint-1.pt instead, at example 360" in said
    assert same(weights(tmp_path / "straight"), weights(tmp_path / "stopped"))


def test_a_run_that_died_before_its_first_checkpoint_starts_again(
    tiny: DilutedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Died(BaseException):
        pass

    def die() -> None:
        raise Died

    run_experiment(recipe(), tiny, tmp_path / "straight")
    with monkeypatch.context() as patch:
        before_step(patch, "plain", 9, die)
        with pytest.raises(Died):
            run_experiment(recipe(), tiny, tmp_path / "died")
    assert not (tmp_path / "died" / "checkpoint.pt").exists()
    run_experiment(recipe(), tiny, tmp_path / "died", resume=True)
    assert same(weights(tmp_path / "straight"), weights(tmp_path / "died"))
    assert rows(tmp_path / "straight") == rows(tmp_path / "died")


def test_a_run_saves_itself_every_few_minutes(
    tiny: DilutedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = recipe(checkpoint_every=10_000)
    run_experiment(asked, tiny, tmp_path / "straight")
    with monkeypatch.context() as patch:
        patch.setattr("train.loop.SAVE_EVERY_S", 0.0)
        with interrupted(Plain, 10):
            run_experiment(asked, tiny, tmp_path / "killed")
    assert load_state(tmp_path / "killed" / "checkpoint.pt", CPU)["clock"]["examples"] == 9 * 12
    run_experiment(asked, tiny, tmp_path / "killed", resume=True)
    assert same(weights(tmp_path / "straight"), weights(tmp_path / "killed"))


def test_accuracies_of_the_first_five_and_of_each_class_are_those_of_the_kept_net(tmp_path: Path) -> None:
    source = synthetic(num_train=120, num_test=80, height=8, width=8, channels=1, num_classes=8)
    dataset = dataclasses.replace(dilute(source, alpha=0), augmentation=Augmentation("none"))
    asked = recipe(accumulate=3, examples=960)  # evaluations come in batches of four
    result = run_experiment(asked, dataset, tmp_path / "run")
    learner = build_learner(asked, dataset, CPU)
    learner.evaluated.load_state_dict(weights(tmp_path / "run"))
    whole = next(iter(open_evaluation(dataset)))
    with learner.evaluating() as logits_of:
        ranked = logits_of(whole.images).argsort(dim=1, descending=True).numpy()
    labels = whole.labels.numpy()
    among = [label in row[:5] for label, row in zip(labels, ranked, strict=True)]
    assert result["top5_accuracy"] == pytest.approx(np.mean(among))
    assert 0 < np.mean(among) < 1
    each = [np.mean(ranked[labels == label, 0] == label) for label in range(8)]
    assert result["class_accuracy"] == pytest.approx(each, abs=1e-6)  # six decimals
    assert len(set(each)) > 1
    shown = f"{100 * result['top1_accuracy']['last']:.1f} % (among the first 5: {100 * np.mean(among):.1f} %)"
    assert shown in result_table(result, "").columns[1].cells


def test_resume_starts_in_an_empty_folder_and_only_reads_a_finished_run(
    tiny: DilutedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run_experiment(recipe(), tiny, tmp_path / "run", resume=True)
    monkeypatch.setattr(train.experiment, "fit", lambda *a, **k: pytest.fail("a finished run was trained on"))
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    assert run_experiment(recipe(), tiny, tmp_path / "run", resume=True) == result
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()} == before
    with pytest.raises(UserError, match="add --resume"):
        run_experiment(recipe(), tiny, tmp_path / "run")


def test_a_run_may_be_logged_more_often_when_it_goes_on(tiny: DilutedSet, tmp_path: Path) -> None:
    run_experiment(recipe(), tiny, tmp_path / "straight")
    with interrupted(Plain, 25):
        run_experiment(recipe(), tiny, tmp_path / "killed")
    run_experiment(recipe(log_every=12), tiny, tmp_path / "killed", resume=True)
    assert same(weights(tmp_path / "straight"), weights(tmp_path / "killed"))
    logged = [row["examples"] for row in rows(tmp_path / "killed") if "train/loss" in row]
    assert logged == [*range(36, 241, 36), *range(252, 481, 12)]


def test_resuming_on_other_data_is_refused(tiny: DilutedSet, tmp_path: Path) -> None:
    run_experiment(recipe(), tiny, tmp_path / "run")
    with pytest.raises(UserError, match=r"another recipe \(alpha: 3 → 4\)"):
        run_experiment(recipe(), view(tiny, alpha=4), tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("step", "given", "num_steps"),
    [
        (16, {"log_every": 12 * 18, "eval_every": 10_000, "checkpoint_every": 120}, 18),
        (16, {"log_every": 10_000, "eval_every": 12 * 19, "checkpoint_every": 120}, 19),
        (16, {"log_every": 10_000, "eval_every": 10_000, "checkpoint_every": 120}, 20),
        (39, {"log_every": 10_000, "eval_every": 10_000, "checkpoint_every": 120}, 40),
    ],
    ids=["seen by the log", "seen by an evaluation", "seen by a checkpoint", "the last step"],
)
def test_a_loss_that_is_not_finite_stops_the_run_names_the_examples_and_keeps_the_last_good_checkpoint(
    tiny: DilutedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, given: dict[str, int], num_steps: int
) -> None:
    run_experiment(recipe(**given), tiny, tmp_path / "straight")
    first = step * 12
    batches = open_batches(tiny, batch=12, start=first, images=range(108))
    ids = next(batches).rows.tolist()
    with monkeypatch.context() as patch:
        steps = break_losses(patch, step)
        with pytest.raises(UserError) as error:
            run_experiment(recipe(**given), tiny, tmp_path / "broken")
    assert len(steps) == num_steps  # noticed at the first reading
    message = str(error.value)
    assert f"loss of step {step} is not finite" in message
    assert f"positions {first} to {first + 11}" in message
    assert f"example ids {', '.join(map(str, ids[:8]))} and 4 more" in message
    assert not (tmp_path / "broken" / "result.json").exists()
    saved = load_state(tmp_path / "broken" / "checkpoint.pt", CPU)
    assert saved["clock"]["examples"] == step * 12 // 120 * 120
    assert all(torch.isfinite(tensor).all() for tensor in saved["learner"]["net"].values())
    # What was kept is good: without the fault the run goes on to where it would have come.
    run_experiment(recipe(**given), tiny, tmp_path / "broken", resume=True)
    assert same(weights(tmp_path / "straight"), weights(tmp_path / "broken"))


def test_a_rate_that_is_far_too_large_ends_in_one_clear_error(tiny: DilutedSet, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"step \d+ is not finite .* before the first checkpoint .* a lower --lr"):
        run_experiment(recipe(lr=1e30, warmup_frac=0.0), tiny, tmp_path / "run")


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"method": "coteaching", "forget_epochs": 0.1},
        {"method": "coteaching", "forget_epochs": 0.1, "rank_over": "data"},
        {"method": "mlnt", "mlnt_sets": 2},
        {"method": "mixmatch", "select_rate": 0.5, "select_epochs": 0.5},
    ],
    ids=lambda given: "-".join(map(str, given.values())) or "plain",
)
def test_the_host_reads_the_device_once_a_log_interval(
    given: dict[str, Any], tiny: DilutedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = 0
    tolist = Tensor.tolist

    def counted(self: Tensor) -> Any:
        nonlocal reads
        reads += self.dtype == torch.float64
        return tolist(self)

    def forbidden(self: Tensor) -> Any:
        pytest.fail("a step waited for the device")

    monkeypatch.setattr(Tensor, "tolist", counted)
    method = METHODS[given.get("method", "plain")]
    step = method.step

    def strict(self: Any, learner: Learner, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        with monkeypatch.context() as patch:
            for name in ("item", "tolist", "numpy", "__float__", "__int__", "__bool__"):
                patch.setattr(Tensor, name, forbidden)
            return step(self, learner, batch, clock)

    monkeypatch.setattr(method, "step", strict)
    asked = recipe(eval_every=480, log_every=48, checkpoint_every=480, **given)
    run_experiment(asked, tiny, tmp_path / "run")
    # Ten log intervals; the test images, the held-out ones and those with wrong labels once. A selection has its own.
    assert asked.select or reads == 10 + 3


def test_without_wrong_labels_nothing_is_said_of_them(tiny: DilutedSet, tmp_path: Path) -> None:
    result = run_experiment(recipe(examples=24), view(tiny, alpha=0), tmp_path / "run")
    assert result["memorisation"] == {"given": None, "true": None}
    for name in ("metrics.jsonl", "result.json"):
        assert "NaN" not in (tmp_path / "run" / name).read_text()


def test_a_run_folder_names_the_loader_that_was_chosen_and_whether_reads_are_checked(
    tiny: DilutedSet, tmp_path: Path
) -> None:
    source = synthetic(num_train=120, num_test=40, height=8, width=8, channels=1, num_classes=4)
    build(plan_build(source, dilute(source, alpha=3)), tmp_path / "shards")
    for dataset, loader, checked in (
        (tiny, "auto", None),
        (open_shards(tmp_path / "shards"), "webdataset", True),
        (open_shards(tmp_path / "shards", check_reads=False), "auto", False),
    ):
        run_experiment(recipe(examples=24, loader=loader), dataset, tmp_path / f"{checked}")
        entry = json.loads((tmp_path / f"{checked}" / "versions.json").read_text())[0]
        assert (entry["loader"], entry["check_reads"]) == ("resident" if loader == "auto" else loader, checked)
        assert entry["num_processes"] == 1


def test_a_run_is_the_same_from_shards_and_in_memory(tmp_path: Path) -> None:
    source = synthetic(num_train=120, num_test=40, height=8, width=8, channels=1, num_classes=4)
    build(plan_build(source, dilute(source, alpha=3)), tmp_path / "shards")
    in_memory = run_experiment(recipe(alpha=3), dilute(source, alpha=3), tmp_path / "memory")
    asked = recipe(shards=str(tmp_path / "shards"))
    from_shards = run_experiment(asked, open_shards(tmp_path / "shards"), tmp_path / "from-shards")
    assert same(weights(tmp_path / "memory"), weights(tmp_path / "from-shards"))
    assert in_memory["top1_accuracy"] == from_shards["top1_accuracy"]
    # It is even the same run: where the data lies is no part of a recipe.
    assert run_experiment(asked, open_shards(tmp_path / "shards"), tmp_path / "memory", resume=True) == in_memory


def test_images_that_cannot_be_read_are_counted_and_named_also_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = synthetic(num_train=120, num_test=40, height=8, width=8, channels=1, num_classes=4)
    build(plan_build(source, dilute(source, alpha=3)), tmp_path / "shards")
    dataset = open_shards(tmp_path / "shards")
    shard = next((tmp_path / "shards").glob("train-*.tar"))
    data = bytearray(shard.read_bytes())
    for image_id in (7, 19, 115):  # the last one is held out
        data[data.index(dataset.train.item(image_id).data) + 20] ^= 1
    shard.write_bytes(data)
    straight = run_experiment(recipe(), open_shards(tmp_path / "shards"), tmp_path / "straight")
    # 480 of an epoch of 432 examples: each of the 4 copies of both images once, and perhaps again.
    assert straight["replaced_image_ids"] == [7, 19]
    assert 8 <= straight["num_replaced"] <= 16
    assert (straight["num_noisy_val_images"], straight["num_test_images"]) == (11, 40)
    assert straight["num_unreadable"] == {"noisy_val": 1, "test": 0}
    assert "0 test images, 1 of noisy validation" in [*result_table(straight, "").columns[1].cells]
    with monkeypatch.context() as patch:
        before_step(patch, "plain", 38, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Stopped):
            run_experiment(recipe(), open_shards(tmp_path / "shards"), tmp_path / "stopped")
    resumed = run_experiment(recipe(), open_shards(tmp_path / "shards"), tmp_path / "stopped", resume=True)
    assert (resumed["replaced_image_ids"], resumed["num_replaced"]) == ([7, 19], straight["num_replaced"])
    assert same(weights(tmp_path / "straight"), weights(tmp_path / "stopped"))


def test_both_seeds_matter(tiny: DilutedSet, tmp_path: Path) -> None:
    # A perceptron starts at zero whatever the seed: here the seed draws the order and the crops alone.
    run_experiment(recipe(model="perceptron"), tiny, tmp_path / "a")
    run_experiment(recipe(model="perceptron", seed=1), tiny, tmp_path / "b")
    run_experiment(recipe(model="perceptron"), view(tiny, noise_seed=1), tmp_path / "c")
    first, *others = (weights(tmp_path / name) for name in "abc")
    assert not any(same(first, other) for other in others)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batch": 433}, r"batch 433 is larger than the data, 432 examples"),
        ({"batch": 109, "method": "histogram"}, r"batch 109 is larger than the data, 108"),
        ({"loader": "magic"}, r"unknown loader 'magic'.*resident"),
        ({"val_frac": 0.999}, r"val_frac 0\.999 holds all 120 images out"),
        ({"precision": "fp16"}, "fp16 needs an NVIDIA GPU"),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused_before_anything_is_written(
    tiny: DilutedSet, tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run_experiment(recipe(**given), tiny, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_held_out_part_is_the_end_of_the_class_balanced_order(tiny: DilutedSet) -> None:
    assert [train_images(120, frac) for frac in (0.0, 0.1, 0.25, 0.999)] == [120, 108, 90, 0]
    classes = tiny.train.source_labels[train_images(120, 0.1) :]
    assert sorted(classes.tolist()) == [label for label in range(4) for _ in range(3)]


@pytest.mark.parametrize("wanted", [False, True])
def test_a_run_computes_deterministically_where_its_recipe_says_so(
    tiny: DilutedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: bool
) -> None:
    seen: list[bool] = []
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before_step(monkeypatch, "plain", 1, lambda: seen.append(torch.are_deterministic_algorithms_enabled()))
    run_experiment(recipe(examples=24, deterministic=wanted), tiny, tmp_path / "run")
    assert seen == [wanted]
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:.*deterministic")
@pytest.mark.parametrize("method", METHODS)
def test_two_deterministic_runs_on_a_gpu_end_with_the_same_bits(method: str, tmp_path: Path) -> None:
    data = dilute(synthetic(num_train=500, num_test=40, height=28, width=28, channels=1, num_classes=4), alpha=3)
    for name in ("first", "second"):
        made = recipe(method=method, model="conv4", batch=100, examples=5_000, precision="bf16", deterministic=True)
        run_experiment(made, data, tmp_path / name)
    assert same(weights(tmp_path / "first"), weights(tmp_path / "second"))
