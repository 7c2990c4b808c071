import copy
import gc
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

from train.models.norm import NormAct

DTYPES = [torch.bfloat16, torch.float32]
KERNELS = "_KernelsBackward"


LEAKS = [0.0, 0.01, 1.0]


def layer(channels: int, *, pool: bool, leak: float = 0.0, seed: int = 0) -> NormAct:
    """A layer with weights of either sign, one of them 0, and biases that leave no norm at exactly 0."""
    made = NormAct(channels, pool=pool, leak=leak)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for each in made.parameters():
            each.normal_(generator=generator)
        made.get_parameter("0.weight")[0] = 0
    return made


def activation(shape: tuple[int, ...], dtype: torch.dtype, *, seed: int = 0, steps: int = 0) -> Tensor:
    """Values around 3 of any size, or of few sizes: then many windows have equal ones."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    values = (values * steps).round() / steps if steps else values
    return (2 * values + 3).to(dtype).contiguous(memory_format=torch.channels_last)


def passes(net: nn.Module, images: Tensor, grad: Tensor) -> dict[str, Tensor]:
    """All that comes out of a step."""
    net, images = copy.deepcopy(net), images.clone(memory_format=torch.preserve_format).requires_grad_()
    out = net(images)
    out.backward(grad)
    assert images.grad is not None
    gradients = {name: each.grad for name, each in net.named_parameters() if each.grad is not None}
    return {"out": out.detach(), "d_input": images.grad, **gradients, **dict(net.named_buffers())}


SHAPE = st.tuples(st.integers(1, 5), st.integers(1, 40), st.integers(2, 9), st.integers(2, 9))


@pytest.mark.parametrize("dtype", DTYPES)
@given(
    shape=SHAPE,
    pool=st.booleans(),
    leak=st.sampled_from(LEAKS),
    seed=st.integers(0, 2**31),
    steps=st.sampled_from([0, 1, 4]),
)
def test_kernels_do_what_torch_does_in_float64(
    dtype: torch.dtype, shape: tuple[int, ...], pool: bool, leak: float, seed: int, steps: int
) -> None:
    assume(shape[0] * shape[2] * shape[3] > 4)
    net, images = layer(shape[1], pool=pool, leak=leak, seed=seed), activation(shape, dtype, seed=seed, steps=steps)
    out = net(images)
    assert type(out.grad_fn).__name__ == KERNELS
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert out.dtype == dtype
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed + 1)).to(dtype)
    found = passes(net, images, grad)
    wanted = passes(copy.deepcopy(net).double(), images.double(), grad.double())
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        # What the kernels sum is float32 for at most 64 terms; bfloat16 rounds to 9 bits what they write.
        rounded = 2**-8 if dtype == torch.bfloat16 and name in ("out", "d_input") else 0
        size = wanted[name].abs().max().item()
        torch.testing.assert_close(
            value.double(),
            wanted[name].double(),
            rtol=rounded,
            atol=1e-5 * size + 1e-7,
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pool", [False, True])
def test_the_number_of_threads_changes_no_bit(dtype: torch.dtype, pool: bool) -> None:
    net, images = layer(32, pool=pool), activation((7, 32, 29, 30), dtype)  # 195,000 values: three chunks
    grad = torch.randn(net(images).shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(passes(net, images, grad))
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_a_mean_that_is_large_against_the_deviation_costs_no_digits() -> None:
    net, images = layer(8, pool=False), activation((50, 8, 9, 9), torch.float32) + 3000
    found = passes(net, images, torch.ones_like(images))
    wanted = images.double().var(dim=(0, 2, 3)) * 0.1 + 0.9
    torch.testing.assert_close(found["0.running_var"].double(), wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pool", [False, True])
def test_what_is_not_finite_stays_so(bad: float, dtype: torch.dtype, pool: bool) -> None:
    net, images = layer(20, pool=pool), activation((2, 20, 4, 4), dtype)
    images[1, 3, 2, 2] = bad
    found = passes(net, images, torch.ones_like(net(images)))
    for name in ("out", "d_input"):
        assert found[name][:, 3].isnan().all()
        assert found[name][:, :3].isfinite().all()


def test_of_equal_values_the_first_one_gets_the_gradient() -> None:
    net = NormAct(1, pool=True)
    nn.init.constant_(net.get_parameter("0.bias"), 5.0)
    images = torch.zeros(1, 1, 4, 4)
    images[0, 0, :2, 2:] = torch.tensor([[0.0, 1.0], [1.0, 1.0]])
    images = images.requires_grad_()
    grad = torch.tensor([[[[1.0, 10.0], [100.0, 1000.0]]]])
    net(images).backward(grad)
    plain = images.detach().clone().requires_grad_()
    nn.functional.batch_norm(plain, None, None, *net.parameters(), training=True).backward(
        torch.tensor([[[[1.0, 0, 0, 10], [0, 0, 0, 0], [100, 0, 1000, 0], [0, 0, 0, 0]]]])
    )
    torch.testing.assert_close(images.grad, plain.grad, rtol=1e-5, atol=1e-4)  # sums of 1111 in float32


@pytest.mark.parametrize("pool", [False, True])
def test_gradients_may_be_asked_for_again_and_one_by_one(pool: bool) -> None:
    net, images = layer(6, pool=pool), activation((3, 6, 5, 4), torch.float32).requires_grad_()
    asked = [images, *net.parameters()]
    out = net(images)
    first = torch.autograd.grad(out.square().sum(), asked, retain_graph=True)
    for at, each in enumerate(asked):
        (alone,) = torch.autograd.grad(out.square().sum(), each, retain_graph=True)
        assert torch.equal(alone, first[at])
    net.requires_grad_(False)
    assert torch.equal(torch.autograd.grad(net(images).square().sum(), images)[0], first[0])


def test_what_a_pass_kept_is_freed_by_its_backward_pass() -> None:
    net, images = layer(6, pool=True), activation((3, 6, 4, 4), torch.float32).requires_grad_()
    between = images * 1
    kept = weakref.ref(between)
    out = net(between)
    del between
    gc.collect()
    assert kept() is not None
    out.sum().backward()
    gc.collect()
    assert kept() is None
    with pytest.raises(RuntimeError, match="second time"):
        out.sum().backward()


def test_an_activation_that_was_overwritten_is_noticed() -> None:
    net, images = layer(6, pool=False), activation((3, 6, 4, 4), torch.float32).requires_grad_()
    between = images * 1
    out = net(between)
    between.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize("dtype", DTYPES)
@given(shape=SHAPE, pool=st.booleans(), leak=st.sampled_from(LEAKS), seed=st.integers(0, 2**31))
def test_gradients_can_be_differentiated_again(
    dtype: torch.dtype, shape: tuple[int, ...], pool: bool, leak: float, seed: int
) -> None:
    assume(shape[0] * shape[2] * shape[3] > 8)
    net, images = layer(shape[1], pool=pool, leak=leak, seed=seed), activation(shape, dtype, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    grad = torch.randn(net(images).shape, generator=generator).to(dtype)
    bends = [torch.randn(each.shape, generator=generator).to(each.dtype) for each in (images, *net.parameters())]
    found = []
    for exact in (False, True):
        own = copy.deepcopy(net).double() if exact else net
        asked = [each.detach().double() if exact else each.detach().clone() for each in (images, grad)]
        asked = [each.contiguous(memory_format=torch.channels_last).requires_grad_() for each in asked]
        first = torch.autograd.grad(own(asked[0]), [asked[0], *own.parameters()], asked[1], create_graph=True)
        if not exact:
            assert type(first[0].grad_fn).__name__ == "_NormGradientBackward"
        asked.append(own.get_parameter("0.weight"))
        found.append(
            torch.autograd.grad(first, asked, [each.to(f.dtype) for each, f in zip(bends, first, strict=True)])
        )
    for low, high in zip(*found, strict=True):
        rounded = 2**-7 if dtype == torch.bfloat16 else 2e-5  # twice to 9 bits, or float32 that cancels
        torch.testing.assert_close(low.double(), high, rtol=rounded, atol=rounded * high.abs().max().item())


def test_parts_of_the_gradient_can_be_differentiated_again() -> None:
    found = []
    for exact in (False, True):
        net, images = layer(6, pool=False), activation((3, 6, 5, 4), torch.float32)
        net, images = (net.double(), images.double()) if exact else (net, images)
        images.requires_grad_()
        out = net(images).square().sum()
        asked = [images, *net.parameters()]
        for wanted in ([images], [net.get_parameter("0.weight")], [net.get_parameter("0.bias")]):
            (first,) = torch.autograd.grad(out, wanted, create_graph=True)
            found.append(torch.autograd.grad(first.square().sum(), asked, retain_graph=True))
    for lows, highs in zip(found[:3], found[3:], strict=True):
        for low, high in zip(lows, highs, strict=True):
            torch.testing.assert_close(low.double(), high, rtol=1e-4, atol=1e-4 * high.abs().max().item())


def functional(net: nn.Module, images: Tensor) -> Tensor:
    def total(weights: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        out: Tensor = torch.func.functional_call(net, (weights, buffers), images)
        return out.sum()

    weights = {name: each.detach() for name, each in net.named_parameters()}
    return torch.cat(list(torch.func.grad(total)(weights, dict(net.named_buffers())).values()))


OTHERS: dict[str, Callable[[nn.Sequential, Tensor], Tensor]] = {
    "evaluation": lambda net, images: net.eval()(images),
    "contiguous": lambda net, images: net(images.contiguous()),
    "float64": lambda net, images: net.double()(images.double()),
    "compiled": lambda net, images: torch.compile(net, backend="eager", fullgraph=True)(images),
    "functional": functional,
    "a norm of its own momentum": lambda net, images: setattr(net[0], "momentum", None) or net(images),
}


@pytest.mark.parametrize("name", OTHERS)
def test_everything_else_goes_through_torchs_layers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images = activation((3, 5, 4, 4), torch.float32)
    plain = nn.Sequential(*layer(5, pool=True))
    wanted = OTHERS[name](plain, images)
    monkeypatch.setattr("train.models.norm._Kernels", None)
    assert torch.equal(OTHERS[name](layer(5, pool=True), images), wanted)


def test_the_state_is_that_of_batch_norm() -> None:
    net, norm = layer(5, pool=True), nn.BatchNorm2d(5)
    assert list(net.state_dict()) == [f"0.{name}" for name in norm.state_dict()]
    assert net.get_buffer("0.num_batches_tracked") == 0
    net(activation((3, 5, 4, 4), torch.bfloat16))
    assert net.get_buffer("0.num_batches_tracked") == 1


@pytest.mark.parametrize(("shape", "pool"), [((1, 4, 1, 1), False), ((3, 4, 1, 5), True)])
def test_what_torch_refuses_is_refused(shape: tuple[int, ...], pool: bool) -> None:
    with pytest.raises((ValueError, RuntimeError), match=r"more than 1 value|too small"):
        layer(4, pool=pool)(activation(shape, torch.float32))


@pytest.mark.slow
def test_kernels_run_as_plain_python() -> None:
    code = (
        "import sys, torch\n"
        "sys.path[:0] = ['.', 'tests']\n"
        "from train.models.norm import NormAct\n"
        "for dtype in (torch.bfloat16, torch.float32):\n"
        "    for pool, leak in ((False, 0.0), (True, 0.01)):\n"
        "        images = torch.randn(2, 17, 3, 5).to(dtype).contiguous(memory_format=torch.channels_last)\n"
        "        found = []\n"
        "        low, high = (NormAct(17, pool=pool, leak=leak) for _ in range(2))\n"
        "        for net, given in ((low, images), (high.double(), images.double())):\n"
        "            given = given.clone(memory_format=torch.preserve_format).requires_grad_()\n"
        "            out = net(given)\n"
        "            out.square().sum().backward()\n"
        "            found.append((out, given.grad))\n"
        "        assert type(found[0][0].grad_fn).__name__ == '_KernelsBackward'\n"
        "        for low, high in zip(*found, strict=True):\n"
        "            assert (low - high).abs().max() < 0.02 * high.abs().max()\n"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, env={"NUMBA_DISABLE_JIT": "1"}, timeout=100)
