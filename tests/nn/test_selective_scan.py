"""The selective scan in all its forms, against the recurrence as it is written."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from modwright.nn.selective_scan import METHODS, naive_selective_scan, selective_scan
from nn.scans import gradients_of, relative, scan_inputs

NAIVE = torch.float64
FORMS = [method for method in METHODS if method != "sequential"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 257])
def test_all_forms_give_the_recurrence_and_its_gradients(length: int, method: str) -> None:
    given = scan_inputs(length=length)
    truth = gradients_of(naive_selective_scan, given)
    found = gradients_of(selective_scan, given, method=method, chunk=32)
    worst = {name: relative(found[name], value) for name, value in truth.items()}
    assert max(worst.values()) < 1e-12, worst


@pytest.mark.parametrize("method", FORMS)
@pytest.mark.parametrize("left_out", [("D", "z", "h0"), ("z",), ("D",), ("h0",)])
def test_what_is_left_out_counts_as_nothing(method: str, left_out: tuple[str, ...]) -> None:
    given = {name: t for name, t in scan_inputs().items() if name not in left_out}
    truth = gradients_of(naive_selective_scan, given)
    found = gradients_of(selective_scan, given, method=method, chunk=3)
    assert all(relative(found[name], value) < 1e-12 for name, value in truth.items())


def test_the_recurrence_is_that_of_the_paper() -> None:
    """By hand, for one channel with one state: h = a h + b, y = c h + d u, times SiLU(z)."""
    one = torch.ones(1, 1, 1, dtype=NAIVE)
    given: dict[str, Any] = {
        "u": one * 2,
        "dt": one * 0.5,
        "A": torch.tensor([[-3.0]], dtype=NAIVE),
        "B": one * 5,
        "C": one * 7,
        "D": torch.tensor([11.0], dtype=NAIVE),
        "z": one * 13,
        "h0": one * 17,
    }
    y, last = naive_selective_scan(**given)
    state = torch.exp(torch.tensor(-1.5, dtype=NAIVE)) * 17 + 0.5 * 2 * 5
    assert torch.allclose(last.flatten(), state)
    assert torch.allclose(y.flatten(), (state * 7 + 22) * F.silu(one * 13).flatten())


@pytest.mark.parametrize("method", ["blocked", "associative"])
def test_gradients_pass_gradcheck_where_the_chunk_does_not_divide_the_length(method: str) -> None:
    given = [tensor.requires_grad_() for tensor in scan_inputs(1, 7, 2).values()]

    def scan(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return selective_scan(*tensors, chunk=3, method=method)

    assert torch.autograd.gradcheck(scan, given)


@pytest.mark.parametrize("method", ["sequential", *FORMS])
def test_two_halves_with_a_carried_state_are_the_whole(method: str) -> None:
    given = scan_inputs(length=13)
    whole = selective_scan(**given, method=method, chunk=4)
    for cut in (1, 4, 6, 12):
        parts, state = [], given["h0"]
        for part in (slice(0, cut), slice(cut, 13)):
            cut_at = {n: t[:, part] for n, t in given.items() if n in ("u", "dt", "B", "C", "z")}
            here = {**cut_at, "A": given["A"], "D": given["D"], "h0": state}
            y, state = selective_scan(**here, method=method, chunk=4)
            parts.append(y)
        assert relative(torch.cat(parts, 1), whole[0]) < 1e-12
        assert relative(state, whole[1]) < 1e-12


@pytest.mark.parametrize("method", ["sequential", *FORMS])
def test_large_steps_stay_finite_and_near_double_precision(method: str) -> None:
    torch.manual_seed(0)
    length, width, states = 256, 8, 16
    A = -torch.arange(16.0, 0.0, -1.0).expand(width, states)
    u, B, C = torch.randn(1, length, width), *torch.randn(2, 1, length, states)
    dt = F.softplus(torch.randn(1, length, width) + 1)
    found = selective_scan(u, dt, A, B, C, method=method)
    truth = naive_selective_scan(*(t.double() for t in (u, dt, A, B, C)))
    for mine, exact in zip(found, truth):
        assert mine.isfinite().all()
        assert float((mine - exact).abs().max()) < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_the_recurrence_runs_in_float32(dtype: torch.dtype) -> None:
    half = {n: t.to(dtype) for n, t in scan_inputs(length=200, states=8).items()}
    y, last = selective_scan(**half)
    truth, exact = naive_selective_scan(**{name: t.double() for name, t in half.items()})
    assert y.dtype == dtype and last.dtype == torch.float32
    assert relative(last.double(), exact) < 1e-5  # far below the 4e-3 or 5e-4 of the input's type
    assert torch.equal(y, selective_scan(**{n: t.float() for n, t in half.items()})[0].to(dtype))
    assert relative(y.double(), truth) < torch.finfo(dtype).eps


def test_parameters_in_float32_keep_their_precision_beside_an_input_in_bfloat16() -> None:
    given = {n: t.float() for n, t in scan_inputs().items()}
    mixed = {n: t if n in ("A", "D", "h0") else t.bfloat16() for n, t in given.items()}
    grads = gradients_of(selective_scan, mixed)
    assert grads["grad A"].dtype == torch.float32 and grads["grad u"].dtype == torch.bfloat16


@pytest.mark.parametrize("method", FORMS)
def test_autocast_changes_nothing(method: str) -> None:
    given = scan_inputs(length=40, states=4, dtype=torch.float32)
    expected = gradients_of(selective_scan, given, method=method)
    autocast = torch.autocast("cpu", torch.bfloat16)
    found = gradients_of(selective_scan, given, forward_in=autocast, method=method)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(use_reentrant: bool) -> None:
    def checkpointed(*tensors: Tensor, **named: Tensor) -> Any:
        return checkpoint(
            lambda *given: selective_scan(**dict(zip(named, given)), chunk=4),
            *named.values(),
            use_reentrant=use_reentrant,
        )

    given = scan_inputs(length=11)
    expected = gradients_of(selective_scan, given, chunk=4)
    inputs = {n: t.clone().requires_grad_() for n, t in given.items()}
    y, last = checkpointed(**inputs)
    made = torch.Generator().manual_seed(1)
    weights = [torch.randn(t.shape, generator=made, dtype=NAIVE) for t in (y, last)]
    ((y * weights[0]).sum() + (last * weights[1]).sum()).backward()
    for name, tensor in inputs.items():
        assert tensor.grad is not None and torch.equal(tensor.grad, expected[f"grad {name}"])


def test_gradients_of_gradients_are_refused_and_not_wrong() -> None:
    given = {name: tensor.requires_grad_() for name, tensor in scan_inputs().items()}
    y, _ = selective_scan(**given)
    (first,) = torch.autograd.grad(y.sum(), given["u"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("method", METHODS)
def test_no_sequences_and_no_tokens_are_no_error(method: str) -> None:
    y, last = selective_scan(**scan_inputs(batch=0), method=method)
    assert y.shape == (0, 7, 3) and last.shape == (0, 3, 2)
    given = scan_inputs(length=0)
    y, last = selective_scan(**given, method=method)
    assert y.shape == (2, 0, 3) and torch.equal(last, given["h0"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"u": torch.zeros(2, 7, 3, dtype=torch.long)}, "u must be floating-point numbers"),
        ({"A": torch.zeros(3, 2, dtype=torch.complex64)}, "A must be floating-point numbers"),
        ({"A": torch.full((3, 2), 0.1)}, "A must be negative"),
        ({"A": -torch.ones(4, 2)}, r"u must be \(B, L, E\) and A \(E, N\)"),
        ({"A": -torch.ones(3, 0)}, "N at least 1"),
        ({"u": torch.zeros(7, 3)}, r"u must be \(B, L, E\)"),
        ({"dt": torch.zeros(2, 6, 3)}, r"dt must be \(2, 7, 3\), not \(2, 6, 3\)"),
        ({"B": torch.zeros(2, 7, 3)}, r"B must be \(2, 7, 2\)"),
        ({"h0": torch.zeros(1, 3, 2)}, r"h0 must be \(2, 3, 2\), not \(1, 3, 2\)"),
        ({"z": torch.zeros(2, 7, 1)}, "z must be"),
        ({"D": torch.zeros(1)}, r"D must be \(3,\)"),
        ({"chunk": 0}, "chunk must be at least 1, not 0"),
        ({"method": "fast"}, "unknown method 'fast'; valid values: auto, blocked"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as refused:
        selective_scan(**{**scan_inputs(), **change})
    assert "\n" not in str(refused.value)


class Scan(nn.Module):
    def forward(self, u: Tensor, A: Tensor, B: Tensor, h0: Tensor) -> tuple[Tensor, Tensor]:
        return selective_scan(u, F.softplus(u), A, B, B + 1, h0=h0)


@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, True])
def test_what_is_exported_at_one_length_runs_at_any(strict: bool) -> None:
    def given(batch: int, length: int) -> tuple[Tensor, ...]:
        made = scan_inputs(batch, length, dtype=torch.float32)
        return made["u"], made["A"], made["B"], made["h0"]

    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    free = {0: batch, 1: length}
    program = torch.export.export(
        Scan(), given(2, 12), dynamic_shapes=(free, None, free, {0: batch}), strict=strict
    )
    for size in ((2, 12), (1, 1), (3, 32), (1, 33), (1, 1500)):
        found, expected = program.module()(*given(*size)), Scan()(*given(*size))
        assert all(relative(mine, other) < 1e-5 for mine, other in zip(found, expected))


@pytest.mark.slow
def test_it_compiles_as_one_graph_with_its_gradients() -> None:
    given = scan_inputs(length=40)
    expected = gradients_of(selective_scan, given)
    compiled = torch.compile(selective_scan, backend="aot_eager", fullgraph=True)
    found = gradients_of(compiled, given)
    assert all(relative(found[name], value) < 1e-10 for name, value in expected.items())
