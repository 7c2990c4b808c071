"""How well a finished run tells right labels of its training images from wrong ones."""

from __future__ import annotations

import json
from statistics import fmean
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float32
from numpy import ndarray as Array
from torch.nn import functional as F

from pipeline.atomic import write_file
from train.assemble import evaluation_of, held_out_images, method_of, trained_learner
from train.diagnostics import label_auroc, label_precision, label_recall
from train.figures.runs import Finished
from train.methods.coteaching import Coteaching, keep_share, num_kept, small_loss_rows
from train.models.twins import Twins
from train.outcome import defined

LOOKED_AT: Final = 10_000  # training images; the ids are a class-balanced shuffle
FILE: Final = "labels.json"  # beside result.json


def label_scores(finished: Finished) -> dict[str, float | None]:
    """Score the labels of a run's first `LOOKED_AT` training images by its last weights.

    It reads the clean labels, as every such measure does; they have no part in the run. What was measured is kept in
    the run's folder, and read from there the second time.

    Returns:
        `label_auroc`: of the loss, small for labels that are taken for right, under the net that is evaluated; of the
        score of a selection, where there is one. `kept_frac`, `label_precision` and `label_recall`: of the labels that
        a selection kept, or that a method still trains on when it ends, if it leaves some out. None is what is not
        defined: no label is wrong, or none left out.
    """
    path = finished.folder / FILE
    if not path.exists():
        write_file(path, (json.dumps(_measure(finished), indent=1) + "\n").encode())
    found: dict[str, float | None] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _measure(finished: Finished) -> dict[str, float | None]:
    measured = _of_selection(finished) if "selection" in finished.result else _of_net(finished)
    return defined(measured)


def _of_selection(finished: Finished) -> dict[str, float | None]:
    said = finished.result["selection"]
    names = ("label_precision", "label_recall")
    return {
        "label_auroc": said.get("auroc"),
        "kept_frac": said["kept"] / said["judged"],
        **{name: said.get(name) for name in names},
    }


def _of_net(finished: Finished) -> dict[str, float | None]:
    losses, right = label_losses(finished)
    measured: dict[str, float | None] = {
        "label_auroc": label_auroc(-losses[0], right),
        "kept_frac": kept_share(finished),
        "label_precision": None,
        "label_recall": None,
    }
    if measured["kept_frac"] is not None:
        kept = small_losses(losses, measured["kept_frac"])
        measured["label_precision"] = fmean(label_precision(each, right) for each in kept)
        measured["label_recall"] = fmean(label_recall(each, right) for each in kept)
    return measured


def kept_share(finished: Finished) -> float | None:
    """Return the share of labels that a run's method trained on at its end; None if it leaves none out."""
    method = method_of(finished.recipe, finished.dataset)
    if not isinstance(method, Coteaching):
        return None
    return keep_share(finished.result["epochs"], forget_rate=method.forget_rate, forget_epochs=method.forget_epochs)


def small_losses(losses: Float32[Array, "nets n"], share: float) -> Bool[Array, "nets n"]:
    """Mark each net's smallest losses.

    Args:
        losses: Of each label, in each net.
        share: How many to mark, in [0, 1].

    Source: Han et al. 2018 (arXiv 1804.06872), algorithm 1.
    Deviates: rows compete among all that are looked at, where a step compares those of a batch.
    """
    marked = small_loss_rows(torch.from_numpy(losses), num_kept(losses.shape[1], share))
    return np.asarray(marked.numpy())


def label_losses(finished: Finished) -> tuple[Float32[Array, "nets n"], Bool[Array, " n"]]:
    """Compute the cross-entropy of a run's nets with the labels of its first training images, one forward pass each.

    Returns:
        Losses of all copies' labels, image after image, under each net, the one that is evaluated first; and which of
        the labels are those of their image's class.
    """
    recipe, dataset, _, folder = finished
    learner = trained_learner(recipe, dataset, folder / "last.pt")
    device = learner.device
    ids = np.arange(min(held_out_images(recipe, dataset).start, LOOKED_AT))
    source = np.asarray(dataset.train.source_labels[: len(ids)])
    labels = torch.from_numpy(dataset.formula.labels_of_images(ids, source).astype("int64")).to(device)
    images = evaluation_of(recipe, dataset, learner, "train", images=range(len(ids)))
    right = (labels.cpu() == torch.from_numpy(source.astype("int64"))[:, None]).numpy()
    losses = []
    for net in learner.evaluated.children() if isinstance(learner.evaluated, Twins) else [learner.evaluated]:
        learner.evaluated, readable, found = net, [], []
        with learner.evaluating() as logits_of:
            for batch in images:
                readable.append(batch.rows)
                found.append(-F.log_softmax(logits_of(batch.images), dim=1).gather(1, labels[batch.rows]))
        losses.append(torch.cat(found).cpu().numpy().ravel())
    return np.stack(losses), right[torch.cat(readable).numpy()].ravel()
