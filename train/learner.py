"""A net with its optimizer: the only file that knows precision, gradients and updates."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from jaxtyping import Float32
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel

from pipeline.errors import UserError
from train.adadelta import Adadelta
from train.clock import Clock
from train.distributed import ALONE, World

_DTYPES: Final = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "fp32": torch.float32}
PRECISIONS: Final = ("auto", *_DTYPES)


Groups = list[dict[str, Any]]
Weights = dict[str, Tensor]


def _sgd(groups: Groups, momentum: float, beta2: float) -> torch.optim.Optimizer:
    sgd = torch.optim.SGD(groups, lr=0.0, momentum=momentum, nesterov=momentum > 0, fused=True)
    # The fused kernel leaves these uninitialised when it is told to skip the very first step.
    for parameter in (p for group in groups for p in group["params"] if momentum):
        sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return sgd


def _adamw(groups: Groups, momentum: float, beta2: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=0.0, betas=(momentum, beta2), fused=True)


def _adadelta(groups: Groups, momentum: float, beta2: float) -> torch.optim.Optimizer:
    return Adadelta(groups, rho=momentum)


OPTIMIZERS: dict[str, Callable[[Groups, float, float], torch.optim.Optimizer]] = {
    "sgd": _sgd,
    "adamw": _adamw,
    "adadelta": _adadelta,
}


def resolve_precision(name: str, device: torch.device) -> str:
    """Turn "auto" into bf16 where the hardware computes in it, else fp32.

    Args:
        name: One of `PRECISIONS`.
        device: Where the net computes.

    Raises:
        UserError: If the name is not on the menu or the device cannot do it.
    """
    if name not in PRECISIONS:
        raise UserError(f"unknown precision '{name}'; the precisions are: {', '.join(PRECISIONS)}")
    if name in ("fp16", "tf32") and device.type != "cuda":
        raise UserError(f"precision {name} needs an NVIDIA GPU and there is none; give --precision bf16 or fp32")
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    in_hardware = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if in_hardware else "fp32"


def allow_tf32(allowed: bool) -> None:
    """Let GPUs round the factors of float32 products to TF32's 10 bits, or not; torch's own choice differs by layer."""
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed  # set by layer, torch's compiler could no longer read it


class Learner:
    """A net, its optimizer and its precision.

    A loss that is not finite raises a flag on the device, and from that step on no update is applied: weights and
    optimizer stay as they were (batch norm's running statistics do not, they move in the forward pass). The host
    reads the flag when it reads the metrics, so the step never waits for it.

    Args:
        net: Moved to the device, in channels_last.
        rate: Learning rate at a point of the run.
        optimizer: One of `OPTIMIZERS`.
        momentum: SGD's Nesterov momentum, AdamW's first beta, or AdaDelta's rho.
        beta2: AdamW's second beta.
        weight_decay: For weights; norms and biases have none.
        ema: Keep an average of weights and statistics that step s (from 1) moves by ema / (ema + s) of the way: it
            weighs the last 1/ema of the run most, however long the run is. Evaluation uses it; 0 keeps none.
        teacher: Keep an average that each step moves by this share of the way, unless `ema` asks for another.
        compile: Let torch compile the training pass; evaluation runs as it is.
        precision: "bf16", "fp16", "tf32" or "fp32".
        device: Where to compute.

    Attributes:
        net: What is trained.
        evaluated: What is evaluated and kept: the average if there is one, else `net`.
        accumulate: Parts that a batch comes in: `update` is called with the mean loss of each, and steps at the last.
        first_bad_step: Index of the first step whose loss was not finite, -1 before; on the device.

    Source: Shamir and Zhang 2013, "Stochastic gradient descent for non-smooth optimization", polynomial-decay
        averaging, for `ema`.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        rate: Callable[[Clock], float],
        optimizer: str = "sgd",
        momentum: float = 0.9,
        beta2: float = 0.999,
        weight_decay: float = 0.0,
        ema: float = 0.0,
        teacher: Callable[[Clock], float] | None = None,
        compile: bool = False,
        precision: str = "fp32",
        device: str | torch.device = "cpu",
    ) -> None:
        self.device, self.world = torch.device(device), ALONE
        # bf16 convolutions on a CPU with avx512_bf16: 3,900 against 400 examples/s (conv4, batch 128, 28 px).
        self.net = net.to(self.device).to(memory_format=torch.channels_last)
        self.accumulate, self._parts = 1, 0
        self.averaging = (lambda clock: ema / (ema + clock.step + 1)) if ema else teacher
        self.evaluated = copy.deepcopy(self.net).eval() if self.averaging else self.net
        self._compile: Callable[[nn.Module], Callable[..., Any]] = torch.compile if compile else lambda net: net
        self._trained = self._compile(self.net)
        self._shared: DistributedDataParallel | None = None
        self._statistics = [buffer for buffer in self.net.buffers() if buffer.is_floating_point()]
        self._latest, self._average = _floats(self.net), _floats(self.evaluated)
        self.rate = rate
        weights = [p for p in net.parameters() if p.ndim > 1]
        others = [p for p in net.parameters() if p.ndim <= 1]
        groups = [
            {"params": weights, "weight_decay": weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimizer: Any = OPTIMIZERS[optimizer](groups, momentum, beta2)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        self.dtype = _DTYPES[precision]
        if self.device.type == "cuda":
            allow_tf32(precision == "tf32")
        self.first_bad_step = torch.full((), -1, dtype=torch.int64, device=self.device)

    def join(self, world: World) -> None:
        """Share every batch with other processes from here on, which all call this with the same net.

        Gradients and batch norm's running statistics are averaged over them at each step, so that all hold the same
        net. Batch norm itself sees each process's own part of a batch.
        """
        self.world = world
        if world.size > 1:
            self._shared = DistributedDataParallel(self.net)
            self._shared.broadcast_buffers = False  # as an argument it is deprecated from torch 2.15 on
            self._trained = self._compile(self._shared)

    @property
    def part(self) -> int:
        """Index of the part of a batch at work, 0 where it comes whole."""
        return self._parts

    def logits(self, images: Float32[Tensor, "b c h w"]) -> Float32[Tensor, "*nets b k"]:
        """Run the net, or both of `Twins`; what follows (log, cross-entropy, sort) is in float32."""
        if self._shared is not None:  # gradients gather in each process until the last part
            self._shared.require_backward_grad_sync = self._parts + 1 == self.accumulate
        return self.run(self._trained, images)

    def run(self, net: Callable[..., Any], images: Float32[Tensor, "b c h w"]) -> Float32[Tensor, "*nets b k"]:
        """Run any net in this learner's precision; the logits are float32."""
        images = images.to(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not torch.float32):
            logits: Tensor = net(images)
        return logits.float()

    def update(self, loss: Float32[Tensor, ""], clock: Clock) -> None:
        """Do one step of the optimizer, unless the loss of this or an earlier step was not finite.

        Where a batch comes in parts, gradients gather until its last one.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(clock)
        bad = ~torch.isfinite(loss.detach()) & (self.first_bad_step < 0)
        self.first_bad_step = torch.where(bad, clock.step, self.first_bad_step)
        if self.scaler.is_enabled():  # it skips what is not finite, and nothing else
            loss = loss * torch.where(self.first_bad_step >= 0, math.nan, 1.0)
        self.scaler.scale(loss / self.accumulate).backward()  # type: ignore[no-untyped-call]
        self._parts += 1
        if self._parts < self.accumulate:
            return
        self._parts = 0
        if self.world.size > 1:
            self._agree(clock)
        if not self.scaler.is_enabled():  # the scaler brings a found_inf of its own, made of the gradients
            self.optimizer.found_inf = (self.first_bad_step >= 0).float()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.averaging:
            torch._foreach_lerp_(self._average, self._latest, self.averaging(clock))

    def _agree(self, clock: Clock) -> None:
        """Take over a bad loss of any process, and average batch norm's running statistics, in one message."""
        own_flag = (self.first_bad_step >= 0).float()
        message = self.world.sum(torch.cat([own_flag[None], *(each.flatten() for each in self._statistics)]))
        bad = (message[0] > 0) & (self.first_bad_step < 0)
        self.first_bad_step = torch.where(bad, clock.step, self.first_bad_step)
        if self._statistics:
            means = torch.split(message[1:] / self.world.size, [each.numel() for each in self._statistics])
            own = [mean.view_as(each) for mean, each in zip(means, self._statistics, strict=True)]
            torch._foreach_copy_(self._statistics, own)

    @contextmanager
    def evaluating(self) -> Iterator[Callable[[Float32[Tensor, "b c h w"]], Float32[Tensor, "b k"]]]:
        """Yield a function from images to logits that uses batch norm's running statistics and no gradients."""
        self.evaluated.eval()
        try:
            with torch.no_grad():
                yield lambda images: self.run(self.evaluated, images)
        finally:
            self.evaluated.train(self.evaluated is self.net)

    @contextmanager
    def probing(self) -> Iterator[Callable[..., Float32[Tensor, "*nets b k"]]]:
        """Yield a function from images to logits as in training; the run then goes on as if it had not been called.

        Its second argument, weights by name, stands in for the net's own. Batch norm's statistics and torch's
        generators are put back. The net runs as it is, not compiled.
        """

        def logits(images: Float32[Tensor, "b c h w"], weights: Weights | None = None) -> Float32[Tensor, "*nets b k"]:
            return self.run(lambda shown: functional_call(self.net, weights or {}, (shown,)), images)

        with untouched(self.net):
            yield logits

    def wait(self) -> None:
        """Let the device do all that it was told to."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def is_finite(self) -> bool:
        """Say whether all weights and statistics are finite; waits for the device."""
        return bool(torch.stack([t.isfinite().all() for t in self._latest]).all())

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {
            "net": self.net.state_dict(),
            "evaluated": self.evaluated.state_dict() if self.averaging else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.net.load_state_dict(state["net"])
        if self.averaging:
            self.evaluated.load_state_dict(state["evaluated"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])


@contextmanager
def untouched(net: nn.Module) -> Iterator[None]:
    """Put back what training passes of this block change: the net's buffers and torch's generators."""
    device = next(net.parameters()).device
    before = [buffer.clone() for buffer in net.buffers()]
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(net.buffers(), before, strict=True):
                buffer.copy_(value)


def _floats(net: nn.Module) -> list[Tensor]:
    """List weights and statistics; the tensors stay the net's own, also when a state is loaded into it."""
    return [tensor for tensor in net.state_dict().values() if tensor.is_floating_point()]
