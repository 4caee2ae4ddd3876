"""Swin and Swin V2 of transformers: typed parts, edits that compute what they say, and back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForImageClassification, SwinConfig, Swinv2Config

from anatomy.test_between import check_every_parameter_is_in_one_part
from helpers import edit, outputs, snapshot, unchanged
from modwright.anatomy import Anatomy, FactoredProjection, Linear, OpaqueMixer, PatchEmbedding
from modwright.anatomy.views import Sublayer
from modwright.calibration import SecondMoments, Similarity, calibrate
from modwright.calibration.tensors import from_tensors
from modwright.checkpoint import save
from modwright.core.capture import capture
from modwright.core.errors import InvalidInputError
from modwright.cost import count, forward_macs, inspect
from modwright.edits import Change, factorize, keep_heads, keep_neurons, remove
from modwright.edits.configured import check_as_configured
from modwright.edits.verify import check_reopens
from modwright.surgery.method import make_method

SIZES: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 2,
    "embed_dim": 8,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
    "mlp_ratio": 2.0,
    "num_labels": 5,
    "initializer_range": 0.2,
}
KINDS: dict[str, type[Any]] = {"swin": SwinConfig, "swinv2": Swinv2Config}
PREFIX = {"swin": "Swin", "swinv2": "Swinv2"}


def built(kind: str, head: str = "ForImageClassification", **fields: Any) -> Any:
    torch.manual_seed(0)
    config = KINDS[kind](**{**SIZES, **fields})
    model = getattr(transformers, PREFIX[kind] + head)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1 or parameter.shape[-1] in (2, 4):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def attention_of(model: Any, index: int = 1) -> OpaqueMixer:
    found = Anatomy.of(model).blocks[index].at("attention")
    assert isinstance(found, OpaqueMixer)
    return found


# Reading


@pytest.mark.parametrize(
    ("head", "fields"),
    [
        ("ForImageClassification", {}),
        ("ForImageClassification", {"num_labels": 0, "qkv_bias": False}),
        ("Model", {}),
        ("ForMaskedImageModeling", {"encoder_stride": 4}),
        ("Backbone", {"out_features": ["stage1", "stage2"]}),
    ],
)
def test_every_parameter_and_product_is_in_a_part(
    kind: str, head: str, fields: dict[str, Any]
) -> None:
    model = built(kind, head, **fields)
    check_every_parameter_is_in_one_part(model)
    counted = count(model)
    assert counted.parameters == sum(p.numel() for p in model.parameters())
    assert "other" not in [row.kind for row in counted.rows]
    assert counted.prefill_macs == forward_macs(model, 1, 3, 32, 32)
    assert inspect(model).root.macs == counted.prefill_macs


def test_absolute_positions_are_a_part_where_there_are_some() -> None:
    """Those of Swin V2, and of older Swins, have one position too many, so they do not run."""
    model = built("swin", "Model", use_absolute_embeddings=True)
    check_every_parameter_is_in_one_part(model)
    positions = Anatomy.of(model).outer["positions"].parameters()
    assert set(positions) == {"position_embeddings"}
    if positions["position_embeddings"].shape[1] == model.embeddings.patch_embeddings.num_patches:
        assert count(model).prefill_macs == forward_macs(model, 1, 3, 32, 32)
    assert "positions" not in Anatomy.of(built("swin")).outer


def test_parts_have_the_addresses_of_this_librarys_own_swin() -> None:
    outer = ["embed", "embed_norm", "final_norm", "classifier", "between.1.norm", "between.1.map"]
    assert list(Anatomy.of(built("swin")).outer) == outer
    second = Anatomy.of(built("swinv2"))
    assert list(second.outer)[-2:] == ["between.1.map", "between.1.map_norm"]
    assert second.stream.is_complete and Anatomy.of(built("swin")).stream.is_complete
    assert [block.layout for block in second.blocks] == ["res-post"] * 4
    within = [norm.address for norm in second.stream.norms_within]
    assert {"blocks.0.attention_norm", "blocks.3.mlp_norm", "between.1.map_norm"} <= set(within)
    assert all(
        reader.norm is None for reader in second.stream.readers if reader.part.address[0] == "b"
    )


def test_the_maps_make_queries_keys_values_and_the_result(kind: str) -> None:
    model = built(kind)
    part = attention_of(model)
    maps = part.projections()
    assert list(maps) == ["q", "k", "v", "o"] and maps["q"].bias is not None
    assert (maps["k"].bias is None) == (kind == "swinv2")
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    hooks = [
        projection.module.register_forward_hook(
            lambda m, args, out, role=role: seen.update({role: (args[0], out)})
        )
        for role, projection in maps.items()
    ]
    outputs(model)
    for hook in hooks:
        hook.remove()
    for role, projection in maps.items():
        x, y = seen[role]
        torch.testing.assert_close(F.linear(x, projection.weight, projection.bias), y.detach())


def test_hook_points_follow_the_residual_stream_in_the_order_of_the_grid(kind: str) -> None:
    """Also where windows are moved, and where maps are not made of whole windows."""
    model = built(kind, image_size=36)
    for block in Anatomy.of(model).blocks:
        first, second = block.at("attention"), block.at("mlp")
        assert first is not None and second is not None
        points = {
            "start": block.resid_pre,
            "before": first.resid_pre,
            "added": first.sublayer_output,
            "read": first.sublayer_input,
            "middle": second.resid_pre,
            "more": second.sublayer_output,
            "end": block.resid_post,
        }
        with capture(points, copy=True) as seen:
            outputs(model)
        torch.testing.assert_close(seen["before"], seen["start"])
        torch.testing.assert_close(seen["before"] + seen["added"], seen["middle"])
        torch.testing.assert_close(seen["middle"] + seen["more"], seen["end"])
        norm = block.norms["attention_norm"].module
        read = seen["start"] if kind == "swinv2" else norm(seen["start"])
        torch.testing.assert_close(seen["read"], read)


def test_statistics_are_of_tokens_not_of_windows(kind: str) -> None:
    model = built(kind, image_size=36)
    pixels = torch.randn(4, 3, 36, 36)
    block = Anatomy.of(model).blocks[1]
    part = attention_of(model)
    points = {"x": part.sublayer_input, "before": part.resid_pre, "added": part.sublayer_output}
    with torch.no_grad(), capture(points, copy=True) as seen:
        model(pixels)
    rows = seen["x"].flatten(0, 1).double()
    data = from_tensors([{"pixel_values": half} for half in pixels.split(2)])
    found = calibrate(model, data, [SecondMoments(), Similarity()])[block.index]
    wanted = rows.T @ rows / len(rows)
    torch.testing.assert_close(found["grams/attention"], wanted, rtol=1e-4, atol=1e-6)
    cosine = torch.cosine_similarity(seen["before"], seen["before"] + seen["added"], -1).mean()
    assert float(found["similarity/attention"]) == pytest.approx(float(cosine), abs=1e-5)


def test_attentions_are_not_narrowed(kind: str) -> None:
    part: Any = attention_of(built(kind))
    said = r"^blocks\.1\.attention: heads cannot go one by one: its "
    with pytest.raises(InvalidInputError, match=said) as refusal:
        keep_heads(part, [0])
    assert ("cosines" in str(refusal.value)) == (kind == "swinv2")


# Editing


@torch.no_grad()
def silence(model: Any, kind: str, address: str) -> None:
    """A sublayer adds nothing: its last map is zero, and so is what stands behind that."""
    anatomy = Anatomy.of(model)
    part: Sublayer = anatomy.part(address)
    for role in part.writes_residual:
        for name, tensor in part.projections()[role].parameters().items():
            anatomy.write(f"{address}.{role}.{name}", torch.zeros_like(tensor))
    if kind == "swinv2" and part.norm is not None:
        for name, tensor in part.norm.parameters().items():
            part.norm.write(name, torch.zeros_like(tensor))


def halved(part: Any) -> tuple[Change, Tensor]:
    u, s, v = torch.linalg.svd(part.parameters()["weight"].double(), full_matrices=False)
    outer, inner = (u[:, :3] * s[:3]).float(), v[:3].float()
    return factorize(part, outer, inner), outer @ inner


def changed(anatomy: Anatomy) -> dict[str, tuple[Change, Callable[[Any, str], None]]]:
    """Edits, and what makes the source compute the same."""
    kept = [0, 3, 5, 6, 7, 8, 9]

    def without(address: str) -> tuple[Change, Callable[[Any, str], None]]:
        return remove(address), lambda model, kind: silence(model, kind, address)

    def thin(address: str) -> tuple[Change, Callable[[Any, str], None]]:
        change, dense = halved(anatomy.part(address))
        return change, lambda model, kind: Anatomy.of(model).write(f"{address}.weight", dense)

    def narrow(model: Any, kind: str) -> None:
        down = Anatomy.of(model).part("blocks.1.mlp.down")
        weight = down.weight.clone()
        weight[:, [i for i in range(down.in_features) if i not in kept]] = 0
        down.write("weight", weight)

    return {
        "attention": without("blocks.0.attention"),
        "shifted attention": without("blocks.1.attention"),
        "mlp": without("blocks.2.mlp"),
        "neurons": (keep_neurons(anatomy.part("blocks.1.mlp"), kept), narrow),
        "map between": thin("between.1.map"),
        "output map": thin("blocks.3.attention.o"),
        "query map": thin("blocks.0.attention.q"),
    }


NAMES = list(changed(Anatomy.of(built("swin"))))


@pytest.mark.parametrize("name", NAMES)
def test_an_edit_computes_what_it_says_and_is_the_same_when_it_is_reloaded(
    kind: str, name: str, tmp_path: Path
) -> None:
    source = built(kind)
    before = snapshot(source)
    change, same = changed(Anatomy.of(source))[name]
    applied = edit(source, change)
    assert unchanged(source, before) and not applied.plain
    assert applied.verification is not None and applied.verification.ok
    twin = built(kind)
    same(twin, kind)
    result = outputs(applied.model)
    torch.testing.assert_close(result, outputs(twin), rtol=1e-4, atol=1e-5)
    assert (result - outputs(source)).abs().max() > 1e-4
    check_every_parameter_is_in_one_part(applied.model)
    applied.model.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(again) is type(applied.model) and torch.equal(outputs(again), result)
    # A stock class would start what is missing from random numbers.
    with pytest.raises(Exception, match="mlp_ratio"):
        type(source).from_pretrained(tmp_path)


def test_edits_compose(kind: str) -> None:
    source = built(kind)
    first = edit(source, remove("blocks.0.attention")).model
    both = edit(first, remove("blocks.0.mlp") + halved(Anatomy.of(first).part("between.1.map"))[0])
    left = Anatomy.of(both.model)
    assert left.blocks[0].at("attention") is None and left.blocks[0].at("mlp") is None
    assert len(both.model.config.edits) == 3
    replaced = left.part("blocks.1.attention.o")
    again = edit(both.model, halved(replaced)[0]).model
    assert isinstance(Anatomy.of(again).part("blocks.1.attention.o"), FactoredProjection)
    assert count(again).parameters == sum(p.numel() for p in again.parameters())


@pytest.mark.slow
def test_edits_are_the_same_in_a_new_process(kind: str, tmp_path: Path) -> None:
    source = built(kind)
    anatomy = Anatomy.of(source)
    change = remove("blocks.1.attention") + halved(anatomy.part("between.1.map"))[0]
    change += keep_neurons(anatomy.part("blocks.3.mlp"), range(9))
    result = edit(source, change).model
    save(result, tmp_path / "out")
    assert "import modwright" in str(check_reopens(result, tmp_path / "out"))


def test_whole_blocks_go_where_no_window_is_moved_otherwise(kind: str, tmp_path: Path) -> None:
    source = built(kind, depths=[3, 2])
    last = edit(source, remove("blocks.2"))
    assert last.plain and last.model.config.depths == [2, 2]
    twin = built(kind, depths=[3, 2])
    for address in ("blocks.2.attention", "blocks.2.mlp"):
        silence(twin, kind, address)
    torch.testing.assert_close(outputs(last.model), outputs(twin), rtol=1e-4, atol=1e-5)
    last.model.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(outputs(again), outputs(last.model))
    pair = edit(source, remove("blocks.0") + remove("blocks.1"))
    assert pair.model.config.depths == [1, 2]
    for gone, said in (
        (["blocks.0"], "block 1 would stand where windows are moved otherwise"),
        (["blocks.3", "blocks.4"], "stage 1 would be left without a block"),
    ):
        with pytest.raises(InvalidInputError, match=said):
            edit(source, sum(map(remove, gone), Change()))


def test_this_librarys_own_swin_keeps_its_windows_too() -> None:
    from models.tiny import tiny

    own = tiny("swin_transformer", depths=[3, 1])
    with pytest.raises(InvalidInputError, match="block 1 would stand where windows are moved"):
        edit(own, remove("blocks.0"))
    assert edit(own, remove("blocks.2")).model.config.depths == [2, 1]


def test_a_model_that_ran_is_still_what_its_config_says() -> None:
    """A forward pass takes the shift away where one window is the whole map."""
    model = built("swin", window_size=8)
    assert model.swin.encoder.layers[1].blocks[1].shift_size == 4
    outputs(model)
    assert model.swin.encoder.layers[1].blocks[1].shift_size == 0
    check_as_configured(model)
    edit(model, remove("blocks.3.attention"))
    attention = model.swin.encoder.layers[0].blocks[0].attention
    inner, name = (attention, "scaling")
    if not hasattr(attention, name):  # the module tree of older versions
        inner, name = attention.self, "attention_head_size"
    setattr(inner, name, 3)
    with pytest.raises(InvalidInputError, match=rf"{name} is 3"):
        check_as_configured(model)


def test_attention_maps_come_as_the_stock_class_gives_them(kind: str) -> None:
    source = built(kind, attn_implementation="eager")
    edited = edit(source, remove("blocks.2.mlp")).model
    pixels = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        found = edited(pixels, output_attentions=True).attentions
        stock = source(pixels, output_attentions=True).attentions
    assert len(found) == len(stock)
    torch.testing.assert_close(found[0], stock[0])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llm_drop", {"n": 1}),
        ("llm_drop", {"n": 1, "target": "mlp"}),
        ("modegpt", {"sparsity": 0.3}),
        ("drop", {"parts": "attention[1]; mlp[2]; block[3]"}),
    ],
)
def test_methods_work(kind: str, name: str, options: dict[str, Any]) -> None:
    model = built(kind)
    data = from_tensors([{"pixel_values": torch.randn(2, 3, 32, 32)} for _ in range(2)])
    plan = make_method(name, options).plan(Anatomy.of(model), data)
    import modwright

    applied = modwright.apply(model, plan)
    assert applied.verification is not None and applied.verification.ok
    assert torch.isfinite(outputs(applied.model)).all()


def test_a_method_that_converts_streams_refuses_in_one_line(kind: str) -> None:
    data = from_tensors([{"pixel_values": torch.randn(2, 3, 32, 32)}])
    with pytest.raises(InvalidInputError, match="wide in one stage or another") as refusal:
        make_method("pre_rmsnorm", {}).plan(Anatomy.of(built(kind)), data)
    assert "\n" not in str(refusal.value)


# Swin-T


def typed_weights(model: Any) -> int:
    """Numbers in the weights of linear layers and convolutions that are parts, or maps of parts."""
    found = 0
    for _, part in Anatomy.of(model).parts():
        if isinstance(part, Sublayer):
            found += sum(p.weight.numel() for p in part.projections().values())
        elif isinstance(part, Linear | PatchEmbedding):
            found += part.parameters()["weight"].numel()
    return found


@pytest.mark.parametrize("whose", ["own", "transformers"])
def test_swin_t_has_28199424_typed_weights(whose: str) -> None:
    from modwright.models import create_model

    with torch.device("meta"):
        if whose == "own":
            model = create_model("swin_tiny_patch4_window7_224")
        else:
            model = transformers.SwinForImageClassification(SwinConfig(num_labels=1000))
    assert typed_weights(model) == 28_199_424
    check_every_parameter_is_in_one_part(model)
    assert sum(p.numel() for p in model.parameters()) == 28_288_354
