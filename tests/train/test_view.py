"""Shards of one formula, read as another, train the weights of shards that were built so."""

from pathlib import Path
from typing import Any

import pytest
from calls import call, same, weights

from pipeline.builder import build
from pipeline.dataset import dilute
from pipeline.laws import Symmetric
from pipeline.plan import plan_build
from pipeline.sources import Source, open_source
from pipeline.sources.synthetic_imagenet import write_synthetic_imagenet

SYMMETRIC: dict[str, Any] = {"alpha": 0, "law": Symmetric(rate=0.5)}


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = tmp_path_factory.mktemp("imagenet") / "tree"
    write_synthetic_imagenet(folder, num_images=48, num_classes=4)
    return open_source("imagenet", folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stored", "flags", "shown"),
    [
        ({"alpha": 2}, ["--alpha", "5"], {"alpha": 5}),
        (
            {"alpha": 2},
            ["--alpha", "5", "--noise-seed", "7", "--clean", "32"],
            {"alpha": 5, "noise_seed": 7, "clean": 32},
        ),
        ({"alpha": 2}, ["--law", "symmetric", "--rate", "0.5"], SYMMETRIC),
        (SYMMETRIC, ["--law", "uniform", "--alpha", "5"], {"alpha": 5}),
    ],
    ids=["alpha", "seed and size", "a law that flips", "a law that adds"],
)
def test_a_view_of_imagenet_trains_the_weights_of_shards_that_were_built_so(
    imagenet: Source,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stored: dict[str, Any],
    flags: list[str],
    shown: dict[str, Any],
) -> None:
    def weights_of(name: str, formula: dict[str, Any], *view: str) -> dict[str, Any]:
        shards = tmp_path / f"shards-{name}"
        build(plan_build(imagenet, dilute(imagenet, **formula)), shards)
        small = ["--model", "conv2", "--size", "32", "--batch", "16", "--examples", "160", "--eval-every", "160"]
        out = tmp_path / name
        assert call(monkeypatch, "imagenet", "--shards", str(shards), *small, *view, "--out", str(out)) == 0
        return weights(out)

    viewed = weights_of("view", stored, *flags)
    assert same(viewed, weights_of("built", shown))
    assert not same(viewed, weights_of("as stored", stored))
