import math
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta as betadist
from scipy.stats import kstest
from torch import Tensor, nn
from torch.nn import functional as F

from kernels.labels import MAX_TABLE_CLASSES
from pipeline.errors import UserError
from pipeline.laws import Given, Law, Matrix, Pair, StoredArray, Symmetric, Uniform, White
from pipeline.types import Batch
from train.clock import Clock
from train.distributed import ALONE
from train.learner import Learner
from train.methods import METHODS, Setting
from train.methods.coteaching import exchanged_losses, keep_share, num_kept, small_loss_rows
from train.methods.forward import forward_loss
from train.methods.h_alpha import h_alpha_targets
from train.methods.histogram import histogram_targets
from train.methods.marginal import marginal_loss
from train.methods.mixup import mixup_weight, partners
from train.models.twins import Twins

NO_ROWS = torch.zeros(0, dtype=torch.int64)
GIVEN = Given(StoredArray(np.array([1], dtype=np.uint16)))
sizes = st.integers(1, 12)


class Probe(Learner):
    """A learner without an optimizer: a net in float64 that keeps the loss it was given."""

    def __init__(self, net: nn.Module) -> None:  # the net stays in float64, where it is
        self.net = net
        self.loss, self.world = torch.zeros(()), ALONE

    def logits(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.net(images))

    def update(self, loss: Tensor, clock: Clock) -> None:
        self.loss = loss.detach()
        loss.backward()  # type: ignore[no-untyped-call]


def stepped(
    method: str, images: Tensor, labels: Tensor, *, num_classes: int, alpha: int = 0, step: int = 0, **setting: Any
) -> tuple[Probe, Any]:
    torch.manual_seed(0)
    height, width = images.shape[2:]
    nets = [
        nn.Sequential(nn.Flatten(), nn.Linear(height * width, num_classes)) for _ in range(METHODS[method].num_nets)
    ]
    probe = Probe((nets[0] if len(nets) == 1 else Twins(*nets)).double())
    made = METHODS[method](Setting(num_classes=num_classes, alpha=alpha, **{"forget_rate": 0.0, **setting}))
    metrics = made.step(probe, Batch(images, labels, torch.arange(len(images)), NO_ROWS), Clock(1, 10, 10, step))
    return probe, metrics


def gradient(probe: Probe) -> Tensor:
    return torch.cat([p.grad.reshape(-1) for p in probe.net.parameters() if p.grad is not None])


@given(images=sizes, copies=sizes, classes=sizes, seed=st.integers(0, 1000))
def test_a_histogram_is_the_mean_of_the_labels_one_hot(images: int, copies: int, classes: int, seed: int) -> None:
    labels = torch.randint(0, classes, (images, copies), generator=torch.Generator().manual_seed(seed))
    expected = F.one_hot(labels, classes).double().mean(dim=1)
    # One float32 division of whole numbers: half a unit in the last place.
    torch.testing.assert_close(histogram_targets(labels, num_classes=classes).double(), expected, rtol=1e-7, atol=0)


def test_a_histogram_refuses_labels_that_are_no_class() -> None:
    for label in (-2, 3):  # -1 is a label that is left out
        with pytest.raises(RuntimeError):
            histogram_targets(torch.tensor([[0, label]]), num_classes=3)


def test_labels_that_are_left_out_do_not_count_and_an_image_weighs_what_is_left_of_it() -> None:
    labels = torch.tensor([[2, -1, 0, 2], [-1, -1, 1, -1]])  # 3 and 1 labels, 2 an image
    targets = histogram_targets(labels, num_classes=3, labels_an_image=2.0)
    assert targets.tolist() == [[0.5, 0, 1], [0, 0.5, 0]]


