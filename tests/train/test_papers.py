import dataclasses
import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from calls import call
from listed import write_clothing1m

from pipeline.builder import build
from pipeline.dataset import dilute
from pipeline.errors import UserError
from pipeline.loaders import open_batches, open_evaluation
from pipeline.plan import plan_build
from pipeline.sources import SOURCES, Augmentation, open_source
from pipeline.sources.synthetic import synthetic
from train.clock import Clock
from train.data import open_data
from train.methods.mlnt import teacher_share
from train.papers import PAPERS, Page, page_of
from train.recipes import Recipe, recipe_for
from train.schedule import learning_rate

PAGES = [(paper, dataset) for paper, pages in PAPERS.items() for dataset in pages]


def recipe_of(page: Page, dataset: str, num_images: int = 50_000) -> Recipe:
    return recipe_for(dataset, "plain", num_images=num_images, num_copies=1, page=page)


def rate_in_epoch(paper: str, dataset: str, epoch: float) -> float:
    page = page_of(paper, dataset, "plain")
    return learning_rate(epoch / page.epochs, schedule=page.schedule, peak=page.lr, warmup_frac=page.warmup_frac)


@pytest.mark.parametrize(("paper", "dataset"), PAGES)
def test_every_page_is_a_complete_recipe_that_evaluates_after_each_epoch(paper: str, dataset: str) -> None:
    assert dataset in SOURCES
    page = page_of(paper, dataset, "plain")
    recipe = recipe_of(page, dataset)
    for field in dataclasses.fields(Page):
        if field.name not in ("epochs", "augment", "own"):
            assert getattr(recipe, field.name) == getattr(page, field.name), field.name
    assert recipe.eval_every == 50_000
    assert recipe.examples == page.epochs * 50_000


@pytest.mark.parametrize(("paper", "dataset"), PAGES)
def test_every_page_tells_its_source_and_what_it_deviates_in(paper: str, dataset: str) -> None:
    text = PAPERS[paper][dataset].__doc__ or ""
    assert "Source: " in text
    assert "ot run by us" in text
    assert "Deviates: " in text or "Source: as `" in text


def test_rates_fall_where_the_papers_have_them_fall() -> None:
    found = [rate_in_epoch("incv", "cifar10", epoch) for epoch in (0, 79, 81, 119, 121, 159, 161, 179, 181, 200)]
    assert found == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5, 1e-6, 1e-6, 5e-7, 5e-7])
    found = [rate_in_epoch("coteaching", "cifar10", epoch) for epoch in (0, 80, 140, 200)]
    assert found == pytest.approx([1e-3, 1e-3, 5e-4, 0])
    found = [rate_in_epoch("coteaching", "cifar100", epoch) for epoch in (0, 100, 150, 200)]
    assert found == pytest.approx([1e-3, 1e-3, 5e-4, 0])
    assert [rate_in_epoch("mlnt", "cifar10", epoch) for epoch in (79, 81, 119)] == pytest.approx([0.2, 0.02, 0.02])
    assert [rate_in_epoch("mlnt", "clothing1m", epoch) for epoch in (1.99, 2.01)] == pytest.approx([8e-4, 8e-5])
    found = [rate_in_epoch("rsl", "cifar10", epoch) for epoch in (59, 61, 119, 121, 159, 161)]
    assert found == pytest.approx([0.1, 2e-3, 2e-3, 4e-5, 4e-5, 8e-7])


def test_the_papers_own_method_takes_one_epoch_of_clothing1m() -> None:
    page = page_of("mlnt", "clothing1m", "mlnt")
    assert (page.epochs, page.schedule, page.lr) == (1, "constant", 8e-4)
    recipe = recipe_for("clothing1m", "mlnt", num_images=990_000, num_copies=1, page=page)
    assert (recipe.mlnt_inner_lr, recipe.mlnt_sets) == (0.02, 10)
    assert recipe.mlnt_weight * 14 == pytest.approx(1.0)  # of an average over the 14 classes
    assert recipe.mlnt_ramp_epochs * 1_000_000 == 2_000 * 32


@pytest.mark.parametrize("dataset", ["cifar10", "clothing1m"])
def test_the_teacher_forgets_a_hundredth_in_each_of_the_authors_batches(dataset: str) -> None:
    recipe = recipe_for(dataset, "mlnt", num_images=990_000, num_copies=1, page=page_of("mlnt", dataset, "mlnt"))
    clock = Clock(recipe.batch, recipe.examples, 990_000, examples=1_000 * recipe.batch)
    pace = {"ramp_epochs": recipe.mlnt_ramp_epochs, "gamma_examples": recipe.mlnt_teacher_examples}
    assert teacher_share(clock, **pace) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("paper", "dataset", "row"),
    [
        ("incv", "cifar10", {"select": "incv", "method": "coteaching"}),
        ("incv", "mini_webvision", {"select": "incv", "method": "coteaching"}),
        ("coteaching", "cifar10", {"method": "coteaching"}),
        ("mlnt", "cifar10", {"method": "mlnt"}),
        ("mlnt", "clothing1m", {"method": "mlnt"}),
        ("rsl", "cifar10", {"select": "rsl"}),
        ("rsl_wm", "cifar10", {"select": "rsl", "method": "mixmatch"}),
    ],
)
def test_the_command_of_a_page_runs_the_papers_own_row(paper: str, dataset: str, row: dict[str, str]) -> None:
    text = " ".join((PAPERS[paper][dataset].__doc__ or "").split())
    (words,) = map(shlex.split, re.findall("`(train [^`]*)`", text))
    flags = {word[2:]: value for word, value in zip(words, [*words[1:], ""], strict=True) if word.startswith("--")}
    assert flags["paper"] == paper
    assert {name: flags[name] for name in ("select", "method") if name in flags} == row
    method, select = flags.get("method", "plain"), flags.get("select")
    page = page_of(paper, dataset, method)
    assert recipe_for(dataset, method, num_images=500, num_copies=1, page=page, select=select).batch == page.batch


