"""Method mlnt: its parts against plain sums, its gradient against autograd, and what it leaves alone."""

import copy
import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from calls import rows, same, weights
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, chisquare
from torch import Tensor, nn
from torch.func import functional_call
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.dataset import DilutedSet, dilute
from pipeline.errors import UserError
from pipeline.sources.synthetic import synthetic
from pipeline.types import Batch
from train.assemble import mentor_of
from train.clock import Clock
from train.distributed import World
from train.experiment import run_experiment
from train.learner import Learner
from train.methods import Setting
from train.methods.mlnt import (
    MLNT,
    carrying,
    consistency_gradient,
    consistency_loss,
    draw_labels,
    likely_labels,
    nearest_rows,
    ramp,
    synthetic_labels,
    teacher_share,
)
from train.methods.plain import Plain
from train.models import build_model
from train.recipes import Recipe

NO_ROWS = torch.zeros(0, dtype=torch.int64)
SETS: dict[str, Any] = {"mlnt_weight": 0.7, "mlnt_sets": 3, "mlnt_neighbours": 4, "mlnt_ramp_epochs": 0.5, "rows": 12}


def learner(model: str = "mlp2", **settings: Any) -> Learner:
    net = build_model(model, (8, 8, 1), 3, seed=0)
    head = [layer for layer in net.modules() if isinstance(layer, nn.Linear)][-1]
    nn.init.normal_(head.weight, std=0.3, generator=torch.Generator().manual_seed(0))  # models start it at zero
    return Learner(net, **{"rate": lambda clock: 0.1, "teacher": lambda clock: 0.1, **settings})


def batch(seed: int, num_rows: int = 12) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(num_rows, 1, 8, 8, generator=generator)
    return Batch(images, torch.randint(0, 3, (num_rows,), generator=generator), torch.arange(num_rows), NO_ROWS)


def clock(step: int) -> Clock:
    return Clock(12, 10**6, 24, examples=12 * step)  # an epoch is two steps: the ramp of SETS ends after one


def recipe(**given: Any) -> Recipe:
    fields: dict[str, Any] = {"model": "mlp1", "batch": 12, "examples": 240, "eval_every": 120, "log_every": 60}
    fields |= {"method": "mlnt", "mlnt_sets": 3, "mlnt_neighbours": 3, "mlnt_ramp_epochs": 0.2}
    return Recipe(**{"dataset": "synthetic", **fields, "precision": "fp32", "lr": 0.01, **given})


def test_attention_has_a_second_order_too(tmp_path: Path) -> None:
    source = synthetic(num_train=60, num_test=20, height=32, width=32, channels=3, num_classes=3)
    fields = {"model": "test_vit", "mlnt_sets": 1, "examples": 24, "eval_every": 24, "log_every": 12}
    assert run_experiment(recipe(**fields), dilute(source, alpha=0), tmp_path / "run")["examples"] == 24


@given(number=st.integers(1, 8), first=st.integers(0, 5), seed=st.integers(0, 1000))
def test_neighbours_are_the_nearest_others_of_the_pool(number: int, first: int, seed: int) -> None:
    pool = torch.randn(10, 3, generator=torch.Generator().manual_seed(seed))
    found = nearest_rows(pool[first : first + 5], pool, first=first, number=number)
    for row, near in enumerate(found.tolist(), start=first):
        others = [each for each in range(10) if each != row]
        others.sort(key=lambda each: (pool[each] - pool[row]).square().sum().item())
        assert sorted(near) == sorted(others[:number])


def draws(seed: int, step: int, part: int = 0) -> tuple[list[list[bool]], list[list[int]]]:
    taking, picks = draw_labels(seed, step, part, num_sets=4, num_rows=9, replaced_frac=0.5, neighbours=5)
    return taking.tolist(), picks.tolist()


def test_label_sets_depend_on_seed_step_and_part_alone() -> None:
    keys = [(seed, step, part) for seed in (0, 2**63) for step in (0, 2**40) for part in (0, 1)]
    drawn = {key: draws(*key) for key in keys}
    assert len({str(each) for each in drawn.values()}) == len(keys)
    torch.manual_seed(1)
    assert all(draws(*key) == drawn[key] for key in reversed(keys))


