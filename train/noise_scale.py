"""The gradient noise scale: how many examples a batch needs until its gradient is more signal than noise.

Σ is the covariance of the gradients of single examples, G their mean, and tr Σ / |G|² the simple noise scale.

Source: McCandlish et al. 2018, "An empirical model of large-batch training" (arXiv 1812.06162).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64, UInt16
from numpy import ndarray as Array
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.laws import Formula
from pipeline.types import Batch
from train.learner import Learner

MEASURES: Final = ("noise-scale",)
LEAST_BATCH: Final = 4  # two parts of two: some norms refuse a single row
_PARTS: Final = 8


class Probe(NamedTuple):
    """Gradients on one batch.

    Args:
        small_sq: Mean over parts of the squared norm of a part's gradient.
        right: What rows with right labels add to the mean gradient of all rows.
        wrong: What rows with wrong labels add.
    """

    small_sq: Float64[Tensor, ""]
    right: Float32[Tensor, " p"]
    wrong: Float32[Tensor, " p"]

    @property
    def big_sq(self) -> Float64[Tensor, ""]:
        """Squared norm of the mean gradient."""
        return _square(self.right + self.wrong)

    @property
    def cosine(self) -> Float64[Tensor, ""]:
        """Cosine between the gradients of rows with right and with wrong labels; nan where there are none."""
        return self.right.double() @ self.wrong.double() / (_square(self.right) * _square(self.wrong)).sqrt()


def noise_scale_estimates(
    small_sq: Float[Tensor, "*n"], big_sq: Float[Tensor, "*n"], b_small: int, b_big: int
) -> tuple[Float[Tensor, "*n"], Float[Tensor, "*n"]]:
    """Estimate |G|² and tr Σ without bias from the squared norms of gradients over few and over many examples.

    The first may come out negative where it is small against tr Σ / b_big. Average both over probes before their ratio
    is taken: a ratio of single estimates is biased.

    Args:
        small_sq: |gradient|² over `b_small` examples.
        big_sq: |gradient|² over `b_big` examples.
        b_small: At least 1.
        b_big: More than `b_small`.

    Returns:
        |G|² and tr Σ.

    Source: McCandlish et al. 2018, appendix A.1.
    """
    grad_sq = (b_big * big_sq - b_small * small_sq) / (b_big - b_small)
    trace = (small_sq - big_sq) / (1 / b_small - 1 / b_big)
    return grad_sq, trace


def probe_gradients(
    logits_of: Callable[[Float32[Tensor, "b c h w"]], Float32[Tensor, "b k"]],
    parameters: list[nn.Parameter],
    images: Float32[Tensor, "b c h w"],
    labels: Int64[Tensor, " b"],
    right: Bool[Tensor, " b"],
    *,
    num_parts: int,
) -> Probe:
    """Compute the gradients of the cross-entropy of equal parts, and those of right and of wrong labels.

    Each part is one forward pass and two backward passes, of the rows with right and of those with wrong labels: batch
    norm sees the whole part.

    Args:
        logits_of: The net.
        parameters: Its own.
        images: As many as make equal parts.
        labels: One a row.
        right: Which rows carry the source label of their image.
        num_parts: A divisor of the number of rows.
    """
    of_right, of_wrong = (torch.zeros(sum(p.numel() for p in parameters), device=labels.device) for _ in range(2))
    small_sq = torch.zeros((), dtype=torch.float64, device=labels.device)
    for shown, said, is_right in zip(*(each.chunk(num_parts) for each in (images, labels, right)), strict=True):
        losses = F.cross_entropy(logits_of(shown), said, reduction="none")
        part_right, part_wrong = (_gradient((losses * rows).sum(), parameters) for rows in (is_right, ~is_right))
        small_sq += _square((part_right + part_wrong) / len(losses)) / num_parts
        of_right += part_right
        of_wrong += part_wrong
    return Probe(small_sq, of_right / len(labels), of_wrong / len(labels))


def _gradient(loss: Float32[Tensor, ""], parameters: list[nn.Parameter]) -> Float32[Tensor, " p"]:
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)
    return torch.cat([gradient.reshape(-1) for gradient in gradients])


def _square(vector: Float32[Tensor, " p"]) -> Float64[Tensor, ""]:
    return vector.square().sum(dtype=torch.float64)


def carries_source_label(batch: Batch, formula: Formula, source_labels: UInt16[Array, " n"]) -> Bool[Tensor, " b"]:
    """Say which examples carry the source label of their image, by copy or by chance.

    Where noisy examples show images of another set, which have no source label, only copy 0 does.

    Args:
        batch: Examples.
        formula: Where they come from.
        source_labels: Of all images.
    """
    copies, image_ids = divmod(batch.rows.numpy(), formula.num_images)
    if formula.law.adds_images:
        return torch.from_numpy(copies == 0).to(batch.labels.device, non_blocking=True)
    source = torch.from_numpy(source_labels[image_ids].astype("int64"))
    return batch.labels == source.to(batch.labels.device, non_blocking=True)


class NoiseScale:
    """Averages |G|² and tr Σ over the probes of a run.

    Args:
        still: Whether the weights stand still, as at a learning rate of 0. All probes are then parts of one batch, and
            their gradients are averaged before their norm is taken: where G is small against its noise, that tells it
            from far fewer examples. They must be different ones: one pass over the data.

    Attributes:
        latest: What the last probe found, for the log: its own estimates of |G|² and tr Σ and its cosine, and the ratio
            of their averages, in examples. Left out are a cosine where all labels are right (or wrong) and a ratio
            where the average of |G|² is not above zero yet. Of weights that stand still, all are those of all probes.

    Source: McCandlish et al. 2018, appendix A.1.
    Deviates: probe s of a run weighs s in the averages, where the paper's are exponential: the longer a run, the more
        probes they hold, as strong noise needs. Batch norm sees parts of the batch.
    """

    def __init__(self, *, still: bool = False) -> None:
        self.still = still
        self.grad_sq = self.trace = 0.0
        self.num_probes = 0
        self.latest: dict[str, float] = {}
        self._sum: Probe | None = None  # of all probes, where the weights stand still

    def probe(self, learner: Learner, batch: Batch, right: Bool[Tensor, " b"]) -> None:
        """Measure on one batch, each process on its own part of it; waits for the device.

        Rows that do not fill a part are left out; where a batch comes in more than eight parts, it is cut in as many.

        Args:
            learner: The net; not changed.
            batch: Examples that it was not trained on lately.
            right: Which of them carry the source label of their image.
        """
        num_parts = max(min(_PARTS, len(right) // 2), learner.accumulate)
        b_small = len(right) // num_parts
        b_big = b_small * num_parts
        with learner.probing() as logits_of:
            found = probe_gradients(
                logits_of,
                list(learner.net.parameters()),
                batch.images[:b_big],
                batch.labels[:b_big],
                right[:b_big],
                num_parts=num_parts,
            )
        self.num_probes += 1
        if self.still:
            found = self._of_all(found, learner)
            b_big *= self.num_probes * learner.world.size
        estimates = noise_scale_estimates(found.small_sq, found.big_sq, b_small, b_big)
        means = learner.world.sum(torch.stack([*estimates, found.cosine])) / learner.world.size
        grad_sq, trace, cosine = means.tolist()  # device-to-host synchronization
        share = 1.0 if self.still else 2 / (1 + self.num_probes)
        self.grad_sq += share * (grad_sq - self.grad_sq)
        self.trace += share * (trace - self.trace)
        self.latest = {"noise_scale/grad_sq": grad_sq, "noise_scale/trace": trace}
        if self.grad_sq > 0:
            self.latest["noise_scale/simple_examples"] = self.trace / self.grad_sq
        if not math.isnan(cosine):
            self.latest["noise_scale/clean_noisy_cosine"] = cosine

    def _of_all(self, found: Probe, learner: Learner) -> Probe:
        """Add a probe to those before, and return the mean of all, over all processes."""
        found = Probe(*(learner.world.sum(each) / learner.world.size for each in found))
        self._sum = (
            found if self._sum is None else Probe(*(a.to(b.device) + b for a, b in zip(self._sum, found, strict=True)))
        )
        return Probe(*(each / self.num_probes for each in self._sum))

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        kept = {"grad_sq": self.grad_sq, "trace": self.trace, "num_probes": self.num_probes}
        return kept | {"sum": None if self._sum is None else list(self._sum)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.grad_sq, self.trace, self.num_probes = state["grad_sq"], state["trace"], state["num_probes"]
        self._sum = None if state["sum"] is None else Probe(*state["sum"])
