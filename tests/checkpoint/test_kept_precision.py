"""Tensors that components keep in float32: which of a file they are, and what is said of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from modwright.checkpoint.directory import StoredTensor
from modwright.checkpoint.kept_precision import describe_kept, kept_tensors


class Keeps(nn.Module):
    keep_in_fp32 = ("A_log",)

    def __init__(self) -> None:
        super().__init__()
        self.A_log, self.other = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))


def stored(**kinds: str) -> dict[str, StoredTensor]:
    return {name.replace("__", "."): StoredTensor((1,), kind, "f") for name, kind in kinds.items()}


def test_they_are_found_with_the_prefix_of_a_backbone_and_without() -> None:
    model = nn.ModuleDict({"model": nn.ModuleDict({"mixer": Keeps()})})
    file = stored(model__mixer__A_log="F32", model__mixer__other="F32", xmixer__A_log="F32")
    assert list(kept_tensors(model, file)) == ["model.mixer.A_log"]
    assert list(kept_tensors(model, stored(mixer__A_log="BF16"))) == ["mixer.A_log"]
    inner = nn.ModuleDict({"mixer": Keeps()})
    assert list(kept_tensors(inner, file)) == ["model.mixer.A_log"]
    assert kept_tensors(None, file) == {} == kept_tensors(nn.Linear(1, 1), file)


@pytest.mark.parametrize(
    ("kinds", "asked", "says"),
    [
        ({"a": "F32"}, None, []),
        ({"a": "F32"}, torch.float64, []),
        (
            {"a": "F32"},
            torch.float16,
            ["a: opened as float32, as the component asks, not float16."],
        ),
        ({"a": "F16"}, None, ["a: opened as float32, as the component asks, and stored as F16."]),
        (
            {"a": "BF16", "b": "F32", "c": "F16", "d": "BF16", "e": "BF16"},
            torch.bfloat16,
            [
                "a, c, d and 1 more: opened as float32, as the component asks, and stored as BF16 "
                "and F16.",
                "b: opened as float32, as the component asks, not bfloat16.",
            ],
        ),
    ],
)
def test_what_is_narrower_elsewhere_is_said(
    kinds: dict[str, str], asked: torch.dtype | None, says: list[str]
) -> None:
    assert describe_kept(stored(**kinds), asked) == tuple(says)
