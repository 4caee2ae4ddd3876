"""The scan of Mamba-2 by matrix products, against the recurrence as it is written."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modwright.nn import scan_kernels
from modwright.nn.selective_scan import naive_selective_scan
from modwright.nn.ssd import naive_ssd_scan, ssd_scan
from nn.scans import gradients_of, relative, ssd_inputs
from nn.test_scan_kernels import install


@pytest.mark.parametrize("chunk", [1, 8, 64])
@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 65])
def test_it_gives_the_recurrence_and_its_gradients(length: int, chunk: int) -> None:
    given = ssd_inputs(length=length)
    truth = gradients_of(naive_ssd_scan, given)
    found = gradients_of(ssd_scan, given, chunk=chunk)
    worst = {name: relative(found[name], value) for name, value in truth.items()}
    assert max(worst.values()) < 1e-12, worst


@pytest.mark.parametrize(("heads", "groups"), [(4, 1), (4, 4), (6, 3), (1, 1)])
def test_neighboring_heads_share_a_group(heads: int, groups: int) -> None:
    given = ssd_inputs(heads=heads, groups=groups)
    truth = gradients_of(naive_ssd_scan, given)
    found = gradients_of(ssd_scan, given, chunk=3)
    assert all(relative(found[name], value) < 1e-12 for name, value in truth.items())
    per_head = {n: t.repeat_interleave(heads // groups, 2) for n, t in given.items() if n in "BC"}
    assert relative(ssd_scan(**{**given, **per_head})[0], truth["y"]) < 1e-12


@pytest.mark.parametrize("left_out", [("D", "h0"), ("D",), ("h0",)])
def test_what_is_left_out_counts_as_nothing(left_out: tuple[str, ...]) -> None:
    given = {name: t for name, t in ssd_inputs().items() if name not in left_out}
    truth = gradients_of(naive_ssd_scan, given)
    found = gradients_of(ssd_scan, given, chunk=3)
    assert all(relative(found[name], value) < 1e-12 for name, value in truth.items())


def test_it_is_a_selective_scan_whose_channels_share_their_decay() -> None:
    given = ssd_inputs(groups=1)
    channels = {
        "u": given["x"].flatten(2),
        "dt": given["dt"].repeat_interleave(3, 2),
        "A": given["A"].repeat_interleave(3)[:, None].expand(12, 2),
        "B": given["B"].squeeze(2),
        "C": given["C"].squeeze(2),
        "D": given["D"].repeat_interleave(3),
        "h0": given["h0"].flatten(1, 2),
    }
    y, last = naive_selective_scan(**channels)
    found, state = naive_ssd_scan(**given)
    assert relative(found.flatten(2), y) < 1e-12 and relative(state.flatten(1, 2), last) < 1e-12


def test_gradients_pass_gradcheck_where_the_chunk_does_not_divide_the_length() -> None:
    given = [tensor.requires_grad_() for tensor in ssd_inputs(length=5).values()]

    def scan(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        x, dt, A, B, C, D, h0 = tensors
        return ssd_scan(x, dt, A, B, C, chunk=2, h0=h0, D=D)

    assert torch.autograd.gradcheck(scan, given)


def test_two_halves_with_a_carried_state_are_the_whole() -> None:
    given = ssd_inputs(length=13)
    whole = ssd_scan(**given, chunk=4)
    for cut in (1, 4, 6, 12):
        parts, state = [], given["h0"]
        for part in (slice(0, cut), slice(cut, 13)):
            cut_at = {n: t[:, part] for n, t in given.items() if n in ("x", "dt", "B", "C")}
            y, state = ssd_scan(**{**given, **cut_at, "h0": state}, chunk=4)
            parts.append(y)
        assert relative(torch.cat(parts, 1), whole[0]) < 1e-12
        assert relative(state, whole[1]) < 1e-12


@pytest.mark.parametrize("chunk", [32, 64, 256])
def test_large_steps_stay_finite_and_near_double_precision(chunk: int) -> None:
    torch.manual_seed(0)
    length, heads = 256, 16
    A = -torch.arange(16.0, 0.0, -1.0)
    dt = F.softplus(torch.randn(1, length, heads) + 1)
    x, (B, C) = torch.randn(1, length, heads, 4), torch.randn(2, 1, length, 1, 8)
    found = ssd_scan(x, dt, A, B, C, chunk=chunk)
    truth = naive_ssd_scan(*(t.double() for t in (x, dt, A, B, C)))
    for mine, exact in zip(found, truth):
        assert mine.isfinite().all()
        assert float((mine - exact).abs().max()) < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_the_recurrence_runs_in_float32(dtype: torch.dtype) -> None:
    half = {n: t.to(dtype) for n, t in ssd_inputs(length=150).items()}
    y, last = ssd_scan(**half)
    truth, exact = naive_ssd_scan(**{name: t.double() for name, t in half.items()})
    assert y.dtype == dtype and last.dtype == torch.float32
    assert relative(last.double(), exact) < 1e-5
    assert relative(y.double(), truth) < torch.finfo(dtype).eps


def test_autocast_changes_nothing() -> None:
    given = ssd_inputs(length=40, dtype=torch.float32)
    expected = gradients_of(ssd_scan, given, chunk=8)
    autocast = torch.autocast("cpu", torch.bfloat16)
    found = gradients_of(ssd_scan, given, forward_in=autocast, chunk=8)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_no_sequences_and_no_tokens_are_no_error() -> None:
    y, last = ssd_scan(**ssd_inputs(batch=0))
    assert y.shape == (0, 7, 4, 3) and last.shape == (0, 4, 3, 2)
    given = ssd_inputs(length=0)
    y, last = ssd_scan(**given)
    assert y.shape == (2, 0, 4, 3) and torch.equal(last, given["h0"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.zeros(2, 7, 4, 3, dtype=torch.long)}, "x must be floating-point numbers"),
        ({"A": torch.full((4,), 0.1)}, "A must be negative"),
        ({"A": -torch.ones(3)}, r"A must be \(4,\), not \(3,\)"),
        ({"x": torch.zeros(2, 7, 12)}, r"x must be \(B, L, H, P\)"),
        ({"B": torch.zeros(2, 7, 2)}, r"x must be \(B, L, H, P\) and B \(B, L, G, N\)"),
        ({"B": torch.zeros(2, 7, 3, 2)}, "4 heads cannot share 3 groups"),
        ({"C": torch.zeros(2, 7, 1, 2)}, r"C must be \(2, 7, 2, 2\)"),
        ({"dt": torch.zeros(2, 6, 4)}, r"dt must be \(2, 7, 4\), not \(2, 6, 4\)"),
        ({"h0": torch.zeros(1, 4, 3, 2)}, r"h0 must be \(2, 4, 3, 2\)"),
        ({"D": torch.zeros(12)}, r"D must be \(4,\)"),
        ({"chunk": 0}, "chunk must be at least 1, not 0"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as refused:
        ssd_scan(**{**ssd_inputs(), **change})
    assert "\n" not in str(refused.value)


# Kernels of other packages, by what stands for them


def mamba_kernel(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, size: int, **m: Any
) -> Any:
    assert size == 64 and m.pop("return_final_states")
    return naive_ssd_scan(x, dt, A, B, C, m["initial_states"])


def gla_kernel(q: Tensor, k: Tensor, v: Tensor, g: Tensor, **more: Any) -> Any:
    """Linear attention with a decay exp(g) for each head and token; states are (keys, values)."""
    assert more["scale"] == 1.0 and more["output_final_state"]
    h = more["initial_state"]
    h = q.new_zeros(*q.shape[::2], q.shape[3], v.shape[3]) if h is None else h
    found = []
    for t in range(q.shape[1]):
        h = g[:, t].exp()[..., None, None] * h + k[:, t].unsqueeze(-1) * v[:, t].unsqueeze(2)
        found.append((q[:, t].unsqueeze(2) @ h).squeeze(2))
    return torch.stack(found, 1), h


@pytest.mark.parametrize("h0", [True, False])
@pytest.mark.parametrize(
    ("where", "kernel"), [(scan_kernels.SSD, mamba_kernel), (scan_kernels.GLA, gla_kernel)]
)
def test_kernels_give_what_the_scan_gives(
    monkeypatch: pytest.MonkeyPatch, where: tuple[str, str], kernel: Any, h0: bool
) -> None:
    given = ssd_inputs(dtype=torch.float32)
    if not h0:
        del given["h0"]
    expected = gradients_of(ssd_scan, given)
    calls = []
    monkeypatch.setattr(scan_kernels, "DEVICES", ["cpu"])
    install(monkeypatch, where, lambda *a, **k: calls.append(1) or kernel(*a, **k))
    found = gradients_of(ssd_scan, given)
    assert calls == [1]
    assert all(relative(found[name], value) < 1e-5 for name, value in expected.items())


class Scan(nn.Module):
    def forward(self, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, h0: Tensor) -> Any:
        return ssd_scan(x, dt, A, B, B + 1, chunk=8, h0=h0)


@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, True])
def test_what_is_exported_at_one_length_runs_at_any(strict: bool) -> None:
    def given(batch: int, length: int) -> tuple[Tensor, ...]:
        made = ssd_inputs(batch, length, dtype=torch.float32)
        return tuple(made[name] for name in ("x", "dt", "A", "B", "h0"))

    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    free = {0: batch, 1: length}
    program = torch.export.export(
        Scan(), given(2, 12), dynamic_shapes=(free, free, None, free, {0: batch}), strict=strict
    )
    for size in ((2, 12), (1, 1), (3, 8), (1, 9), (1, 300)):
        found, expected = program.module()(*given(*size)), Scan()(*given(*size))
        assert all(relative(mine, other) < 1e-5 for mine, other in zip(found, expected))


@pytest.mark.slow
def test_it_compiles_as_one_graph_with_its_gradients() -> None:
    given = ssd_inputs(length=20)
    expected = gradients_of(ssd_scan, given, chunk=8)
    compiled = torch.compile(ssd_scan, backend="aot_eager", fullgraph=True)
    found = gradients_of(compiled, given, chunk=8)
    assert all(relative(found[name], value) < 1e-10 for name, value in expected.items())
