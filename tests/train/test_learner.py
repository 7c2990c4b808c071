import copy
import shutil
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import UserError
from train.clock import Clock
from train.learner import OPTIMIZERS, Learner, allow_tf32, resolve_precision
from train.models import build_model
from train.models.twins import Twins

CPU = torch.device("cpu")


def learner(**settings: Any) -> Learner:
    net = build_model(settings.pop("model", "conv2"), (8, 8, 1), 4, seed=0)
    head = [layer for layer in net.modules() if isinstance(layer, nn.Linear)][-1]
    nn.init.normal_(head.weight, std=0.1, generator=torch.Generator().manual_seed(0))  # models start it at zero
    return Learner(net, **{"rate": lambda clock: 0.1, **settings})


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(16, 1, 8, 8, generator=generator), torch.randint(0, 4, (16,), generator=generator)


def train(made: Learner, clock: Clock, seeds: range, *, broken: tuple[int, ...] = ()) -> None:
    for seed in seeds:
        images, labels = batch(seed)
        loss = F.cross_entropy(made.logits(images), labels)
        made.update(loss * float("nan") if seed in broken else loss, clock)
        clock.tick()


def flat(state: Any) -> list[Any]:
    if isinstance(state, dict):
        return [leaf for key in state for leaf in flat(state[key])]
    if isinstance(state, list | tuple):
        return [leaf for part in state for leaf in flat(part)]
    return [state.clone() if isinstance(state, Tensor) else state]


def same(first: Any, second: Any) -> bool:
    pairs = zip(flat(first), flat(second), strict=True)
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)


def parameters(made: Learner) -> list[Tensor]:
    return [p.detach().clone() for p in made.net.parameters()]


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
@pytest.mark.parametrize("broken", [0, 3])
def test_a_loss_that_is_not_finite_changes_no_weight_and_neither_does_what_follows(optimizer: str, broken: int) -> None:
    made, clock = learner(optimizer=optimizer), Clock(16, 10**6, 100)
    train(made, clock, range(broken))
    assert made.first_bad_step.item() == -1
    weights, state = parameters(made), copy.deepcopy(made.optimizer.state_dict()["state"])
    train(made, clock, range(broken, broken + 3), broken=(broken,))
    assert made.first_bad_step.item() == broken
    assert same(parameters(made), weights)
    after = made.optimizer.state_dict()["state"]
    if state or optimizer == "sgd":  # AdamW makes its state, all zero, in its first step
        assert same(after, state)
    else:
        assert all(not leaf.any() for leaf in flat(after))


def nets() -> list[nn.Module]:
    return [learner(model="conv2").net, build_model("conv2", (8, 8, 1), 4, seed=0, learner=1)]


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_one_optimizer_trains_twins_as_two_would(optimizer: str) -> None:
    settings: dict[str, Any] = {"rate": lambda clock: 0.1, "optimizer": optimizer, "weight_decay": 0.1, "ema": 2.0}
    clock, together = Clock(16, 10**6, 100), Learner(Twins(*nets()), **settings)
    apart = [Learner(net, **settings) for net in nets()]
    for seed in range(3):
        images, labels = batch(seed)
        logits = together.logits(images)
        together.update(sum((F.cross_entropy(each, labels) for each in logits), torch.zeros(())), clock)
        for made in apart:
            made.update(F.cross_entropy(made.logits(images), labels), clock)
        clock.tick()
    for pair in (
        (together.net, [made.net for made in apart]),
        (together.evaluated, [made.evaluated for made in apart]),
    ):
        twins, alone = pair
        for own, other in zip((twins.first, twins.second), alone, strict=True):
            assert same(own.state_dict(), other.state_dict())
    with together.evaluating() as both, apart[0].evaluating() as first:
        assert torch.equal(both(images), first(images))


def test_the_first_of_several_bad_steps_is_the_one_that_is_named() -> None:
    made, clock = learner(), Clock(16, 10**6, 100)
    train(made, clock, range(6), broken=(2, 4))
    assert made.first_bad_step.item() == 2


def test_sgd_is_nesterov_momentum_without_weight_decay_on_norms_and_biases() -> None:
    made, clock = learner(weight_decay=0.3, momentum=0.8), Clock(16, 10**6, 100)
    plain = copy.deepcopy(made.net)
    buffers = [torch.zeros_like(p) for p in plain.parameters()]
    train(made, clock, range(4))
    for seed in range(4):
        images, labels = batch(seed)
        plain.zero_grad()
        F.cross_entropy(plain(images), labels).backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for parameter, buffer in zip(plain.parameters(), buffers, strict=True):
                assert parameter.grad is not None
                decay = 0.3 if parameter.ndim > 1 else 0.0
                slope = parameter.grad + decay * parameter
                buffer.mul_(0.8).add_(slope)
                parameter.sub_(0.1 * (slope + 0.8 * buffer))
    # float32; another memory layout sums convolutions in another order, and four steps carry that on.
    for ours, truth in zip(made.net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-3, atol=1e-5)


