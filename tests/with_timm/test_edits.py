"""Edits of timm's ViTs: the same function as the silenced dense model, saved and loaded anew."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from edit_cases import CASES
from safetensors.torch import load_file, save_file

import modwright
from helpers import batch_of, edit, outputs, random_data, snapshot, unchanged, worst
from modwright.anatomy import Anatomy
from modwright.calibration import from_tensors
from modwright.checkpoint import save
from modwright.core.errors import InvalidInputError, ModwrightError
from modwright.edits import Plan, apply, keep_heads, keep_neurons, remove
from modwright.edits.verify import check_reopens
from modwright.surgery import make_method, method_names, method_type, plan, unsupported_reason

NAMES = ["vit_tiny_patch16_224", "deit3_small_patch16_224", "deit_tiny_distilled_patch16_224"]


@pytest.fixture(scope="module")
def dense(vit: Callable[..., Any]) -> dict[str, Any]:
    """Each model, live as its user has it."""
    return {name: vit(name) for name in NAMES}


Reload = Callable[[Any, Path], None]


@pytest.fixture
def reload(fresh_process: Callable[..., dict[str, Any]], tmp_path: Path) -> Reload:
    """Saves a model and loads it in another process, which must compute the same, bit by bit."""

    def run(model: Any, place: Path) -> None:
        model.save_pretrained(place)
        inputs, out = tmp_path / "inputs.safetensors", tmp_path / "out.safetensors"
        save_file(batch_of(model), inputs)
        classifies = hasattr(model, "num_labels") and model.timm_model.num_classes
        auto = "AutoModelForImageClassification" if classifies else "AutoModel"
        answer = fresh_process(place, auto, batch=str(inputs), out=str(out))
        assert "error" not in answer, (place, answer)
        assert answer["class"] == type(model).__name__
        assert answer["parameters"] == Anatomy.of(model).num_parameters
        with torch.no_grad():
            expected = model(**batch_of(model), return_dict=True)[0]
        assert torch.equal(load_file(out)["out"], expected), place

    return run


@pytest.mark.contract("B4")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_an_edited_model_computes_what_the_silenced_one_does(
    dense: dict[str, Any], name: str, case: str
) -> None:
    live = dense[name]
    before = snapshot(live)
    applied = edit(live, CASES[case].change(Anatomy.of(live)))
    silenced = copy.deepcopy(live)
    CASES[case].zero(Anatomy.of(silenced))
    assert unchanged(live, before)
    assert applied.verification is not None and applied.verification.ok
    expected = outputs(Anatomy.of(silenced).model)
    assert worst(outputs(applied.model), expected) < 1e-5 * float(expected.abs().max())
    moved = worst(expected, outputs(Anatomy.of(live).model))
    assert moved > 1e-4 or case in ("identity", "same-attention", "low-rank-down")


@pytest.mark.contract("A1", "A6", "A9")
@pytest.mark.parametrize("name", NAMES)
def test_a_new_process_loads_every_case_and_timm_alone_refuses(
    dense: dict[str, Any], name: str, reload: Reload, tmp_path: Path
) -> None:
    live = dense[name]
    for case in CASES:
        applied = edit(live, CASES[case].change(Anatomy.of(live)), check=False)
        reload(applied.model, tmp_path / case)
        stock = transformers.TimmWrapperForImageClassification
        if applied.plain:
            back = stock.from_pretrained(tmp_path / case)
            assert torch.equal(outputs(back), outputs(applied.model)), case
            continue
        with pytest.raises((RuntimeError, TypeError)):
            stock.from_pretrained(tmp_path / case)


@pytest.mark.contract("B4", "B7")
def test_heads_take_a_third_of_their_rows_from_each_map(dense: dict[str, Any]) -> None:
    live = dense["vit_tiny_patch16_224"]
    anatomy = Anatomy.of(live)
    attention = anatomy.blocks[1].attention
    model = edit(live, keep_heads(attention, [3])).model
    narrow = Anatomy.of(model).blocks[1].attention
    assert narrow.shape.num_heads == 1 and narrow.shape.qk_head_dim == 12
    gone = anatomy.num_parameters - Anatomy.of(model).num_parameters
    rows = 3 * 12
    assert gone == 3 * rows * 48 + 3 * rows + rows * 48  # q, k, v, their biases, and o
    with pytest.raises(InvalidInputError, match="nothing would be left"):
        keep_heads(attention, [])


def test_uniform_widths_and_gone_blocks_stay_plain(dense: dict[str, Any], tmp_path: Path) -> None:
    live = dense["deit3_small_patch16_224"]
    blocks = Anatomy.of(live).blocks
    change = remove(blocks[1])
    for block in (blocks[0], *blocks[2:]):
        change += keep_neurons(block.mlp, range(29))
    applied = edit(live, change)
    assert applied.plain and type(applied.model).__name__ == "TimmWrapperForImageClassification"
    save(applied.model, tmp_path / "out", check=lambda d: check_reopens(applied.model, d))
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    assert told["model_type"] == "timm_wrapper" and told["model_args"]["depth"] == 3
    back = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    assert back.timm_model.blocks[2].mlp.fc1.out_features == 29
    assert torch.equal(outputs(back), outputs(applied.model))


def test_edits_compose_and_a_reloaded_model_is_edited_again(
    dense: dict[str, Any], tmp_path: Path
) -> None:
    live = dense["deit3_small_patch16_224"]
    first = edit(live, remove(Anatomy.of(live).blocks[0].attention)).model
    first.save_pretrained(tmp_path / "first")
    back = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "first")
    a = Anatomy.of(back)
    assert a.blocks[0].attention is None and "attention_gain" not in a.blocks[0].norms
    second = edit(back, remove(a.blocks[1]) + keep_heads(a.blocks[2].attention, [0, 2, 3])).model
    assert [b.attention and b.attention.num_heads for b in Anatomy.of(second).blocks] == [
        None,
        3,
        4,
    ]
    second.save_pretrained(tmp_path / "second")
    again = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "second")
    assert torch.equal(outputs(again), outputs(second))


def test_a_removed_branch_takes_its_gain_along(dense: dict[str, Any]) -> None:
    live = dense["deit3_small_patch16_224"]
    before = Anatomy.of(live)
    gone = before.blocks[2]
    for part in (gone.attention, gone.mlp):
        model = edit(live, remove(part)).model
        fewer = before.num_parameters - Anatomy.of(model).num_parameters
        assert fewer == part.num_parameters + 48


def test_another_image_size_survives(
    vit: Callable[..., Any], reload: Reload, tmp_path: Path
) -> None:
    live = vit("vit_tiny_patch16_224")
    live.set_input_size((16, 24))
    model = edit(live, remove(Anatomy.of(live).blocks[0].attention)).model
    reload(model, tmp_path / "out")
    wrapper = modwright.open(vit("vit_tiny_patch16_224")).model
    wrapper.timm_model.set_input_size((24, 16))  # after it was wrapped
    later = edit(wrapper, remove(Anatomy.of(wrapper).blocks[1])).model
    assert later.config.model_args["img_size"] == [24, 16]
    assert Anatomy.of(later).family.inputs().size == (24, 16)


def test_a_model_without_a_classifier_and_one_in_bfloat16(
    vit: Callable[..., Any], reload: Reload, tmp_path: Path
) -> None:
    for index, live in enumerate(
        (vit("vit_small_patch16_224.dino"), vit("vit_tiny_patch16_224").bfloat16())
    ):
        anatomy = Anatomy.of(live)
        model = edit(live, keep_heads(anatomy.blocks[1].attention, [1, 2])).model
        place = tmp_path / str(index)
        reload(model, place)
        back = modwright.open(place).model
        assert type(back) is type(model) and back.dtype == live.pos_embed.dtype
        assert torch.equal(outputs(back), outputs(model))


def test_training_goes_on_with_dropped_paths(vit: Callable[..., Any]) -> None:
    """Rates belong to a block's number: fewer blocks share the same range."""
    live = vit("deit3_small_patch16_224", drop_path_rate=0.3, drop_rate=0.1, attn_drop_rate=0.1)
    a = Anatomy.of(live)
    model = edit(live, remove(a.blocks[1]) + keep_heads(a.blocks[2].attention, [0, 1])).model
    rates = [getattr(b.drop_path1, "drop_prob", 0.0) for b in model.timm_model.blocks]
    assert rates == pytest.approx([0.0, 0.15, 0.3])
    assert Anatomy.of(model).blocks[1].attention.shape.dropout == pytest.approx(0.1)
    model.train()
    model(**batch_of(model)).logits.sum().backward()
    lacking = [n for n, p in model.named_parameters() if p.grad is None]
    assert not lacking