def test_rows_that_take_a_label_are_so_many_and_any_and_take_any_neighbours() -> None:
    many = 4_000
    taking, picks = draw_labels(3, 0, 0, num_sets=many, num_rows=9, replaced_frac=0.5, neighbours=5)
    assert set(taking.sum(axis=1).tolist()) == {4}  # of 9 rows half, to the nearest even number
    # False alarms: one in 10,000 seeds for each row, and for the picks.
    assert all(binomtest(int(row), many, 4 / 9).pvalue > 1e-4 for row in taking.sum(axis=0))
    assert chisquare([(picks == each).sum() for each in range(5)]).pvalue > 1e-4


def test_a_row_takes_the_label_of_the_neighbour_that_was_picked() -> None:
    labels, near = torch.tensor([7, 8, 9]), torch.tensor([[1, 2], [3, 4], [5, 6]])
    taking = torch.tensor([[True, False, True], [False, False, False]])
    picks = torch.tensor([[1, 1, 0], [0, 0, 0]])
    assert synthetic_labels(labels, near, taking, picks).tolist() == [[2, 8, 5], [7, 8, 9]]


def test_consistency_is_the_mean_divergence() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, teacher = torch.randn(2, 6, 4, generator=generator, dtype=torch.float64)
    own, others = logits.softmax(dim=1), teacher.softmax(dim=1)
    expected = sum(q * math.log(q / p) for p, q in zip(own.flatten().tolist(), others.flatten().tolist(), strict=True))
    assert consistency_loss(logits, others).item() == pytest.approx(expected / 6)
    assert consistency_loss(teacher, others).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("epoch", [0.0, 5.0, 19.0, 20.0, 300.0])
def test_the_weight_grows_as_in_the_paper(epoch: float) -> None:
    expected = math.exp(-5 * (1 - epoch / 20) ** 2) if epoch < 20 else 1.0
    assert ramp(epoch, ramp_epochs=20) == pytest.approx(expected)


def test_a_teacher_forgets_at_the_papers_pace_whatever_the_batch() -> None:
    def share(batch: int, step: int) -> float:
        return teacher_share(Clock(batch, 10**9, 10_000, examples=batch * step), ramp_epochs=20)

    assert [share(128, step) for step in (0, 1, 2)] == [1, 1 / 2, 1 / 3]  # a plain mean, at first
    assert share(128, 1_500) == pytest.approx(0.01)
    assert share(128, 1_600) == pytest.approx(0.001)
    assert (1 - share(64, 3_000)) ** 2 == pytest.approx(0.99)
    assert 1 - share(256, 800) == pytest.approx(0.999**2)


def by_hand(net: nn.Module, images: Tensor, labels: Tensor, targets: Tensor, a: float, *, second: bool) -> list[Tensor]:
    """Differentiate a net of two hidden layers through its step, in one graph."""
    own = [parameter.detach().clone().requires_grad_() for parameter in net.parameters()]

    def logits(w: list[Tensor]) -> Tensor:
        hidden = (images.flatten(1) @ w[0].T + w[1]).relu()
        return (hidden @ w[2].T + w[3]).relu() @ w[4].T + w[5]

    slopes = torch.autograd.grad(F.cross_entropy(logits(own), labels), own, create_graph=True)
    slopes = slopes if second else tuple(slope.detach() for slope in slopes)
    said = logits([w - a * slope for w, slope in zip(own, slopes, strict=True)]).log_softmax(dim=1)
    divergence = (targets * (targets.log() - said)).sum(dim=1).mean()
    return list(torch.autograd.grad(divergence, own))


def gradient(made: Learner, seen: Batch, targets: Tensor, a: float, *, second: bool) -> list[Tensor]:
    own = dict[str, Tensor](made.net.named_parameters())
    with made.probing() as logits_of:
        inner = F.cross_entropy(logits_of(seen.images), seen.labels)
        return consistency_gradient(logits_of, own, seen.images, inner, targets, inner_lr=a, second_order=second)[1]


