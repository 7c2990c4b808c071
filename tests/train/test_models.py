import pytest
import torch
from torch import nn

from pipeline.errors import UserError
from train.models import MODELS, build_model, check_model, last_layers
from train.models.norm import NormAct
from train.models.twins import Twins

SHAPES = [(28, 28, 1), (32, 32, 3), (11, 9, 2)]


def large_enough(name: str, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    return (max(28, shape[0]), max(28, shape[1]), shape[2]) if name == "cnn9" else shape


def weights(net: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(net.parameters())


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("shape", SHAPES)
def test_every_model_turns_images_of_any_shape_into_one_logit_a_class(name: str, shape: tuple[int, int, int]) -> None:
    height, width, channels = large_enough(name, shape)
    shape = height, width, channels
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
        (
            "conv6",
            64 * (9 + 2 + 576 + 2) + 128 * (576 + 2 + 1152 + 2) + 256 * (1152 + 2 + 2304 + 2) + 2305 * 256 + 2570,
        ),
        ("conv4", 9 * 32 + 64 + 9 * 32 * 32 + 64 + 9 * 32 * 64 + 128 + 9 * 64 * 64 + 128 + 3137 * 256 + 257 * 10),
    ],
)
def test_models_have_the_layers_they_say(name: str, parameters: int) -> None:
    assert len(weights(build_model(name, (28, 28, 1), 10, seed=0))) == parameters


