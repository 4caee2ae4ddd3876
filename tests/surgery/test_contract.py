"""Every method on every family: planned, applied, verified, saved, loaded anew, decoded.

New methods and families enter by registering. A method says itself with which options it is to be
tried, and on which models they cannot be used; the table of docs is made from the same words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers import batch_of, outputs, random_data, snapshot, unchanged, worst
from modwright.anatomy import Anatomy
from modwright.core.errors import ModwrightError
from modwright.edits import Plan, verify
from modwright.edits import apply as apply_plan
from modwright.surgery import (
    after_prerequisite,
    apply,
    make_method,
    method_names,
    method_type,
    plan,
    unsupported_reason,
)

CASES = [
    pytest.param(name, options, id=f"{name}-{i}")
    for name in method_names()
    for i, options in enumerate(method_type(name).examples)
]


Reload = Callable[[Any, Path], dict[str, Any]]


@pytest.fixture
def reload(fresh_process: Callable[..., dict[str, Any]], tmp_path: Path) -> Iterator[Reload]:
    """Saves a model and loads it in another process, which must compute the same, bit by bit."""
    place = tmp_path / "reload"
    place.mkdir()

    def run(model: Any, saved: Path) -> dict[str, Any]:
        model.save_pretrained(saved)
        batch, out = place / "batch.safetensors", place / "out.safetensors"
        save_file(batch_of(model), batch)
        auto = "AutoModelForCausalLM" if Anatomy.of(model).family.is_causal() else "AutoModel"
        answer = fresh_process(saved, auto, batch=str(batch), out=str(out))
        assert "error" not in answer, answer
        with torch.no_grad():
            expected = model(**batch_of(model), return_dict=True)[0]
        assert torch.equal(load_file(out)["out"], expected)
        assert answer["class"] == type(model).__name__
        assert answer["parameters"] == Anatomy.of(model).num_parameters
        assert answer["bytes"] == Anatomy.of(model).num_bytes
        assert answer["tied"] == Anatomy.of(model).is_tied
        return answer

    yield run


@pytest.mark.covering(lambda p: p["options"] == method_type(p["name"]).examples[0])
@pytest.mark.contract("A1")
@pytest.mark.parametrize(("name", "options"), CASES)
def test_contract(
    tiny: Any, preset: str, name: str, options: dict[str, Any], tmp_path: Path, reload: Reload
) -> None:
    model = after_prerequisite(name, tiny(preset))
    method = make_method(name, options)
    before, dense = snapshot(model), outputs(model)
    reason = unsupported_reason(method, Anatomy.of(model))
    if reason is not None:
        with pytest.raises(ModwrightError) as refusal:
            plan(model, method, random_data(model))
        assert str(refusal.value) == reason and "\n" not in reason
        assert unchanged(model, before)
        return
    decided = plan(model, method, random_data(model))
    changes = decided.edits or decided.tensors or decided.masks
    assert decided.method == name and changes, "these options change nothing"
    decided.save(tmp_path / "plan")
    applied = apply_plan(model, Plan.load(tmp_path / "plan"))

    assert unchanged(model, before)
    assert torch.equal(outputs(model), dense)
    assert applied.verification is not None and applied.verification.ok
    promises = {check.name for check in applied.verification.checks}
    if Anatomy.of(model).family.is_causal():
        assert {"causality", "cached decoding = uncached"} <= promises
    smaller = Anatomy.of(applied.model)
    gone = Anatomy.of(model).num_parameters - smaller.num_parameters
    low, high = method.parameter_bounds(Anatomy.of(model))
    assert low - 0.3 * abs(low) <= gone <= high + 0.3 * abs(high)
    moved = worst(outputs(applied.model), dense)
    if method.exact:
        assert moved < 1e-5 * float(dense.abs().max())
    elif len(smaller.blocks) == 4:
        assert moved > 1e-4

    answer = reload(applied.model, tmp_path / "saved")
    if Anatomy.of(model).family.is_causal():
        assert answer["eos"] == model.generation_config.eos_token_id
    auto = getattr(__import__("transformers"), tiny.auto_class(preset))
    assert verify(auto.from_pretrained(tmp_path / "saved")).ok


ORDERS = [
    (("llm_drop", {"n": 1, "target": "attention"}), ("modegpt", {"sparsity": 0.3})),
    (("llm_drop", {"n": 1, "target": "block"}), ("modegpt", {"sparsity": 0.3})),
]


def takeable(model: Any, name: str, options: dict[str, Any]) -> Any:
    """The method with these options, or the first of its examples that the model takes."""
    tried = [make_method(name, given) for given in (options, *method_type(name).examples)]
    return next(method for method in tried if unsupported_reason(method, Anatomy.of(model)) is None)


@pytest.mark.parametrize("swapped", [False, True], ids=["drop first", "narrow first"])
@pytest.mark.parametrize("pair", ORDERS, ids=lambda pair: pair[0][1]["target"])
def test_methods_compose_in_both_orders(
    tiny: Any, preset: str, pair: Any, swapped: bool, tmp_path: Path, reload: Reload
) -> None:
    steps = list(reversed(pair)) if swapped else list(pair)
    model = tiny(preset)
    for index, (name, options) in enumerate(steps):
        applied = apply(model, takeable(model, name, options), random_data(model))
        assert applied.verification is not None and applied.verification.ok
        fewer = Anatomy.of(applied.model).num_parameters
        assert fewer < Anatomy.of(model).num_parameters
        reload(applied.model, tmp_path / str(index))
        # The next step starts from what a user would have: the saved checkpoint.
        auto = getattr(__import__("transformers"), tiny.auto_class(preset))
        model = auto.from_pretrained(tmp_path / str(index))
    left = Anatomy.of(model)
    target = pair[0][1]["target"]
    if target == "block":
        assert len(left.blocks) == 3
    else:
        missing = [getattr(block, target) for block in left.blocks].count(None)
        assert missing == pair[0][1]["n"]
    assert not applied.plain, "layers differ"
