"""The checks of recurrent components find the one that is wrong, and only that."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from toy_recurrent import toys

from helpers import edit
from modwright.anatomy import Anatomy
from modwright.edits import verify
from modwright.edits.state_checks import chunks_are_the_whole, padding_leaves_states_alone
from modwright.edits.verify import probe_batch

CHECKS = (chunks_are_the_whole, padding_leaves_states_alone)


def near(reference: Tensor) -> float:
    return 1e-4 * max(float(reference.std()), 1e-3)


def edited(tiny: Any, blocks: Any, **faults: Any) -> Any:
    source = tiny("tiny-llama")
    return edit(source, toys(Anatomy.of(source), blocks, **faults), check=False).model


@torch.no_grad()
@pytest.mark.parametrize("length", [2, 3, 4, 5, 6, 12])
def test_right_components_hold_at_any_length(tiny: Any, length: int) -> None:
    model = edited(tiny, (0, 2))
    for check in CHECKS:
        held, seen = check(model, probe_batch(model, length=length), near)
        assert held and "largest difference" in seen


@torch.no_grad()
@pytest.mark.parametrize(
    ("fault", "wrong", "told"),
    [
        ("step", chunks_are_the_whole, "in chunks of 1, 3, 7, 1 tokens; see its step"),
        ("padding", padding_leaves_states_alone, "behind 4 tokens of padding; see how it reads"),
    ],
)
def test_each_fault_breaks_one_check(tiny: Any, fault: str, wrong: Any, told: str) -> None:
    model = edited(tiny, (1, 3), fault=fault)
    for check in CHECKS:
        held, seen = check(model, probe_batch(model), near)
        assert held == (check is not wrong)
        if check is wrong:
            assert seen.startswith("model.layers.1.self_attn gives outputs that differ")
            assert told in seen


@torch.no_grad()
def test_what_comes_before_a_component_is_not_its_fault(tiny: Any) -> None:
    """A component without a state that looks at more than its tokens stands before the toy."""
    model = edited(tiny, (2,))
    first = model.model.layers[0].mlp
    plain = first.forward
    first.forward = lambda x: plain(x) + x.mean(1, keepdim=True)
    held, seen = chunks_are_the_whole(model, probe_batch(model), near)
    assert not held and seen.startswith("what model.layers.2.self_attn reads differs")


def test_only_models_with_states_are_asked(tiny: Any) -> None:
    names = [check.name for check in verify(edited(tiny, (1,))).checks]
    assert names[-2:] == ["any chunking = the whole", "states ignore left padding"]
    assert "any chunking = the whole" not in [c.name for c in verify(tiny("tiny-llama")).checks]


@pytest.mark.parametrize("auto", ["AutoModel", "AutoModelForSequenceClassification"])
def test_models_that_do_not_write_are_asked_too(tiny: Any, auto: str) -> None:
    source = tiny("tiny-llama", auto=auto)
    model = edit(source, toys(Anatomy.of(source), (1,))).model
    names = [check.name for check in verify(model).checks]
    assert "any chunking = the whole" in names and "cached decoding = uncached" not in names
