import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from pipeline.dataset import DilutedSet, dilute, view
from pipeline.errors import UserError
from pipeline.loaders import open_evaluation
from pipeline.sources.synthetic import synthetic
from pipeline.types import Batch
from train.distributed import ALONE
from train.evaluate import best_by_noisy_validation, columns, evaluate, image_scores, memorisation


class Oracle:
    """Stands in for a learner: its logits are a function of the images."""

    device = torch.device("cpu")
    world = ALONE

    def __init__(self, logits_of: Callable[[Tensor], Tensor]) -> None:
        self.logits_of = logits_of

    @contextmanager
    def evaluating(self) -> Iterator[Callable[[Tensor], Tensor]]:
        yield self.logits_of


def linear(images: Tensor) -> Tensor:
    weights = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    return images.flatten(1) @ weights / 8


def rows(accuracies: list[float], losses: list[float] | None = None) -> list[dict[str, float]]:
    made: list[dict[str, float]] = [{"eval/top1_accuracy": accuracy} for accuracy in accuracies]
    for row, loss in zip(made, losses or [], strict=bool(losses)):
        row["eval/noisy_val_loss"] = loss
    return made


@given(seed=st.integers(0, 1000), images=st.integers(1, 9), copies=st.integers(1, 9))
def test_scoring_against_all_labels_is_the_mean_of_scoring_against_each(seed: int, images: int, copies: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, 5, generator=generator)
    labels = torch.randint(0, 5, (images, copies), generator=generator)
    right, loss = image_scores(logits, labels)
    each = [F.cross_entropy(logits, column, reduction="none") for column in labels.T]
    torch.testing.assert_close(loss, torch.stack(each).mean(dim=0))
    hits = torch.stack([logits.argmax(dim=1) == column for column in labels.T]).float()
    torch.testing.assert_close(right, hits.mean(dim=0))


@pytest.mark.parametrize("batch", [7, 40, 1000])
def test_test_scores_are_those_of_all_images_at_once_whatever_the_batch(tiny: DilutedSet, batch: int) -> None:
    whole = next(iter(open_evaluation(tiny, batch=40)))
    scores = evaluate(Oracle(linear), open_evaluation(tiny, batch=batch))
    logits = linear(whole.images)
    assert scores.top1_accuracy == pytest.approx((logits.argmax(1) == whole.labels).double().mean().item())
    losses = F.cross_entropy(logits, whole.labels, reduction="none").double()
    assert scores.loss == pytest.approx(losses.mean().item(), rel=1e-6)  # float32 losses
    assert scores.loss_se == pytest.approx(losses.std().item() / math.sqrt(40), rel=1e-4)


def test_noisy_validation_scores_held_out_images_against_all_their_noisy_labels(tiny: DilutedSet) -> None:
    held_out = range(100, 120)
    scores = evaluate(Oracle(linear), open_evaluation(tiny, "train", images=held_out, batch=6), tiny.formula)
    whole = next(iter(open_evaluation(tiny, "train", images=held_out)))
    ids = np.arange(100, 120)
    labels = tiny.formula.all_labels(ids, tiny.train.source_labels[ids])
    assert labels.shape == (20, 4)
    losses = F.cross_entropy(
        linear(whole.images).repeat_interleave(4, dim=0),
        torch.from_numpy(labels.astype(np.int64)).reshape(-1),
        reduction="none",
    ).double()
    assert scores.loss == pytest.approx(losses.mean().item(), rel=1e-6)
    # The standard error is over images, not over labels: the labels of an image share its logits.
    per_image = losses.reshape(20, 4).mean(dim=1)
    assert scores.loss_se == pytest.approx(per_image.std().item() / math.sqrt(20), rel=1e-4)


def test_the_columns_are_the_four_ways_to_choose() -> None:
    accuracies = [0.1, 0.9, 0.5, 0.6] + [0.7] * 9 + [0.8]
    losses = [2.0, 1.9, 1.0, 1.5] + [1.6] * 9 + [1.7]
    assert columns(rows(accuracies, losses)) == {
        "last": 0.8,
        "last10": pytest.approx((9 * 0.7 + 0.8) / 10),
        "best_noisy_val": 0.5,
        "best_test": 0.9,
    }


