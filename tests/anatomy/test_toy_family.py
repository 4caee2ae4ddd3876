"""A family registered from outside the package goes all the way, like those inside."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import modwright
from helpers import batch_of, edit, outputs, snapshot, unchanged, worst
from modwright.anatomy import Anatomy, Family, family_names, register_family
from modwright.anatomy.families import MODEL_TYPES
from modwright.core.errors import InvalidInputError
from modwright.edits import (
    Change,
    factorize,
    keep_heads,
    keep_neurons,
    remove,
    replace_attention,
    verify,
)
from modwright.edits.verify import check_reopens

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    """Built after the Auto classes were imported, which is when a user registers a family.

    Other tests list what is registered, so the toy is taken out again.
    """
    assert transformers.AutoModelForCausalLM is not None
    with MODEL_TYPES.restored():
        from toy_family import ToyConfig, ToyForCausalLM

        torch.manual_seed(0)
        built = ToyForCausalLM(ToyConfig(eos_token_id=2, pad_token_id=0)).eval()
        with torch.no_grad():
            for parameter in built.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        yield built


def changes(a: Anatomy) -> dict[str, Change]:
    outer, inner = torch.randn(24, 4), torch.randn(4, 40)
    return {
        "attention": remove(a.blocks[0].attention),
        "mlp": remove(a.blocks[1].mlp),
        "block": remove(a.blocks[0]),
        "heads": keep_heads(a.blocks[1].attention, [0, 2, 3]),
        "neurons": keep_neurons(a.blocks[2].mlp, range(7, 23)),
        "all-neurons": sum((keep_neurons(b.mlp, range(16)) for b in a.blocks), Change()),
        "low-rank": factorize(a.blocks[2].mlp.down, outer, inner),
        "mixed": remove(a.blocks[0])
        + remove(a.blocks[1].attention)
        + keep_heads(a.blocks[2].attention, [1, 3])
        + keep_neurons(a.blocks[1].mlp, [5, 3, 1]),
    }


NAMES = ["attention", "mlp", "block", "heads", "neurons", "all-neurons", "low-rank", "mixed"]
PLAIN = {"block", "all-neurons"}


def test_it_is_known_and_opens_as_typed_parts(model: Any) -> None:
    assert "toy" in family_names()
    anatomy = Anatomy.of(model)
    assert repr(anatomy).startswith("Anatomy(toy, 3 blocks, hidden_size 24")
    attention = anatomy.blocks[1].attention
    assert attention is not None
    assert (attention.num_heads, attention.num_kv_heads, attention.shape.qk_head_dim) == (4, 4, 6)
    fused = model.house.floors[1].mix.wide.weight
    assert torch.equal(attention.read_v().flatten(0, 1), fused[:24])
    assert torch.equal(attention.read_q().flatten(0, 1), fused[48:])
    assert anatomy.is_tied
    counted = {
        id_of(t): t.numel() for _, part in anatomy.parts() for t in part.parameters().values()
    }
    assert sum(counted.values()) == anatomy.num_parameters


def id_of(tensor: torch.Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), tensor.numel()


def test_the_generic_attention_computes_what_the_toys_own_does(model: Any) -> None:
    anatomy = Anatomy.of(model)
    same = sum((replace_attention(b.attention) for b in anatomy.blocks), Change())
    replaced = edit(model, same).model
    assert worst(outputs(replaced), outputs(model)) <= 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_edits_apply_verify_save_and_come_back(model: Any, name: str, tmp_path: Path) -> None:
    before = snapshot(model)
    applied = edit(model, changes(Anatomy.of(model))[name])
    assert applied.verification is not None and applied.verification.ok
    assert applied.plain == (name in PLAIN)
    assert unchanged(model, before)
    applied.model.save_pretrained(tmp_path)
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(back) is type(applied.model)
    assert torch.equal(outputs(back), outputs(applied.model))
    assert verify(back).ok
    backbone = transformers.AutoModel.from_pretrained(tmp_path)
    assert type(backbone) is type(applied.model.house) or not applied.plain
    bare = outputs(backbone, batch_of(model))
    assert (
        torch.equal(bare @ back.speak.weight.T, outputs(back))
        or worst(bare @ back.speak.weight.T, outputs(back)) <= 1e-5
    )


@pytest.mark.parametrize("name", sorted(set(NAMES) - PLAIN))
def test_the_stock_class_does_not_load_what_it_cannot_hold(
    model: Any, name: str, tmp_path: Path
) -> None:
    edit(model, changes(Anatomy.of(model))[name]).model.save_pretrained(tmp_path)
    with pytest.raises((RuntimeError, TypeError)):
        type(model).from_pretrained(tmp_path)


def test_a_new_process_that_knows_the_toy_loads_it(
    model: Any, fresh_process: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    applied = edit(model, changes(Anatomy.of(model))["mixed"])
    applied.model.save_pretrained(tmp_path / "model")
    save_file(batch_of(model), tmp_path / "batch.safetensors")
    answer = fresh_process(
        tmp_path / "model",
        "AutoModelForCausalLM",
        modules=[str(HERE / "toy_family.py")],
        batch=str(tmp_path / "batch.safetensors"),
        out=str(tmp_path / "out.safetensors"),
    )
    assert "error" not in answer, answer
    assert answer["class"] == "ModwrightToyForCausalLM"
    assert answer["tied"]
    with torch.no_grad():
        expected = applied.model(**batch_of(model)).logits
    assert torch.equal(load_file(tmp_path / "out.safetensors")["out"], expected)


@pytest.mark.parametrize("name", ["mixed", "block"])
def test_the_new_process_that_checks_what_is_saved_knows_the_toy(
    model: Any, name: str, tmp_path: Path
) -> None:
    """Also where it has no edits: stock transformers does not know the architecture."""
    applied = edit(model, changes(Anatomy.of(model))[name])
    modwright.save(applied.model, tmp_path / "model")
    seen = check_reopens(applied.model, tmp_path / "model")
    assert seen.model_class == type(applied.model).__name__ and not seen.plain


def test_a_copy_of_an_edited_toy_is_edited_too(model: Any) -> None:
    applied = edit(model, changes(Anatomy.of(model))["mixed"])
    copied = copy.deepcopy(applied.model)
    assert torch.equal(outputs(copied), outputs(applied.model))
    again = edit(copied, keep_neurons(Anatomy.of(copied).blocks[1].mlp, range(4)))
    assert verify(again.model).ok


def test_a_model_type_has_one_family() -> None:
    with pytest.raises(
        InvalidInputError, match=r"called 'llama' is registered already, by \S+\.families\.llama"
    ):

        @register_family
        class Other(Family):
            name = "other"
            model_types = ("llama",)

    assert modwright.register_family is register_family
