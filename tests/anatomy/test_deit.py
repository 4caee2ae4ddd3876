"""DeiT of transformers: blocks of a ViT, a second token, and heads that are parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForImageClassification, DeiTConfig

import modwright
from anatomy.test_between import check_every_parameter_is_in_one_part
from anatomy.test_family_views import check_attention_views, check_hook_points
from helpers import edit, outputs, snapshot, unchanged
from modwright.anatomy import Anatomy, Linear
from modwright.calibration.tensors import from_tensors
from modwright.checkpoint import save
from modwright.cost import count, forward_macs, inspect
from modwright.edits import Change, factorize, keep_heads, keep_neurons, remove
from modwright.edits.verify import check_reopens
from modwright.surgery.method import make_method

SIZES: dict[str, Any] = {
    "image_size": 16,
    "patch_size": 4,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "num_labels": 5,
    "initializer_range": 0.2,
}
HEADS = ("ForImageClassification", "ForImageClassificationWithTeacher", "Model")


def built(head: str = "ForImageClassification", **fields: Any) -> Any:
    torch.manual_seed(0)
    config = DeiTConfig(**{**SIZES, **fields})
    model = getattr(transformers, f"DeiT{head}")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.mark.parametrize("head", [*HEADS, "ForMaskedImageModeling"])
def test_every_parameter_and_product_is_in_a_part(head: str) -> None:
    model = built(head, encoder_stride=4)
    check_every_parameter_is_in_one_part(model)
    counted = count(model)
    assert counted.parameters == sum(p.numel() for p in model.parameters())
    assert "other" not in [row.kind for row in counted.rows]
    assert counted.prefill_macs == forward_macs(model, 1, 3, 16, 16)
    assert inspect(model).root.macs == counted.prefill_macs


def test_heads_are_parts_by_the_names_that_models_have() -> None:
    plain = Anatomy.of(built())
    assert list(plain.outer) == ["embed", "positions", "final_norm", "classifier"]
    assert isinstance(plain.outer["classifier"], Linear) and plain.stream.is_complete
    reader = plain.stream.last_reader
    assert reader is not None and reader.part is plain.outer["classifier"]
    teacher = Anatomy.of(built(HEADS[1]))
    assert list(teacher.outer)[-2:] == ["cls_classifier", "distillation_classifier"]
    assert teacher.stream.is_complete and teacher.stream.last_reader is None, "there are two"
    assert "pooler" in Anatomy.of(built("Model")).outer
    assert set(plain.outer["positions"].parameters()) == {
        "cls_token",
        "distillation_token",
        "position_embeddings",
    }
    assert "16 patches and 2 tokens beside them" in inspect(built()).image


@pytest.mark.parametrize("fields", [{}, {"qkv_bias": False, "image_size": [16, 8]}])
def test_the_views_compute_what_the_modules_compute(fields: dict[str, Any]) -> None:
    model = built(**fields)
    check_attention_views(model)
    check_hook_points(model)


def changes(anatomy: Anatomy) -> dict[str, tuple[Change, bool]]:
    """Edits, and whether a stock class opens the result."""
    blocks, fc = anatomy.blocks, anatomy.part("blocks.2.mlp.down")
    return {
        "attention": (remove("blocks.1.attention"), False),
        "mlp": (remove("blocks.0.mlp"), False),
        "block": (remove("blocks.1"), True),
        "heads": (keep_heads(blocks[0].attention, [0, 3]), False),
        "neurons": (keep_neurons(blocks[1].mlp, range(3, 20)), False),
        "neurons everywhere": (
            sum((keep_neurons(b.mlp, range(8)) for b in blocks), Change()),
            True,
        ),
        "factors": (factorize(fc, torch.randn(16, 2), torch.randn(2, 24)), False),
    }


@pytest.mark.parametrize("head", HEADS[:2])
@pytest.mark.parametrize("name", list(changes(Anatomy.of(built()))))
def test_edits_apply_save_and_come_back(head: str, name: str, tmp_path: Path) -> None:
    source = built(head)
    before = snapshot(source)
    change, plain = changes(Anatomy.of(source))[name]
    applied = edit(source, change)
    assert unchanged(source, before) and applied.plain == plain
    assert applied.verification is not None and applied.verification.ok
    check_every_parameter_is_in_one_part(applied.model)
    assert count(applied.model).parameters == sum(p.numel() for p in applied.model.parameters())
    applied.model.save_pretrained(tmp_path)
    if plain:
        again: Any = type(source).from_pretrained(tmp_path)
    else:
        again = type(applied.model).from_pretrained(tmp_path)
        with pytest.raises((RuntimeError, TypeError, ValueError, Exception), match=r"."):
            type(source).from_pretrained(tmp_path)
    assert torch.equal(outputs(again), outputs(applied.model))
    if head == HEADS[0]:
        auto = AutoModelForImageClassification.from_pretrained(tmp_path)
        assert torch.equal(outputs(auto), outputs(applied.model))


def test_dropped_sublayers_add_nothing() -> None:
    source, twin = built(), built()
    for address, role in (("blocks.1.attention", "o"), ("blocks.0.mlp", "down")):
        for name, tensor in Anatomy.of(twin).part(f"{address}.{role}").parameters().items():
            Anatomy.of(twin).write(f"{address}.{role}.{name}", torch.zeros_like(tensor))
    result = edit(source, remove("blocks.1.attention") + remove("blocks.0.mlp")).model
    torch.testing.assert_close(outputs(result), outputs(twin), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("head", HEADS[:2])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llm_drop", {"n": 1}),
        ("modegpt", {"sparsity": 0.3}),
        ("pre_rmsnorm", {}),
        ("pre_rmsnorm", {"form": "crms"}),
        ("replace_token_mixer", {"mixer": "pool", "blocks": "1"}),
    ],
)
def test_methods_work(head: str, name: str, options: dict[str, Any]) -> None:
    import modwright

    model = built(head)
    data = from_tensors([{"pixel_values": torch.randn(8, 3, 16, 16)} for _ in range(2)])
    plan = make_method(name, options).plan(Anatomy.of(model), data)
    result = modwright.apply(model, plan).model
    if name == "pre_rmsnorm":  # it is exact, whatever reads the last norm
        torch.testing.assert_close(outputs(result), outputs(model), rtol=1e-4, atol=1e-5)
    else:
        assert not torch.equal(outputs(result), outputs(model))


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS[:2])
def test_edits_are_the_same_in_a_new_process(head: str, tmp_path: Path) -> None:
    source = built(head)
    anatomy = Anatomy.of(source)
    change = remove("blocks.0.attention") + keep_heads(anatomy.blocks[1].attention, [1, 2])
    result = edit(source, change).model
    save(result, tmp_path / "out")
    assert "import modwright" in str(check_reopens(result, tmp_path / "out"))


@pytest.mark.parametrize("head", HEADS)
def test_an_edited_model_is_opened_as_the_class_that_it_is(head: str, tmp_path: Path) -> None:
    model = edit(built(head), remove("blocks.1.mlp")).model
    save(model, tmp_path / "edited")
    again = modwright.open(tmp_path / "edited").model
    assert type(again) is type(model)
    kept = dict(model.named_parameters())
    assert all(torch.equal(p, kept[name]) for name, p in again.named_parameters())
    if head != "Model":
        auto = AutoModelForImageClassification.from_pretrained(tmp_path / "edited")
        assert type(auto) is type(model)
