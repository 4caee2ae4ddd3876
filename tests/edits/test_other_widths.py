"""Sublayers refitted to other widths, parts altered where they stand, and edits taken back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from helpers import edit, outputs, worst
from modwright.anatomy import Anatomy, FactoredProjection
from modwright.core.errors import InvalidInputError
from modwright.edits import Change, Plan, Replace, RevertEdit, edits_from_list, factorize, remove
from modwright.edits.change import resize
from modwright.edits.registry import build_part, part_names
from modwright.edits.remodeled import edits_of
from modwright.nn import FactorPair, ZeroMean, ZeroMeanEmbedding


def reopened(model: Any, place: Path, tiny: Any, preset: str) -> Any:
    import transformers

    model.save_pretrained(place)
    return getattr(transformers, tiny.auto_class(preset)).from_pretrained(place)


def factors(projection: Any, rank: int) -> Change:
    """The best approximation of that rank."""
    u, s, vh = torch.linalg.svd(projection.weight, full_matrices=False)
    return factorize(projection, u[:, :rank] * s[:rank], vh[:rank])


# Refitting


def test_refitted_with_its_own_values_a_part_computes_the_same(tiny: Any, preset: str) -> None:
    model = tiny(preset)
    for role, sublayer in Anatomy.of(model).blocks[1].sublayers():
        try:
            change = resize(sublayer, {})
        except InvalidInputError as refusal:
            assert role == "mlp" and "cannot be given other widths" in str(refusal)
            continue
        assert worst(outputs(edit(model, change).model), outputs(model)) < 1e-5


def test_biases_grow_where_there_are_none(tiny: Any, tmp_path: Path) -> None:
    model = tiny("tiny-llama")
    change = Change()
    for role, sublayer in Anatomy.of(model).blocks[2].sublayers():
        roles = sublayer.projections()
        change += resize(
            sublayer, {r: {"bias": torch.full((p.out_features,), 0.1)} for r, p in roles.items()}
        )
        assert role in ("attention", "mlp")
    grown = edit(model, change).model
    assert worst(outputs(grown), outputs(model)) > 1e-3
    back = reopened(grown, tmp_path / "saved", tiny, "tiny-llama")
    assert torch.equal(outputs(back), outputs(grown))
    block = Anatomy.of(back).blocks[2]
    found = [p.bias for _, part in block.sublayers() for p in part.projections().values()]
    assert len(found) == 7 and all(float(bias[0]) == pytest.approx(0.1) for bias in found)


@pytest.mark.contract("A10")
def test_factor_pairs_stay_factor_pairs(tiny: Any, tmp_path: Path) -> None:
    model = tiny("tiny-opt")
    first = Anatomy.of(model).blocks[1]
    pairs = factors(first.attention.q, 6) + factors(first.attention.o, 7) + factors(first.mlp.up, 8)
    thin = edit(model, pairs).model
    block = Anatomy.of(thin).blocks[1]
    refitted = edit(thin, resize(block.attention, {}) + resize(block.mlp, {})).model
    assert worst(outputs(refitted), outputs(thin)) < 1e-5
    assert Anatomy.of(refitted).num_parameters == Anatomy.of(thin).num_parameters
    back = Anatomy.of(reopened(refitted, tmp_path / "saved", tiny, "tiny-opt"))
    kept = back.blocks[1].attention.projections() | back.blocks[1].mlp.projections()
    ranks = {r: p.rank for r, p in kept.items() if isinstance(p, FactoredProjection)}
    assert ranks == {"q": 6, "o": 7, "up": 8}


def test_a_rank_that_saves_nothing_becomes_dense(tiny: Any) -> None:
    mlp = Anatomy.of(tiny("tiny-opt")).blocks[0].mlp
    thin = edit(tiny("tiny-opt"), factors(mlp.up, 5)).model
    up = Anatomy.of(thin).blocks[0].mlp
    narrow = resize(up, {"up": {"reduce": up.up.parameters()["reduce"][:, :5]}})
    (found,) = (item for item in narrow.edits if item.path.endswith("up"))
    assert isinstance(found, Replace) and found.part == "linear"
    assert found.kwargs == {"in_features": 5, "out_features": 96, "bias": True}


def test_a_generic_mlp_keeps_its_shape_in_step_with_its_maps(tiny: Any) -> None:
    model = tiny("tiny-gpt2")
    mlp = Anatomy.of(model).blocks[0].mlp
    shape = {**mlp.shape.to_dict(), "intermediate_size": 40}
    values = {
        f"{mlp.address}.up.weight": mlp.up.weight[:40],
        f"{mlp.address}.up.bias": mlp.up.bias[:40],
    }
    values[f"{mlp.address}.down.weight"] = mlp.down.weight[:, :40]
    ours = edit(model, Change((Replace(mlp.address, "feed_forward", shape),), values)).model
    generic = Anatomy.of(ours).blocks[0].mlp
    assert generic.is_generic
    change = resize(generic, {"up": {"weight": generic.up.weight[:, :30]}})
    assert change.edits[0].kwargs["hidden_size"] == 30
    assert [e.path for e in change.edits] == ["blocks.0.mlp"]


# Altered where they stand


def test_parts_that_alter_what_stands_there_are_parts_like_others(
    tiny: Any, tmp_path: Path
) -> None:
    assert {"narrowed", "zero_mean", "rms_norm", "crms_norm"} <= set(part_names())
    model = tiny("tiny-gpt2")
    stored = Anatomy.of(model).outer["embed"].module.weight
    applied = edit(
        model, Change((Replace("embed", "zero_mean"), Replace("positions", "zero_mean")))
    )
    found = Anatomy.of(applied.model).outer["embed"].module
    assert type(found) is ZeroMeanEmbedding and not isinstance(
        Anatomy.of(model).outer["embed"].module, ZeroMean
    )
    assert found.weight is stored, "it is shared, and stored once"
    assert Anatomy.of(applied.model).is_tied
    assert "transformer.wte.weight" in applied.tensor_diff.kept
    back = reopened(applied.model, tmp_path / "saved", tiny, "tiny-gpt2")
    assert torch.equal(outputs(back), outputs(applied.model))
    assert worst(outputs(back), outputs(model)) < 1e-5, "LayerNorm takes the mean away"
    resized = back.resize_token_embeddings(140)
    assert type(resized) is ZeroMeanEmbedding
    again = reopened(back, tmp_path / "resized", tiny, "tiny-gpt2")
    assert torch.equal(outputs(again), outputs(back))


def test_what_a_config_says_of_them_is_checked(tiny: Any) -> None:
    model = tiny("tiny-gpt2")
    axes: dict[str, Any] = {"axes": {"weight": -1}, "size": 20, "standing": 1}
    with pytest.raises(InvalidInputError, match=r"part 'narrowed': .*standing"):
        edit(model, Change((Replace("positions", "narrowed", axes),)))
    with pytest.raises(
        InvalidInputError, match="part 'narrowed': Embedding has no parameter 'bias'"
    ):
        wrong = {"axes": {"bias": 0}, "size": 20}
        edit(model, Change((Replace("positions", "narrowed", wrong),)))
    with pytest.raises(
        InvalidInputError, match=r"gives no value for positions\.weight \(256, 20\)"
    ):
        right = {"axes": {"weight": -1}, "size": 20}
        edit(model, Change((Replace("positions", "narrowed", right),)))
    with pytest.raises(InvalidInputError, match="part 'crms_norm': hidden_size must be at least 1"):
        build_part("crms_norm", model.config, {"hidden_size": 0, "eps": 1e-5})


# Taken back


def test_an_edit_can_be_taken_back(tiny: Any) -> None:
    model = tiny("tiny-opt")
    mlp = Anatomy.of(model).blocks[1].mlp
    thin = edit(model, factors(mlp.up, 5) + Change((Replace("embed", "zero_mean"),))).model
    assert isinstance(Anatomy.of(thin).blocks[1].mlp.up.module, FactorPair)
    own = {f"{mlp.up.address}.{name}": t for name, t in mlp.up.parameters().items()}
    back = edit(thin, Change((RevertEdit(mlp.up.address), RevertEdit("embed")), own))
    assert back.plain and torch.equal(outputs(back.model), outputs(model))
    nothing = edit(model, Change((RevertEdit("embed"),)))
    assert nothing.plain and torch.equal(outputs(nothing.model), outputs(model))


def test_taking_back_travels_in_plans_only(tiny: Any, tmp_path: Path) -> None:
    stored = [RevertEdit("blocks.1.mlp.up").to_dict()]
    assert stored == [{"op": "restore", "path": "blocks.1.mlp.up"}]
    assert edits_from_list(stored) == (RevertEdit("blocks.1.mlp.up"),)
    with pytest.raises(InvalidInputError, match="a whole block that was removed cannot come back"):
        RevertEdit("blocks.1")
    model = tiny("tiny-gpt2")
    gone = edit(model, remove(Anatomy.of(model).blocks[0].mlp)).model
    with pytest.raises(InvalidInputError, match="mlp of block 0 was removed"):
        edit(gone, Change((RevertEdit("blocks.0.mlp.up"),)))
    plan = Plan.of(Anatomy.of(model), "test", Change((RevertEdit("embed"),)))
    assert plan.summary() == [("embed", "the family's own again")]
    config = type(gone.config)(**{**gone.config.to_dict(), "edits": stored})
    assert config.edits == stored
    with pytest.raises(InvalidInputError, match="'restore' belongs into a plan, not into a config"):
        edits_of(config)


def test_a_bare_backbone_carries_the_edit_of_a_head_along(tiny: Any, tmp_path: Path) -> None:
    """The checkpoint of a language model opens as a backbone too, whose edits go on."""
    import transformers

    from modwright.edits import untie

    model = tiny("tiny-gpt2")
    anatomy = Anatomy.of(model)
    change = untie(anatomy, torch.zeros(128, 48)) + remove(anatomy.blocks[0].attention)
    for index, one in enumerate((change, untie(anatomy, bias=torch.ones(128)))):
        place = tmp_path / str(index)
        edit(model, one).model.save_pretrained(place)
        bare = transformers.AutoModel.from_pretrained(place)
        assert "head" not in Anatomy.of(bare).outer
        narrower = edit(bare, remove(Anatomy.of(bare).blocks[2].mlp)).model
        assert Anatomy.of(narrower).blocks[2].mlp is None


def test_a_new_width_fits_where_a_module_is_of_a_related_class(tiny: Any) -> None:
    """Parameters are shared where a class has another forward only, never between layouts."""
    model = tiny("tiny-gpt2")
    o = Anatomy.of(model).blocks[0].attention.o
    sizes = {"in_features": 48, "out_features": 48, "bias": True}
    applied = edit(model, Change((Replace(o.address, "zero_mean_linear", sizes),)))
    found = Anatomy.of(applied.model).blocks[0].attention.o
    assert isinstance(found.module, nn.Linear) and found.parameters()["weight"].shape == (48, 48)
    assert torch.equal(found.parameters()["weight"], o.parameters()["weight"]), "not transposed"
    assert worst(found.weight, o.weight - o.weight.mean(0, keepdim=True)) < 1e-7
    assert worst(outputs(applied.model), outputs(model)) < 1e-5
