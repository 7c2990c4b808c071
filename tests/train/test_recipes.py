import dataclasses
import math
from typing import Any

import pytest
from calls import selection_for

from pipeline.errors import UserError
from train.methods import METHODS
from train.papers import page_of
from train.recipes import Recipe, difference, recipe_for


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_has_a_recipe(method: str) -> None:
    recipe = recipe_for("mnist5k", method, num_images=3_600, num_copies=21, **selection_for(method))
    assert recipe.method == method
    per_image = 21 if METHODS[method].stream == "examples" else 1
    assert recipe.examples % (3_600 * per_image) == 0
    assert recipe.examples // 30 <= recipe.eval_every <= recipe.examples


@pytest.mark.parametrize(("method", "examples"), [("plain", 2.5 * 90 * 4), ("histogram", 225), ("h_alpha", 225)])
def test_epochs_are_passes_over_what_the_method_streams(method: str, examples: float) -> None:
    assert recipe_for("mnist5k", method, num_images=90, num_copies=4, epochs=2.5).examples == examples


def test_what_the_user_gives_wins() -> None:
    given: dict[str, Any] = {"lr": 0.7, "batch": 3, "examples": 77, "eval_every": 5, "model": "mlp2"}
    recipe = dataclasses.asdict(recipe_for("mnist5k", "plain", num_images=90, num_copies=4, **given))
    assert {key: recipe[key] for key in given} == given


@pytest.mark.parametrize(
    ("method", "optimizer", "lr", "decay"),
    [
        ("histogram", "adamw", 1e-3, 3.0),
        ("histogram", "sgd", 0.06, 1e-2),
        ("plain", "sgd", 0.006, 1e-2),
        ("histogram", "adadelta", 1.0, 1e-4),
    ],
)
def test_every_optimizer_has_a_rate_and_a_decay_of_its_own(
    method: str, optimizer: str, lr: float, decay: float
) -> None:
    recipe = recipe_for("mnist5k", method, num_images=90, num_copies=4, optimizer=optimizer)
    assert (recipe.lr, recipe.weight_decay) == (lr, decay)
    assert recipe_for("mnist5k", method, num_images=90, num_copies=4, optimizer=optimizer, lr=0.5).lr == 0.5


@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 0.1), ("adamw", 1e-3)])
def test_the_optimizer_of_a_paper_has_its_rate(optimizer: str, lr: float) -> None:
    page = page_of("rsl", "cifar10", "plain")
    made = recipe_for("cifar10", "plain", num_images=90, num_copies=1, page=page, optimizer=optimizer)
    assert (made.optimizer, made.lr, made.weight_decay) == (optimizer, lr, page.weight_decay)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model", "resnet", r"unknown model 'resnet'; the models are: perceptron, mlp1"),
        ("method", "magic", r"unknown method 'magic'; the methods are: plain, h_alpha, histogram"),
        ("optimizer", "lion", r"the optimizers are: sgd, adamw, adadelta"),
        ("schedule", "triangle", r"the schedules are: constant, linear, cosine, steps"),
        ("precision", "int8", r"the precisions are: auto, bf16, fp16, tf32, fp32"),
        ("batch", 0, "batch is 0"),
        ("examples", -1, "examples is -1"),
        ("lr", -0.1, "lr is -0.1"),
        ("lr", math.nan, "lr is nan"),
        ("lr", math.inf, "lr is inf"),
        ("val_frac", 1.0, "val_frac is 1.0"),
        ("weight_decay", -1.0, "weight_decay is -1.0"),
        ("seed", -1, "seed -1"),
        ("label_smoothing", 1.0, "label_smoothing is 1.0"),
        ("accumulate", 3, "accumulate is 3; give auto, or the number of equal parts of the batch: a divisor of 512"),
        ("accumulate", 0, "accumulate is 0"),
        ("accumulate", "many", "accumulate is many"),
        ("keep", 0, "keep is 0"),
        ("mixup_beta", -1.0, "mixup_beta is -1.0"),
        ("mixup_beta", math.inf, "mixup_beta is inf"),
        ("forget_rate", 1.0, r"forget_rate is 1\.0; give a number in \[0, 1\)"),
        ("forget_rate", -0.1, "forget_rate is -0.1"),
        ("forget_rate", math.nan, "forget_rate is nan"),
        ("forget_epochs", 0.0, r"forget_epochs is 0\.0; give a finite number above 0"),
        ("forget_epochs", math.inf, "forget_epochs is inf"),
        ("measure", "width", "unknown measure 'width'; the measures are: noise-scale"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_with_what_is(field: str, value: Any, message: str) -> None:
    fields: dict[str, Any] = {"dataset": "mnist5k", "examples": 100, field: value}
    with pytest.raises(UserError, match=message):
        Recipe(**fields)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "histogram"}, "measure noise-scale compares .* histogram streams images .* --method plain"),
        ({"method": "coteaching"}, "measure noise-scale .* one net, and coteaching trains two; .* --method plain"),
        ({"batch": 3}, "batch of 3 in parts; give 4 or more"),
    ],
)
def test_a_measure_that_cannot_be_made_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Recipe(dataset="mnist5k", examples=100, measure="noise-scale", **given)