def test_masks_of_timm_reach_a_replaced_attention(dense: dict[str, Any]) -> None:
    """timm calls an attention with ``attn_mask`` and ``is_causal``."""
    live = dense["vit_tiny_patch16_224"]
    change = sum(
        (keep_heads(b.attention, range(4)) for b in Anatomy.of(live).blocks[1:]),
        keep_heads(Anatomy.of(live).blocks[0].attention, [0, 1, 2, 3]),
    )
    same = edit(live, change).model.timm_model
    x = batch_of(Anatomy.of(live).model)["pixel_values"]
    mask = torch.ones(17, 17, dtype=torch.bool).tril()
    with torch.no_grad():
        plain = live.forward_features(x)
        causal = live.forward_features(x, is_causal=True)
        assert worst(plain, causal) > 1e-3
        for given, expected in (({"is_causal": True}, causal), ({"attn_mask": mask}, causal)):
            torch.testing.assert_close(
                same.forward_features(x, **given), expected, atol=1e-5, rtol=1e-4
            )


@pytest.mark.contract("A1")
@pytest.mark.parametrize(
    ("method", "options"),
    [
        pytest.param(name, options, id=f"{name}-{i}")
        for name in method_names()
        for i, options in enumerate(method_type(name).examples)
    ],
)
def test_every_method_works_or_says_why_not(
    dense: dict[str, Any], method: str, options: dict[str, Any], reload: Reload, tmp_path: Path
) -> None:
    live = dense["deit3_small_patch16_224"]
    chosen = make_method(method, options)
    anatomy = Anatomy.of(live)
    reason = unsupported_reason(chosen, anatomy)
    data = random_data(anatomy.model)
    if reason is not None:
        with pytest.raises(ModwrightError) as refusal:
            plan(live, chosen, data)
        assert str(refusal.value) == reason and "\n" not in reason
        return
    decided = plan(live, chosen, data)
    applied = apply(live, decided)
    assert applied.verification is not None and applied.verification.ok
    reload(applied.model, tmp_path / "out")
    before = outputs(anatomy.model)
    moved = worst(outputs(applied.model), before) / float(before.abs().max())
    assert moved < 1e-5 if chosen.exact else moved > 1e-4