@pytest.mark.parametrize("name", ["conv2", "conv4", "conv6"])
def test_pooling_before_relu_is_pooling_after_it(name: str) -> None:
    """Which is how the nets are described; in torch's own layers to the bit, ties of equal pixels included."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 3, (8, 3, 16, 16), generator=generator).float()
    found = []
    for pool_last in (False, True):
        net = build_model(name, (16, 16, 3), 5, seed=0)
        assert isinstance(net, nn.Sequential)
        nn.init.constant_(net[-1].weight, 0.01)  # it begins at zero and would let no gradient through
        layers = list(net)
        for at, layer in enumerate(layers):
            if pool_last and isinstance(layer, NormAct) and len(layer) == 3:
                norm, pool, relu = layer
                assert isinstance(pool, nn.MaxPool2d)
                layers[at] = nn.Sequential(norm, relu, pool)
        logits = nn.Sequential(*layers)(images)
        (logits[:, 0] - logits[:, 1] ** 2).sum().backward()
        found.append([logits, *(weight.grad for weight in net.parameters())])
    for first, last in zip(*found, strict=True):
        assert first is not None
        assert last is not None
        assert first.abs().sum() > 0
        assert torch.equal(first, last)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [  # 3 channels, 10 classes; as the papers and their usual code have them
        ("cifar_resnet18", 11_173_962),
        ("cifar_resnet32", 464_154),
        ("preact_resnet18", 11_172_170),
        ("wrn_28_2", 1_467_610),
        ("cnn9", 4_434_570 - (3 * 128 + 3 * 256 + 512 + 256 + 128)),  # the paper's has biases before batch norm
    ],
)
def test_residual_nets_have_the_size_that_is_known(name: str, parameters: int) -> None:
    assert len(weights(build_model(name, (32, 32, 3), 10, seed=0))) == parameters


@pytest.mark.parametrize("name", ["cifar_resnet32", "wrn_28_2"])
def test_a_residual_block_begins_as_it_is_written(name: str) -> None:
    """With a second convolution of zeros a block hands on its shortcut."""
    net = build_model(name, (8, 8, 3), 4, seed=0).eval()
    blocks = [module for module in net.modules() if hasattr(module, "second")]
    assert len(blocks) == {"cifar_resnet32": 15, "wrn_28_2": 12}[name]
    same_shape = [block for block in blocks if block.first.stride == (1, 1) and block.projection is None]
    for block in same_shape[:2]:
        nn.init.zeros_(block.second.weight)
        images = torch.rand(2, block.first.in_channels, 4, 4)
        torch.testing.assert_close(block(images), images)  # not below 0, so that a last ReLU changes nothing
    padded = next(block for block in blocks if block.first.stride == (2, 2))
    nn.init.zeros_(padded.second.weight)
    images = torch.rand(2, padded.first.in_channels, 4, 4)
    out = padded(images)
    assert out.shape == (2, 2 * images.shape[1], 2, 2)
    if padded.projection is None:
        half = images.shape[1] // 2
        torch.testing.assert_close(out[:, half : half + images.shape[1]], images[:, :, ::2, ::2])
        assert not out[:, :half].any()


def test_models_of_timm_are_built_by_name_for_the_images_that_there_are() -> None:
    net = build_model("test_resnet", (40, 32, 1), 7, seed=0).eval()
    assert net(torch.rand(2, 1, 40, 32)).shape == (2, 7)
    assert torch.equal(weights(net), weights(build_model("test_resnet", (40, 32, 1), 7, seed=0)))
    assert not torch.equal(weights(net), weights(build_model("test_resnet", (40, 32, 1), 7, seed=1)))
    sized = build_model("test_vit", (64, 64, 3), 5, seed=0).eval()
    assert sized(torch.rand(1, 3, 64, 64)).shape == (1, 5)


@pytest.mark.parametrize(("name", "heads"), [("dla34", 1), ("resnetv2_18", 1), ("swiftformer_xs", 2)])
def test_models_of_timm_start_uniform_whatever_gives_their_logits(name: str, heads: int) -> None:
    net = build_model(name, (64, 64, 3), 6, seed=0).train()
    assert len(last_layers(net)) == heads
    assert not net(torch.rand(2, 3, 64, 64))[0].any()


def test_a_tag_that_a_model_of_timm_does_not_have_is_named() -> None:
    with pytest.raises(UserError, match=r"'resnet18\.bogus': .*bogus.*18; leave out what follows the dot"):
        build_model("resnet18.bogus", (64, 64, 3), 5, seed=0)


def test_a_model_of_timm_says_which_images_it_cannot_take() -> None:
    with pytest.raises(UserError, match=r"test_vit takes no images of 50 × 64: .*; give another --size"):
        build_model("test_vit", (50, 64, 3), 5, seed=0)


@pytest.mark.parametrize("name", list(MODELS))
def test_predictions_start_uniform(name: str) -> None:
    shape = large_enough(name, (8, 8, 1))
    images = torch.randn(3, 1, *shape[:2], generator=torch.Generator().manual_seed(0))
    assert not build_model(name, shape, 4, seed=0)(images).any()


def test_only_conv_nets_have_batch_norm() -> None:
    with_norm = [
        name
        for name in MODELS
        if any(isinstance(m, nn.BatchNorm2d) for m in build_model(name, (28, 28, 1), 4, seed=0).modules())
    ]
    assert with_norm == [name for name in MODELS if not name.startswith(("perceptron", "mlp"))]


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


def test_an_unknown_model_lists_the_menu_and_the_nearest_names() -> None:
    with pytest.raises(
        UserError, match=r"'resnet5'; .*perceptron, mlp1, .*conv4.*, and all of timm's; nearest: .*resnet50"
    ):
        build_model("resnet5", (28, 28, 1), 10, seed=0)
    with pytest.raises(UserError, match=r"and all of timm's$"):
        check_model("?")


def test_a_conv_net_says_which_images_are_too_small() -> None:
    with pytest.raises(UserError, match="3 × 8"):
        build_model("conv4", (3, 8, 1), 4, seed=0)
    with pytest.raises(UserError, match="cnn9 needs images of 28 × 28 px or more, these are 27 × 40; give another"):
        build_model("cnn9", (27, 40, 1), 4, seed=0)


def test_the_net_of_nine_convolutions_is_laid_out_as_its_paper_has_it() -> None:
    net = build_model("cnn9", (32, 32, 3), 10, seed=0).eval()
    assert isinstance(net, nn.Sequential)
    shapes, pools, images = [], [], torch.rand(2, 3, 32, 32)
    for layer in net:
        if isinstance(layer, NormAct):
            shapes.append(tuple(images.shape[1:]))
            pools.append(layer.pool)
            assert layer.leak == 0.01
        images = layer(images)
    assert shapes == [(128, 32, 32)] * 3 + [(256, 16, 16)] * 3 + [(512, 6, 6), (256, 4, 4), (128, 2, 2)]
    assert [at for at, pool in enumerate(pools) if pool] == [2, 5]
    assert not any(isinstance(layer, nn.Dropout | nn.Dropout2d) for layer in net.modules())


def test_twins_give_the_logits_of_both_in_training_and_of_the_first_in_evaluation() -> None:
    first, second = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    twins, images = Twins(first, second), torch.randn(5, 1, 2, 2)
    assert torch.equal(twins(images), torch.stack([first(images), second(images)]))
    assert not torch.equal(*twins(images))
    assert torch.equal(twins.eval()(images), first(images))
