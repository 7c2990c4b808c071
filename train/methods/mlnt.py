"""Meta-learning for noise tolerance: a net that a step on wrong labels should not lead away from its teacher."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import ClassVar, Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from numpy import ndarray as Array
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from kernels.philox import META, word
from pipeline.errors import UserError
from pipeline.types import Batch
from train.clock import Clock
from train.learner import Learner, Weights
from train.methods.plain import Method, Setting
from train.models import last_layers

ORDERS: Final = ("second", "first")
_GAMMAS: Final = (0.99, 0.999)  # of the teacher, before and after the ramp
_DROPPED: Final = -100  # in place of a label: torch's cross-entropy leaves the row out
_LEAST_PROBABILITY: Final = 0.01  # of a label, to the mentor
_TEACHER_SHARE: Final = 0.5  # of a target, in the end; the rest is the mentor's


def ramp(epoch: float, *, ramp_epochs: float) -> float:
    """Return which share of its weight the consistency has, exp(-5 · (1 - u)²) with u = min(t / ramp, 1).

    Args:
        epoch: t, passes over the data so far, 0 or more.
        ramp_epochs: Above 0: when the share is 1.

    Source: Li et al. 2019 (arXiv 1812.05214).
    Deviates: the paper counts whole epochs of CIFAR-10; here t is continuous.
    """
    return math.exp(-5 * (1 - min(1.0, epoch / ramp_epochs)) ** 2)


def teacher_share(clock: Clock, *, ramp_epochs: float, gamma_examples: int = 128) -> float:
    """Return which share of the way to the net a step moves the teacher: 1 - γ, and more in the first steps.

    Args:
        clock: Before the step is counted.
        ramp_epochs: γ is 0.99 until then, later 0.999.
        gamma_examples: That γ is for: 128 are the paper's batch of CIFAR-10, 32 the one of Clothing1M.

    Source: Li et al. 2019; Tarvainen and Valpola 2017 (arXiv 1703.01780) for the first steps.
    Deviates: γ is that of the paper's batch, whatever the batch is. Step s (from 1) moves it by 1/s at
        least: the initial weights, which a short run would keep in mind, leave the teacher at once.
    """
    gamma: float = _GAMMAS[clock.epoch >= ramp_epochs] ** (clock.batch / gamma_examples)
    return max(1 - gamma, 1 / (clock.step + 1))


def nearest_rows(
    features: Float[Tensor, "b d"], pool: Float[Tensor, "all d"], *, first: int, number: int
) -> Int64[Tensor, "b n"]:
    """Return each row's nearest others in a pool by Euclidean distance, in no order.

    Args:
        features: Of the rows.
        pool: Holds all of them, and maybe more.
        first: Index in the pool of the first of them.
        number: n, fewer than the pool has rows.

    Source: Li et al. 2019; the squared distances of its code have the same order.
    """
    distances = torch.cdist(features, pool)
    distances[:, first : first + len(features)].fill_diagonal_(math.inf)
    return distances.topk(number, largest=False, sorted=False).indices


def draw_labels(
    seed: int, step: int, part: int, *, num_sets: int, num_rows: int, replaced_frac: float, neighbours: int
) -> tuple[Bool[Array, "m b"], Int64[Array, "m b"]]:
    """Draw, for each synthetic label set, which rows take a neighbour's label and which neighbour's.

    It depends on nothing but (seed, step, part) and the sizes: ranks and a resumed run all draw the same.

    Args:
        seed: The run's.
        step: Index of the step.
        part: Index of the part of its batch.
        num_sets: m.
        num_rows: b.
        replaced_frac: Share of the rows, rounded to the nearest number of them.
        neighbours: To choose from.

    Source: Li et al. 2019.
    """
    generator = np.random.Generator(np.random.Philox(key=word(seed, META, step, part)))
    first_ones = np.arange(num_rows) < round(replaced_frac * num_rows)
    taking = generator.permuted(np.tile(first_ones, (num_sets, 1)), axis=1)
    return taking, generator.integers(neighbours, size=(num_sets, num_rows))


def synthetic_labels(
    labels: Int64[Tensor, " b"],
    neighbour_labels: Int64[Tensor, "b n"],
    taking: Bool[Tensor, "m b"],
    picks: Int64[Tensor, "m b"],
) -> Int64[Tensor, "m b"]:
    """Make the label sets that `draw_labels` drew; where a row or its neighbour has lost its label, its own stays.

    Args:
        labels: As they come, noisy.
        neighbour_labels: Those of each row's neighbours, as noisy.
        taking: Which rows take one of those.
        picks: Which one.

    Source: Li et al. 2019.
    """
    picked = neighbour_labels.gather(1, picks.T).T
    return torch.where(taking & (picked != _DROPPED) & (labels != _DROPPED), picked, labels)


def likely_labels(labels: Int64[Tensor, " b"], probabilities: Float[Tensor, "b k"]) -> Int64[Tensor, " b"]:
    """Drop the labels that a mentor gives less than 0.01, unless that is all of them.

    Args:
        labels: As they come, noisy.
        probabilities: The mentor's.

    Source: Li et al. 2019.
    Deviates: the paper drops examples from the data before training; here their images stay in the batch, for its
        statistics and for the consistency, which asks for no label.
    """
    kept = probabilities.gather(1, labels[:, None])[:, 0] >= _LEAST_PROBABILITY
    return labels.where(kept | ~kept.any(), _DROPPED)


def consistency_loss(logits: Float[Tensor, "b k"], targets: Float[Tensor, "b k"]) -> Float[Tensor, ""]:
    """Average the divergence KL(targets || softmax(logits)) over rows.

    Source: Li et al. 2019.
    Deviates: the authors' code averages over the K classes too, which makes it K times smaller.
    """
    return F.kl_div(logits.log_softmax(dim=1), targets, reduction="batchmean")


def consistency_gradient(
    logits_of: Callable[..., Float[Tensor, "b k"]],
    weights: Weights,
    images: Float[Tensor, "b c h w"],
    inner_loss: Float[Tensor, ""],
    targets: Float[Tensor, "b k"],
    *,
    inner_lr: float,
    second_order: bool,
) -> tuple[Float[Tensor, ""], list[Tensor]]:
    """Return the consistency of the net after one step of descent on a loss, and its gradient before that step.

    With θ' = θ - a ∇L(θ), the gradient of J(θ') with respect to θ is (1 - a ∇²L(θ)) ∇J(θ'); of first order is ∇J(θ').
    All that it needs besides the graph of the inner loss is freed when it returns.

    Args:
        logits_of: The net, of images and weights.
        weights: θ, which the inner loss was computed at.
        images: What the consistency is measured on.
        inner_loss: L, whose graph is kept.
        targets: The teacher's probabilities.
        inner_lr: a.
        second_order: Whether the step is differentiated too.

    Source: Li et al. 2019; its code is of second order: the loop that should cut the graph only
        gives a name to what it cut.
    """
    own = list(weights.values())
    slopes = torch.autograd.grad(inner_loss, own, retain_graph=True, create_graph=second_order)
    with torch.no_grad():
        moved = [weight.requires_grad_() for weight in torch._foreach_sub(own, slopes, alpha=inner_lr)]
    loss = consistency_loss(logits_of(images, dict(zip(weights, moved, strict=True))), targets)
    found = list(torch.autograd.grad(loss, moved))
    if second_order:
        # Not by torch's forward mode, which takes batch norm's statistics for constants.
        bent = torch.autograd.grad(slopes, own, found, retain_graph=True, materialize_grads=True)
        torch._foreach_sub_(found, bent, alpha=inner_lr)
    return loss.detach(), found


def carrying(value: Float[Tensor, ""], weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> Float[Tensor, ""]:
    """Return a value whose gradient with respect to some weights is as given; it shows one that is not finite."""
    for weight, gradient in zip(weights, gradients, strict=True):
        value = value + ((weight - weight.detach()) * gradient).sum()
    return value


@contextmanager
def last_features(net: nn.Module) -> Iterator[list[Float[Tensor, "b d"]]]:
    """Yield a list that gathers, pass by pass, what the last layer of a net is given, the first of several."""
    seen: list[Tensor] = []
    last = last_layers(net)[0]
    hook = last.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().float().flatten(1)))
    try:
        yield seen
    finally:
        hook.remove()


class MLNT(Method):
    """Cross-entropy, plus the consistency with a teacher of the net after a step on each of several wrong label sets.

    The teacher is an average of the net's weights, and what is evaluated: that of `teacher_share`, or the one that the
    recipe's `ema` asks for. It predicts under the statistics of the batch, as the net does.

    A mentor, the net of an earlier run, drops the labels of `likely_labels` and joins the teacher, which has half of a
    target in the end: λ · teacher + (1 - λ) · mentor with λ = `ramp` / 2.

    With a weight of 0, and no mentor, it is method plain. Each set costs a forward and two backward passes; of second
    order one more, that differentiates the first of them. Memory holds one set at a time: ten sets of weights in one
    pass (torch.func.vmap) took 1.9 times as long as one after the other (ResNet-18, batch 32, float32, two cores of an
    Intel Xeon with AMX, torch 2.15, median of 3). A step of ten sets takes 17 times the CPU time of plain's in first
    order, and 40 times in second (cifar_resnet18, batch 32, bf16, one thread of AMD EPYC, torch 2.15, n = 1; 59 times
    before `train.models.norm` differentiated the gradient of batch norm itself).

    Several processes look for neighbours in the whole batch; each then steps on its own part, as the parts of a batch
    do that comes in several, where neighbours are those within the part.

    Source: Li et al. 2019, "Learning to Learn from Noisy Labeled Data".
    Deviates: both losses make one step of the optimizer, as in the authors' code; the paper makes two. Neighbours are
        near by what the teacher's last layer is given, for the authors' net of an earlier run there is none. The
        teacher is what is evaluated, for there are no clean images to choose it or the net by, and for that the net's
        batch norm statistics are averaged too. They move once a step, and not with the synthetic labels too. Label
        smoothing, if asked for, is in both losses.
    """

    has_teacher: ClassVar[bool] = True

    def __init__(self, setting: Setting) -> None:
        self.weight, self.ramp_epochs = setting.mlnt_weight, setting.mlnt_ramp_epochs
        self.num_sets, self.replaced_frac = setting.mlnt_sets, setting.mlnt_replaced_frac
        self.neighbours, self.inner_lr = setting.mlnt_neighbours, setting.mlnt_inner_lr
        self.second_order = setting.mlnt_order == "second"
        self.label_smoothing, self.seed = setting.label_smoothing, setting.seed
        self.mentor = setting.mentor
        if self.weight and self.neighbours >= setting.rows:
            raise UserError(
                f"mlnt_neighbours is {self.neighbours}, and a row has {setting.rows - 1} others in what a step sees at "
                f"once; give --mlnt-neighbours {setting.rows - 1} or less, a larger --batch or a smaller --accumulate"
            )

    def step(self, learner: Learner, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """Train on one batch; loss and accuracy are those of method plain."""
        share = ramp(clock.epoch, ramp_epochs=self.ramp_epochs)
        labels, advice = batch.labels, None
        if self.mentor is not None:
            with torch.no_grad():
                advice = learner.run(self.mentor, batch.images).softmax(dim=1)
            labels = likely_labels(labels, advice)
        # First, for it puts back batch norm's statistics, which the graph of the other pass must find as they were.
        consistency = self.consistency(learner, batch.images, labels, advice, clock) if self.weight else None
        logits = learner.logits(batch.images)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        learner.update(loss if consistency is None else loss + share * self.weight * consistency, clock)
        right = logits.detach().argmax(dim=1) == batch.labels
        metrics = {"train/loss": loss.detach(), "train/top1_accuracy": right.float().mean()}
        if consistency is not None:
            metrics["mlnt/consistency"] = consistency.detach()
        if self.mentor is not None:
            metrics["mlnt/kept_frac"] = (labels != _DROPPED).float().mean()
        return metrics

    def consistency(
        self,
        learner: Learner,
        images: Float[Tensor, "b c h w"],
        labels: Int64[Tensor, " b"],
        advice: Float[Tensor, "b k"] | None,
        clock: Clock,
    ) -> Float[Tensor, ""]:
        """Average the consistency over the synthetic label sets; it has its gradient and no graph."""
        weights: Weights = dict(learner.net.named_parameters())
        attention = sdpa_kernel(SDPBackend.MATH) if self.second_order else nullcontext()  # others have no second order
        with learner.probing() as logits_of, attention:
            with torch.no_grad(), last_features(learner.net) as features:
                targets = logits_of(images, dict(learner.evaluated.named_parameters())).softmax(dim=1)
            if advice is not None:
                share = _TEACHER_SHARE * ramp(clock.epoch, ramp_epochs=self.ramp_epochs)
                targets = torch.lerp(advice, targets, share)
            label_sets = self.label_sets(learner, labels, features[0], clock)
            logits = logits_of(images)
            total = torch.zeros_like(logits[0, 0]).detach()
            gradients = [torch.zeros_like(weight) for weight in weights.values()]
            for synthetic in label_sets:
                loss, found = consistency_gradient(
                    logits_of,
                    weights,
                    images,
                    F.cross_entropy(logits, synthetic, label_smoothing=self.label_smoothing),
                    targets,
                    inner_lr=self.inner_lr,
                    second_order=self.second_order,
                )
                total += loss / self.num_sets
                torch._foreach_add_(gradients, found, alpha=1 / self.num_sets)
        return carrying(total, list(weights.values()), gradients)

    def label_sets(
        self, learner: Learner, labels: Int64[Tensor, " b"], features: Float[Tensor, "b d"], clock: Clock
    ) -> Int64[Tensor, "m b"]:
        """Draw the synthetic labels of this process's rows, among all processes' rows."""
        world, number = learner.world, len(labels)
        first = world.rank * number
        near = nearest_rows(features, world.rows(features), first=first, number=self.neighbours)
        drawn = draw_labels(
            self.seed,
            clock.step,
            learner.part,
            num_sets=self.num_sets,
            num_rows=world.size * number,
            replaced_frac=self.replaced_frac,
            neighbours=self.neighbours,
        )
        # From memory that is not pinned, a copy that may not block lets the host go on.
        taking, picks = (
            torch.from_numpy(each[:, first : first + number]).to(labels.device, non_blocking=True) for each in drawn
        )
        return synthetic_labels(labels, world.rows(labels)[near], taking, picks)
