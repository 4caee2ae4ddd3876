"""The scan in blocks: its tiles, what it keeps, and its own gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from modwright.nn import blocked_scan as module
from modwright.nn.blocked_scan import blocked_scan
from modwright.nn.selective_scan import naive_selective_scan
from nn.scans import gradients_of, relative, scan_inputs


def inputs(**sizes: Any) -> dict[str, Tensor]:
    return {n: t for n, t in scan_inputs(**sizes).items() if n not in ("D", "z")}


@pytest.mark.parametrize("room", [1, 12, 20, 50, 10**6])
@pytest.mark.parametrize("length", [1, 5, 8])
def test_no_split_into_tiles_changes_what_comes_out(
    monkeypatch: pytest.MonkeyPatch, room: int, length: int
) -> None:
    monkeypatch.setattr(module, "BUFFER", room)
    given = inputs(batch=3, length=length, width=5)
    truth = gradients_of(naive_selective_scan, given)
    found = gradients_of(blocked_scan, given, chunk=2)
    assert all(relative(found[name], value) < 1e-12 for name, value in truth.items())


def test_tiles_hold_no_more_than_the_buffer_and_cover_everything() -> None:
    given = module._Inputs(*(torch.zeros(s) for s in ((3, 40, 700), (3, 40, 700), (700, 16))), *[
        torch.zeros(3, 40, 16)
    ] * 2)  # fmt: skip
    seen = torch.zeros(3, 700)
    for tile in module._tiles(given, chunk=32, buffers=1):
        assert tile.buffers[0].numel() <= module.BUFFER
        seen[tile.rows, tile.channels] += 1
    assert (seen == 1).all()


def test_backward_keeps_the_inputs_and_one_state_a_chunk() -> None:
    given = {name: t.requires_grad_() for name, t in inputs(length=100, states=4).items()}
    sizes = []

    def note(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        blocked_scan(**given, chunk=32)
    kept = sum(given[name].numel() for name in ("u", "dt", "A", "B", "C"))
    assert sum(sizes) == kept + 4 * given["h0"].numel()


def test_without_gradients_nothing_is_kept_and_the_numbers_are_the_same() -> None:
    given = {name: t.requires_grad_() for name, t in inputs(length=9).items()}
    with_graph = blocked_scan(**given, chunk=4)
    with torch.no_grad():
        without = blocked_scan(**given, chunk=4)
    assert all(torch.equal(a, b) for a, b in zip(with_graph, without))
    assert with_graph[0].requires_grad and not without[0].requires_grad


def test_only_what_asks_for_gradients_gets_them() -> None:
    given = inputs()
    given["A"].requires_grad_()
    y, _ = blocked_scan(**given)
    y.sum().backward()
    assert given["A"].grad is not None and given["u"].grad is None


def test_inputs_that_are_views_with_other_strides_give_the_same() -> None:
    given = inputs(length=9)
    turned = {
        name: t.transpose(0, -1).contiguous().transpose(0, -1) if t.ndim == 3 else t
        for name, t in given.items()
    }
    assert not turned["u"].is_contiguous()
    for found, truth in zip(blocked_scan(**turned, chunk=4), blocked_scan(**given, chunk=4)):
        assert torch.equal(found, truth)
    shared = {**given, "u": given["u"][:1].expand(2, -1, -1)}
    truth = gradients_of(naive_selective_scan, shared)
    assert relative(gradients_of(blocked_scan, shared)["grad u"], truth["grad u"]) < 1e-12


def test_a_backward_under_autocast_runs_in_full_precision() -> None:
    given = {n: t.float() for n, t in inputs(length=40, states=4).items()}
    expected = gradients_of(blocked_scan, given)
    with torch.autocast("cpu", torch.bfloat16):
        inside = gradients_of(lambda **t: blocked_scan(**t), given)
    assert all(torch.equal(inside[n], v) for n, v in expected.items() if n.startswith("grad"))
