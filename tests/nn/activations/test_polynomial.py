"""PolyReLU and PolyNorm: the fast form is the formula, forward and backward."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from modwright.nn.activations import make_activation
from modwright.nn.activations.polynomial import PolyNorm, PolyReLU
from modwright.nn.activations.polynomial_functions import (
    naive_poly_norm,
    naive_poly_relu,
    poly_norm,
    poly_relu,
)
from modwright.nn.component import component_of

KINDS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "poly_relu": (poly_relu, naive_poly_relu),
    "poly_norm": (poly_norm, naive_poly_norm),
}
SHAPES = [(3, 7), (2, 5, 16)]


def given(shape: tuple[int, ...], order: int, zeros: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """x (with zeros in it), coefficients and a bias, in float64, all with gradients."""
    torch.manual_seed(order)
    x = torch.randn(shape, dtype=torch.float64)
    x = torch.where(x.abs() < 0.05, 0.3, x)  # no kink within reach of a finite difference
    if zeros:
        x[..., ::3] = 0.0
    coeff, bias = torch.randn(order, dtype=torch.float64), torch.randn(1, dtype=torch.float64)
    return x.requires_grad_(), coeff.requires_grad_(), bias.requires_grad_()


def gradients(function: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    """What it gives, and the gradients of all inputs."""
    out = function(*inputs)
    weights = torch.linspace(-1, 2, out.numel(), dtype=torch.float32).view_as(out).to(out.dtype)
    return out.detach(), *torch.autograd.grad((out * weights).sum(), inputs)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_function_and_its_gradients_are_those_of_the_formula(
    kind: str, shape: tuple[int, ...], order: int
) -> None:
    fast, naive = KINDS[kind]
    inputs = given(shape, order)
    for ours, truth in zip(gradients(fast, *inputs), gradients(naive, *inputs), strict=True):
        assert ours.shape == truth.shape and ours.dtype == truth.dtype
        torch.testing.assert_close(ours, truth, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_of_poly_norm_are_those_of_finite_differences(
    shape: tuple[int, ...], order: int
) -> None:
    assert torch.autograd.gradcheck(poly_norm, given(shape, order))


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_of_poly_relu_are_those_of_finite_differences(
    shape: tuple[int, ...], order: int
) -> None:
    assert torch.autograd.gradcheck(poly_relu, given(shape, order, zeros=False))
    # Where it has no kink at 0, because the linear term is gone, there as well.
    x, coeff, bias = given(shape, order)

    def smooth(x: Tensor, coeff: Tensor, bias: Tensor) -> Tensor:
        return poly_relu(x, torch.cat((torch.zeros_like(coeff[:1]), coeff[1:])), bias)

    assert torch.autograd.gradcheck(smooth, (x, coeff, bias))


def test_the_gradient_of_poly_relu_at_zero_is_zero() -> None:
    x = torch.tensor([0.0, -0.0, -1.0, 1.0], requires_grad=True)
    poly_relu(x, torch.tensor([2.0, 5.0]), torch.zeros(1)).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0.0, 0.0, 0.0, 12.0]


def test_linear_and_quadratic_polynomials_of_relu_are_relu_and_its_square_bit_for_bit() -> None:
    x = torch.randn(50, 31) * 10
    zero = torch.zeros(1)
    assert torch.equal(poly_relu(x, torch.tensor([1.0, 0.0, 0.0]), zero), x.relu())
    assert torch.equal(poly_relu(x, torch.tensor([0.0, 1.0, 0.0]), zero), x.relu() ** 2)


def test_without_eps_poly_norm_does_not_depend_on_the_scale() -> None:
    act, x = PolyNorm(eps=0.0), torch.randn(4, 9, dtype=torch.float64)
    torch.testing.assert_close(act.double()(3 * x), act(x), rtol=1e-6, atol=1e-6)
    assert (PolyNorm(eps=1e-2).double()(3 * x) - PolyNorm(eps=1e-2).double()(x)).abs().max() > 1e-4


@pytest.mark.parametrize(("rms", "left"), [(0.05, 0.43), (0.01, 0.004)])
def test_eps_crushes_the_cubic_term_of_small_inputs_and_eps_per_order_does_not(
    rms: float, left: float
) -> None:
    torch.manual_seed(0)
    x = rms * torch.randn(64, 4096, dtype=torch.float64)
    size = [term.square().mean().sqrt() for term in PolyNorm().powers(x)]
    assert float(size[2]) == pytest.approx(left, rel=0.05)
    alike = [term.square().mean().sqrt() for term in PolyNorm(eps_per_order=True).powers(x)]
    assert min(alike) > 0.99


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_stored_descending_and_used_ascending(kind: str) -> None:
    module: Any = make_activation(kind, order=3)
    assert list(module.state_dict()) == ["weight", "bias"]
    assert torch.equal(module.weight, torch.full((3,), 1 / 3)) and module.bias.tolist() == [0.0]
    stored = {"weight": torch.tensor([5.0, 3.0, 2.0]), "bias": torch.tensor([0.5])}
    module.load_state_dict(stored)
    assert module.coefficients().tolist() == [2.0, 3.0, 5.0]
    x = torch.randn(6, 8)
    cubic, square, linear = 5.0, 3.0, 2.0
    terms = module.powers(x)
    by_hand = linear * terms[0] + square * terms[1] + cubic * terms[2] + 0.5
    torch.testing.assert_close(module(x), by_hand)
    again = module.state_of(module.coefficients(), module.bias)
    assert all(torch.equal(again[name], value) for name, value in stored.items())


@pytest.mark.parametrize("kind", KINDS)
def test_coefficients_of_another_order_are_not_loaded(kind: str) -> None:
    with pytest.raises(RuntimeError, match=r"weight.*torch.Size\(\[4\]\)"):
        make_activation(kind).load_state_dict(make_activation(kind, order=4).state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_has_one_number_more_than_the_order(kind: str) -> None:
    for order in (1, 2, 3, 4):
        made = make_activation(kind, order=order)
        assert sum(p.numel() for p in made.parameters()) == order + 1


def test_components_say_what_they_are() -> None:
    for kind, separable in (("poly_relu", True), ("poly_norm", False)):
        module: Any = make_activation(kind)
        found = component_of(module)
        assert found is not None
        assert (found.name, found.kind, found.reads) == (kind, "activation", "either")
        assert module.separable is separable
        assert module.no_weight_decay == ("weight", "bias")
        assert module.force_weight_decay == ()
        decays: Any = make_activation(kind, weight_decay=True)
        assert decays.no_weight_decay == ()
        assert decays.force_weight_decay == ("weight", "bias")
        assert module.macs(2, 5) == 0 and "order 3" in module.describe()


def test_reset_parameters_sets_the_start_values_again() -> None:
    module = PolyNorm(order=4)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(7.0)
    module.reset_parameters()
    assert module.weight.tolist() == [0.25] * 4 and module.bias.tolist() == [0.0]


# Precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_rounded_once(kind: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module, x = make_activation(kind), torch.randn(16, 64)
    half = x.to(dtype).requires_grad_()
    wide = half.detach().double().requires_grad_()
    out = module(half)
    truth = copy.deepcopy(module).double()(wide)
    assert out.dtype == dtype and torch.equal(out, truth.to(dtype))
    grad = torch.randn(16, 64).to(dtype)
    out.backward(grad)
    truth.backward(grad.double())
    assert half.grad is not None and half.grad.dtype == dtype
    torch.testing.assert_close(
        half.grad.double(), wide.grad, rtol=2 * torch.finfo(dtype).eps, atol=1e-4
    )


def test_float16_of_large_inputs_is_finite_where_the_plain_formula_is_not() -> None:
    torch.manual_seed(0)
    x = torch.linspace(-60, 60, 512).view(4, 128).half().requires_grad_()
    coeff, bias = torch.full((3,), 1 / 3).half(), torch.zeros(1).half()
    coeff, bias = coeff.requires_grad_(), bias.requires_grad_()
    found = gradients(poly_norm, x, coeff, bias)
    assert all(bool(one.isfinite().all()) for one in found)
    plain = gradients(naive_poly_norm, x, coeff, bias)
    assert not all(bool(one.isfinite().all()) for one in plain)
    inside, beyond = torch.tensor([57.75]).half(), torch.tensor([60.0]).half()
    with torch.no_grad():
        act = PolyReLU()
        assert act(inside).isfinite().all() and act(beyond).isinf().all()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_coefficients_are_summed_in_float32(kind: str) -> None:
    """In bfloat16 a sum over so many numbers would stop growing at 256."""
    module = make_activation(kind, order=2).bfloat16()
    module(torch.full((64, 128), 1.0, dtype=torch.bfloat16)).sum().backward()
    assert module.bias.grad.item() == 64 * 128
    assert module.weight.grad.tolist() == [64 * 128] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_gives_what_the_layer_before_gives(kind: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), make_activation(kind), nn.Linear(32, 8))
    x = torch.randn(5, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model[1](model[0](x))
        out = model(x)
    assert hidden.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), model(x), rtol=0.1, atol=0.1)
    out.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


# Memory, checkpointing, graphs


def kept(function: Callable[[], Tensor]) -> int:
    """Bytes that autograd keeps of a call, each memory once."""
    found: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    alive = []
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        alive.append(function())
    return sum(found.values())


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_input_is_kept_for_the_backward_pass(kind: str) -> None:
    fast, naive = KINDS[kind]
    x = torch.randn(64, 256, requires_grad=True)
    coeff, bias = torch.rand(3, requires_grad=True), torch.rand(1, requires_grad=True)
    size = x.numel() * x.element_size()
    assert size <= kept(lambda: fast(x, coeff, bias)) <= 1.1 * size
    assert kept(lambda: naive(x, coeff, bias)) >= 4 * size


@pytest.mark.parametrize("kind", KINDS)
def test_recomputed_gradients_are_the_same(kind: str) -> None:
    module, found = make_activation(kind), []
    x = torch.randn(4, 16)
    for recompute in (False, True):
        module.zero_grad()
        one = x.clone().requires_grad_()
        out = checkpoint(module, one, use_reentrant=False) if recompute else module(one)
        out.square().sum().backward()
        found.append([one.grad, *(p.grad.clone() for p in module.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_gradients_are_right_too(kind: str) -> None:
    fast, _ = KINDS[kind]
    assert torch.autograd.gradgradcheck(fast, given((2, 3), 3, zeros=kind == "poly_norm"))
    x = torch.randn(2, 8, requires_grad=True)
    module = make_activation(kind).requires_grad_(False)
    (first,) = torch.autograd.grad(module(x).sum(), x, create_graph=True)
    first.square().sum().backward()
    assert x.grad is not None and x.grad.abs().max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_it_compiles_whole_with_its_gradients(kind: str) -> None:
    module = make_activation(kind)
    compiled = torch.compile(copy.deepcopy(module), backend="aot_eager", fullgraph=True)
    x = torch.randn(4, 16)
    for found in zip(
        *(gradients(lambda x, m=m: m(x), x.clone().requires_grad_()) for m in (module, compiled)),
        strict=True,
    ):
        torch.testing.assert_close(*found)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_exported_for_any_number_of_rows_and_the_graph_can_learn(kind: str) -> None:
    module, rows = make_activation(kind).eval(), torch.export.Dim("rows", min=2, max=64)
    exported = torch.export.export(module, (torch.randn(3, 16),), dynamic_shapes={"x": {0: rows}})
    x, graph = torch.randn(9, 16), exported.module()
    found = [
        gradients(lambda x, *_, m=m: m(x), x.clone().requires_grad_(), *m.parameters())
        for m in (module, graph)
    ]
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_that_do_not_learn_cost_nothing_and_get_nothing(kind: str) -> None:
    module = make_activation(kind).requires_grad_(False)
    x = torch.randn(2, 8, requires_grad=True)
    module(x).sum().backward()
    assert x.grad is not None and module.weight.grad is None
    frozen = make_activation(kind)
    frozen(x.detach()).sum().backward()
    assert frozen.weight.grad is not None


# Axes and refusals


def test_channels_of_maps_are_normed_at_each_position() -> None:
    torch.manual_seed(0)
    tokens: Any = make_activation("poly_norm")
    maps: Any = make_activation("poly_norm", layout="map")
    assert (tokens.dim, maps.dim) == (-1, 1)
    x = torch.randn(2, 6, 3, 5, dtype=torch.float64)
    found = gradients(maps.double(), x.clone().requires_grad_())
    moved = x.movedim(1, -1).contiguous().requires_grad_()
    out = tokens.double()(moved).movedim(-1, 1)
    weights = torch.linspace(-1, 2, out.numel()).view(out.shape).double()
    (grad,) = torch.autograd.grad((out * weights).sum(), moved)
    torch.testing.assert_close(found[0], out.detach())
    torch.testing.assert_close(found[1], grad.movedim(-1, 1))
    assert not hasattr(make_activation("poly_relu", layout="map"), "dim")


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_batch_passes(kind: str) -> None:
    x = torch.zeros(0, 4, requires_grad=True)
    module = make_activation(kind)
    module(x).sum().backward()
    assert x.grad is not None and x.grad.shape == (0, 4)
    assert module.bias.grad.tolist() == [0.0]


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("poly_relu", {"order": 0}, "whole number from 1, not 0"),
        ("poly_norm", {"order": -2}, "whole number from 1, not -2"),
        ("poly_norm", {"order": 2.5}, "whole number from 1, not 2.5"),
        ("poly_relu", {"order": True}, "whole number from 1, not True"),
        ("poly_norm", {"eps": -1e-6}, "must not be negative, not -1e-06"),
        ("poly_norm", {"eps": math.nan}, "must not be negative, not nan"),
        ("poly_norm", {"eps": 1e-20, "eps_per_order": True}, "lost in float32"),
    ],
)
def test_options_that_cannot_be_are_refused(kind: str, options: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_activation(kind, **options)


def test_what_is_no_input_is_refused() -> None:
    one, zero = torch.ones(1), torch.zeros(1)
    for function in (poly_relu, poly_norm):
        for x in (torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 3, dtype=torch.complex64)):
            with pytest.raises(ValueError, match="reads floating-point numbers"):
                function(x, one, zero)
        for coeff, bias in ((torch.ones(0), zero), (torch.ones(2, 2), zero), (one, torch.ones(2))):
            with pytest.raises(ValueError, match="at least one power and one bias"):
                function(torch.ones(2, 3), coeff, bias)
    with pytest.raises(ValueError, match="must not be negative"):
        poly_norm(torch.ones(2, 3), one, zero, eps=-1.0)
    with pytest.raises(ValueError, match="2 values of eps for 1 powers"):
        poly_norm(torch.ones(2, 3), one, zero, eps=(1e-6, 1e-6))
    with pytest.raises(ValueError, match="needs an axis"):
        poly_norm(torch.tensor(1.0), one, zero)


def test_a_norm_over_one_number_warns() -> None:
    with pytest.warns(UserWarning, match="leaves only its sign"):
        PolyNorm(order=1)(torch.ones(3, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PolyNorm()(torch.ones(3, 2))
        PolyReLU()(torch.ones(3, 1))


def test_poly_relu_of_a_relu_network_is_that_network() -> None:
    """Every network of ReLU is one of PolyReLU of the same size."""
    torch.manual_seed(0)
    act = PolyReLU()
    act.load_state_dict(act.state_of(torch.tensor([1.0, 0.0, 0.0]), torch.zeros(1)))
    first, second, x = nn.Linear(5, 9), nn.Linear(9, 5), torch.randn(7, 5)
    assert torch.equal(second(act(first(x))), second(F.relu(first(x))))