@given(classes=st.integers(2, 50), alpha=st.integers(0, 200))
def test_h_alpha_targets_are_the_distribution_of_a_diluted_label(classes: int, alpha: int) -> None:
    target = h_alpha_targets(torch.tensor([1]), alpha=alpha, num_classes=classes)[0].double()
    wrong = alpha / classes / (1 + alpha)
    assert target[1].item() == pytest.approx((1 + alpha / classes) / (1 + alpha), rel=1e-6)
    assert target[0].item() == pytest.approx(wrong, rel=1e-6)
    assert target.sum().item() == pytest.approx(1, rel=1e-6)  # float32


@given(classes=st.integers(2, 20), alpha=st.integers(0, 100), seed=st.integers(0, 1000))
def test_h_alpha_is_label_smoothing(classes: int, alpha: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, classes, generator=generator)
    labels = torch.randint(0, classes, (5,), generator=generator)
    ours = F.cross_entropy(logits, h_alpha_targets(labels, alpha=alpha, num_classes=classes))
    # Sums of at most 20 float32 terms of size below 10 in another order.
    torch.testing.assert_close(
        ours, F.cross_entropy(logits, labels, label_smoothing=alpha / (1 + alpha)), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("alpha", [0, 1, 7])
def test_a_histogram_has_the_gradient_of_all_copies_under_one_crop(alpha: int) -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(6, 1, 4, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 5, (6, 1 + alpha), generator=generator)
    every_copy, _ = stepped(
        "plain", images.repeat_interleave(1 + alpha, dim=0), labels.reshape(-1), num_classes=5, alpha=alpha
    )
    histogram, _ = stepped("histogram", images, labels, num_classes=5, alpha=alpha)
    # The net computes in float64; the targets are float32, half a unit in whose last place is 6e-8.
    torch.testing.assert_close(gradient(histogram), gradient(every_copy), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(histogram.loss, every_copy.loss, rtol=1e-6, atol=1e-7)


def test_a_histogram_of_a_selection_has_the_gradient_of_what_is_kept() -> None:
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(6, 1, 4, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 5, (6, 8), generator=generator)
    kept = torch.rand(6, 8, generator=generator) < 0.4
    kept[:, 0] |= ~kept.any(dim=1)  # an image without a label is not shown
    example = images.repeat_interleave(8, dim=0)[kept.flatten()]
    plain, _ = stepped("plain", example, labels[kept], num_classes=5, alpha=7)
    few = labels.where(kept, -1)
    histogram, _ = stepped("histogram", images, few, num_classes=5, alpha=7, labels_an_image=float(kept.sum() / 6))
    torch.testing.assert_close(gradient(histogram), gradient(plain), rtol=1e-6, atol=1e-7)  # as above
    torch.testing.assert_close(histogram.loss, plain.loss, rtol=1e-6, atol=1e-7)


def test_h_alpha_is_what_the_histogram_is_on_average() -> None:
    alpha, draws = 3, 20_000
    images = torch.randn(1, 1, 3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    noisy = torch.randint(0, 4, (draws, alpha), generator=torch.Generator().manual_seed(3))
    labels = torch.cat([torch.full((draws, 1), 2), noisy], dim=1)
    sampled, _ = stepped("histogram", images.expand(draws, -1, -1, -1), labels, num_classes=4, alpha=alpha)
    oracle, _ = stepped("h_alpha", images, labels[:1], num_classes=4, alpha=alpha)
    # A class's mean share over 20,000 images has standard deviation sqrt(3 · 3/16) / 4 / sqrt(20,000) = 0.0013; pixels
    # are below 3, so 0.02 is more than 5 of them for each entry of the gradient: false alarm below 1e-4.
    torch.testing.assert_close(gradient(sampled), gradient(oracle), rtol=0, atol=0.02)


def test_h_alpha_reads_copy_0_only_and_says_that_it_is_an_oracle() -> None:
    images = torch.randn(4, 1, 3, 3, dtype=torch.float64)
    labels = torch.randint(0, 4, (4, 6))
    other = labels.clone()
    other[:, 1:] = (other[:, 1:] + 1) % 4
    first, _ = stepped("h_alpha", images, labels, num_classes=4, alpha=5)
    second, _ = stepped("h_alpha", images, other, num_classes=4, alpha=5)
    assert torch.equal(gradient(first), gradient(second))
    assert {name for name, method in METHODS.items() if method.uses_clean_labels} == {"h_alpha"}


@pytest.mark.parametrize("method", [each for each in METHODS if each != "mixmatch"])  # it has rows of two kinds
def test_metrics_are_the_loss_and_the_share_of_labels_predicted(method: str) -> None:
    images = torch.zeros(3, 1, 2, 2, dtype=torch.float64)
    labels = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0]])
    probe, metrics = stepped(
        method, images, labels[:, 0] if METHODS[method].stream == "examples" else labels, num_classes=2, alpha=2
    )
    logits = probe.net.eval()(images)
    predicted = int(logits[0].argmax())  # all images are black: one prediction
    counted = labels if method in ("histogram", "marginal") else labels[:, :1]
    assert metrics["train/top1_accuracy"].item() == pytest.approx((counted == predicted).double().mean().item())
    # Of two nets it is that of the first, and they are trained on the sum.
    one_net = METHODS[method].num_nets == 1
    torch.testing.assert_close(
        metrics["train/loss"], probe.loss if one_net else F.cross_entropy(logits, labels[:, 0]).detach()
    )
    assert one_net or probe.loss > metrics["train/loss"]
    assert not metrics["train/loss"].requires_grad


