from pathlib import Path

import pytest
import torch
from torch import nn

import train.memory
from pipeline.dataset import DilutedSet
from pipeline.errors import UserError
from train.assemble import build_learner, evaluation_of, parts_of
from train.distributed import ALONE, World
from train.experiment import run_experiment
from train.learner import Learner
from train.memory import activation_bytes, free_bytes, parts_that_fit
from train.methods.plain import Plain
from train.models import build_model
from train.models.twins import Twins
from train.recipes import Recipe

SHAPE = (8, 8, 1)


def recipe(**given: object) -> Recipe:
    fields = {"model": "conv2", "batch": 12, "examples": 48, "eval_every": 48, "log_every": 12, "precision": "fp32"}
    return Recipe(dataset="synthetic", **{**fields, **given})  # type: ignore[arg-type]


@pytest.mark.parametrize("batch", [1, 5])
def test_activations_are_counted_to_the_byte(batch: int) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))
    # Of float32: the images, once however often they are reshaped; what the ReLU hands on, once for it and the layer.
    assert activation_bytes(net, SHAPE, batch, torch.float32) == 4 * batch * (64 + 32)


def test_both_of_two_nets_count() -> None:
    pair = [build_model("conv2", SHAPE, 4, seed=0, learner=number) for number in range(2)]
    alone = [activation_bytes(net, SHAPE, 5, torch.float32) for net in pair]
    images, logits = 4 * 5 * 64, 4 * 5 * 4  # images are kept once; at most the logits come with the stack
    found = activation_bytes(Twins(*pair), SHAPE, 5, torch.float32)
    assert sum(alone) - images <= found <= sum(alone) - images + 2 * logits


def test_a_pooled_layer_keeps_its_input_and_the_tops_of_its_windows() -> None:
    net = build_model("conv2", SHAPE, 4, seed=0).to(memory_format=torch.channels_last)
    # Values an image: itself; what the convolutions hand on, the tops, and what the next layer is given.
    values = 64 + (64 + 16 + 16) * 32 + (16 + 4 + 4) * 64
    sizes = [activation_bytes(net, SHAPE, batch, torch.float32) for batch in (3, 5)]
    assert sizes[1] - sizes[0] == 2 * 4 * values


@pytest.mark.parametrize("twins", [False, True])
def test_counting_changes_nothing_of_the_net_and_of_what_is_drawn(twins: bool) -> None:
    nets = [nn.Sequential(build_model("conv2", SHAPE, 4, seed=0, learner=number), nn.Dropout()) for number in range(2)]
    net = Twins(*nets) if twins else nets[0]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    assert activation_bytes(net, SHAPE, 3, torch.float32) > activation_bytes(nets[0][0], SHAPE, 3, torch.float32)
    assert all(module.training for module in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_batch_is_cut_into_as_few_equal_parts_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))
    image = 4 * (64 + 32) * 1.5 / 0.8  # bytes that must be free for one
    for free, parts in ((48 * image, 1), (47 * image, 2), (24 * image, 2), (11 * image, 6), (image, 48)):
        for views, ahead in ((0, 0), (0, 2), (2, 2)):  # a row that brings two images with it is three of them
            batches = (2 + ahead) * 48 * (1 + views) * 4 * 64
            monkeypatch.setattr(train.memory, "free_bytes", lambda _, free=(1 + views) * free + batches + 1: free)
            assert parts_that_fit(net, SHAPE, 48, torch.float32, views, ahead) == parts
    monkeypatch.setattr(train.memory, "free_bytes", lambda device: 100)
    with pytest.raises(UserError, match="give a smaller --model, --size or --batch"):
        parts_that_fit(net, SHAPE, 48, torch.float32)


def test_processes_of_a_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "MemTotal: 900 kB\nMemAvailable: 800 kB\n"
    monkeypatch.setattr(Path, "read_text", lambda self, encoding=None: lines if self.name == "meminfo" else "max")
    assert free_bytes(torch.device("cpu")) == 800 << 10
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_bytes(torch.device("cpu")) == 200 << 10


@pytest.mark.parametrize(("loader", "ahead"), [("resident", 0), ("webdataset", 2), ("auto", 0)])
def test_a_run_counts_the_batches_that_its_loader_keeps(
    tiny: DilutedSet, monkeypatch: pytest.MonkeyPatch, loader: str, ahead: int
) -> None:
    counted: list[object] = []
    monkeypatch.setattr("train.assemble.parts_that_fit", lambda *given: counted.append(given[-1]) or 1)
    asked = recipe(accumulate="auto", loader=loader)
    parts_of(asked, tiny, build_learner(asked, tiny, torch.device("cpu")), None)
    assert counted == [ahead]