def plain_gradient(
    net: nn.Module, images: Tensor, labels: Tensor, targets: Tensor, a: float, *, second: bool
) -> Tensor:
    """Return the gradient of a net in float64, which goes through torch's own layers."""
    own = dict[str, Tensor](net.named_parameters())

    def logits_of(shown: Tensor, weights: dict[str, Tensor]) -> Tensor:
        logits: Tensor = functional_call(net, weights, (shown,))
        return logits

    inner = F.cross_entropy(logits_of(images, own), labels)
    return flat(consistency_gradient(logits_of, own, images, inner, targets, inner_lr=a, second_order=second)[1])


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([each.flatten() for each in tensors])


@pytest.mark.parametrize("second", [True, False])
def test_the_gradient_is_that_of_autograd_through_the_step(second: bool) -> None:
    made, seen = learner(), batch(0)
    targets = torch.randn(12, 3, generator=torch.Generator().manual_seed(1)).softmax(dim=1)
    found = flat(gradient(made, seen, targets, 0.2, second=second))
    expected = flat(by_hand(made.net, seen.images, seen.labels, targets, 0.2, second=second))
    # Sums of some hundred float32 terms, in another order; gradients are below 1.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    other = flat(by_hand(made.net, seen.images, seen.labels, targets, 0.2, second=not second))
    assert (other - expected).norm() > 0.05 * expected.norm()


def test_the_gradient_of_a_net_with_batch_norm_is_a_slope() -> None:
    """Against differences of the divergence itself, of a net without the corners of ReLUs, in float64."""
    torch.manual_seed(0)
    smooth = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Softplus(), nn.Flatten(), nn.Linear(144, 3)]
    net = nn.Sequential(*smooth).double()
    seen, a, size = batch(0), 0.3, 1e-5
    images, targets = seen.images.double(), torch.randn(12, 3, dtype=torch.float64).softmax(dim=1)
    way = [torch.randn_like(parameter) for parameter in net.parameters()]

    def divergence(shift: float) -> float:
        other = copy.deepcopy(net)
        with torch.no_grad():
            for parameter, each in zip(other.parameters(), way, strict=True):
                parameter.add_(each, alpha=shift)
        slopes = torch.autograd.grad(F.cross_entropy(other(images), seen.labels), list(other.parameters()))
        with torch.no_grad():
            for parameter, slope in zip(other.parameters(), slopes, strict=True):
                parameter.sub_(slope, alpha=a)
            return F.kl_div(other(images).log_softmax(dim=1), targets, reduction="batchmean").item()

    slope = (divergence(size) - divergence(-size)) / (2 * size)
    found = [plain_gradient(net, images, seen.labels, targets, a, second=second) for second in (True, False)]
    # Differences of float64 numbers of order 1 over 1e-5 are exact to 1e-10; what they leave out is as small.
    assert float(found[0] @ flat(way)) == pytest.approx(slope, rel=1e-5)
    assert float(found[1] @ flat(way)) != pytest.approx(slope, rel=0.05)


@pytest.mark.parametrize("second", [True, False])
def test_kernels_of_batch_norm_give_way_where_they_must(second: bool) -> None:
    made, seen = learner("conv2"), batch(0)
    targets = torch.randn(12, 3, generator=torch.Generator().manual_seed(1)).softmax(dim=1)
    found = flat(gradient(made, seen, targets, 0.1, second=second))
    images = seen.images.double()
    truth = plain_gradient(made.net.double(), images, seen.labels, targets.double(), 0.1, second=second)
    # The slopes of batch norm lose digits where they are differences of sums: 1e-4 of the largest was seen.
    torch.testing.assert_close(found.double(), truth, rtol=0, atol=1e-3 * truth.abs().max().item())