def pairs(number: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    images = torch.randn(number, 1, 3, 3, generator=generator, dtype=torch.float64)
    return images, torch.randint(0, 4, (number,), generator=generator)


@pytest.mark.parametrize("step", range(4))
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_mixup_is_cross_entropy_of_mixed_images_with_mixed_labels(step: int, smoothing: float) -> None:
    images, labels = pairs(6)
    setting: dict[str, Any] = {"label_smoothing": smoothing, "mixup_beta": 1.0, "seed": 1}
    probe, metrics = stepped("mixup", images, labels, num_classes=4, alpha=2, step=step, **setting)
    weight = mixup_weight(1, step, beta=1.0)
    one_hot = F.one_hot(labels, 4) * (1 - smoothing) + smoothing / 4
    expected = torch.zeros((), dtype=torch.float64)
    right = 0
    for i in range(6):
        logits = probe.net(weight * images[i] + (1 - weight) * images[i ^ 1])
        target = weight * one_hot[i] + (1 - weight) * one_hot[i ^ 1]
        expected -= (target * logits.log_softmax(dim=1)).sum() / 6
        right += int(logits.argmax()) == int(labels[i] if weight >= 0.5 else labels[i ^ 1])
    torch.testing.assert_close(probe.loss, expected, rtol=1e-6, atol=0)  # the smoothed one-hot is float32
    assert metrics["train/top1_accuracy"].item() == pytest.approx(right / 6)


def test_both_sides_of_one_half_were_tested() -> None:
    weights = [mixup_weight(1, step, beta=1.0) for step in range(4)]
    assert min(weights) < 0.4 < 0.6 < max(weights)


def test_neighbours_are_partners_also_where_a_batch_is_cut_between_pairs() -> None:
    assert partners(5, torch.device("cpu")).tolist() == [1, 0, 3, 2, 4]
    whole = partners(12, torch.device("cpu"))
    assert torch.equal(whole, torch.cat([partners(6, torch.device("cpu")), 6 + partners(6, torch.device("cpu"))]))


def test_one_row_is_mixed_with_itself() -> None:
    images, labels = pairs(1)
    alone, _ = stepped("mixup", images, labels, num_classes=4, alpha=2, mixup_beta=1.0)
    plain, _ = stepped("plain", images, labels, num_classes=4, alpha=2)
    torch.testing.assert_close(gradient(alone), gradient(plain), rtol=1e-12, atol=1e-12)


def test_mixup_without_a_beta_is_plain() -> None:
    images, labels = pairs(6)
    unmixed, _ = stepped("mixup", images, labels, num_classes=4, alpha=2, mixup_beta=0.0)
    plain, _ = stepped("plain", images, labels, num_classes=4, alpha=2)
    assert torch.equal(gradient(unmixed), gradient(plain))
    assert torch.equal(unmixed.loss, plain.loss)


@pytest.mark.parametrize("beta", [0.3, 1.0, 8.0])
def test_weights_of_mixup_follow_the_beta_distribution(beta: float) -> None:
    drawn = [mixup_weight(5, step, beta=beta) for step in range(2_000)]
    # False alarms: one in 10,000 seeds each.
    assert kstest(drawn, betadist(beta, beta).cdf).pvalue > 1e-4


def test_weights_of_mixup_depend_on_seed_and_step_alone() -> None:
    drawn = {(seed, step): mixup_weight(seed, step, beta=8.0) for seed in (0, 1, 2**63) for step in (0, 1, 2**40)}
    assert len(set(drawn.values())) == 9
    torch.manual_seed(1)
    for (seed, step), weight in reversed(drawn.items()):
        assert mixup_weight(seed, step, beta=8.0) == weight
    # Frozen: a run goes on with the weights that it began with.
    assert drawn[0, 0] == pytest.approx(0.4552149771444412)
    assert drawn[0, 1] == pytest.approx(0.40724472100543074)


def likelihood(labels: list[int], k: int, num_classes: int) -> float:
    """Of an image's labels, if any one of them is k's and all others are uniform."""
    return sum((label == k) * num_classes ** (1.0 - len(labels)) for label in labels) / len(labels)


@given(classes=st.integers(2, 6), copies=st.integers(1, 5), seed=st.integers(0, 1000))
def test_marginal_is_the_likelihood_of_labels_of_which_one_is_right(classes: int, copies: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (3, copies), generator=generator)
    logits = torch.randn((3, classes), generator=generator, dtype=torch.float64).requires_grad_()
    prior = logits.detach().softmax(dim=1)
    joint = prior * torch.tensor([[likelihood(row, k, classes) for k in range(classes)] for row in labels.tolist()])
    loss = marginal_loss(logits, histogram_targets(labels, num_classes=classes).double())
    constant = math.log(classes) * (1 - copies)  # of the uniform ones
    torch.testing.assert_close(
        loss + 0, -joint.sum(dim=1).log().mean() + constant, rtol=0, atol=1e-6
    )  # float32 targets
    (found,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(found, (prior - joint / joint.sum(dim=1, keepdim=True)) / 3, rtol=0, atol=1e-6)


def test_marginal_without_noise_is_plain() -> None:
    images, labels = torch.randn(6, 1, 4, 4, dtype=torch.float64), torch.randint(0, 3, (6, 1))
    plain, _ = stepped("plain", images, labels[:, 0], num_classes=3, alpha=0)
    marginal, _ = stepped("marginal", images, labels, num_classes=3, alpha=0)
    torch.testing.assert_close(gradient(marginal), gradient(plain), rtol=0, atol=1e-12)


def test_marginal_knows_nothing_of_the_place_of_the_right_label() -> None:
    images, labels = torch.randn(6, 1, 4, 4, dtype=torch.float64), torch.randint(0, 3, (6, 5))
    there, _ = stepped("marginal", images, labels, num_classes=3, alpha=4)
    turned, _ = stepped("marginal", images, labels.flip(1), num_classes=3, alpha=4)
    assert torch.equal(gradient(there), gradient(turned))


@given(classes=st.integers(2, 20), alpha=st.integers(0, 200), seed=st.integers(0, 100))
def test_what_a_net_says_of_classes_becomes_what_it_says_of_labels(classes: int, alpha: int, seed: int) -> None:
    logits = 5 * torch.randn((4, classes), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    made = METHODS["marginal"](Setting(num_classes=classes, alpha=alpha))
    expected = (logits.softmax(dim=1) + alpha / classes) / (1 + alpha)
    torch.testing.assert_close(made.noisy_logits(logits).exp(), expected, rtol=1e-6, atol=0)
    for name in ("forward", "coteaching"):
        told = METHODS[name](Setting(num_classes=classes, alpha=alpha, forget_rate=0.5))
        torch.testing.assert_close(told.noisy_logits(logits).exp(), expected, rtol=1e-5, atol=0)  # T is in float32
    unknown = Setting(num_classes=classes, alpha=0, law=White(), forget_rate=0.5)
    assert METHODS["coteaching"](unknown).noisy_logits(logits) is logits
    assert METHODS["plain"](Setting(num_classes=classes, alpha=alpha)).noisy_logits(logits) is logits


def test_marginal_has_no_labels_to_smooth() -> None:
    with pytest.raises(UserError, match=r"label_smoothing 0\.1 .*another --method"):
        METHODS["marginal"](Setting(num_classes=3, alpha=2, label_smoothing=0.1))


def noisy(num_classes: int, seed: int, *, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Draw logits, a matrix with entries of 0, and labels that it may give to some class."""
    generator = torch.Generator().manual_seed(seed)
    logits = 5 * torch.randn(8, num_classes, generator=generator, dtype=dtype)
    matrix = torch.rand(num_classes, num_classes, generator=generator, dtype=dtype)
    matrix = torch.where(matrix > 0.5, matrix, 0) + torch.eye(num_classes, dtype=dtype)
    labels = torch.randint(0, num_classes, (8,), generator=generator)
    return logits.requires_grad_(), matrix / matrix.sum(dim=1, keepdim=True), labels


@given(classes=st.integers(2, 20), seed=st.integers(0, 1000))
def test_forward_is_the_likelihood_of_labels_under_the_prediction_seen_through_the_matrix(
    classes: int, seed: int
) -> None:
    logits, matrix, labels = noisy(classes, seed)
    loss = forward_loss(logits, labels, matrix.log())
    plainly = F.nll_loss((logits.softmax(dim=1) @ matrix).log(), labels)
    torch.testing.assert_close(loss, plainly, rtol=1e-10, atol=1e-10)
    (ours,), (theirs,) = (torch.autograd.grad(each, logits) for each in (loss, plainly))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    # Each gradient is the prediction less what it becomes by Bayes' rule once the label is known.
    given_label = logits.softmax(dim=1) * matrix.T[labels]
    bayes = given_label / given_label.sum(dim=1, keepdim=True)
    torch.testing.assert_close(ours, (logits.softmax(dim=1) - bayes) / len(labels), rtol=1e-9, atol=1e-12)


def test_forward_stays_finite_where_probabilities_underflow() -> None:
    logits = torch.tensor([[200.0, 0.0, 0.0], [0.0, 200.0, 0.0]], requires_grad=True)
    matrix = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    loss = forward_loss(logits, torch.tensor([2, 2]), matrix.log())
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(200)  # e^-200 is 0 in float32
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad.abs().max() == pytest.approx(0.5)


def test_forward_without_noise_is_plain() -> None:
    images, labels = pairs(6)
    plain, _ = stepped("plain", images, labels, num_classes=4, alpha=0)
    for law in (Uniform(), Pair(0.0)):
        forward, _ = stepped("forward", images, labels, num_classes=4, alpha=0, law=law)
        torch.testing.assert_close(gradient(forward), gradient(plain), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(forward.loss, plain.loss, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("alpha", [1, 20])
def test_forward_begins_with_the_gradient_of_plain_divided_by_one_plus_alpha(alpha: int) -> None:
    logits, labels = torch.zeros(6, 4, dtype=torch.float64, requires_grad=True), torch.arange(6) % 4
    matrix = torch.from_numpy(Uniform().matrix(alpha, 4))
    losses = forward_loss(logits, labels, matrix.log()), F.cross_entropy(logits, labels)
    (forward,), (plain,) = (torch.autograd.grad(loss, logits) for loss in losses)
    torch.testing.assert_close(forward, plain / (1 + alpha), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("law", "alpha", "matrix"),
    [
        (Uniform(), 7, np.eye(4) / 8 + 7 / 8 / 4),
        (Symmetric(0.3), 0, np.eye(4) * 0.6 + 0.1),
        (Pair(0.45), 0, np.eye(4) * 0.55 + np.roll(np.eye(4), 1, axis=1) * 0.45),
        (Matrix(StoredArray(np.roll(np.eye(4), 2, axis=1))), 0, np.roll(np.eye(4), 2, axis=1)),
    ],
    ids=lambda value: value.name if isinstance(value, Law) else "",
)
def test_forward_knows_the_matrix_of_all_labels_of_a_law(law: Law, alpha: int, matrix: Any) -> None:
    images, labels = pairs(6)
    probe, _ = stepped("forward", images, labels, num_classes=4, alpha=alpha, law=law)
    likelihoods = probe.net(images).softmax(dim=1) @ torch.tensor(matrix)
    # log T is kept in float32.
    torch.testing.assert_close(probe.loss, F.nll_loss(likelihoods.log(), labels), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"label_smoothing": 0.1}, "label_smoothing 0.1 is not defined for method forward"),
        ({"law": White()}, "law white adds images that have none; give another --method"),
        ({"law": GIVEN}, "given labels .* give --transition FILE, or auto to estimate it, or another --method"),
        ({"num_classes": MAX_TABLE_CLASSES + 1}, "needs a matrix of 4,097 × 4,097 classes"),
    ],
)
def test_forward_refuses_what_no_matrix_describes(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        METHODS["forward"](Setting(**{"num_classes": 4, "alpha": 0, **setting}))


@pytest.mark.parametrize(
    ("epoch", "exponent", "share"),
    [(0, 1, 1), (2.5, 1, 0.9), (5, 1, 0.8), (10, 1, 0.6), (200, 1, 0.6), (5, 2, 0.9), (2.5, 0.5, 0.8), (11, 2, 0.6)],
)
def test_the_share_that_is_kept_falls_to_what_is_not_forgotten(epoch: float, exponent: float, share: float) -> None:
    kept = keep_share(epoch, forget_rate=0.4, forget_epochs=10, exponent=exponent)
    assert kept == pytest.approx(share, rel=1e-12)


@pytest.mark.parametrize(
    ("rows", "share", "number"),
    [(128, 0.5, 64), (128, 0.55, 70), (128, 0.8, 102), (10, 0.68, 7), (1, 0.1, 1), (5, 0, 1)],
)
def test_some_rows_are_kept_whatever_is_forgotten(rows: int, share: float, number: int) -> None:
    assert num_kept(rows, share) == number


@given(rows=sizes, data=st.data(), seed=st.integers(0, 1000))
def test_a_net_marks_the_rows_of_its_smallest_losses(rows: int, data: st.DataObject, seed: int) -> None:
    number = data.draw(st.integers(1, rows))
    losses = torch.rand(2, rows, generator=torch.Generator().manual_seed(seed))
    for marked, own in zip(small_loss_rows(losses, number), losses, strict=True):
        assert sorted(own[marked].tolist()) == sorted(own.tolist())[:number]


def test_each_net_is_trained_on_the_rows_that_the_other_one_chose() -> None:
    losses = torch.tensor([[0.0, 4.0, 2.0, 9.0], [8.0, 1.0, 3.0, 5.0]], requires_grad=True)
    chosen = small_loss_rows(losses, 2)  # the first chooses rows 0 and 2, the second 1 and 2
    means = exchanged_losses(losses, chosen, 2)
    assert means.tolist() == [(4 + 2) / 2, (8 + 3) / 2]
    means.sum().backward()  # type: ignore[no-untyped-call]
    assert losses.grad is not None
    assert losses.grad.tolist() == [[0, 0.5, 0.5, 0], [0.5, 0, 0.5, 0]]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_shows_though_its_row_is_left_out(value: float) -> None:
    losses, first = torch.tensor([[0.0, value], [0.0, 1.0]]), torch.tensor([[True, False], [True, False]])
    assert exchanged_losses(losses, first, 1).isfinite().tolist() == [False, True]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize(("step", "kept"), [(0, 6), (4, 5), (10, 3), (40, 3)])
def test_coteaching_is_what_its_algorithm_says(smoothing: float, step: int, kept: int) -> None:
    """A batch of one in the clock and ten examples an epoch: step 10 is the end of the first of one epoch's ramp."""
    images, labels = pairs(6)
    setting: dict[str, Any] = {"forget_rate": 0.5, "forget_epochs": 1.0, "label_smoothing": smoothing}
    probe, metrics = stepped("coteaching", images, labels, num_classes=4, step=step, **setting)
    losses = [
        [F.cross_entropy(net[i], labels[i], label_smoothing=smoothing).item() for i in range(6)]
        for net in probe.net(images).detach()
    ]
    chosen = [sorted(range(6), key=own.__getitem__)[:kept] for own in losses]
    expected = [sum(own[row] for row in rows) / kept for own, rows in zip(losses, reversed(chosen), strict=True)]
    assert probe.loss.item() == pytest.approx(sum(expected), rel=1e-12)
    assert metrics["train/loss"].item() == pytest.approx(expected[0], rel=1e-12)
    assert metrics["coteaching/kept_frac"].item() == pytest.approx(kept / 6, rel=1e-12)
    right = probe.net.eval()(images).argmax(dim=1) == labels
    assert metrics["train/top1_accuracy"].item() == pytest.approx(right.double().mean().item())


def test_the_two_nets_of_the_last_test_did_not_agree() -> None:
    images, labels = pairs(6)
    probe, _ = stepped("coteaching", images, labels, num_classes=4)
    losses = torch.stack([F.cross_entropy(net, labels, reduction="none") for net in probe.net(images)])
    assert not torch.equal(*small_loss_rows(losses, 3))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_coteaching_that_forgets_nothing_has_the_gradient_of_plain(smoothing: float) -> None:
    images, labels = pairs(6)
    both, _ = stepped("coteaching", images, labels, num_classes=4, step=50, label_smoothing=smoothing)
    plain, _ = stepped("plain", images, labels, num_classes=4, label_smoothing=smoothing)
    torch.testing.assert_close(gradient(both)[: 4 * 10], gradient(plain), rtol=1e-12, atol=1e-14)


def test_coteaching_forgets_what_it_is_told_to_or_what_the_law_makes_wrong() -> None:
    images, labels = pairs(10)
    setting: dict[str, Any] = {"num_classes": 4, "step": 100, "wrong_share": 0.3}
    for rate, kept in ((None, 0.7), (0.6, 0.4), (0.0, 1.0)):
        _, metrics = stepped("coteaching", images, labels, forget_rate=rate, **setting)
        assert metrics["coteaching/kept_frac"].item() == pytest.approx(kept)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"law": GIVEN}, r"how many labels are wrong, and law given does not say; give --forget-rate"),
        ({"wrong_share": 1.0}, r"forget_rate is 1\.0; give a number in \[0, 1\)"),
    ],
)
def test_coteaching_refuses_a_rate_that_nobody_knows_or_that_leaves_nothing(
    setting: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        METHODS["coteaching"](Setting(num_classes=4, alpha=0, **setting))