def test_every_step_has_the_rate_of_the_clock() -> None:
    made, clock = learner(rate=lambda clock: 0.001 * clock.examples), Clock(16, 10**6, 100)
    before = parameters(made)
    train(made, clock, range(1))
    assert same(parameters(made), before)  # rate 0 at 0 examples
    train(made, clock, range(1, 2))
    assert {group["lr"] for group in made.optimizer.param_groups} == {0.016}
    assert not same(parameters(made), before)


def test_bf16_gives_float32_logits_near_those_of_fp32() -> None:
    images, _ = batch(0)
    low, full = learner(precision="bf16").logits(images), learner().logits(images)
    assert low.dtype == full.dtype == torch.float32
    assert not torch.equal(low, full)
    torch.testing.assert_close(low, full, rtol=0.05, atol=0.05)  # bf16 has 8 bits; logits here are of size 1


def test_fp16_scales_its_gradients_and_trains_like_fp32() -> None:
    low, full = learner(precision="fp16"), learner()
    assert low.scaler.is_enabled()
    before = parameters(full)
    for made in (low, full):
        train(made, Clock(16, 10**6, 100), range(1))
    assert low.optimizer.param_groups[0]["lr"] == 0.1
    for start, ours, truth in zip(before, parameters(low), parameters(full), strict=True):
        # A step in fp16 (11 bits) goes where one in fp32 goes: 6 % off here; a scale left in would be 65,536 times off.
        assert (ours - truth).norm() <= 0.2 * (truth - start).norm() + 1e-6


def test_fp16_skips_a_loss_that_is_not_finite_even_in_the_first_step() -> None:
    made, clock = learner(precision="fp16"), Clock(16, 10**6, 100)
    weights = parameters(made)
    scale = made.scaler.get_scale()
    train(made, clock, range(1), broken=(0,))
    assert made.scaler.get_scale() == scale / 2
    train(made, clock, range(1, 3))  # good ones again
    assert made.first_bad_step.item() == 0
    assert same(parameters(made), weights)
    assert not any(leaf.any() for leaf in flat(made.optimizer.state_dict()["state"]))


def test_precisions_that_a_machine_does_not_have_are_refused_with_the_way_out() -> None:
    with pytest.raises(UserError, match=r"fp16 needs an NVIDIA GPU.*bf16 or fp32"):
        resolve_precision("fp16", CPU)
    with pytest.raises(UserError, match=r"tf32 needs an NVIDIA GPU.*bf16 or fp32"):
        resolve_precision("tf32", CPU)
    with pytest.raises(UserError, match=r"int8.*auto, bf16, fp16, tf32, fp32"):
        resolve_precision("int8", CPU)
    assert resolve_precision("auto", CPU) in ("bf16", "fp32")
    assert resolve_precision("fp32", CPU) == "fp32"


def test_convolutions_and_products_round_alike_on_a_gpu() -> None:
    try:
        for allowed in (True, False):
            allow_tf32(allowed)
            assert torch.backends.cuda.matmul.fp32_precision == ("tf32" if allowed else "ieee")
            assert torch.backends.cudnn.allow_tf32 == allowed  # torch's compiler reads it; some settings forbid that
    finally:
        allow_tf32(False)


def test_auto_is_bf16_only_where_the_processor_computes_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for has_it, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has_it=has_it: has_it)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        assert resolve_precision("auto", CPU) == expected


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
@pytest.mark.parametrize("ema", [0.0, 3.0])
def test_a_learner_goes_on_from_its_state_as_if_nothing_had_been(optimizer: str, ema: float) -> None:
    settings = {"optimizer": optimizer, "ema": ema, "weight_decay": 0.01, "precision": "bf16"}
    straight, clock = learner(**settings), Clock(16, 10**6, 100)
    train(straight, clock, range(3))
    stopped, again = copy.deepcopy(straight.state_dict()), learner(**settings)
    again.load_state_dict(stopped)
    for made in (straight, again):
        later = Clock(16, 10**6, 100, examples=48)
        train(made, later, range(3, 6))
    assert same(straight.state_dict(), again.state_dict())