def test_the_papers_own_numbers_are_for_its_own_method() -> None:
    own = recipe_for("cifar10", "mlnt", num_images=100, num_copies=1, page=page_of("mlnt", "cifar10", "mlnt"))
    assert (own.mlnt_inner_lr, own.mlnt_weight, own.mlnt_ramp_epochs) == (0.2, pytest.approx(0.04), 20)
    assert not any(name.startswith("mlnt") for name in page_of("mlnt", "cifar10", "plain").fields(100))


def test_mixmatch_takes_half_a_million_steps_and_ends_with_the_authors_average() -> None:
    page = page_of("rsl_wm", "cifar10", "mixmatch")
    recipe = recipe_for("cifar10", "mixmatch", num_images=45_000, num_copies=1, page=page, select="rsl")
    steps = recipe.examples / recipe.batch
    assert steps == pytest.approx(500 * 1024, rel=1e-3)
    assert recipe.ema / (recipe.ema + steps) == pytest.approx(1 - 0.999, rel=2e-3)
    assert (recipe.mixmatch_weight, recipe.select_epochs) == (75, 200)
    assert "select_epochs" not in page_of("rsl_wm", "cifar10", "plain").fields(100)


def test_what_the_user_gives_wins_over_the_page() -> None:
    page = page_of("rsl", "cifar10", "plain")
    recipe = recipe_for("cifar10", "plain", num_images=100, num_copies=3, page=page, epochs=2.0, lr=0.5, model="conv2")
    assert (recipe.examples, recipe.lr, recipe.model, recipe.batch) == (600, 0.5, "conv2", 128)
    with pytest.raises(UserError, match="lr auto was measured for adamw, this is sgd; give a number"):
        recipe_for("cifar10", "plain", num_images=100, num_copies=3, page=page, lr="auto")


def test_a_paper_or_a_set_that_is_not_there_lists_the_menu() -> None:
    message = "unknown paper 'dividemix'; the papers are: incv, coteaching, mlnt, rsl, rsl_wm"
    with pytest.raises(UserError, match=message):
        page_of("dividemix", "cifar10", "plain")
    message = "--paper mlnt has settings for cifar10, clothing1m, not for webvision; leave it out"
    with pytest.raises(UserError, match=re.escape(message)):
        page_of("mlnt", "webvision", "plain")


@pytest.mark.parametrize(
    ("flags", "kind"), [([], "centre"), (["--augment"], "window"), (["--no-augment", "--val-frac", "0"], "centre")]
)
def test_the_command_takes_a_page_and_its_augmentation(
    flags: list[str], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_clothing1m(Path("in"))
    small = ["--model", "conv2", "--size", "16", "--batch", "4", "--examples", "8", "--out", "r"]
    assert call(monkeypatch, "clothing1m", "--source", "in", "--paper", "mlnt", *small, *flags) == 0
    config = json.loads(Path("r/config.json").read_text())
    assert config["data"]["augmentation"] == {"kind": kind, "shift_px": 0, "flip": kind == "window", "size_px": 16}
    wanted = {"optimizer": "sgd", "lr": 8e-4, "weight_decay": 1e-3, "schedule": "mlnt", "model": "conv2", "batch": 4}
    assert {name: config["recipe"][name] for name in wanted} == wanted
    val_frac = 0 if "--val-frac" in flags else 0.01
    assert config["recipe"]["val_frac"] == val_frac
    assert config["recipe"]["eval_every"] == 20  # 1 % of 20 images is none


@pytest.mark.parametrize("name", ["synthetic", "clothing1m"])
def test_images_without_augmentation_are_seen_as_in_evaluation(name: str, tmp_path: Path) -> None:
    if name == "clothing1m":
        source = open_source(name, write_clothing1m(tmp_path / "in"))
    else:
        source = synthetic(num_train=20, num_test=12, height=8, width=8, channels=1, num_classes=4)
    build(plan_build(source, dilute(source, alpha=0)), tmp_path / "out")
    size = 16 if name == "clothing1m" else None
    same = []
    for augment in (True, False):
        dataset = open_data(name, shards=tmp_path / "out", size=size, augment=augment)
        batch = next(open_batches(dataset, batch=20, loader="resident"))
        plain = torch.cat([part.images for part in open_evaluation(dataset, "train")])  # by image id
        same.append(torch.equal(batch.images, plain[batch.rows]))
    assert same == [False, True]


@pytest.mark.parametrize(
    "seen",
    [Augmentation("none"), Augmentation("centre", size_px=32)],
)
def test_what_evaluation_does_is_its_own_evaluation(seen: Augmentation) -> None:
    assert seen.for_evaluation() == seen
