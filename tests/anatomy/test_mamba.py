"""Mamba, Falcon-Mamba and Mamba-2: typed parts, costs, blocks that go, and the same in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import FalconMambaConfig, FalconMambaForCausalLM, MambaConfig, MambaForCausalLM

import modwright
from anatomy.test_between import check_every_parameter_is_in_one_part
from helpers import edit, random_data, snapshot, unchanged
from mamba_hosts import random_model
from modwright.anatomy import Anatomy
from modwright.checkpoint import save
from modwright.checkpoint.export import export
from modwright.core.errors import InvalidInputError, ModwrightError
from modwright.cost import count, inspect
from modwright.edits import Change, factorize, remove
from modwright.edits.edit import Replace
from modwright.edits.verify import check_reopens
from modwright.surgery.method import make_method, method_names, method_type, unsupported_reason

KINDS = ("mamba", "mamba2", "falcon_mamba")
ROLES = {"mamba": ["in_proj", "x_proj", "out_proj"], "mamba2": ["in_proj", "out_proj"]}
ROLES["falcon_mamba"] = ROLES["mamba"]


def built(kind: str, **fields: Any) -> Any:
    if kind != "falcon_mamba":
        return random_model(kind, **{"num_hidden_layers": 3, **fields})
    torch.manual_seed(0)
    small = {"vocab_size": 31, "hidden_size": 24, "state_size": 8, "num_hidden_layers": 3}
    return FalconMambaForCausalLM(FalconMambaConfig(**{**small, **fields})).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_is_one_token_mixer_with_a_norm(kind: str) -> None:
    model = built(kind, tie_word_embeddings=False)
    anatomy = Anatomy.of(model)
    check_every_parameter_is_in_one_part(model)
    (block, *_) = anatomy.blocks
    mixer = block.at("attention")
    assert mixer is not None and block.at("mlp") is None and block.attention is None
    assert list(mixer.projections()) == ROLES[kind] and list(block.norms) == ["attention_norm"]
    assert anatomy.hidden_size == 24 and list(anatomy.outer) == ["embed", "final_norm", "head"]
    weight = anatomy.part("blocks.2.attention.in_proj").weight
    assert torch.equal(weight, model.backbone.layers[2].mixer.in_proj.weight)


@pytest.mark.parametrize("kind", KINDS)
def test_the_stream_lists_what_reads_and_writes(kind: str) -> None:
    stream = Anatomy.of(built(kind)).stream
    written = [writer.address for writer in stream.writers]
    read = [reader.part.address for reader in stream.readers]
    assert written == ["embed", *(f"blocks.{i}.attention.out_proj" for i in range(3))]
    assert read == [*(f"blocks.{i}.attention.in_proj" for i in range(3)), "head"]
    assert stream.is_complete


def test_the_smallest_published_model_has_as_many_parameters_as_the_paper_says() -> None:
    with torch.device("meta"):
        model = MambaForCausalLM(MambaConfig(num_hidden_layers=24))
    counted = count(model)
    assert counted.parameters == Anatomy.of(model).num_parameters == 129_135_360
    assert {row.parameters for row in counted.rows if row.address.endswith(".attention")} == {
        3_771_648 - 768
    }
    assert "other" not in {row.kind for row in counted.rows}


@pytest.mark.parametrize("kind", KINDS)
def test_costs_are_those_of_the_component_with_the_same_tensors(kind: str) -> None:
    model = built(kind)
    counted = count(model, length=7)
    own = Anatomy.of(model).blocks[0].at("attention").twin
    assert own is not None
    head = 7 * model.lm_head.weight.numel()
    assert counted.prefill_macs == head + 3 * own.macs(1, 7)
    assert counted.kv_bytes == 0
    assert counted.state_bytes == 3 * 4 * sum(
        torch.Size(size).numel() for size in sizes_of_states(model)
    )
    told = inspect(model)
    assert told.root.macs == count(model).prefill_macs
    assert "8 states, " in repr(told.table())
    assert "removed" not in repr(told.table())  # its blocks never had an MLP


def sizes_of_states(model: Any) -> list[torch.Size]:
    """Of one sequence in one layer, as transformers keeps them."""
    with torch.no_grad():
        found = model(torch.tensor([[1, 2, 3]]), use_cache=True)
    cache = next(found[name] for name in ("cache", "cache_params") if name in found)
    layer = cache.layers[0]
    states = layer.conv_states, layer.recurrent_states
    return [(state if isinstance(state, torch.Tensor) else state[0])[0].shape for state in states]


def test_layers_in_factors_are_counted_as_they_are() -> None:
    model = built("mamba")
    projection = Anatomy.of(model).part("blocks.1.attention.out_proj")
    u, s, v = torch.linalg.svd(projection.weight, full_matrices=False)
    thin = edit(model, factorize(projection, u[:, :4] * s[:4], v[:4])).model
    fewer = projection.macs - 4 * (projection.in_features + projection.out_features)
    assert count(model, length=5).prefill_macs - count(thin, length=5).prefill_macs == 5 * fewer
    ours = modwright.apply(thin, "fast_scan").model
    assert count(ours, length=5).prefill_macs == count(thin, length=5).prefill_macs


@pytest.mark.parametrize("kind", KINDS)
def test_whole_blocks_go_and_leave_a_plain_model(kind: str, tmp_path: Path) -> None:
    model = built(kind)
    before = snapshot(model)
    method = make_method("llm_drop", n=1, target="block")
    applied = modwright.apply(model, method, random_data_of(model))
    assert applied.plain and len(Anatomy.of(applied).blocks) == 2
    assert applied.verification is not None and applied.verification.ok
    assert unchanged(model, before)
    save(applied.model, tmp_path / "out")
    check_reopens(applied.model, tmp_path / "out")


@pytest.mark.parametrize("kind", KINDS)
def test_a_mixer_alone_goes_and_the_stock_class_cannot_overlook_it(
    kind: str, tmp_path: Path
) -> None:
    model = built(kind)
    applied = edit(model, remove("blocks.1.attention"))
    assert applied.verification is not None and applied.verification.ok and not applied.plain
    shorter = edit(model, remove("blocks.1")).model
    ids = torch.arange(1, 9).view(1, -1)
    with torch.no_grad():
        assert torch.equal(applied.model(ids).logits, shorter(ids).logits)
    save(applied.model, tmp_path / "out")
    check_reopens(applied.model, tmp_path / "out")
    with pytest.raises(Exception, match="state_size"):
        type(model).from_pretrained(tmp_path / "out")


def random_data_of(model: Any) -> Any:
    from modwright.data.text import from_sequences

    generator = torch.Generator().manual_seed(0)
    top = model.config.vocab_size
    rows = [torch.randint(3, top, (12,), generator=generator) for _ in range(4)]
    return from_sequences(rows, 0, batch_size=2)


@pytest.mark.parametrize("named", ["tiny-mamba", "tiny-mamba2"])
def test_every_method_works_on_it_or_says_in_one_line_why_not(named: str) -> None:
    model = modwright.open(f"preset:{named}").model
    works = set()
    for name in method_names():
        for options in method_type(name).examples:
            method = make_method(name, options)
            reason = unsupported_reason(method, Anatomy.of(model))
            if reason is not None:
                assert "\n" not in reason and reason.startswith(f"{name}:")
                with pytest.raises(ModwrightError):
                    modwright.apply(model, method, random_data(model))
                continue
            applied = modwright.apply(model, method, random_data(model))
            assert applied.verification is not None and applied.verification.ok
            works.add(name)
    assert {"fast_scan", "llm_drop", "arrange"} <= works
    assert not works & {"modegpt", "emoe", "replace_activation"}


def test_what_a_block_does_not_have_is_refused_in_one_line() -> None:
    model = built("mamba")
    with pytest.raises(InvalidInputError, match=r"blocks.0.mlp: mamba blocks have no mlp"):
        edit(model, Change((Replace("blocks.0.mlp", "absent"),)))
    with pytest.raises(InvalidInputError, match=r"mamba blocks have no mlp"):
        edit(model, remove("blocks.0.mlp"))
    mixer = Anatomy.of(model).blocks[0].at("attention")
    with pytest.raises(InvalidInputError, match="state space"):
        modwright.edits.keep_heads(mixer, [0])  # type: ignore[arg-type]


@pytest.mark.slow
def test_an_edited_model_is_exported_to_a_file_that_needs_no_modwright(tmp_path: Path) -> None:
    edited = edit(built("mamba2"), remove("blocks.0.attention")).model
    assert export(edited, tmp_path / "alone", "standalone").compared.held
    ours = modwright.apply(built("mamba"), "fast_scan").model
    assert export(ours, tmp_path / "ours", "standalone").compared.held