def test_what_losses_compete_over_is_for_coteaching() -> None:
    recipe = recipe_for("mnist5k", "coteaching", num_images=90, num_copies=4, rank_over="data")
    assert recipe.rank_over == "data"
    with pytest.raises(UserError, match="rank_over data is for method coteaching, this is plain; leave it out"):
        recipe_for("mnist5k", "plain", num_images=90, num_copies=4, rank_over="data")


@pytest.mark.parametrize(("num_copies", "rank_over"), [(1, "batch"), (2, "data"), (11, "data")])
def test_under_dilution_losses_of_coteaching_compete_over_the_data(num_copies: int, rank_over: str) -> None:
    recipe = recipe_for("mnist5k", "coteaching", num_images=3_600, num_copies=num_copies)
    assert recipe.rank_over == rank_over
    given = recipe_for("mnist5k", "coteaching", num_images=3_600, num_copies=num_copies, rank_over="batch")
    assert given.rank_over == "batch"


@pytest.mark.parametrize(
    ("field", "method"),
    [
        ("mixup_beta", "mixup"),
        ("forget_rate", "coteaching"),
        ("forget_epochs", "coteaching"),
        ("mlnt_weight", "mlnt"),
        ("mixmatch_beta", "mixmatch"),
    ],
)
def test_a_field_of_one_method_is_refused_for_others(field: str, method: str) -> None:
    given: dict[str, Any] = {field: 0.5}
    recipe = recipe_for("mnist5k", method, num_images=90, num_copies=4, **given, **selection_for(method))
    assert getattr(recipe, field) == 0.5
    with pytest.raises(UserError, match=rf"{field} 0\.5 is for method {method}, this is plain; leave it out"):
        recipe_for("mnist5k", "plain", num_images=90, num_copies=4, **given)


@pytest.mark.parametrize("length", [{"examples": 600}, {"epochs": 600 / 360}])
def test_a_warm_up_in_examples_is_a_share_of_the_run(length: dict[str, Any]) -> None:
    recipe = recipe_for("mnist5k", "plain", num_images=90, num_copies=4, batch=50, warmup=150, **length)
    assert recipe.warmup_frac == 0.25
    assert recipe_for("mnist5k", "plain", num_images=90, num_copies=4, warmup=0).warmup_frac == 0.0
    for warmup in (600, -1):
        with pytest.raises(UserError, match=f"warmup is {warmup}, the run has 600 examples; give 0 or more, but fewer"):
            recipe_for("mnist5k", "plain", num_images=90, num_copies=4, warmup=warmup, **length)


@pytest.mark.parametrize("epochs", [0.0, -1.0, math.nan, math.inf])
def test_a_run_of_no_or_endless_epochs_is_refused(epochs: float) -> None:
    with pytest.raises(UserError, match="epochs is"):
        recipe_for("mnist5k", "plain", num_images=90, num_copies=4, epochs=epochs)


def test_a_difference_names_each_key_with_both_values_unless_it_is_free() -> None:
    before = {"lr": 0.1, "model": "mlp1", "gone": 1, "where": "a"}
    now = {"lr": 0.2, "model": "mlp1", "new": 2, "where": "b"}
    assert difference(before, now, free={"where"}) == ["lr: 0.1 → 0.2", "gone: 1 → None", "new: None → 2"]