def test_choosing_by_noisy_validation_never_looks_at_the_test_labels() -> None:
    losses = [1.0, 0.5, 0.5, 2.0]
    chosen: set[Any] = {best_by_noisy_validation(rows(a, losses)) for a in ([0.1, 0.2, 0.9, 0.4], [0.9, 0.0, 0.1, 0.2])}
    assert chosen == {1}  # the first of equals


def test_without_a_held_out_part_there_is_no_choice_by_noisy_validation() -> None:
    assert best_by_noisy_validation(rows([0.5])) is None
    assert columns(rows([0.5]))["best_noisy_val"] is None


def test_the_top_five_are_the_five_likeliest_classes() -> None:
    source = synthetic(num_train=40, num_test=90, height=8, width=8, channels=1, num_classes=9)
    dataset = dilute(source, alpha=1)
    weights = torch.randn(64, 9, generator=torch.Generator().manual_seed(0))
    logits_of = lambda images: images.flatten(1) @ weights  # noqa: E731
    (whole,) = open_evaluation(dataset)
    five = logits_of(whole.images).topk(5).indices
    expected = (five == whole.labels[:, None]).any(dim=1).double().mean().item()
    assert 0 < expected < 1
    assert evaluate(Oracle(logits_of), open_evaluation(dataset, batch=17)).top5_accuracy == pytest.approx(expected)


def test_of_equally_likely_classes_no_more_than_five_are_the_five_likeliest() -> None:
    source = synthetic(num_train=40, num_test=90, height=8, width=8, channels=1, num_classes=9)
    equal = Oracle(lambda images: torch.zeros(len(images), 9))
    assert evaluate(equal, open_evaluation(dilute(source, alpha=1))).top5_accuracy == pytest.approx(5 / 9)


def test_images_that_cannot_be_read_are_counted_and_are_no_part_of_the_means(tiny: DilutedSet) -> None:
    (whole,) = open_evaluation(tiny)
    bad = torch.arange(3)
    readable = Batch(whole.images[3:], whole.labels[3:], whole.rows[3:], bad)
    found, expected = (
        evaluate(Oracle(linear), [readable]),
        evaluate(Oracle(linear), [replace(readable, replaced=bad[:0])]),
    )
    assert found.num_unreadable == 3
    assert expected.num_unreadable == 0
    assert found[:4] == expected[:4]
    nothing = Batch(whole.images[:0], whole.labels[:0], whole.rows[:0], whole.rows)
    with pytest.raises(UserError, match="none of the 40 images to evaluate on can be read; tools/verify_shards"):
        evaluate(Oracle(linear), [nothing])


@pytest.mark.parametrize("batch", [7, 1000])
def test_memorisation_counts_wrong_labels_that_are_said_and_source_labels_in_their_place(
    tiny: DilutedSet, batch: int
) -> None:
    images = range(30)
    ids = np.arange(30)
    source = tiny.train.source_labels[ids].astype(int)
    labels = tiny.formula.all_labels(ids, tiny.train.source_labels[ids]).astype(int)
    (whole,) = open_evaluation(tiny, "train", images=images)
    said = linear(whole.images).argmax(1).numpy()
    wrong = labels != source[:, None]
    expected = ((labels == said[:, None])[wrong].mean(), (source == said)[:, None].repeat(4, axis=1)[wrong].mean())
    found = memorisation(Oracle(linear), open_evaluation(tiny, "train", images=images, batch=batch), tiny.formula)
    assert found == pytest.approx(expected)
    assert 0 < expected[0] < 1
    assert 0 < expected[1] < 1


def test_without_wrong_labels_there_is_nothing_to_memorise(tiny: DilutedSet) -> None:
    clean = view(tiny, alpha=0)
    found = memorisation(Oracle(linear), open_evaluation(clean, "train"), clean.formula)
    assert all(map(math.isnan, found))
