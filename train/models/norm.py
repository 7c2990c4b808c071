"""Batch norm, max-pool and (leaky) ReLU as one layer, which on CPUs goes over memory less often than the three do."""

from __future__ import annotations

from typing import Any, Final, cast

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Num
from numpy import ndarray as Array
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from kernels.jit import num_threads
from kernels.norm import (
    bend_sums,
    moments,
    norm_bend,
    norm_pool_relu,
    norm_pool_relu_gradient,
    norm_relu,
    norm_relu_gradient,
    slope_sums,
)

_DTYPES: Final = (torch.bfloat16, torch.float32)


class NormAct(nn.Sequential):
    """Batch norm, a 2 × 2 max-pool where it is asked for, and ReLU, a leaky one or none.

    In training on a CPU, activations of bfloat16 or float32 in channels_last go through kernels of this project. All
    others, torch.compile and torch.func go through torch's own layers, the slow twin that the kernels are tested
    against. A step of conv4 (batch 512, 28 px, bf16, 2 cores of AMD EPYC, torch 2.15) takes 229 ms of CPU time, and 270
    through torch's layers (n = 12 pairs in turn, 20th to 80th percentile of the ratio 1.16 to 1.21). Nets of many
    channels gain nothing (cnn9 1.01 times as fast, cifar_resnet18 0.97, batch 128, one thread, n = 4 and 6) but this:
    gradients may be differentiated once more, as MLNT does, by kernels too; there pool and activation are torch's.

    Deviates: of values of a window that differ, but not once they are normalised and rounded, torch sends the gradient
        to the first, the kernels to the one whose norm is largest before it is rounded. Equal values are no different:
        the first one gets it.

    Args:
        channels: c.
        pool: Whether to pool.
        leak: Slope of the activation below 0: 0 is that of ReLU, and 1 leaves the activation out.
    """

    def __init__(self, channels: int, *, pool: bool = False, leak: float = 0.0) -> None:
        layers: list[nn.Module] = [nn.BatchNorm2d(channels)]
        # The pool stands before the ReLU: the same numbers and gradients, bit for bit, of a quarter of the elements.
        if pool:
            layers.append(nn.MaxPool2d(2))
        if leak < 1:
            layers.append(nn.LeakyReLU(leak, inplace=True) if leak else nn.ReLU(inplace=True))
        super().__init__(*layers)
        self.pool, self.leak = pool, leak

    def forward(self, input: Tensor) -> Tensor:  # no shapes: torch.compile cannot see through their checks
        """Normalise [b, c, h, w] with the statistics of the batch in training, else with those that were kept."""
        norm = cast(nn.BatchNorm2d, self[0])
        momentum = norm.momentum
        if not (norm.training and momentum and _fits(input, norm.weight, least_px=2 if self.pool else 1)):
            return super().forward(input)  # type: ignore[no-any-return, no-untyped-call]
        with num_threads(torch.get_num_threads()):
            mean, var = moments(_values(input))
        count = input.numel() // input.shape[1]
        with torch.no_grad():
            for name, found in (("running_mean", mean), ("running_var", var * (count / (count - 1)))):
                norm.get_buffer(name).lerp_(torch.from_numpy(found).float(), momentum)
            norm.get_buffer("num_batches_tracked").add_(1)
        inv_std = 1 / np.sqrt(var + norm.eps)
        return _Kernels.apply(input, norm.weight, norm.bias, mean, inv_std, self.pool, self.leak)  # type: ignore[no-any-return]


class _Kernels(torch.autograd.Function):
    """The kernels as an operation of torch, given mean and 1 / standard deviation of its input."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Float64[Array, " c"],
        inv_std: Float64[Array, " c"],
        pool: bool,
        leak: float,
    ) -> Tensor:
        terms = np.stack([mean, weight.detach().numpy() * inv_std, bias.detach().numpy()]).astype(np.float32)
        b, c, h, w = input.shape
        shape = (b, c, h // 2, w // 2) if pool else (b, c, h, w)
        out = torch.empty(shape, dtype=input.dtype, memory_format=torch.channels_last)
        chosen = torch.empty_like(out) if pool else input
        with num_threads(torch.get_num_threads()):
            if pool:
                norm_pool_relu(_values(input), terms, leak, _values(chosen), _values(out))
            else:
                norm_relu(_values(input), terms, leak, _values(out))
        ctx.save_for_backward(input, weight, chosen, torch.from_numpy(terms))
        ctx.inv_std, ctx.pool, ctx.leak = inv_std, pool, leak
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, chosen, saved = ctx.saved_tensors
        terms = saved.numpy()
        if torch.is_grad_enabled():  # the gradient is to be differentiated itself
            passed = _passed(input, grad, terms, pool=ctx.pool, leak=ctx.leak)
            return *_NormGradient.apply(input, weight, passed, terms, ctx.inv_std), *[None] * 4
        grad, wanted = grad.contiguous(memory_format=torch.channels_last), ctx.needs_input_grad[0]
        return *_gradients(input, chosen, grad, terms, ctx.inv_std, wanted, pool=ctx.pool, leak=ctx.leak), *[None] * 4


def _gradients(
    input: Tensor,
    chosen: Tensor,
    grad: Tensor,
    terms: Float32[Array, "3 c"],
    inv_std: Float64[Array, " c"],
    wanted: bool,
    *,
    pool: bool,
    leak: float,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Return the gradients of the input, if it is wanted, of the weight and of the bias."""
    count = input.numel() // input.shape[1]
    with num_threads(torch.get_num_threads()):
        d_shift, far = slope_sums(_values(chosen), _values(grad), terms, leak)
        d_weight = far * inv_std
        d_input = torch.empty_like(input) if wanted else None
        if d_input is not None:
            scale = terms[1].astype(np.float64) / -count
            slopes = np.stack([*terms, scale * inv_std * d_weight, scale * d_shift]).astype(np.float32)
            if pool:
                norm_pool_relu_gradient(_values(input), _values(chosen), _values(grad), slopes, leak, _values(d_input))
            else:
                norm_relu_gradient(_values(input), _values(grad), slopes, leak, _values(d_input))
    return d_input, torch.from_numpy(d_weight).float(), torch.from_numpy(d_shift).float()


