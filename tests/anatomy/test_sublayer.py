"""Attentions that cannot be narrowed head by head have linear layers all the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import modwright
from helpers import edit, outputs, snapshot, unchanged
from models.tiny import tiny as tiny_image_model
from modwright.anatomy import Anatomy, FactoredProjection, OpaqueMixer, Projection
from modwright.anatomy.projection import projections_of
from modwright.calibration import SecondMoments, calibrate
from modwright.calibration.tensors import from_tensors
from modwright.checkpoint import save
from modwright.core.errors import InvalidInputError
from modwright.core.registry import registries_restored
from modwright.cost import count, inspect
from modwright.edits import (
    Change,
    Plan,
    Replace,
    apply,
    factorize,
    keep_heads,
    register_part,
    remove,
    replace_attention,
)
from modwright.edits.verify import check_reopens
from modwright.nn.channel_mixers.mlp import SqueezeExcite
from modwright.nn.token_mixers.cross_channel_attention import CrossChannelAttention
from modwright.nn.token_mixers.performer import PerformerAttention
from modwright.nn.token_mixers.reduced_attention import ReducedAttention
from modwright.nn.token_mixers.self_attention import (
    STORAGE,
    AttentionWithLocalConv,
    SelfAttention,
)
from modwright.nn.token_mixers.sliced_attention import SlicedAttention
from modwright.nn.token_mixers.window_attention import RectangleWindowAttention, WindowAttention
from modwright.surgery.method import make_method

ON_TOKENS: dict[str, Callable[[], SelfAttention]] = {
    **{s: lambda s=s: SelfAttention(8, 2, storage=s) for s in STORAGE},  # type: ignore[misc]
    "other width": lambda: SelfAttention(8, 2, out_dim=12, qkv_bias=False),
    "window": lambda: WindowAttention(8, 2, (2, 2), shift=True),
    "rectangles": lambda: RectangleWindowAttention(8, 2, (2, 4), position_dim=2),
    "performer": lambda: PerformerAttention(8, 2, 4),
    "slices": lambda: SlicedAttention(8, 2, groups=[4, 2]),
    "local": lambda: AttentionWithLocalConv(8, 2),
}
"""What is made of tokens (b, n, 8), by name."""


@pytest.mark.parametrize("name", ON_TOKENS)
def test_the_maps_are_what_queries_keys_and_values_are_made_with(name: str) -> None:
    part = ON_TOKENS[name]()
    x, found = torch.randn(2, 5, 8), projections_of(part, "here")
    assert list(found) == ["q", "k", "v", "o"]
    for role, heads in zip("qkv", part.heads(x)):
        made = F.linear(x, found[role].weight, found[role].bias)
        torch.testing.assert_close(made, heads.transpose(1, 2).flatten(2))
    mixed = torch.randn(2, 5, part.width)
    torch.testing.assert_close(
        F.linear(mixed, found["o"].weight, found["o"].bias), part.finish(mixed)
    )
    owned = sum(p.num_parameters for p in found.values())
    layers = [part.get_submodule(layer) for layer in (*STORAGE[part.storage], "proj")]
    assert owned == sum(p.numel() for layer in layers for p in layer.parameters())


def test_the_maps_of_feature_maps_alike() -> None:
    part = ReducedAttention(8, 4, reduction=2).eval()
    x, found = torch.randn(1, 8, 4, 4), projections_of(part, "here")
    q, k, _ = part.heads(x)
    made = F.linear(x.flatten(2).mT, found["q"].weight, found["q"].bias)
    torch.testing.assert_close(made, q.transpose(1, 2).flatten(2))
    made = F.linear(part.reduced(x).flatten(2).mT, found["k"].weight, found["k"].bias)
    torch.testing.assert_close(made, k.transpose(1, 2).flatten(2))
    assert [found[role].axis for role in "qkvo"] == [1, 1, 1, -1]


def test_the_maps_of_attention_between_channels_come_before_its_convolutions() -> None:
    part, x = CrossChannelAttention(8, 2), torch.randn(1, 8, 3, 3)
    found = projections_of(part, "here")
    for role, rows in (("k", slice(0, 8)), ("v", slice(8, 16))):
        made = F.linear(x.flatten(2).mT, found[role].weight).mT.unflatten(2, (3, 3))
        torch.testing.assert_close(made, part.kv[0](x)[:, rows])
    torch.testing.assert_close(
        F.linear(x.flatten(2).mT, found["q"].weight).mT.unflatten(2, (3, 3)), part.q[0](x)
    )


def test_a_map_that_is_not_one_linear_layer_is_left_out() -> None:
    fmvit = Anatomy.of(tiny_image_model("fmvit")).blocks[4].others["attention"]
    assert list(fmvit.projections()) == ["o"] and fmvit.hidden_size is None
    assert {"norm.running_mean", "q.convs.0.weight"} & set(fmvit.parameters())
    assert projections_of(nn.Linear(2, 2), "x") == {}


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (ON_TOKENS["window"], "its position bias has numbers for each head"),
        (ON_TOKENS["local"], "a convolution reads its values"),
        (lambda: SelfAttention(16, 2, gate=SqueezeExcite(16)), "a gate reads its result"),
        (ON_TOKENS["performer"], "random features"),
        (ON_TOKENS["slices"], "slices of the tokens"),
        (ON_TOKENS["rectangles"], "windows of another shape"),
        (lambda: ReducedAttention(8, 4), "averages of positions"),
        (lambda: CrossChannelAttention(8, 2), "between channels"),
        (ON_TOKENS["fused"], ""),
    ],
)
def test_each_says_why_its_heads_cannot_go(made: Callable[[], Any], said: str) -> None:
    assert said in made().narrowing_blocker and bool(said) == bool(made().narrowing_blocker)


# In a model


@pytest.fixture
def swin() -> Any:
    torch.manual_seed(0)
    return tiny_image_model("swin_transformer")


def attention_of(model: Any, index: int = 0) -> OpaqueMixer:
    found = Anatomy.of(model).blocks[index].at("attention")
    assert isinstance(found, OpaqueMixer)
    return found


def images(model: Any, count: int = 4) -> Tensor:
    return torch.randn(count, 3, *model.config.size, generator=torch.Generator().manual_seed(1))


def halved(projection: Projection) -> Change:
    u, s, v = torch.linalg.svd(projection.weight.double(), full_matrices=False)
    return factorize(projection, (u[:, :3] * s[:3]).float(), v[:3].float())


def test_window_attention_has_maps_and_everything_else_by_its_name(swin: Any) -> None:
    part = attention_of(swin)
    assert repr(part) == "OpaqueMixer(blocks.0.attention: WindowAttention, q, k, v, o)"
    assert list(part.parameters()) == [
        *(f"{role}.{name}" for role in "qkvo" for name in ("weight", "bias")),
        "bias.position_table",
    ]
    module = part.module
    assert torch.equal(part.projections()["k"].weight, module.qkv.weight[8:16])
    own = sum(p.numel() for p in module.parameters())
    assert sum(t.numel() for t in part.parameters().values()) == own
    assert part.num_parameters == own + part.norm.num_parameters
    anatomy = Anatomy.of(swin)
    assert anatomy.part("blocks.0.attention.v").rows == slice(16, 24)
    anatomy.write("blocks.0.attention.k.weight", torch.ones(8, 8))
    assert torch.equal(module.qkv.weight[8:16], torch.ones(8, 8))
    assert not torch.equal(module.qkv.weight[16:], torch.ones(8, 8))
    anatomy.write("blocks.0.attention.bias.position_table", torch.zeros(25, 2))
    assert not module.bias.position_table.any()


def test_its_maps_are_readers_and_writers_of_the_stream(swin: Any) -> None:
    anatomy = Anatomy.of(swin)
    stream = anatomy.stream
    readers = {reader.part.address: reader.norm for reader in stream.readers}
    for block in anatomy.blocks:
        assert f"{block.address}.attention.o" in [w.address for w in stream.writers]
        assert {readers[f"{block.address}.attention.{role}"] for role in "qkv"} == {
            block.norms["attention_norm"]
        }


def test_the_cost_of_each_map_is_told(swin: Any) -> None:
    tree = inspect(swin)
    node = tree.find("blocks.0.attention")
    places = 9 * 9  # 8 x 8 positions in windows of 3 x 3, filled up
    told = {child.name: child.macs for child in node.children}
    assert told["q"] == told["k"] == told["v"] == told["o"] == places * 8 * 8
    assert told["rest"] == 9 * 2 * (9 * 9 * 8 // 2) * 2  # windows, heads, both products
    assert node.macs == sum(told.values())
    assert node.parameters == sum(child.parameters for child in node.children)
    assert (
        tree.root.parameters == count(swin).parameters == sum(p.numel() for p in swin.parameters())
    )


def test_second_moments_are_those_of_what_the_maps_read(swin: Any) -> None:
    anatomy, pixels = Anatomy.of(swin), images(swin)
    seen: list[Tensor] = []
    hook = swin.stages[0].blocks[1].norm1.register_forward_hook(lambda m, a, out: seen.append(out))
    with torch.no_grad():
        swin(pixels)
    hook.remove()
    rows = seen[0].flatten(0, 1).double()
    data = from_tensors([{"pixel_values": part} for part in pixels.split(2)])
    found = calibrate(anatomy, data, SecondMoments())[1]
    torch.testing.assert_close(found["attention"], rows.T @ rows / len(rows), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found["attention_mean"], rows.mean(0), rtol=1e-5, atol=1e-7)
    moments = SecondMoments()
    stored = sum(t.numel() * 8 for name, t in found.items())
    assert moments.bytes(anatomy.blocks[1]) == stored


@pytest.mark.parametrize(
    ("kind", "index"), [("swin_transformer", 0), ("smt", 2), ("sret", 0), ("craft", 0)]
)
def test_an_output_map_is_stored_in_factors_and_comes_back(
    kind: str, index: int, tmp_path: Path
) -> None:
    model = tiny_image_model(kind)
    before = snapshot(model)
    projection = attention_of(model, index).projections()["o"]
    result = edit(model, halved(projection))
    assert unchanged(model, before)
    there = attention_of(result.model, index).projections()["o"]
    assert isinstance(there, FactoredProjection) and there.rank == 3
    twin = tiny_image_model(kind)
    twin.load_state_dict(model.state_dict())
    attention_of(twin, index).projections()["o"].write("weight", there.weight)
    torch.testing.assert_close(outputs(result.model), outputs(twin), rtol=1e-4, atol=1e-5)
    assert count(result.model).parameters == sum(p.numel() for p in result.model.parameters())
    save(result.model, tmp_path / "out")
    assert torch.equal(outputs(modwright.open(tmp_path / "out").model), outputs(result.model))


def test_a_map_of_its_own_is_factored_and_a_slice_refused(swin: Any) -> None:
    with pytest.raises(InvalidInputError, match="q is a slice of a fused map"):
        halved(attention_of(swin).projections()["q"])
    smt = tiny_image_model("smt")  # its queries have a layer, keys and values share one
    result = edit(smt, halved(attention_of(smt, 2).projections()["q"])).model
    assert isinstance(attention_of(result, 2).projections()["q"], FactoredProjection)
    assert result.stages[1].blocks[1].mixer.q.rank == 3


@pytest.mark.slow
def test_factors_in_a_window_attention_are_the_same_in_a_new_process(
    swin: Any, tmp_path: Path
) -> None:
    changes = halved(attention_of(swin).projections()["o"]) + remove("blocks.1.attention")
    result = edit(swin, changes).model
    save(result, tmp_path / "out")
    assert "import modwright" in str(check_reopens(result, tmp_path / "out"))


def test_a_plan_writes_the_maps_by_their_roles(swin: Any) -> None:
    zeroed = attention_of(swin).projections()["v"].weight.clone()
    zeroed[::2] = 0
    table = torch.randn(25, 2)
    change = Change(
        (),
        {
            "blocks.0.attention.v.weight": zeroed,
            "blocks.0.attention.bias.position_table": table,
        },
    )
    before = snapshot(swin)
    result = edit(swin, change)
    assert result.plain == is_plain_now(swin) and unchanged(swin, before)
    mixer = result.model.stages[0].blocks[0].mixer
    assert torch.equal(mixer.qkv.weight[16:], zeroed)
    assert torch.equal(mixer.qkv.weight[:16], swin.stages[0].blocks[0].mixer.qkv.weight[:16])
    assert torch.equal(mixer.bias.position_table, table)


def is_plain_now(model: Any) -> bool:
    from modwright.edits.remodeled import is_plain

    return is_plain(model)


def test_narrowing_refuses_in_one_line_with_the_reason(swin: Any) -> None:
    part: Any = attention_of(swin)
    reason = "its position bias has numbers for each head"
    said = f"^blocks.0.attention: heads cannot go one by one: {reason}$"
    for narrow in (lambda: keep_heads(part, [0]), lambda: replace_attention(part)):
        with pytest.raises(InvalidInputError, match=said):
            narrow()
    method = make_method("modegpt", {"pairs": ["query_key"]})
    data = from_tensors([{"pixel_values": images(swin)}])
    with pytest.raises(InvalidInputError, match=f"heads cannot be narrowed: {reason}$"):
        method.plan(Anatomy.of(swin), data)
    plan = make_method("modegpt", {"sparsity": 0.3}).plan(Anatomy.of(swin), data)
    assert [note for note in plan.notes if reason in note]
    assert apply(swin, plan).verification is not None


# What others place


class Named(nn.Module):
    """Its layers have other names than their roles."""

    writes_residual = ("leave",)
    reads_residual = ("enter",)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"a": nn.Linear(width, 6), "b": nn.Linear(6, width)})
        self.scale = nn.Parameter(torch.ones(width))

    def projections(self) -> dict[str, nn.Module]:
        return {"enter": self.inner["a"], "leave": self.inner["b"]}

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.inner["b"](self.inner["a"](x)) * self.scale


@pytest.fixture
def _registered() -> Iterator[None]:
    with registries_restored():
        register_part("named")(lambda config, width: Named(width))
        yield


@pytest.mark.usefixtures("_registered")
@pytest.mark.parametrize("by_role", [True, False])
def test_a_placed_part_is_filled_by_roles_or_by_its_own_names(tiny: Any, by_role: bool) -> None:
    part, here = Named(48), "blocks.1.attention"
    roles = {"inner.a": "enter", "inner.b": "leave"}
    values = {}
    for name, value in part.state_dict().items():
        layer, _, leaf = name.rpartition(".")
        name = f"{roles[layer]}.{leaf}" if by_role and layer in roles else name
        values[f"{here}.{name}"] = value + 0.1
    change = Change((Replace(here, "named", {"width": 48}),), values)
    result = edit(tiny("tiny-llama"), change).model
    found = attention_of(result, 1)
    assert torch.equal(found.module.inner["a"].weight, part.inner["a"].weight + 0.1)
    stream = Anatomy.of(result).stream
    assert f"{here}.leave" in [writer.address for writer in stream.writers]
    assert f"{here}.enter" in [reader.part.address for reader in stream.readers]
    again = edit(result, halved(found.projections()["enter"])).model
    assert attention_of(again, 1).module.inner["a"].rank == 3


def test_plans_for_models_with_such_attentions_fit_as_before(swin: Any) -> None:
    plan = Plan.of(Anatomy.of(swin), "by hand", remove("blocks.1.attention"))
    assert plan.structure["blocks"][0]["attention"] == "WindowAttention"
    gone = apply(swin, plan).model
    assert Anatomy.of(gone).blocks[1].at("attention") is None
