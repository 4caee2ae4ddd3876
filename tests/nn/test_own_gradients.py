"""Autograd functions of the package: each has a test of every way in which gradients are taken."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import modwright
from launch import launch
from nn import gradients_worker
from nn.gradients_worker import MODULES, gradients

SOURCE, TESTS = Path(modwright.__file__).parent, Path(__file__).parents[1]
_HERE = "nn/test_own_gradients.py::test_processes_that_share_a_batch_get_its_gradients"
_KERNELS, _SCAN = "nn/test_scan_kernels.py::test_", "nn/test_selective_scan.py::test_"
_POLY = "nn/activations/test_polynomial.py::test_"
_POLYNOMIALS = {
    "bfloat16 autocast": f"{_POLY}autocast_gives_what_the_layer_before_gives",
    "gradient checkpointing": f"{_POLY}recomputed_gradients_are_the_same",
    "torch.compile": f"{_POLY}it_compiles_whole_with_its_gradients",
    "processes": _HERE,
}
WAYS: dict[str, dict[str, str]] = {
    "_BlockedScan": {
        "gradcheck": f"{_SCAN}gradients_pass_gradcheck_where_the_chunk_does_not_divide_the_length",
        "bfloat16 autocast": f"{_SCAN}autocast_changes_nothing",
        "gradient checkpointing": f"{_SCAN}gradient_checkpointing_gives_the_same_gradients",
        "torch.compile": f"{_SCAN}it_compiles_as_one_graph_with_its_gradients",
        "processes": _HERE,
    },
    "_PolyNorm": {
        "gradcheck": f"{_POLY}gradients_of_poly_norm_are_those_of_finite_differences",
        **_POLYNOMIALS,
    },
    "_PolyReLU": {
        "gradcheck": f"{_POLY}gradients_of_poly_relu_are_those_of_finite_differences",
        **_POLYNOMIALS,
    },
}
"""Autograd function -> way to take gradients -> the test of it."""
REFUSES = {"_WithoutGradient": f"{_KERNELS}the_gradient_that_the_kernel_loses_is_refused"}
"""Has no gradient; the test of its refusal."""


def _functions() -> set[str]:
    """All autograd functions of the package."""
    found = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and any(
                ast.unparse(base).endswith("autograd.Function") or ast.unparse(base) == "Function"
                for base in node.bases
            ):
                found.add(node.name)
    return found


def test_every_autograd_function_is_listed_with_its_tests() -> None:
    assert _functions() == WAYS.keys() | REFUSES.keys()
    assert {tuple(ways) for ways in WAYS.values()} == {tuple(WAYS["_BlockedScan"])}
    for place in {*REFUSES.values(), *(test for ways in WAYS.values() for test in ways.values())}:
        file, _, name = place.partition("::")
        assert f"def {name}(" in (TESTS / file).read_text(encoding="utf-8"), place


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes wrote that each had half of the batch."""
    folder = tmp_path_factory.mktemp("gradients")
    for ended in launch([gradients_worker.__file__, str(folder)]):
        assert ended.code == 0, ended.err[-2000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_processes_that_share_a_batch_get_its_gradients(halves: Path, name: str) -> None:
    whole = gradients(name)
    assert all(gradient.abs().max() > 0 for gradient in whole.values())
    for rank in (0, 1):
        found = load_file(halves / f"{name}-{rank}.safetensors")
        assert found.keys() == whole.keys()
        for key, gradient in whole.items():
            torch.testing.assert_close(found[key], gradient, rtol=1e-4, atol=1e-7, msg=key)