def caught(method: Any, made: Learner, seen: Batch, step: int, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Return the gradient that a method hands to the optimizer."""
    found: list[Tensor] = []

    def update(loss: Tensor, at: Clock) -> None:
        found.extend(torch.autograd.grad(loss, list(made.net.parameters())))

    monkeypatch.setattr(made, "update", update)
    method.step(made, seen, clock(step))
    return found


@pytest.mark.parametrize("second", [True, False])
def test_a_step_descends_the_class_loss_and_the_mean_consistency(second: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    made, seen, step = learner(), batch(0), 1
    with torch.no_grad():  # a teacher unlike the net
        for parameter in made.evaluated.parameters():
            parameter.mul_(1.2)
    method = MLNT(Setting(num_classes=3, alpha=1, seed=5, mlnt_order="second" if second else "first", **SETS))
    found = caught(method, made, seen, step, monkeypatch)
    expected = [torch.autograd.grad(F.cross_entropy(made.net(seen.images), seen.labels), list(made.net.parameters()))]
    with torch.no_grad():
        features = made.evaluated[:-1](seen.images)  # type: ignore[index]
        targets = made.evaluated(seen.images).softmax(dim=1)
    taking, picks = draw_labels(5, step, 0, num_sets=3, num_rows=12, replaced_frac=0.5, neighbours=4)
    near = nearest_rows(features, features, first=0, number=4)
    for number in range(3):
        labels = seen.labels.clone()
        for row in range(12):
            if taking[number, row]:
                labels[row] = seen.labels[near[row, picks[number, row]]]
        assert not torch.equal(labels, seen.labels)
        hand = by_hand(made.net, seen.images, labels, targets, 0.2, second=second)
        expected.append(tuple(0.7 / 3 * each for each in hand))  # at the end of the ramp
    summed = [sum(parts, torch.zeros(())) for parts in zip(*expected, strict=True)]
    torch.testing.assert_close(flat(found), flat(summed), rtol=1e-5, atol=1e-6)  # sums in float32


@dataclasses.dataclass(frozen=True)
class Half(World):
    """One of two processes, which knows the rows of both."""

    whole: dict[torch.dtype, Tensor] = dataclasses.field(default_factory=dict)

    def rows(self, own: Tensor) -> Tensor:
        return self.whole[own.dtype]


def test_two_processes_draw_the_labels_of_one() -> None:
    made, seen, method = learner(), batch(0), MLNT(Setting(num_classes=3, alpha=1, **SETS))
    features = torch.randn(12, 5, generator=torch.Generator().manual_seed(3))
    whole = method.label_sets(made, seen.labels, features, clock(4))
    halves = []
    for rank, own in enumerate((slice(6), slice(6, 12))):
        made.world = Half(rank, 2, whole={torch.float32: features, torch.int64: seen.labels})
        halves.append(method.label_sets(made, seen.labels[own], features[own], clock(4)))
    assert torch.equal(torch.cat(halves, dim=1), whole)
    assert not torch.equal(whole, seen.labels.expand(3, -1))


def test_a_step_leaves_statistics_and_generators_as_plain_does() -> None:
    states = []
    for method in (Plain(Setting(num_classes=3, alpha=1)), MLNT(Setting(num_classes=3, alpha=1, **SETS))):
        made = learner("conv2")
        made.net.append(nn.Dropout(0.5))  # type: ignore[operator]
        torch.manual_seed(0)
        method.step(made, batch(0), clock(1))
        states.append((dict(made.net.named_buffers()), dict(made.net.named_parameters()), torch.get_rng_state()))
    (buffers, parameters, generator), (own_buffers, own_parameters, own_generator) = states
    assert same(own_buffers, buffers)
    assert torch.equal(own_generator, generator)
    assert not same(dict(own_parameters), dict(parameters))  # it did step


def test_the_teacher_is_what_is_evaluated() -> None:
    made = learner(teacher=lambda at: 0.25)
    method = MLNT(Setting(num_classes=3, alpha=1, **SETS))
    average = {name: value.clone() for name, value in made.net.state_dict().items()}
    for step in range(3):
        method.step(made, batch(step), clock(step))
        average = {name: 0.75 * value + 0.25 * made.net.state_dict()[name] for name, value in average.items()}
    for name, value in made.evaluated.state_dict().items():
        torch.testing.assert_close(value, average[name], rtol=1e-5, atol=1e-6)  # float32
    with made.evaluating() as logits_of:
        assert torch.equal(logits_of(batch(9).images), made.evaluated(batch(9).images))


class Peak(TorchDispatchMode):
    """Counts the bytes of tensors that operations return, while they live."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for each in tree_leaves(made):
            if isinstance(each, Tensor):
                storage = each.untyped_storage()
                self.live[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.live = {key: kept for key, kept in self.live.items() if not kept[0].expired()}
        self.bytes = max(self.bytes, sum(size for _, size in self.live.values()))
        return made


@pytest.mark.parametrize("order", ["first", "second"])
def test_sets_are_held_one_at_a_time(order: str) -> None:
    peaks = []
    for num_sets in (1, 2, 6):
        method = MLNT(Setting(num_classes=3, alpha=1, **{**SETS, "mlnt_sets": num_sets, "mlnt_order": order}))
        made = learner()
        with Peak() as peak:
            method.step(made, batch(0), clock(1))
        peaks.append(peak.bytes)
    own = sum(parameter.nbytes for parameter in made.net.parameters())
    assert peaks[1] < peaks[0] + 1.1 * own  # while the next is computed, the last one's gradient is still there
    assert peaks[2] == pytest.approx(peaks[1], rel=0.01)  # and labels


def test_a_gradient_that_is_not_finite_stops_the_updates() -> None:
    made = learner()
    own = list(made.net.parameters())
    gradients = [torch.zeros_like(each) for each in own]
    assert carrying(torch.tensor(3.0), own, gradients).item() == 3.0
    gradients[0][0, 0] = math.inf
    made.update(carrying(torch.tensor(3.0), own, gradients), clock(0))
    assert made.first_bad_step.item() == 0


@pytest.mark.parametrize(
    "given",
    [{"model": "conv2", "ema": 3.0, "optimizer": "adamw"}, {"model": "mlp1", "ema": 2.0, "accumulate": 3}],
    ids=lambda given: given["model"],
)
def test_mlnt_without_a_weight_is_plain(tiny: DilutedSet, tmp_path: Path, given: dict[str, Any]) -> None:
    for name, asked in (("plain", {"method": "plain"}), ("none", {"mlnt_weight": 0.0}), ("some", {"mlnt_weight": 1.0})):
        run_experiment(recipe(**given, **asked), tiny, tmp_path / name)
    assert same(weights(tmp_path / "none"), weights(tmp_path / "plain"))
    for mine, theirs in zip(rows(tmp_path / "none"), rows(tmp_path / "plain"), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-6)  # plain adds its losses up in another order
    assert not same(weights(tmp_path / "some"), weights(tmp_path / "plain"))


@pytest.mark.parametrize("given", [{"model": "conv2", "precision": "bf16"}, {"mlnt_order": "first", "accumulate": 2}])
def test_two_classes_are_enough(tmp_path: Path, given: dict[str, Any]) -> None:
    source = synthetic(num_train=60, num_test=20, height=8, width=8, channels=1, num_classes=2)
    result = run_experiment(recipe(**given), dilute(source, alpha=1), tmp_path / "run")
    assert result["top1_accuracy"]["last"] > 0
    found = [row["mlnt/consistency"] for row in rows(tmp_path / "run") if "mlnt/consistency" in row]
    assert all(math.isfinite(each) and each > 0 for each in found)
    assert len(found) == 4


def test_neighbours_that_a_part_of_a_batch_does_not_hold_are_refused(tiny: DilutedSet, tmp_path: Path) -> None:
    message = (
        "mlnt_neighbours is 10, and a row has 5 others in what a step sees at once; give --mlnt-neighbours 5 or less, "
        "a larger --batch or a smaller --accumulate"
    )
    with pytest.raises(UserError, match=message):
        run_experiment(recipe(mlnt_neighbours=10, accumulate=2), tiny, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    run_experiment(recipe(mlnt_neighbours=5, accumulate=2, examples=24), tiny, tmp_path / "run")


def adviser(probabilities: Tensor) -> nn.Module:
    """Return a net that says the same of these rows, whatever they show."""

    class Adviser(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return probabilities.log()

    return Adviser()


def test_labels_that_a_mentor_finds_unlikely_are_dropped_unless_all_are() -> None:
    probabilities = torch.tensor([[0.98, 0.011, 0.009]]).expand(3, 3)
    assert likely_labels(torch.tensor([0, 1, 2]), probabilities).tolist() == [0, 1, -100]
    assert likely_labels(torch.tensor([2, 2, 2]), probabilities).tolist() == [2, 2, 2]


def test_no_set_has_a_label_that_was_dropped() -> None:
    labels, near = torch.tensor([7, -100, 9]), torch.tensor([[1], [2], [-100]])
    taking, picks = torch.ones(1, 3, dtype=torch.bool), torch.zeros(1, 3, dtype=torch.int64)
    assert synthetic_labels(labels, near, taking, picks).tolist() == [[1, -100, 9]]


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_a_mentor_drops_labels_and_joins_the_teacher(weight: float, monkeypatch: pytest.MonkeyPatch) -> None:
    made, seen = learner(), batch(0)
    says = torch.tensor([0.6, 0.399, 0.001]).expand(12, 3)
    setting = {**SETS, "mlnt_weight": weight, "mlnt_replaced_frac": 0.0, "mlnt_ramp_epochs": 1.0}
    method = MLNT(Setting(num_classes=3, alpha=1, mentor=adviser(says), **setting))
    found = caught(method, made, seen, 1, monkeypatch)  # in the middle of the ramp
    own, kept = list(made.net.parameters()), seen.labels != 2
    assert 0 < kept.sum() < 12
    loss = F.cross_entropy(made.net(seen.images)[kept], seen.labels[kept])
    share, labels = math.exp(-5 / 4), seen.labels.where(kept, -100)
    targets = 0.5 * share * made.evaluated(seen.images).softmax(dim=1).detach() + (1 - 0.5 * share) * says
    hand = by_hand(made.net, seen.images, labels, targets, 0.2, second=True)
    expected = [a + weight * share * b for a, b in zip(torch.autograd.grad(loss, own), hand, strict=True)]
    torch.testing.assert_close(flat(found), flat(expected), rtol=1e-5, atol=1e-6)  # sums in float32


def test_a_run_has_the_net_of_an_earlier_one_for_a_mentor(tiny: DilutedSet, tmp_path: Path) -> None:
    run_experiment(recipe(method="plain", model="conv2"), tiny, tmp_path / "plain")
    run_experiment(recipe(mentor=str(tmp_path / "plain")), tiny, tmp_path / "run")
    assert all(0 < row["mlnt/kept_frac"] <= 1 for row in rows(tmp_path / "run") if "train/loss" in row)
    run_experiment(recipe(), tiny, tmp_path / "alone")
    assert not same(weights(tmp_path / "run"), weights(tmp_path / "alone"))
    net = mentor_of(tmp_path / "plain", tiny, torch.device("cpu"))
    assert same(dict(net.state_dict()), weights(tmp_path / "plain"))
    assert not net.training
    with pytest.raises(UserError, match=r"mentor .*nowhere holds no finished run; give the folder of one"):
        run_experiment(recipe(mentor=str(tmp_path / "nowhere")), tiny, tmp_path / "refused")
    for name, content in (("config.json", '{"recipe"'), ("config.json", "{}"), ("config.json", "5"), ("last.pt", None)):
        shutil.copytree(tmp_path / "plain", tmp_path / "damaged", dirs_exist_ok=True)
        (tmp_path / "damaged" / name).unlink()
        if content is not None:
            (tmp_path / "damaged" / name).write_text(content)
        with pytest.raises(
            UserError, match=rf"damaged/{name} cannot be read .*; give the folder of another run as --m"
        ):
            run_experiment(recipe(mentor=str(tmp_path / "damaged")), tiny, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    other = dilute(synthetic(num_train=60, num_test=20, height=8, width=8, channels=1, num_classes=5), alpha=3)
    with pytest.raises(UserError, match=r"no single net for images of .* in 5 classes; .* another --method"):
        run_experiment(recipe(mentor=str(tmp_path / "plain")), other, tmp_path / "refused")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("mlnt_sets", 0, "mlnt_sets is 0; give a whole number, 1 or more"),
        ("mlnt_neighbours", -1, "mlnt_neighbours is -1; give a whole number, 1 or more"),
        ("mlnt_replaced_frac", 1.5, r"mlnt_replaced_frac is 1\.5; give a number in \[0, 1\]"),
        ("mlnt_ramp_epochs", 0.0, r"mlnt_ramp_epochs is 0\.0; give a finite number above 0"),
        ("mlnt_weight", math.inf, "mlnt_weight is inf; give a finite number, 0 or more"),
        ("mlnt_inner_lr", -0.1, r"mlnt_inner_lr is -0\.1; give a finite number, 0 or more"),
        ("mlnt_order", "third", "unknown mlnt_order 'third'; the mlnt_orders are: second, first"),
        ("precision", "fp16", "precision fp16 .* method mlnt .* --precision bf16, tf32 or fp32"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused(field: str, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        recipe(**{field: value})
