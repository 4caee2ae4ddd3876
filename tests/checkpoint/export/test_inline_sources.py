"""Sources gathered into one text; a registry in it holds what is needed and nothing more."""

from __future__ import annotations

from typing import Any

import torch

from modwright.checkpoint.export.inline_sources import inline_sources
from modwright.edits.registry import activation
from modwright.nn import PolyNorm

TABLE = ("modwright.nn.activations", "ACTIVATIONS")


def run(acts: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    text, (name,) = inline_sources([activation], without=("component",), tables={TABLE: acts})
    defined: dict[str, Any] = {"__name__": "written"}
    exec(compile(text, "written", "exec"), defined)
    return text, {"activation": defined[name], **defined}


def test_a_registry_becomes_a_dictionary_of_what_is_needed() -> None:
    text, defined = run({"poly_norm": PolyNorm})
    assert "ACTIVATIONS = {'poly_norm': PolyNorm}" in text
    assert "class Registry" not in text and "class PolyReLU" not in text
    imports = [line for line in text.splitlines() if line.startswith(("import", "from"))]
    assert imports and not any("modwright" in line for line in imports)
    made, x = defined["activation"]("poly_norm", {"order": 2}), torch.randn(3, 8)
    assert type(made) is not PolyNorm and torch.equal(made(x), PolyNorm(order=2)(x))


def test_where_nothing_of_it_is_needed_it_is_empty() -> None:
    text, defined = run({})
    assert "ACTIVATIONS = {}" in text and "class PolyNorm" not in text
    assert torch.equal(defined["activation"]("relu")(torch.tensor([-1.0])), torch.zeros(1))