def test_free_memory_is_some_of_the_machines() -> None:
    total = next(int(line.split()[1]) << 10 for line in Path("/proc/meminfo").read_text().splitlines())  # the first
    assert 0 < free_bytes(torch.device("cpu")) < total


def test_a_run_goes_on_in_the_parts_that_it_began_with(
    tiny: DilutedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.assemble.parts_that_fit", lambda *_: 3)
    asked: list[int] = []
    step = Plain.step

    def counted(self: Plain, learner: Learner, *rest: object) -> object:
        asked.append(learner.accumulate)
        if len(asked) == 7:
            raise KeyboardInterrupt
        return step(self, learner, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Plain, "step", counted)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(recipe(accumulate="auto", checkpoint_every=12), tiny, tmp_path / "run")
    monkeypatch.setattr("train.assemble.parts_that_fit", lambda *_: 1)  # more memory is free now
    run_experiment(recipe(accumulate="auto", checkpoint_every=12), tiny, tmp_path / "run", resume=True)
    assert set(asked) == {3}
    assert len(asked) == 7 + 3 * 2


def test_no_memory_is_one_line_that_names_the_knob(
    tiny: DilutedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(self: Plain, learner: Learner, *rest: object) -> object:
        return torch.empty(1 << 55)

    monkeypatch.setattr(Plain, "step", too_large)
    with pytest.raises(UserError, match=r"out of memory in a step of 12 in 2 parts .*; give --accumulate 4 or more"):
        run_experiment(recipe(accumulate=2), tiny, tmp_path / "run")


@pytest.mark.parametrize(("name", "accumulate"), [("evaluate", 1), ("outcome", 3)])
def test_no_memory_for_an_evaluation_names_the_knob_too(
    tiny: DilutedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, accumulate: int
) -> None:
    module = "train.experiment" if name == "outcome" else "train.loop"
    monkeypatch.setattr(f"{module}.{name}", lambda *_: torch.empty(1 << 55))
    told = rf"evaluation of {12 // accumulate} images at a time .*; give --accumulate {2 * accumulate} or more"
    with pytest.raises(UserError, match=told):
        run_experiment(recipe(accumulate=accumulate), tiny, tmp_path / "run")


def test_an_evaluation_holds_no_more_images_than_a_part_of_a_batch(tiny: DilutedSet) -> None:
    learner = build_learner(recipe(), tiny, torch.device("cpu"))
    for accumulate, rows in ((1, 12), (4, 3)):
        asked = recipe(accumulate=accumulate)
        assert [len(batch.labels) for batch in evaluation_of(asked, tiny, learner)][:2] == [rows, rows]
    learner.world = World(rank=1, size=3)
    assert len(next(iter(evaluation_of(recipe(), tiny, learner))).labels) == 4
    learner.world = ALONE
    assert evaluation_of(recipe(batch=5_000), tiny, learner).batch == 1_000


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"batch": 1}, r"a batch of 1 comes in 1 part; give a larger --batch, or a --model"),
        (
            {"batch": 6, "accumulate": 6},
            r"a batch of 6 comes in 6 parts; give a larger --batch, a smaller --accumulate",
        ),
    ],
)
def test_one_row_alone_is_named_as_too_few_for_batch_norm(
    tiny: DilutedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, int], told: str
) -> None:
    def with_norm(*_: object, **__: object) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.BatchNorm1d(4))

    monkeypatch.setattr("train.assemble.build_model", with_norm)
    with pytest.raises(UserError, match=f"batch norm has a variance only of two rows or more, and {told}"):
        run_experiment(recipe(**given), tiny, tmp_path / "run")


def test_another_error_of_a_step_stays_what_it_is(
    tiny: DilutedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Plain, learner: Learner, *rest: object) -> object:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(Plain, "step", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        run_experiment(recipe(), tiny, tmp_path / "run")


def test_a_batch_divides_by_processes_and_parts(tiny: DilutedSet) -> None:
    asked = recipe(batch=36, accumulate=4)
    learner = build_learner(asked, tiny, torch.device("cpu"))
    assert parts_of(asked, tiny, learner, None, num_processes=3) == 4
    with pytest.raises(UserError, match=r"36 in 2 processes is 18 each.*accumulate 4; give a batch .* multiple of 8"):
        parts_of(asked, tiny, learner, None, num_processes=2)


def test_a_process_has_rows_enough_for_a_noise_scale(tiny: DilutedSet) -> None:
    asked = recipe(batch=12, measure="noise-scale")
    learner = build_learner(asked, tiny, torch.device("cpu"))
    assert parts_of(asked, tiny, learner, None, num_processes=3) == 1
    with pytest.raises(
        UserError, match=r"batch 12 in 4 processes is 3 each, and measure noise-scale .* give 16 or more"
    ):
        parts_of(asked, tiny, learner, None, num_processes=4)
