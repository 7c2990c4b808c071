"""Nets, built from the shape of an image and the number of classes; one file each family, and all of timm by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import torch
from torch import nn

from kernels.philox import INIT, word
from pipeline.errors import UserError
from train.models.cnn9 import cnn9
from train.models.preact import preact_resnet18, wrn_28_2
from train.models.resnet import cifar_resnet18, cifar_resnet32
from train.models.small import Shape, conv2, conv4, conv6, mlp, perceptron

MODELS: Final[dict[str, Callable[[Shape, int], nn.Module]]] = {
    "perceptron": perceptron,
    "mlp1": partial(mlp, num_hidden=1),
    "mlp2": partial(mlp, num_hidden=2),
    "mlp4": partial(mlp, num_hidden=4),
    "conv2": conv2,
    "conv4": conv4,
    "conv6": conv6,
    "cnn9": cnn9,
    "cifar_resnet18": cifar_resnet18,
    "cifar_resnet32": cifar_resnet32,
    "preact_resnet18": preact_resnet18,
    "wrn_28_2": wrn_28_2,
}


def check_model(name: str) -> None:
    """Refuse a name that neither this package nor timm knows.

    Raises:
        UserError: With the menu and the nearest names.
    """
    if name in MODELS:
        return
    import timm  # takes a second, which a net of ours need not wait for

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, [*MODELS, *timm.list_models()], n=5)
        raise UserError(
            f"unknown model '{name}'; the models are: {', '.join(MODELS)}, and all of timm's"
            + (f"; nearest: {', '.join(near)}" if near else "")
        )
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # a tag that it does not have
        raise UserError(f"unknown model '{name}': {str(error).rstrip('.')}; leave out what follows the dot") from error


def build_model(name: str, image_shape: Shape, num_classes: int, *, seed: int, learner: int = 0) -> nn.Module:
    """Build a net whose initial weights depend on nothing but the arguments.

    The last layer (or each of several) starts at zero: predictions start uniform, which α-diluted labels nearly are.

    Args:
        name: One of `MODELS`, or a model of timm.
        image_shape: (h, w, c) of an image.
        num_classes: K.
        seed: The run's seed.
        learner: Which of the nets of a run; each has weights of its own.

    Raises:
        UserError: If nobody knows the name or the images are too small for the net.
    """
    check_model(name)
    make = MODELS.get(name) or partial(_from_timm, name)
    with torch.random.fork_rng(devices=[]):  # the outer generator stays as it was
        torch.default_generator.manual_seed(word(seed, INIT, learner))
        net = make(image_shape, num_classes)
    for last in last_layers(net):
        for parameter in last.parameters(recurse=False):
            nn.init.zeros_(parameter)
    return net


def last_layers(net: nn.Module) -> list[nn.Linear | nn.Conv2d]:
    """Return the layers that give a net's logits, linear or convolutions: one, or several whose mean is taken.

    Raises:
        UserError: If there is none.
    """
    classifier: Any = getattr(net, "get_classifier", lambda: net)
    heads = classifier()
    found: list[nn.Linear | nn.Conv2d] = []
    for head in heads if isinstance(heads, list | tuple | nn.ModuleList) else [heads]:
        found += [layer for layer in head.modules() if isinstance(layer, nn.Linear | nn.Conv2d)][-1:]
    if not found:
        raise UserError(f"{type(net).__name__} ends in no linear layer or convolution that gives its logits")
    return found


def _from_timm(name: str, image_shape: Shape, num_classes: int) -> nn.Module:
    """Make a model of timm, without weights of its own.

    Raises:
        UserError: If it takes no images of this size.
    """
    import timm

    height, width, channels = image_shape
    known = timm.get_pretrained_cfg(name)
    sized: dict[str, Any] = {"img_size": (height, width)} if known is not None and known.fixed_input_size else {}
    try:
        net: nn.Module = timm.create_model(name, num_classes=num_classes, in_chans=channels, **sized)
        with torch.no_grad():
            net.eval()(torch.zeros(1, channels, height, width))  # some say so only now
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"timm's {name} takes no images of {height} × {width}: {error}; give another --size") from error
    return net.train()