def test_a_plan_for_one_model_does_not_fit_another(dense: dict[str, Any], tmp_path: Path) -> None:
    a = Anatomy.of(dense["vit_tiny_patch16_224"])
    decided = Plan.of(a, "by hand", remove(a.blocks[0].attention))
    decided.save(tmp_path / "plan")
    with pytest.raises(InvalidInputError):
        apply(dense["deit3_small_patch16_224"], Plan.load(tmp_path / "plan"))
    assert apply(dense["vit_tiny_patch16_224"], Plan.load(tmp_path / "plan")).verification


def test_images_of_another_size_are_refused_before_any_work(dense: dict[str, Any]) -> None:
    data = from_tensors([{"pixel_values": torch.zeros(2, 3, 16, 16)}], name="small")
    with pytest.raises(InvalidInputError, match=r"images of shape \(3, 32, 32\)"):
        plan(dense["vit_tiny_patch16_224"], make_method("llm_drop", {"n": 1}), data)


def test_the_page_of_the_documentation_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its blocks on timm are left out where timm is not installed."""
    from documents import ROOT, blocks_of

    page = ROOT / "docs" / "howto" / "vision.md"
    blocks = [b for b in blocks_of(page) if b.language == "python" and "peer" in b.tags]
    assert len(blocks) == 2
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        exec(compile(block.text, block.place, "exec"), {})
