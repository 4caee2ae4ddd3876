"""Models of images are opened, counted and edited like others; what makes no sense is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from models.tiny import TINY, tiny
from modwright.anatomy import Anatomy, Attention, Mlp, OpaqueMixer
from modwright.calibration import SecondMoments, Similarity, calibrate
from modwright.calibration.tensors import from_tensors
from modwright.core.errors import (
    CheckpointError,
    InvalidInputError,
    ModwrightError,
    UnsupportedArchitecture,
)
from modwright.cost import count, forward_macs, inspect
from modwright.edits import Change, Plan, apply, factorize, keep_neurons, remove
from modwright.edits.verify import check_reopens
from modwright.nn.block import Block
from modwright.surgery.method import make_method

WITH_BLOCKS = sorted(set(TINY) - {"residual_network"})


@pytest.fixture(params=WITH_BLOCKS)
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    return tiny(request.param)


def images(model: Any, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, *model.config.size, generator=torch.Generator().manual_seed(1))


def data(model: Any) -> Any:
    return from_tensors([{"pixel_values": part} for part in images(model, 6).split(3)])


def edited(model: Any, name: str, **options: Any) -> Any:
    plan = make_method(name, options).plan(Anatomy.of(model), data(model))
    return apply(model, plan).model


# Reading


def test_every_parameter_and_product_is_counted(model: Any) -> None:
    counted = count(model)
    assert counted.parameters == sum(p.numel() for p in model.parameters())
    assert counted.prefill_macs == forward_macs(model, 1, 3, *model.config.size)
    assert all(row.prefill_macs >= 0 and row.parameters >= 0 for row in counted.rows)
    tree = inspect(model)
    assert tree.root.macs == counted.prefill_macs
    assert f"{model.config.size[0]} x {model.config.size[1]} pixels" in tree.image


def test_every_block_of_a_model_is_opened(model: Any) -> None:
    anatomy = Anatomy.of(model)
    found = [m for path, m in model.named_modules() if isinstance(m, Block)]
    inner = [m for path, m in model.named_modules() if path.endswith(".inner")]
    assert [block.module for block in anatomy.blocks] == [m for m in found if m not in inner]
    for block in anatomy.blocks:
        places = dict(block.sublayers())
        assert ("attention" in places) == (block.module.mixer is not None)
        assert ("mlp" in places) == (block.module.mlp is not None)


def test_what_is_read_as_an_attention_or_mlp_computes_as_its_views_say(model: Any) -> None:
    anatomy = Anatomy.of(model)
    for block in anatomy.blocks:
        if isinstance(block.attention, Attention):
            _attention_is_its_views(block.attention)
        if isinstance(block.mlp, Mlp):
            _mlp_is_its_views(block.mlp)


def _attention_is_its_views(part: Attention) -> None:
    x = torch.randn(2, 5, part.hidden_size)
    q, k, v = (
        torch.einsum("bnd,hed->bhne", x, read()) for read in (part.read_q, part.read_k, part.read_v)
    )
    for name, into in (("q", q), ("k", k), ("v", v)):
        bias = part.projections()[name].bias
        if bias is not None:
            into += bias.view(part.num_heads, 1, -1)
    mixed = torch.softmax(part.shape.scaling * q @ k.transpose(-1, -2), -1) @ v
    out = torch.einsum("bhne,hed->bnd", mixed, part.read_o())
    out = out if part.o.bias is None else out + part.o.bias
    torch.testing.assert_close(part.module(x), out, rtol=1e-4, atol=1e-5)


def _mlp_is_its_views(part: Mlp) -> None:
    x = torch.randn(2, part.hidden_size, 2, 3)
    on_maps = part.up.axis == 1
    rows = x.flatten(2).transpose(1, 2)
    act = part.module.act
    inner = act(torch.nn.functional.linear(rows, part.up.weight, part.up.bias))
    out = torch.nn.functional.linear(inner, part.down.weight, part.down.bias)
    found = part.module(x if on_maps else rows)
    found = found.flatten(2).transpose(1, 2) if on_maps else found
    torch.testing.assert_close(found, out, rtol=1e-4, atol=1e-5)


def test_a_network_without_blocks_is_refused_with_the_reason() -> None:
    with pytest.raises(UnsupportedArchitecture, match="it has no attention and no MLP"):
        Anatomy.of(tiny("residual_network"))


# Walking


def test_statistics_are_those_of_a_plain_forward_pass(model: Any) -> None:
    anatomy = Anatomy.of(model)
    block = anatomy.blocks[-1]
    _, sublayer = list(block.sublayers())[-1]
    cosines: list[torch.Tensor] = []
    seen: dict[str, torch.Tensor] = {}
    before, after = sublayer.resid_pre, sublayer.sublayer_output

    def keep(name: str, axis: int, value: torch.Tensor) -> None:
        seen[name] = value.movedim(axis, -1).reshape(-1, value.shape[axis])

    hook_points = [
        before.module.register_forward_pre_hook(lambda m, args: keep("h", before.axis, args[0])),
        after.module.register_forward_hook(lambda m, args, out: keep("o", after.axis, out)),
        block.module.register_forward_hook(
            lambda *_: cosines.append(torch.cosine_similarity(seen["h"], seen["h"] + seen["o"], -1))
        ),
    ]
    with torch.no_grad():
        for part in images(model, 6).split(3):
            model(part)
    for hook_point in hook_points:
        hook_point.remove()
    name = sublayer.address.rpartition(".")[2]
    measured = float(calibrate(anatomy, data(model), [Similarity()])[block.index][name])
    assert measured == pytest.approx(float(torch.cat(cosines).double().mean()), abs=1e-5)


def test_streams_apart_are_not_compared_where_they_change_shape() -> None:
    from modwright.calibration.collectors import BlockDistance

    with pytest.raises(InvalidInputError, match="the stream changes its shape"):
        calibrate(Anatomy.of(m := tiny("metaformer")), data(m), [BlockDistance(2)])


def test_a_walk_through_a_pyramid_goes_on_where_it_stopped(tmp_path: Any) -> None:
    model = tiny("metaformer")
    anatomy = Anatomy.of(model)
    whole = calibrate(anatomy, data(model), [SecondMoments()], directory=tmp_path / "a")
    calibrate(anatomy, data(model), [SecondMoments()], directory=tmp_path / "b")
    files = sorted((tmp_path / "b").glob("*block*"))
    assert files
    files[-1].unlink()
    again = calibrate(anatomy, data(model), [SecondMoments()], directory=tmp_path / "b")
    last = len(anatomy.blocks) - 1
    for name, value in whole[last].items():
        assert torch.equal(value, again[last][name])


# Editing


def test_each_place_can_be_emptied(model: Any) -> None:
    anatomy = Anatomy.of(model)
    for place, sublayer in anatomy.blocks[0].sublayers():
        result = apply(model, Plan.of(anatomy, "by hand", remove(sublayer))).model
        left = Anatomy.of(result)
        assert left.blocks[0].at(place) is None
        gain = sum(
            norm.num_parameters
            for role, norm in anatomy.blocks[0].norms.items()
            if role == f"{place}_gain"
        )
        assert left.num_parameters == anatomy.num_parameters - sublayer.num_parameters - gain


@pytest.mark.parametrize(
    "name, options",
    [
        ("llm_drop", {"n": 1}),
        ("llm_drop", {"n": 1, "target": "mlp"}),
        ("modegpt", {"sparsity": 0.3}),
        ("emoe", {"num_experts": 2, "top_k": 1}),
        ("pre_rmsnorm", {}),
        ("pre_rmsnorm", {"form": "crms"}),
        ("replace_token_mixer", {"mixer": "depthwise", "blocks": "0"}),
    ],
)
def test_methods_work_or_refuse_in_a_line(model: Any, name: str, options: dict[str, Any]) -> None:
    before = model(images(model))[0]
    try:
        result = edited(model, name, **options)
    except ModwrightError as refusal:
        assert (model.config.model_type, name) not in WORKS
        assert "\n" not in str(refusal)
        return
    assert (model.config.model_type, name) in WORKS
    after = result(images(model))[0]
    assert after.shape == before.shape and torch.isfinite(after).all()
    if name == "pre_rmsnorm":  # it is exact
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    else:
        assert not torch.equal(after, before)


PLAIN_MLPS = {"metaformer", "t2t_vit", "vision_transformer", "swin_transformer", "craft", "sret"}
PLAIN_MLPS |= {"tnt", "duoformer"}
WORKS = {(kind, name) for kind in WITH_BLOCKS for name in ("llm_drop", "replace_token_mixer")}
WORKS |= {(kind, "modegpt") for kind in PLAIN_MLPS}
WORKS |= {(kind, "emoe") for kind in PLAIN_MLPS - {"sret"}}  # 57 neurons have no half
WORKS |= {("vision_transformer", "pre_rmsnorm")}


def test_narrowing_with_all_neurons_kept_changes_nothing_but_rounding() -> None:
    model = tiny("metaformer")
    result = edited(model, "modegpt", sparsity=0.0)
    torch.testing.assert_close(
        result(images(model))[0], model(images(model))[0], rtol=1e-4, atol=1e-5
    )


def test_whole_blocks_leave_stages_shorter() -> None:
    model = tiny("smt", depths=[1, 2, 2], token_mixers=None)
    anatomy = Anatomy.of(model)
    result = apply(model, Plan.of(anatomy, "by hand", remove(anatomy.blocks[1]))).model
    assert result.config.depths == [1, 1, 2]
    assert result.config.token_mixers[1] == ["attention"]  # the block that stayed is the second
    first, second = Anatomy.of(result).blocks[1].module, anatomy.blocks[2].module
    assert torch.equal(first.mlp.fc1.weight, second.mlp.fc1.weight)
    with pytest.raises(InvalidInputError, match="stage 0 would be left without a block"):
        apply(model, Plan.of(anatomy, "by hand", remove(anatomy.blocks[0])))


@pytest.mark.parametrize("kind", ["sret", "fmvit", "craft", "duoformer"])
def test_whole_blocks_stay_where_the_config_cannot_count_them(kind: str) -> None:
    model = tiny(kind)
    anatomy = Anatomy.of(model)
    with pytest.raises(InvalidInputError, match="remove their attention and mlp instead"):
        apply(model, Plan.of(anatomy, "by hand", remove(anatomy.blocks[0])))


@pytest.mark.parametrize("role", ["attention.o", "mlp.up"])
def test_a_map_can_be_stored_in_factors(role: str) -> None:
    model = tiny("vision_transformer")
    anatomy = Anatomy.of(model)
    place, _, name = role.partition(".")
    standing = anatomy.blocks[0].at(place)
    assert standing is not None
    projection = standing.projections()[name]
    u, s, v = torch.linalg.svd(projection.weight)
    change = factorize(projection, u[:, :3] * s[:3], v[:3])
    result = apply(model, Plan.of(anatomy, "by hand", change)).model
    there = Anatomy.of(result).blocks[0].at(place)
    assert there is not None
    torch.testing.assert_close(
        there.projections()[name].weight, (u[:, :3] * s[:3]) @ v[:3], rtol=1e-5, atol=1e-6
    )


def test_the_class_without_edits_refuses_a_checkpoint_with_edits(tmp_path: Any) -> None:
    model = tiny("metaformer")
    edited(model, "llm_drop", n=1).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="carries edits; open it with an Auto class"):
        type(model).from_pretrained(tmp_path)


# Two edits, saved and opened anew

TWO = [
    ("metaformer", "replace_token_mixer", {"mixer": "attention", "blocks": "0"}, "modegpt"),
    ("vision_transformer", "pre_rmsnorm", {}, "modegpt"),
    ("swin_transformer", "llm_drop", {"n": 1}, "emoe"),
    ("smt", "llm_drop", {"n": 1, "target": "mlp"}, "replace_token_mixer"),
    ("tnt", "modegpt", {"sparsity": 0.3}, "llm_drop"),
]
SECOND: dict[str, dict[str, Any]] = {
    "modegpt": {"sparsity": 0.2, "pairs": ["mlp"]},
    "emoe": {"num_experts": 2, "top_k": 1},
    "replace_token_mixer": {"mixer": "depthwise", "blocks": "-1"},
    "llm_drop": {"n": 1, "target": "mlp"},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind, first, options, second", TWO)
def test_two_edits_compose_and_are_the_same_in_a_new_process(
    kind: str, first: str, options: dict[str, Any], second: str, tmp_path: Any
) -> None:
    from modwright.checkpoint import save

    torch.manual_seed(0)
    result = edited(edited(tiny(kind), first, **options), second, **SECOND[second])
    save(result, tmp_path / "out")
    assert "import modwright" in str(check_reopens(result, tmp_path / "out"))


def test_a_placed_mixer_stands_in_other_libraries_models(tiny_vit: Any) -> None:
    anatomy = Anatomy.of(tiny_vit)
    plan = make_method("replace_token_mixer", {"mixer": "pool", "blocks": "1"}).plan(anatomy)
    result = apply(tiny_vit, plan).model
    part = Anatomy.of(result).blocks[1].others["attention"]
    assert isinstance(part, OpaqueMixer) and part.module.handover.grid == (4, 4)
    x = torch.randn(2, 17, 48)
    mixed, _ = part.module(x)
    places = x[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
    pooled = torch.nn.functional.avg_pool2d(places, 3, 1, 1, count_include_pad=False) - places
    torch.testing.assert_close(mixed[:, 1:], pooled.flatten(2).transpose(1, 2))
    torch.testing.assert_close(mixed[:, :1], x[:, 1:].mean(1, keepdim=True) - x[:, :1])
    gone = apply(result, Plan.of(Anatomy.of(result), "x", remove(part))).model
    assert Anatomy.of(gone).blocks[1].at("attention") is None


@pytest.fixture
def tiny_vit() -> Any:
    import modwright

    return modwright.open("preset:tiny-vit").model


def test_replacing_is_refused_where_it_makes_no_sense() -> None:
    import modwright

    llama = Anatomy.of(modwright.open("preset:tiny-llama").model)
    deit = Anatomy.of(tiny("vision_transformer"))
    for anatomy, options, said in (
        (llama, {"mixer": "pool"}, "reads text; valid there: 'identity'"),
        (deit, {"mixer": "attention"}, "has an attention already"),
        (deit, {"mixer": "pool", "kernel_size": 2}, "kernel_size is odd, not 2"),
        (deit, {"mixer": "pool", "blocks": "9"}, "there is no layer 9"),
    ):
        with pytest.raises(InvalidInputError, match=said):
            make_method("replace_token_mixer", options).plan(anatomy)


def test_one_width_of_all_outer_mlps_leaves_the_inner_ones() -> None:
    """Both streams of a TNT have one ratio: the config cannot say a width of one of them."""
    model = tiny("tnt")
    narrower = sum((keep_neurons(b.mlp, range(48)) for b in Anatomy.of(model).blocks), Change())
    result = apply(model, narrower).model
    assert {block.mlp.intermediate_size for block in Anatomy.of(result).blocks} == {48}
    inner = [made.blocks[0].inner.mlp.fc1.weight for made in (model, result)]
    assert torch.equal(*inner)
