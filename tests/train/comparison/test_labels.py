import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from train.checkpoint import load_state
from train.comparison import labels
from train.comparison.labels import label_losses, label_scores, small_losses
from train.figures.points import SCALES, Noise, Point
from train.figures.runs import Finished, Job, Place, finish
from train.models import build_model

SYMMETRIC = Noise(alpha=0, law="symmetric", flip_rate=0.5)


def finished(
    out: Path, method: str = "plain", noise: Noise = SYMMETRIC, model: str = "perceptron", **settings: Any
) -> Finished:
    settings = {"examples": 2_000, "batch": 50, "precision": "fp32", "ema": 0.0, **settings}
    point = Point(noise=noise, model=model, method=method, clean=200, settings=settings, uncut=True)
    return finish(Job(Place("mnist5k", out), SCALES["smoke"], point, "recipe", "recipe", 0))


def own_losses(run: Finished, state: dict[str, torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Compute the losses of a net's weights with the labels of all copies, from the images themselves."""
    net = build_model(run.recipe.model, run.dataset.batch_shape, 10, seed=0).eval()
    net.load_state_dict(state)
    found, right = [], []
    for image_id in range(180):  # a tenth of the images is held out
        pixels = run.dataset.train.item(image_id)
        image = np.frombuffer(pixels.data, dtype=np.uint8).reshape(1, 1, 28, 28) / 255
        image = (image - run.dataset.mean[0]) / run.dataset.std[0]
        source = run.dataset.train.source_labels[image_id : image_id + 1]
        of_image = run.dataset.formula.all_labels(np.array([image_id]), source)[0].astype("int64")
        with torch.no_grad():
            logits = net(torch.from_numpy(image).float()).expand(len(of_image), -1)
        found.append(F.cross_entropy(logits, torch.from_numpy(of_image), reduction="none").numpy())
        right.append(of_image == source[0])
    return np.concatenate(found), np.concatenate(right)


@pytest.mark.parametrize("noise", [SYMMETRIC, Noise(alpha=2)], ids=["flips", "copies"])
def test_losses_are_those_of_the_last_weights_with_every_label(tmp_path: Path, noise: Noise) -> None:
    run = finished(tmp_path, noise=noise)
    losses, right = label_losses(run)
    expected, truth = own_losses(run, load_state(run.folder / "last.pt", torch.device("cpu")))
    assert losses.shape == (1, 180 * (1 + noise.alpha))
    np.testing.assert_allclose(losses[0], expected, atol=1e-4)  # float32, other order of sums
    np.testing.assert_array_equal(right, truth)
    scores = label_scores(run)
    pairs = expected[truth][:, None] - expected[~truth][None, :]
    assert scores["label_auroc"] == pytest.approx((pairs < 0).mean(), abs=1e-3)
    assert scores["label_auroc"] > 0.55
    assert (scores["kept_frac"], scores["label_precision"], scores["label_recall"]) == (None, None, None)


def test_what_coteaching_keeps_is_what_is_small_in_its_two_nets(tmp_path: Path) -> None:
    run = finished(tmp_path, "coteaching", model="mlp1", forget_epochs=5.0)
    losses, right = label_losses(run)
    state = load_state(run.folder / "last.pt", torch.device("cpu"))
    precisions, recalls = [], []
    for net, name in zip(losses, ("first", "second"), strict=True):
        own = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
        expected, _ = own_losses(run, own)
        np.testing.assert_allclose(net, expected, atol=1e-4)  # float32, other order of sums
        kept = np.argsort(net)[:90]  # half of the labels are wrong, and the run is over after eleven passes
        precisions.append(right[kept].mean())
        recalls.append(right[kept].sum() / right.sum())
    scores = label_scores(run)
    assert scores["kept_frac"] == pytest.approx(0.5)
    assert scores["label_precision"] == pytest.approx(np.mean(precisions))
    assert scores["label_recall"] == pytest.approx(np.mean(recalls))
    assert not np.array_equal(losses[0], losses[1])  # two perceptrons, which start at zero, would be the same


def test_a_run_that_ends_before_all_is_forgotten_keeps_more(tmp_path: Path) -> None:
    run = finished(tmp_path, "coteaching", examples=900)  # five passes of ten
    assert label_scores(run)["kept_frac"] == pytest.approx(0.75)


def test_scores_are_kept_beside_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = finished(tmp_path)
    before = label_scores(run)
    assert json.loads((run.folder / "labels.json").read_text()) == before
    monkeypatch.setattr(labels, "label_losses", lambda run: pytest.fail("it was measured again"))
    assert label_scores(run) == before


def test_where_no_label_is_wrong_nothing_tells_them_apart(tmp_path: Path) -> None:
    assert label_scores(finished(tmp_path, noise=Noise(alpha=0)))["label_auroc"] is None


def test_the_smallest_losses_are_marked() -> None:
    losses = np.array([[3.0, 1.0, 2.0, 0.0], [0.0, 9.0, 8.0, 7.0]], dtype=np.float32)
    assert small_losses(losses, 0.5).tolist() == [[False, True, False, True], [True, False, False, True]]
