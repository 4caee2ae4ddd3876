"""Conversions and other methods, one after the other, in both orders where both are valid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from norm_cases import FORMS, PRE_LAYER_NORM, converted, far, means

from helpers import edit, outputs
from modwright.anatomy import Anatomy, FactoredProjection
from modwright.calibration import TokenWindows
from modwright.core.errors import InvalidInputError
from modwright.data.text import from_sequences
from modwright.edits import factorize
from modwright.edits.remodeled import edits_of
from modwright.surgery import apply, make_method, unsupported_reason

PAIRS = ["mlp", "query_key", "value_output"]
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "attention dropped": ("llm_drop", {"n": 1, "target": "attention"}),
    "MLPs dropped": ("llm_drop", {"n": 2, "target": "mlp"}),
    "block dropped": ("llm_drop", {"n": 1, "target": "block"}),
    "narrowed": ("modegpt", {"sparsity": 0.3, "allocation": "uniform", "pairs": PAIRS[:2]}),
    "values narrowed": ("modegpt", {"sparsity": 0.3, "pairs": PAIRS[2:]}),
    "parts named": ("drop", {"parts": "attention[0]; mlp[1]; block[3]"}),
    "blocks repeated": ("arrange", {"blocks": "0:2, 1:4"}),
}
TEXT_MODELS = tuple(name for name in PRE_LAYER_NORM if name != "tiny-vit")
every_form = pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
# Each method meets each form, and each model meets all methods and all forms.
every_pair = pytest.mark.parametrize(
    ("pre_norm", "name", "options"),
    [
        pytest.param(TEXT_MODELS[(i + j) % 3], name, options, id=f"{name}-{form}")
        for i, name in enumerate(OTHERS)
        for j, (form, options) in enumerate(FORMS.items())
    ],
)


def data() -> TokenWindows:
    generator = torch.Generator().manual_seed(0)
    sequences = [torch.randint(3, 128, (24,), generator=generator) for _ in range(8)]
    return from_sequences(sequences, 0, batch_size=4)


def other(model: Any, name: str) -> Any:
    """The model after another method."""
    method, options = OTHERS[name]
    return apply(model, make_method(method, options), data()).model


@every_pair
def test_a_cut_model_converts_exactly(
    tiny: Any, pre_norm: str, name: str, options: dict[str, Any]
) -> None:
    cut = other(tiny(pre_norm, dtype=torch.float64), name)
    result = converted(cut, **options).model
    assert far(outputs(result), outputs(cut)) < 1e-12
    before, after = Anatomy.of(cut), Anatomy.of(result)
    gone = before.num_parameters - after.num_parameters
    assert make_method("pre_rmsnorm", options).parameter_bounds(before) == (gone, gone)
    for old, new in zip(before.blocks, after.blocks):
        assert (old.attention is None, old.mlp is None) == (new.attention is None, new.mlp is None)


@every_pair
def test_a_converted_model_is_cut_like_any_other(
    tiny: Any, pre_norm: str, name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    import transformers

    model = tiny(pre_norm, dtype=torch.float64)
    converted(model, **options).model.save_pretrained(tmp_path / "converted")
    opened = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "converted", dtype=torch.float64
    )
    cut = other(opened, name)
    # Scores of the stream, and fits to what is written, see no mean; these methods look at neither.
    named = name in ("parts named", "blocks repeated")
    if named or (name == "narrowed" and options in (FORMS["rms"], FORMS["training"])):
        assert far(outputs(cut), outputs(other(model, name))) < 1e-9
    if options["form"] == "rms":
        # What a cut leaves still writes without a mean, so the coordinate can go afterwards.
        small = converted(cut, form="crms").model
        assert far(outputs(small), outputs(cut)) < 1e-9
        assert Anatomy.of(small).hidden_size == 47


def test_from_one_form_to_the_next(tiny: Any) -> None:
    model = tiny("tiny-opt", dtype=torch.float64)
    steps = [FORMS["training"], FORMS["rms"], FORMS["folded"], FORMS["crms"]]
    now = model
    for options in steps:
        now = converted(now, **options).model
        assert far(outputs(now), outputs(model)) < 1e-12
    assert means(now) > 1e-3, "without one coordinate the others have a mean"
    straight = converted(model, form="crms").model
    assert [edit.to_dict() for edit in edits_of(now.config)] == [
        edit.to_dict() for edit in edits_of(straight.config)
    ], "the way does not matter"


@every_form
def test_factor_pairs_are_rewritten_as_pairs(tiny: Any, options: dict[str, Any]) -> None:
    model = tiny("tiny-opt", dtype=torch.float64)
    block = Anatomy.of(model).blocks[1]
    thin = model
    for projection in (block.attention.k, block.attention.o, block.mlp.up, block.mlp.down):
        u, s, vh = torch.linalg.svd(projection.weight, full_matrices=False)
        thin = edit(thin, factorize(projection, u[:, :9] * s[:9], vh[:9])).model
    if options.get("training"):
        with pytest.raises(InvalidInputError, match="factor pair"):
            converted(thin, **options)
        return
    result = converted(thin, **options).model
    assert far(outputs(result), outputs(thin)) < 1e-12
    after = Anatomy.of(result).blocks[1]
    maps = after.attention.projections() | after.mlp.projections()
    kinds = {role for role, p in maps.items() if isinstance(p, FactoredProjection)}
    assert kinds == {"k", "o", "up", "down"}


@every_form
def test_experts_keep_their_choice_or_are_refused(tiny: Any, options: dict[str, Any]) -> None:
    """They are chosen by what the norm returns, so it must not change."""
    model = tiny("tiny-gpt2", dtype=torch.float64)
    split = apply(model, make_method("emoe", {"num_experts": 8, "top_k": 2}), data()).model
    if options == FORMS["rms"]:
        assert far(outputs(converted(split, **options).model), outputs(split)) < 1e-12
        return
    reason = unsupported_reason(make_method("pre_rmsnorm", options), Anatomy.of(split))
    assert reason is not None and "consists of experts" in reason and "merge" in reason
    with pytest.raises(InvalidInputError, match="consists of experts"):
        converted(split, **options)
    merged = apply(split, make_method("emoe_merge")).model
    assert far(outputs(converted(merged, **options).model), outputs(model)) < 1e-12