def test_the_average_moves_by_its_share_and_is_what_is_evaluated() -> None:
    made, clock = learner(model="perceptron", ema=3.0), Clock(16, 10**6, 100)
    expected = parameters(made)
    for step in range(1, 6):
        train(made, clock, range(step, step + 1))
        expected = [e + 3 / (3 + step) * (p - e) for e, p in zip(expected, parameters(made), strict=True)]
    for ours, truth in zip(made.evaluated.parameters(), expected, strict=True):
        torch.testing.assert_close(ours.detach(), truth)
    images, _ = batch(0)
    with made.evaluating() as logits_of:
        torch.testing.assert_close(logits_of(images), made.evaluated(images))
    assert not torch.equal(made.evaluated(images), made.net(images))
    assert made.net.training
    assert not made.evaluated.training


def test_evaluating_leaves_batch_norm_as_it_is_and_gives_the_net_back_in_training() -> None:
    made = learner()
    images, _ = batch(0)
    before = flat(made.net.state_dict())
    with made.evaluating() as logits_of:
        first, alone = logits_of(images), logits_of(images[:1])
    assert same(made.net.state_dict(), before)
    assert not first.requires_grad
    assert made.net.training
    # An image's logits do not depend on its batch (float32 sums in another order).
    torch.testing.assert_close(first[:1], alone, rtol=1e-4, atol=1e-5)


def test_a_broken_weight_or_statistic_is_seen() -> None:
    made = learner()
    assert made.is_finite()
    next(m for m in made.net.modules() if isinstance(m, nn.BatchNorm2d)).running_var[0] = float("inf")  # type: ignore[index]
    assert not made.is_finite()


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
@pytest.mark.parametrize("parts", [2, 8])
def test_a_batch_in_parts_gives_the_weights_of_the_whole_one(optimizer: str, parts: int) -> None:
    whole, cut = (learner(model="mlp1", optimizer=optimizer, ema=1.0) for _ in range(2))
    cut.accumulate = parts
    before, clock = parameters(whole), Clock(16, 10**6, 100)
    for seed in range(3):
        images, labels = batch(seed)
        whole.update(F.cross_entropy(whole.logits(images), labels), clock)
        for some, theirs in zip(images.chunk(parts), labels.chunk(parts), strict=True):
            cut.update(F.cross_entropy(cut.logits(some), theirs), clock)
        clock.tick()
    for start, ours, truth in zip(before, parameters(cut), parameters(whole), strict=True):
        assert not torch.equal(start, truth)
        # float32 sums in another order; AdamW divides by roots of gradients, and of those near 0 that is a lot.
        assert (ours - truth).norm() <= 1e-3 * (truth - start).norm()


def test_batch_norm_sees_the_parts_of_a_batch() -> None:
    whole, cut = learner(), learner()
    cut.accumulate = 2
    images, labels = batch(0)
    whole.update(F.cross_entropy(whole.logits(images), labels), Clock(16, 10**6, 100))
    for some, theirs in zip(images.chunk(2), labels.chunk(2), strict=True):
        cut.update(F.cross_entropy(cut.logits(some), theirs), Clock(16, 10**6, 100))
    gap = torch.cat([(a - b).flatten() for a, b in zip(parameters(cut), parameters(whole), strict=True)])
    assert gap.abs().max() > 1e-4


def test_adadelta_is_that_of_torch() -> None:
    made, clock = (
        learner(optimizer="adadelta", momentum=0.8, weight_decay=0.1, rate=lambda clock: 0.5),
        Clock(16, 1000, 9),
    )
    plain = copy.deepcopy(made.net)
    groups = [
        {"params": [p for p in plain.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in plain.parameters() if p.ndim <= 1]},
    ]
    theirs = torch.optim.Adadelta(groups, lr=0.5, rho=0.8)
    train(made, clock, range(4))
    for seed in range(4):
        images, labels = batch(seed)
        theirs.zero_grad()
        F.cross_entropy(plain(images), labels).backward()  # type: ignore[no-untyped-call]
        theirs.step()
    for ours, truth in zip(made.net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for a CPU with g++, which is not installed")
def test_a_compiled_net_trains_like_the_net_that_it_is_and_saves_its_weights() -> None:
    compiled, plain = learner(compile=True), learner()
    before = parameters(plain)
    for made in (compiled, plain):
        train(made, Clock(16, 10**6, 100), range(3))
    assert compiled.state_dict()["net"].keys() == plain.state_dict()["net"].keys()
    for start, ours, truth in zip(before, parameters(compiled), parameters(plain), strict=True):
        assert (ours - truth).norm() <= 1e-3 * (truth - start).norm() + 1e-6  # float32 sums in another order
    with compiled.evaluating() as logits_of:
        assert logits_of(batch(0)[0]).shape == (16, 4)
