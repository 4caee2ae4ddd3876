"""The registry of components."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modwright.core.errors import InvalidInputError
from modwright.core.registry import registries_restored
from modwright.nn.component import (
    COMPONENTS,
    component,
    component_of,
    components,
    listed_tensors,
    said_by,
)


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    with registries_restored():
        yield


def _running_sum(**facts: Any) -> type[nn.Module]:
    @component("running_sum", kind="token_mixer", state="recurrent", causal=True, **facts)
    class RunningSum(nn.Module):
        def forward(
            self, x: Tensor, state: Tensor | None = None, padding_mask: Tensor | None = None
        ) -> tuple[Tensor, Tensor]:
            y = x.cumsum(1) if state is None else x.cumsum(1) + state
            return y, y[:, -1:]

    return RunningSum


def test_a_class_says_what_it_needs_by_the_parameters_of_its_forward() -> None:
    made = _running_sum()
    found = COMPONENTS["running_sum"]
    assert (found.make, found.kind, found.state, found.causal) == (
        made,
        "token_mixer",
        "recurrent",
        True,
    )
    assert found.needs == ("state", "padding_mask") and found.any_length
    assert component_of(made()) is found and component_of(nn.Linear(2, 2)) is None
    assert "running_sum" in components("token_mixer") and "running_sum" not in components("norm")


def test_a_class_that_derives_from_a_component_is_the_same_component() -> None:
    made: Any = _running_sum()

    class Marked(nn.Dropout, made):
        pass

    class Unknown(nn.Dropout):
        pass

    assert component_of(Marked()) is COMPONENTS["running_sum"]
    assert component_of(Unknown()) is None


def test_a_file_that_runs_again_replaces_its_own_and_nothing_else() -> None:
    first, second = _running_sum(), _running_sum()
    assert first is not second and COMPONENTS["running_sum"].make is second
    with pytest.raises(InvalidInputError, match="registered already"):
        component("running_sum", kind="token_mixer")(nn.LayerNorm)


@pytest.mark.parametrize(
    ("kind", "facts", "words"),
    [
        ("mixer", {}, "unknown kind 'mixer'"),
        ("norm", {"length": 3}, "unknown fact 'length'"),
        ("token_mixer", {"state": "recurrent"}, "so its forward takes a state"),
    ],
)
def test_what_is_not_known_is_refused(kind: Any, facts: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        component("one", kind=kind, **facts)(nn.LayerNorm)


def test_a_function_can_make_a_component() -> None:
    @component("wide", kind="activation", reads="either")
    def make(size: int) -> nn.Module:
        return nn.PReLU(size)

    built = COMPONENTS["wide"].make(size=3)
    assert torch.equal(built(torch.ones(1, 3)), torch.ones(1, 3)) and COMPONENTS["wide"].needs == ()


class Lists(nn.Module):
    no_weight_decay = ("bias", "conv.bias", "table")

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(2)) if bias else None
        self.conv = nn.Conv1d(2, 2, 1, bias=bias)
        self.register_buffer("table", torch.zeros(2))

    def keep_in_fp32(self) -> list[str]:
        return ["conv.weight"]


def test_tensors_are_listed_by_an_attribute_or_a_method_wherever_they_lie() -> None:
    whole, without = Lists(), Lists(bias=False)
    assert listed_tensors(whole, "no_weight_decay") == {
        "bias": whole.bias,
        "conv.bias": whole.conv.bias,
        "table": whole.table,
    }
    assert list(listed_tensors(without, "no_weight_decay")) == ["table"]
    assert listed_tensors(whole, "keep_in_fp32") == {"conv.weight": whole.conv.weight}
    assert said_by(whole, "keep_in_fp32") == ["conv.weight"]
    assert said_by(nn.Linear(1, 1), "keep_in_fp32") == ()


@pytest.mark.parametrize("name", ["conv.wait", "cone.weight", "bais"])
def test_a_name_that_no_variant_has_is_refused(name: str) -> None:
    module: Any = Lists()
    module.no_weight_decay = (name,)
    with pytest.raises(ValueError, match=f"no_weight_decay names '{name}'.*it has bias, conv"):
        listed_tensors(module, "no_weight_decay")
