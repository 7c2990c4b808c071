"""How many parts a batch must be cut into so that a step fits memory."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from pipeline.errors import UserError
from train.learner import untouched

_PROBE: Final = 4  # images; what twice as many need more, they need themselves
_BESIDE: Final = 1.5  # gradients and work space, beside what is kept for the backward pass
_PIXEL_BYTES: Final = 4  # of a channel: batches come in float32
_SHARE: Final = 0.8  # of the free memory


def parts_that_fit(
    net: nn.Module, image_shape: tuple[int, int, int], batch: int, dtype: torch.dtype, views: int = 0, ahead: int = 0
) -> int:
    """Return the smallest number of equal parts of a batch whose activations fit the free memory of the net's device.

    Args:
        net: Not changed.
        image_shape: (h, w, c) of an image.
        batch: Images a step.
        dtype: What the net computes in.
        views: Images that each of those brings with it.
        ahead: Batches that the loader keeps, besides the one at work and the one that it makes.

    Raises:
        UserError: If a single one does not fit.
    """
    device = next(net.parameters()).device
    few, more = (activation_bytes(net, image_shape, number * _PROBE, dtype) for number in (1, 2))
    size = (more - few) / _PROBE * (1 + views)
    free = free_bytes(device) - (2 + ahead) * batch * (1 + views) * math.prod(image_shape) * _PIXEL_BYTES
    for parts in (number for number in range(1, batch + 1) if batch % number == 0):
        if batch // parts * size * _BESIDE <= _SHARE * free:
            return parts
    raise UserError(
        f"one example needs {size * _BESIDE / 1e9:.1f} GB for its activations, {max(0, free) / 1e9:.1f} GB are free "
        f"beside {2 + ahead} batches of images; give a smaller --model, --size or --batch"
    )


def activation_bytes(net: nn.Module, image_shape: tuple[int, int, int], batch: int, dtype: torch.dtype) -> int:
    """Return the bytes that a training pass keeps for its backward pass, parameters not counted."""
    height, width, channels = image_shape
    first = next(net.parameters())
    own = {parameter.untyped_storage().data_ptr() for parameter in net.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    images = torch.zeros(batch, channels, height, width, device=first.device)
    training = net.training
    net.train()
    try:
        with (
            untouched(net),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast(first.device.type, dtype=dtype, enabled=dtype is not torch.float32),
        ):
            logits = net(images.to(memory_format=torch.channels_last))
    finally:
        net.train(training)
    del logits  # until here nothing that was kept was freed, and no address stood for two
    return sum(kept.values())


def free_bytes(device: torch.device) -> int:
    """Return how much memory of a device is free for this process: a GPU's, or its share of the machine's.

    The machine's lies within the limit of its container, and all processes that torchrun started there share it.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and (text := limit.read_text().strip()) != "max":
        free = min(free, int(text) - int(used.read_text()))
    return free // int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # torchrun's


def is_out_of_memory(error: Exception) -> bool:
    """Say whether an error of torch is that of an allocator which got no memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


@contextmanager
def memory_named(what: str, *, accumulate: int) -> Iterator[None]:
    """Say which knob to turn where what is done in this block does not fit memory.

    Args:
        what: What is done.
        accumulate: In how many parts a batch comes; evaluations are as large as those.

    Raises:
        UserError: In place of the allocator's error.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = next(iter(str(error).splitlines()), "") or "no memory"
        raise UserError(
            f"out of memory in {what} ({reason[:120]}); give --accumulate {2 * accumulate} or more, or auto, or a "
            "smaller --batch; the last checkpoint is kept"
        ) from error