def _passed(input: Tensor, grad: Tensor, terms: Float32[Array, "3 c"], *, pool: bool, leak: float) -> Tensor:
    """Return the gradient that passes activation and pool on its way to the norm, as torch can differentiate it."""
    if leak == 1 and not pool:
        return grad
    # Rounded to bfloat16, values of a window could be equal that are not.
    normed = torch.empty_like(input, dtype=torch.float32 if pool else input.dtype)
    with num_threads(torch.get_num_threads()):
        norm_relu(_values(input), terms, 1.0, _values(normed))
    normed.requires_grad_()
    top = F.max_pool2d(normed, 2) if pool else normed
    out = F.leaky_relu(top, leak)
    return torch.autograd.grad(out, normed, grad.to(out.dtype), create_graph=True)[0].to(input.dtype)


class _NormGradient(torch.autograd.Function):
    """The backward pass of batch norm as an operation of torch that has a backward pass of its own."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        grad: Tensor,
        terms: Float32[Array, "3 c"],
        inv_std: Float64[Array, " c"],
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        grad = grad.contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(input, weight, grad)
        ctx.mean, ctx.inv_std = terms[0], inv_std
        ctx.set_materialize_grads(False)
        return _gradients(input, input, grad, terms, inv_std, True, pool=False, leak=1.0)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, bend: Tensor | None, bend_weight: Tensor | None, bend_bias: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of the input, of the weight and of the gradient that came.

        With x̂ the normalised input, s = 1 / standard deviation, w the weight and ⟨·⟩ the mean over a channel, g
        becomes w·s·(g - ⟨g⟩ - x̂·⟨g·x̂⟩), Σ g·x̂ and Σ g; this is what those three turn their own gradients h, v and u
        into, x̂ and s being functions of the input.
        """
        input, weight, grad = ctx.saved_tensors
        mean, s = ctx.mean, ctx.inv_std
        w, none = weight.detach().numpy().astype(np.float64), np.zeros(len(mean))
        v = none if bend_weight is None else bend_weight.numpy().astype(np.float64)
        u = none if bend_bias is None else bend_bias.numpy().astype(np.float64)
        bend = torch.zeros_like(grad) if bend is None else bend.contiguous(memory_format=torch.channels_last)
        count = input.numel() // input.shape[1]
        of_grad, of_input = torch.empty_like(grad), torch.empty_like(input)
        with num_threads(torch.get_num_threads()):
            sums = bend_sums(_values(input), _values(grad), _values(bend), mean) / count
            g, gx, h, hx, gh = sums
            gx, hx = s * gx, s * hx
            slope = s * (v - w * s * hx)
            terms = np.stack(
                [
                    mean,
                    u - w * s * h,
                    slope,
                    w * s,
                    w * s**2 * (gx * h + hx * g) - v * s * g,
                    s**2 * (w * s * (g * h - gh + 3 * gx * hx) - v * gx),
                    -w * s**2 * gx,
                    slope,
                ]
            )
            norm_bend(
                _values(input),
                _values(grad),
                _values(bend),
                terms.astype(np.float32),
                _values(of_grad),
                _values(of_input),
            )
        of_weight = count * s * (gh - g * h - gx * hx)
        return of_input, torch.from_numpy(of_weight).float(), of_grad, None, None


def _fits(input: Tensor, weight: Tensor, *, least_px: int) -> bool:
    """Say whether the kernels can take an activation."""
    return (
        type(input) is Tensor
        and input.device.type == "cpu"
        and input.dtype in _DTYPES
        and weight.dtype == torch.float32
        and input.is_contiguous(memory_format=torch.channels_last)
        and min(input.shape[2:]) >= least_px
        and input.numel() > input.shape[1]  # torch refuses a single value a channel
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
    )


def _values(images: Float[Tensor, "b c h w"]) -> Num[Array, "b h w c"]:
    """Show a kernel an activation as [b, h, w, c]; NumPy has no bfloat16 and gets its bits."""
    images = images.detach().permute(0, 2, 3, 1)
    return (images.view(torch.uint16) if images.dtype == torch.bfloat16 else images).numpy()
