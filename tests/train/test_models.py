import pytest
import torch
from torch import nn

from pipeline.errors import UserError
from train.models import MODELS, build_model

SHAPES = [(28, 28, 1), (32, 32, 3), (9, 6, 2)]


def weights(net: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(net.parameters())


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("shape", SHAPES)
def test_every_model_turns_images_of_any_shape_into_one_logit_a_class(name: str, shape: tuple[int, int, int]) -> None:
    height, width, channels = shape
    net = build_model(name, shape, 7, seed=0)
    assert net(torch.zeros(2, channels, height, width)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("perceptron", 784 * 10 + 10),
        ("mlp1", 785 * 512 + 513 * 10),
        ("mlp2", 785 * 512 + 513 * 512 + 513 * 10),
        ("mlp4", 785 * 512 + 3 * 513 * 512 + 513 * 10),
        ("conv2", 9 * 32 + 64 + 9 * 32 * 64 + 128 + 3137 * 10),
        ("conv4", 9 * 32 + 64 + 9 * 32 * 32 + 64 + 9 * 32 * 64 + 128 + 9 * 64 * 64 + 128 + 3137 * 256 + 257 * 10),
    ],
)
def test_models_have_the_layers_they_say(name: str, parameters: int) -> None:
    assert len(weights(build_model(name, (28, 28, 1), 10, seed=0))) == parameters


@pytest.mark.parametrize("name", list(MODELS))
def test_predictions_start_uniform(name: str) -> None:
    images = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert not build_model(name, (8, 8, 1), 4, seed=0)(images).any()


def test_only_conv_nets_have_batch_norm() -> None:
    with_norm = [
        name
        for name in MODELS
        if any(isinstance(m, nn.BatchNorm2d) for m in build_model(name, (8, 8, 1), 4, seed=0).modules())
    ]
    assert with_norm == ["conv2", "conv4"]


def test_initial_weights_depend_on_the_seed_and_the_learner_and_on_nothing_else() -> None:
    def made(seed: int, learner: int = 0) -> torch.Tensor:
        return weights(build_model("mlp1", (8, 8, 1), 4, seed=seed, learner=learner))

    torch.manual_seed(1)
    first = made(5)
    torch.manual_seed(2)
    torch.rand(10)
    assert torch.equal(made(5), first)
    assert not torch.equal(made(6), first)
    assert not torch.equal(made(5, learner=1), first)


def test_building_leaves_the_outer_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    build_model("conv2", (8, 8, 1), 4, seed=0)
    assert torch.equal(torch.rand(4), expected)


def test_an_unknown_model_lists_the_menu() -> None:
    with pytest.raises(UserError, match=r"resnet.*perceptron, mlp1, mlp2, mlp4, conv2, conv4"):
        build_model("resnet", (28, 28, 1), 10, seed=0)


def test_a_conv_net_says_which_images_are_too_small() -> None:
    with pytest.raises(UserError, match="3 × 8"):
        build_model("conv4", (3, 8, 1), 4, seed=0)
