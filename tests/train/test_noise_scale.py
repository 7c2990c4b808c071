import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.dataset import DilutedSet, dilute, view
from pipeline.laws.flips import Symmetric
from pipeline.laws.foreign import White
from pipeline.loaders import open_batches
from pipeline.sources.synthetic import synthetic
from pipeline.types import Batch
from train.learner import Learner
from train.models import build_model
from train.noise_scale import NoiseScale, carries_source_label, noise_scale_estimates, probe_gradients

CLASSES = 3


def examples(number: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(number, 1, 2, 2, generator=generator), torch.randint(0, CLASSES, (number,), generator=generator)


def linear() -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, CLASSES, bias=False))
    nn.init.normal_(net[1].weight, generator=torch.Generator().manual_seed(1))
    return net


def gradients(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Write down the gradient of each example of a linear net: (p - e_y) xᵀ."""
    pixels = images.flatten(1)
    errors = net(images).softmax(dim=1).detach() - F.one_hot(labels, CLASSES)
    return torch.einsum("bk,bx->bkx", errors, pixels).flatten(1).double()


def square(vectors: Tensor) -> Tensor:
    return vectors.square().sum(dim=-1)


def test_the_estimates_are_unbiased_and_their_ratio_is_the_noise_scale() -> None:
    population = gradients(linear(), *examples(50))
    mean = population.mean(dim=0)
    expected = square(mean), square(population - mean).mean()
    drawn = torch.randint(0, 50, (20_000, 8, 2), generator=torch.Generator().manual_seed(2))
    parts = population[drawn].mean(dim=2)
    found = noise_scale_estimates(square(parts).mean(dim=1), square(parts.mean(dim=1)), 2, 16)
    for estimates, true in zip(found, expected, strict=True):
        # Four standard errors: a false alarm in 16,000 draws of the seed.
        assert (estimates.mean() - true).abs() < 4 * estimates.std() / math.sqrt(20_000)
    # Both means are within 1 % here; |G|² without the correction for the batch's own noise would be 77 % too large.
    assert (found[1].mean() / found[0].mean()).item() == pytest.approx((expected[1] / expected[0]).item(), rel=0.02)


def test_gradients_that_agree_have_no_noise() -> None:
    grad_sq, trace = noise_scale_estimates(torch.tensor(2.5), torch.tensor(2.5), 4, 32)
    assert (grad_sq.item(), trace.item()) == (2.5, 0)


def test_a_probe_finds_what_the_gradients_of_single_examples_say() -> None:
    net, (images, labels) = linear(), examples(12)
    right = torch.tensor([True, False, False] * 4)
    found = probe_gradients(net, list(net.parameters()), images, labels, right, num_parts=3)
    single = gradients(net, images, labels)
    # Float32 gradients of about 1: 24 bits.
    close = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(found.small_sq, square(single.unflatten(0, (3, 4)).mean(dim=1)).mean(), **close)
    torch.testing.assert_close(found.big_sq, square(single.mean(dim=0)), **close)
    cosine = F.cosine_similarity(single[right].mean(dim=0), single[~right].mean(dim=0), dim=0)
    torch.testing.assert_close(found.cosine, cosine, **close)


def test_rows_that_fill_no_part_are_left_out_and_later_probes_weigh_more() -> None:
    net = linear()
    learner, found = Learner(net, rate=lambda clock: 0.0), NoiseScale()
    singles = []
    for seed in (3, 4):
        images, labels = examples(27, seed)  # eight parts of three
        found.probe(learner, Batch(images, labels, torch.arange(27), torch.arange(0)), torch.ones(27, dtype=torch.bool))
        parts = gradients(net, images[:24], labels[:24]).unflatten(0, (8, 3)).mean(dim=1)
        singles.append(noise_scale_estimates(square(parts).mean(), square(parts.mean(dim=0)), 3, 24))
        assert found.latest["noise_scale/grad_sq"] == pytest.approx(singles[-1][0].item(), rel=1e-5)
        assert found.latest["noise_scale/trace"] == pytest.approx(singles[-1][1].item(), rel=1e-5)
        assert "noise_scale/clean_noisy_cosine" not in found.latest
    (first_grad, first_trace), (grad, trace) = singles
    ratio = (first_trace + 2 * trace) / (first_grad + 2 * grad)
    assert found.latest["noise_scale/simple_examples"] == pytest.approx(ratio.item(), rel=1e-5)


def test_probes_of_weights_that_stand_still_are_one_large_batch() -> None:
    net = linear()
    learner, found, resumed = Learner(net, rate=lambda clock: 0.0), NoiseScale(still=True), NoiseScale(still=True)
    sets = [examples(24, seed) for seed in (3, 4, 5)]
    right = torch.arange(24) % 3 == 0
    for number, (images, labels) in enumerate(sets):
        found.probe(learner, Batch(images, labels, torch.arange(24), torch.arange(0)), right)
        if number == 1:
            resumed.load_state_dict(found.state_dict())
    images, labels = (torch.cat(each) for each in zip(*sets, strict=True))
    single = gradients(net, images, labels)
    parts = single.unflatten(0, (24, 3)).mean(dim=1)
    grad, trace = noise_scale_estimates(square(parts).mean(), square(single.mean(dim=0)), 3, 72)
    mask = right.repeat(3)
    cosine = F.cosine_similarity(single[mask].sum(dim=0), single[~mask].sum(dim=0), dim=0)
    expected = {"grad_sq": grad.item(), "trace": trace.item(), "clean_noisy_cosine": cosine.item()}
    expected["simple_examples"] = trace.item() / grad.item()
    assert found.latest == pytest.approx({f"noise_scale/{k}": v for k, v in expected.items()}, rel=1e-5)
    resumed.probe(learner, Batch(*sets[2], torch.arange(24), torch.arange(0)), right)
    assert resumed.latest == found.latest


def test_a_ratio_waits_until_the_signal_is_above_zero() -> None:
    net = linear()
    nn.init.zeros_(net[1].weight)
    images = torch.tensor([1.0, 1.0, -1.0, -1.0])[:, None, None, None].expand(-1, 1, 2, 2)  # two parts that cancel
    batch = Batch(images, torch.zeros(4, dtype=torch.int64), torch.arange(4), torch.arange(0))
    found = NoiseScale()
    found.probe(Learner(net, rate=lambda clock: 0.0), batch, torch.tensor([True, True, False, False]))
    assert found.latest["noise_scale/grad_sq"] < 0
    assert found.latest["noise_scale/clean_noisy_cosine"] == pytest.approx(-1)
    assert "noise_scale/simple_examples" not in found.latest


def test_a_batch_in_many_parts_is_probed_in_as_many() -> None:
    learner = Learner(linear(), rate=lambda clock: 0.0)
    sizes: list[int] = []
    learner.net.register_forward_pre_hook(lambda net, given: sizes.append(len(given[0])))
    images, labels = examples(32)
    batch = Batch(images, labels, torch.arange(32), torch.arange(0))
    for accumulate, expected in ((1, [4] * 8), (4, [4] * 8), (16, [2] * 16)):
        learner.accumulate = accumulate
        NoiseScale().probe(learner, batch, torch.ones(32, dtype=torch.bool))
        assert sizes == expected
        sizes.clear()


def test_a_probe_leaves_weights_gradients_statistics_and_generators_alone() -> None:
    net = nn.Sequential(build_model("conv2", (8, 8, 1), CLASSES, seed=0), nn.Dropout(0.5))
    learner = Learner(net, rate=lambda clock: 0.0)
    generator = torch.Generator().manual_seed(5)
    images, labels = torch.randn(16, 1, 8, 8, generator=generator), torch.arange(16) % CLASSES
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    found = NoiseScale()
    found.probe(learner, Batch(images, labels, torch.arange(16), torch.arange(0)), labels == 0)
    assert found.num_probes == 1
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert net.training


def test_a_label_is_right_where_it_is_the_source_label_be_it_by_chance(tiny: DilutedSet) -> None:
    batch = next(open_batches(tiny, batch=480))  # each example once
    right = carries_source_label(batch, tiny.formula, tiny.train.source_labels)
    copies = batch.rows // 120
    assert right[copies == 0].all()
    # 360 labels of 4 classes: 90 expected, standard deviation 8.2.
    assert 45 < right[copies > 0].sum() < 135
    source = torch.from_numpy(tiny.train.source_labels.astype("int64"))
    assert torch.equal(right, batch.labels == source[batch.rows % 120])


def test_a_flipped_label_is_wrong_though_it_is_copy_0() -> None:
    source = synthetic(num_train=120, num_test=40, height=8, width=8, channels=1, num_classes=4)
    flipped = dilute(source, alpha=0, law=Symmetric(0.5))
    right = carries_source_label(next(open_batches(flipped, batch=120)), flipped.formula, flipped.train.source_labels)
    # 120 labels: 60 expected, standard deviation 5.5.
    assert 30 < right.sum() < 90


def test_an_image_that_is_no_image_of_the_set_has_no_right_label(tiny: DilutedSet) -> None:
    white = view(tiny, law=White())
    batch = next(open_batches(white, batch=480))
    right = carries_source_label(batch, white.formula, white.train.source_labels)
    assert torch.equal(right, batch.rows < 120)
