"""Kernels of other packages: looked for where they can run, called in their own layout.

No kernel runs here. What stands for one computes the recurrence from the arguments in the layout
of the package.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from modwright.nn import scan_kernels
from modwright.nn.scan_kernels import kernel_of
from modwright.nn.selective_scan import naive_selective_scan, selective_scan
from nn.scans import relative, scan_inputs

MAMBA = ("mamba_ssm.ops.selective_scan_interface", "selective_scan_fn")


def install(monkeypatch: pytest.MonkeyPatch, where: tuple[str, str], function: Any) -> None:
    """Puts a module that has a function in the place of a package."""
    name = where[0]
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        monkeypatch.setitem(sys.modules, ".".join(parts[:end]), ModuleType(parts[end - 1]))
    setattr(sys.modules[name], where[1], function)


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are looked for on a CPU, too."""
    monkeypatch.setattr(scan_kernels, "DEVICES", ["cpu"])


def mamba_kernel(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, **more: Any) -> Any:
    """Channels before tokens; only the outputs have gradients."""
    assert more.pop("return_last_state") and {t.dtype for t in (u, delta, A, B, C)} == {
        torch.float32
    }
    turned = (t.transpose(1, 2) for t in (u, delta))
    gate = None if more["z"] is None else more["z"].transpose(1, 2)
    B, C = B.transpose(1, 2), C.transpose(1, 2)
    y, last = naive_selective_scan(*turned, A, B, C, more["D"], gate)
    return y.transpose(1, 2), last


def test_without_a_package_there_is_no_kernel(on_cpu: None) -> None:
    assert kernel_of(torch.zeros(1), MAMBA) is None


def test_a_kernel_is_for_its_devices_and_types_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, MAMBA, mamba_kernel)
    x = torch.zeros(1)
    assert kernel_of(x, MAMBA) is None, "a kernel of CUDA for a tensor of the CPU"
    monkeypatch.setattr(scan_kernels, "DEVICES", ["cpu"])
    assert kernel_of(x, MAMBA) is mamba_kernel
    assert kernel_of(x, ("not_there", "f"), MAMBA) is mamba_kernel
    assert kernel_of(x, (MAMBA[0], "not_there")) is None
    assert kernel_of(x.double(), MAMBA) is None
    assert kernel_of(x[:0], MAMBA) is None
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert kernel_of(x, MAMBA) is None


def test_a_package_that_does_not_load_counts_as_none(
    monkeypatch: pytest.MonkeyPatch, on_cpu: None
) -> None:
    def broken(name: str) -> None:
        raise OSError("undefined symbol")

    monkeypatch.setattr(scan_kernels.importlib, "import_module", broken)
    assert kernel_of(torch.zeros(1), MAMBA) is None


@pytest.mark.parametrize("left_out", [(), ("D", "z")])
def test_the_kernel_of_mamba_gives_what_the_scan_gives(
    monkeypatch: pytest.MonkeyPatch, on_cpu: None, left_out: tuple[str, ...]
) -> None:
    given = scan_inputs(dtype=torch.float32)
    given = {n: t for n, t in given.items() if n != "h0" and n not in left_out}
    expected = selective_scan(**given)
    calls = []
    install(monkeypatch, MAMBA, lambda *a, **k: calls.append(1) or mamba_kernel(*a, **k))
    found = selective_scan(**given)
    assert calls == [1]
    assert all(relative(mine, other) < 1e-6 for mine, other in zip(found, expected))
    selective_scan(**scan_inputs(dtype=torch.float32))
    selective_scan(**given, method="blocked")
    assert calls == [1], "it starts from zeros, and only where it may"


def test_the_gradient_that_the_kernel_loses_is_refused(
    monkeypatch: pytest.MonkeyPatch, on_cpu: None
) -> None:
    install(monkeypatch, MAMBA, mamba_kernel)
    given = {n: t for n, t in scan_inputs(dtype=torch.float32).items() if n != "h0"}
    given["u"].requires_grad_()
    y, last = selective_scan(**given)
    y.sum().backward(retain_graph=True)
    assert given["u"].grad is not None
    with pytest.raises(ValueError, match="no gradient of the last state"):
        last.sum().backward()
