"""Methods register, are found, check their options, and are used in one line."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import modwright
from helpers import outputs
from modwright.anatomy import Anatomy
from modwright.calibration import TokenWindows
from modwright.core.errors import InvalidInputError
from modwright.core.registry import Registry
from modwright.data.text import from_sequences
from modwright.edits import Plan, remove
from modwright.papers import paper
from modwright.surgery import (
    Requirements,
    apply,
    make_method,
    method_names,
    method_type,
    plan,
    register_method,
)
from modwright.surgery.method import METHODS


@pytest.fixture
def registry() -> Iterator[Registry[Any]]:
    """The registry, which the test may fill."""
    with METHODS.restored():
        yield METHODS


def register_first_gone(name: str = "first_gone") -> type[Any]:
    @register_method(name, paper="none", requires=Requirements(parts=("block",)))
    @dataclass(frozen=True)
    class FirstGone:
        """Removes the first blocks."""

        count: int = 1

        def __post_init__(self) -> None:
            if self.count < 1:
                raise InvalidInputError("count must be at least 1")

        def wants_data(self) -> bool:
            return False

        def plan(
            self, anatomy: Anatomy, calibration: TokenWindows | None = None, **how: Any
        ) -> Plan:
            blocks = anatomy.blocks[: self.count]
            change = sum((remove(block) for block in blocks[1:]), remove(blocks[0]))
            return Plan.of(anatomy, name, change, {"count": self.count})

    return FirstGone


def test_the_methods_of_the_package_are_found_by_themselves() -> None:
    code = "from modwright.surgery import method_names; print(*method_names())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"llm_drop", "modegpt"} <= set(done.stdout.split())


def test_every_method_says_what_it_is() -> None:
    for name in method_names():
        kind = method_type(name)
        assert kind.name == name and isinstance(kind.requires, Requirements)
        assert kind.paper is None or paper(kind.paper)
        assert kind.__doc__ and ("Attributes:" in kind.__doc__) == bool(dataclasses.fields(kind))
        assert kind.examples, "nothing would be tried with it"
        methods = [make_method(name, options) for options in kind.examples]
        assert len(set(methods)) == len(methods)
        method = methods[0]
        assert method.title()
        with pytest.raises(AttributeError):
            method.anything = 1


def test_a_method_from_outside_enters_by_registering(registry: Any, tiny: Any) -> None:
    kind = register_first_gone()
    assert "first_gone" in method_names() and method_type("first_gone") is kind
    method = make_method("first_gone", {"count": 2})
    model = tiny("tiny-llama")
    applied = modwright.apply(model, method)
    assert len(Anatomy.of(applied.model).blocks) == 2
    with pytest.raises(InvalidInputError, match="count must be at least 1"):
        make_method("first_gone", {"count": 0})


def test_a_name_is_registered_once(registry: Any) -> None:
    register_first_gone()
    with pytest.raises(InvalidInputError, match="'first_gone' is registered already"):
        register_first_gone()
    with pytest.raises(TypeError, match="must be a dataclass"):
        register_method("other", paper="none", requires=Requirements())(object)


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(InvalidInputError, match=r"unknown method 'llm_dorp'.*mean 'llm_drop'"):
        make_method("llm_dorp")
    with pytest.raises(InvalidInputError, match=r"valid values: n, target, mode.*mean 'target'"):
        make_method("llm_drop", {"tarket": "mlp"})


def test_every_wrong_option_is_named_in_one_line() -> None:
    with pytest.raises(InvalidInputError) as refusal:
        make_method("llm_drop", {"n": "x", "target": "y"})
    said = str(refusal.value)
    assert said.startswith("llm_drop: ") and "\n" not in said
    assert "n: must be a whole number, not 'x'" in said
    assert "target: must be 'attention'" in said and ", not 'y'" in said


def test_options_of_yaml_are_taken() -> None:
    assert make_method("modegpt", {"pairs": ["mlp"], "sparsity": 0}).pairs == ("mlp",)
    assert make_method("llm_drop", {"n": 0}).n == 0


def data() -> TokenWindows:
    return from_sequences([torch.arange(3, 19), torch.arange(40, 56)], 0, batch_size=2)


def test_plan_and_apply_are_one_line_each(tiny: Any) -> None:
    model = tiny("tiny-llama")
    dense = outputs(model)
    method = make_method("llm_drop", {"n": 2})
    decided = plan(model, method, data())
    planned, straight = apply(model, decided), apply(model, method, data())
    assert torch.equal(outputs(planned.model), outputs(straight.model))
    assert torch.equal(outputs(model), dense)
    assert planned.verification is not None and planned.verification.ok
    assert apply(model, decided, check=False).verification is None


def test_a_method_that_needs_data_says_so_before_any_work(tiny: Any) -> None:
    for name, options in (("llm_drop", {"n": 1}), ("modegpt", {})):
        with pytest.raises(
            InvalidInputError, match=f"{name} needs calibration data: pass token windows"
        ):
            apply(tiny("tiny-llama"), make_method(name, options))
    assert plan(tiny("tiny-llama"), make_method("llm_drop", {"n": 0})).edits == ()
