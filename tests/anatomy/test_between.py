"""What stands between stages and beside blocks are parts with addresses, in every image model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import modwright
from helpers import edit, outputs, snapshot, unchanged
from models.tiny import TINY, tiny
from modwright.anatomy import Anatomy, Linear, Norm, OpaqueModule
from modwright.anatomy.families.between import around, split_step
from modwright.anatomy.views import Convolution, Embedding, Sublayer
from modwright.checkpoint import save
from modwright.core.errors import InvalidInputError
from modwright.cost import count, inspect
from modwright.edits import Change, Plan, Remove, Replace, apply, factorize, remove
from modwright.edits.edit import split_address
from modwright.edits.verify import check_reopens
from modwright.nn.block import BlockSequence, Stage
from modwright.nn.stems.conv_stem import Downsample, PatchMerging, PooledProjection

KINDS = sorted(set(TINY) - {"residual_network"})


def check_every_parameter_is_in_one_part(model: Any) -> None:
    anatomy = Anatomy.of(model)
    owners: dict[int, set[str]] = {}
    own = {id(p) for p in model.parameters()}  # a buffer may be of their class, too
    total = 0
    for address, part in anatomy.parts():
        assert part.address == address
        for name, tensor in part.parameters().items():
            stored = getattr(*part.stored_at(name))
            if id(stored) in own:
                owners.setdefault(id(stored), set()).add(address)
                total += tensor.numel()
    missing = [name for name, p in model.named_parameters() if id(p) not in owners]
    assert not missing
    assert all(len(found) == 1 for found in owners.values())
    assert total == anatomy.num_parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_of_an_image_model_belongs_to_one_part(kind: str) -> None:
    model = tiny(kind)
    check_every_parameter_is_in_one_part(model)
    assert "other" not in [row.kind for row in count(model).rows if row.parameters]


def test_every_parameter_of_variants_of_their_structure_alike() -> None:
    for kind, fields in (
        ("metaformer", {"positions": True, "token_mixers": "attention", "norm": "ln"}),
        ("fmvit", {"stem_widths": [8, 8, 8, 8]}),  # the first stage, too, begins with a map
        ("duoformer", {"patch_residual": True}),
        ("t2t_vit", {"block_type": "dense", "dense_groups": [1, 1], "growth": 4}),
        ("t2t_vit", {"block_type": "squeeze_excite"}),
        ("sret", {"projections": "none"}),
        ("swin_transformer", {"depths": [1, 1, 1], "num_heads": [2, 2, 2]}),
    ):
        check_every_parameter_is_in_one_part(tiny(kind, **fields))


@pytest.mark.slow
def test_every_parameter_of_every_named_model_belongs_to_one_part() -> None:
    from modwright.models import list_models
    from modwright.models.registry import model_class, variant_config

    for name in list_models():
        config = variant_config(name)
        if config.model_type == "residual_network":
            continue  # it has neither attentions nor MLPs
        with torch.device("meta"):
            check_every_parameter_is_in_one_part(model_class(config)(config))


BETWEEN = {
    "craft": {1: ["map"]},
    "fmvit": {1: ["map", "map_norm"]},
    "metaformer": {1: ["map"], 2: ["map", "positions"]},
    "smt": {1: ["norm", "map", "map_norm"], 2: ["norm", "map", "map_norm"]},
    "sret": {1: ["map"]},
    "swin_transformer": {1: ["norm", "map"]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_addresses_say_the_stage_that_begins_and_the_role(kind: str) -> None:
    anatomy = Anatomy.of(tiny(kind))
    told: dict[int, list[str]] = {}
    for address in anatomy.family.between:
        _, stage, role = address.split(".")
        told.setdefault(int(stage), []).append(role)
        assert split_address(address) == (None, address)
        assert anatomy.part(address) is anatomy.outer[address]
    assert told == BETWEEN.get(kind, {})


def test_kinds_of_what_stands_between() -> None:
    smt = Anatomy.of(tiny("smt")).outer
    assert [type(smt[f"between.1.{role}"]) for role in ("norm", "map", "map_norm")] == [
        Norm,
        Convolution,
        Norm,
    ]
    assert isinstance(smt["final_norm"], Norm), "what closes the last stage is the last norm"
    swin = Anatomy.of(tiny("swin_transformer")).outer
    assert isinstance(swin["between.1.map"], Linear) and isinstance(swin["between.1.norm"], Norm)
    assert isinstance(swin["embed_norm"], Norm)
    positions = Anatomy.of(tiny("metaformer")).outer["between.2.positions"]
    assert isinstance(positions, Embedding)
    extras = Anatomy.of(tiny("tnt")).blocks[1].extras
    assert {name: type(part) for name, part in extras.items()} == {
        "inner": OpaqueModule,
        "fuse": OpaqueModule,
    }
    loops = Anatomy.of(tiny("sret")).blocks
    assert list(loops[0].extras) == ["attention_residual", "mlp_residual"]
    assert list(loops[2].extras) == ["mlp_residual"]
    fmvit = Anatomy.of(tiny("fmvit")).blocks
    assert [list(block.extras) for block in fmvit][4:6] == [["embed"], ["embed"]]
    craft = Anatomy.of(tiny("craft")).blocks
    assert [list(block.extras) for block in craft] == [[], ["high", "fusion"]]


@pytest.mark.parametrize("kind", ["swin_transformer", "smt", "metaformer", "sret"])
def test_parts_come_in_the_order_of_the_forward_pass(kind: str) -> None:
    model = tiny(kind)
    anatomy = Anatomy.of(model)
    ran: list[str] = []
    parts = {a: p for a, p in anatomy.parts() if not isinstance(p, Sublayer | Embedding)}
    hooks = [
        part.module.register_forward_hook(lambda *_, address=address: ran.append(address))
        for address, part in parts.items()
        if isinstance(part, Norm | Linear | Convolution)
    ]
    outputs(model)
    for hook in hooks:
        hook.remove()
    first = list(dict.fromkeys(ran))
    between = [address for address in first if address.startswith("between.")]
    assert between == [a for a in parts if a.startswith("between.") and a in first]
    blocks = [address.split(".")[1] for address in first if address.startswith("blocks.")]
    if kind != "sret":  # its blocks and projections take turns
        assert list(dict.fromkeys(blocks)) == [str(b.index) for b in anatomy.blocks]
    for address in between:
        start = anatomy.family.stage_starts[int(address.split(".")[1])]
        inside = [a for a in first if a.startswith("blocks.")]
        before = [int(a.split(".")[1]) for a in inside if first.index(a) < first.index(address)]
        assert max(before) < start


# How roles are found


@pytest.mark.parametrize(
    ("step", "roles"),
    [
        (PatchMerging(4, 8), {"norm": "norm", "map": "reduction"}),
        (Downsample(4, 8, norm="ln"), {"map": "conv", "map_norm": "norm"}),
        (Downsample(4, 4), {"map": "conv"}),
        (PooledProjection(4, 4, 2), {"map": "conv", "map_norm": "norm"}),
        (nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4)), {"norm": "0", "map": "1"}),
        (nn.Conv2d(4, 8, 2, 2), {"map": ""}),
        (nn.LayerNorm(4), {"norm": ""}),
        (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), None),
        (nn.Bilinear(4, 4, 4), None),
    ],
)
def test_a_step_is_norms_and_one_map_or_one_part(
    step: nn.Module, roles: dict[str, str] | None
) -> None:
    found = split_step(nn.ModuleDict({"way": step}), "way")
    wanted = (
        {"way": "way"} if roles is None else {r: f"way.{p}".strip(".") for r, p in roles.items()}
    )
    assert found == wanted


def test_what_reads_first_may_be_registered_last() -> None:
    class Merging(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.reduction, self.norm = nn.Linear(16, 8), nn.LayerNorm(16)

    assert list(split_step(nn.ModuleDict({"down": Merging()}), "down")) == ["norm", "map"]


def test_steps_in_one_list_with_stages_stand_between_them() -> None:
    """As PoolFormer's authors have it: stages and what leads to them take turns in a list."""

    def stage() -> Stage:
        return Stage(BlockSequence([nn.Linear(4, 4)]))

    model = nn.Module()
    model.network = nn.ModuleList([stage(), nn.Conv2d(4, 4, 2, 2), stage(), nn.Bilinear(2, 2, 2)])
    found = around(model, ["network.0.blocks.0", "network.2.blocks.0"])
    assert found.between == {"between.1.map": "network.1", "between.2.bilinear": "network.3"}
    assert found.starts == (0, 1) and not found.beside


# Costs and the stream


def test_what_stands_between_is_counted_at_its_place() -> None:
    model = tiny("swin_transformer")
    tree = inspect(model)
    assert tree.find("between.1.map").macs == 4 * 4 * (4 * 8) * 16
    assert tree.find("between.1.norm").parameters == 2 * 4 * 8
    names = [child.address for child in tree.find("blocks").children]
    assert names == ["blocks.0", "blocks.1", "between.1.norm", "between.1.map", "blocks.2"]
    assert tree.find("between.1.map").description == "32 -> 16"
    conv = inspect(tiny("smt")).find("between.1.map").description
    assert conv.endswith("3 x 3, stride 2 x 2")
    for kind in KINDS:
        root = inspect(tiny(kind)).root
        assert root.parameters == sum(p.numel() for p in tiny(kind).parameters())


def test_the_stream_of_a_swin_is_known_whole() -> None:
    stream = Anatomy.of(tiny("swin_transformer")).stream
    assert stream.is_complete
    readers = {reader.part.address: reader.norm for reader in stream.readers}
    norm = readers["between.1.map"]
    assert norm is not None and norm.address == "between.1.norm"
    assert "between.1.map" in [writer.address for writer in stream.writers]
    assert [n.address for n in stream.norms_within] == ["embed_norm"]
    assert readers["classifier"] is stream.last_norm is not None
    order = [reader.part.address for reader in stream.readers]
    assert order.index("blocks.1.mlp.up") < order.index("between.1.map")
    assert order.index("between.1.map") < order.index("blocks.2.attention.q")


def test_a_norm_behind_a_map_writes_to_the_stream() -> None:
    anatomy = Anatomy.of(tiny("smt"))
    stream = anatomy.stream
    readers = {reader.part.address: reader.norm for reader in stream.readers}
    assert readers["between.1.map"] is anatomy.outer["between.1.norm"]
    within = [n.address for n in stream.norms_within if not n.address.startswith("blocks.")]
    assert within == ["between.1.map_norm", "between.2.map_norm"]


# Editing


def halved(model: Any, address: str) -> tuple[Change, Tensor]:
    part = Anatomy.of(model).part(address)
    u, s, v = torch.linalg.svd(part.parameters()["weight"].double(), full_matrices=False)
    outer, inner = (u[:, :5] * s[:5]).float(), v[:5].float()
    return factorize(part, outer, inner), outer @ inner


def test_a_map_between_stages_is_factored_saved_and_opened(tmp_path: Path) -> None:
    model = tiny("swin_transformer")
    before = snapshot(model)
    change, dense = halved(model, "between.1.map")
    result = edit(model, change)
    assert unchanged(model, before)
    assert result.model.stages[1].downsample.reduction.rank == 5
    twin = tiny("swin_transformer")
    twin.load_state_dict(model.state_dict())
    Anatomy.of(twin).write("between.1.map.weight", dense)
    torch.testing.assert_close(outputs(result.model), outputs(twin), rtol=1e-4, atol=1e-5)
    tree = inspect(result.model)
    assert tree.find("between.1.map").description == "32 -> 5 -> 16"
    assert tree.find("between.1.map").macs == 4 * 4 * 5 * (32 + 16)
    assert Anatomy.of(result.model).stream.is_complete
    save(result.model, tmp_path / "out")
    again = modwright.open(tmp_path / "out").model
    assert torch.equal(outputs(again), outputs(result.model))


def test_a_norm_between_stages_is_replaced_and_comes_back_with_the_map(tmp_path: Path) -> None:
    model = tiny("swin_transformer")
    gain = torch.rand(32) + 0.5
    swap = Change(
        (Replace("between.1.norm", "rms_norm", {"hidden_size": 32, "eps": 1e-6}),),
        {"between.1.norm.weight": gain},
    )
    change, _ = halved(model, "between.1.map")
    once = edit(model, swap).model
    twice = edit(once, change + remove("blocks.0.attention")).model
    norm = twice.stages[1].downsample.norm
    assert type(norm).__name__ == "RMSNorm" and torch.equal(norm.weight, gain)
    assert Anatomy.of(twice).outer["between.1.norm"].form == "rms"
    assert len(twice.config.edits) == 3
    save(twice, tmp_path / "out")
    assert torch.equal(outputs(modwright.open(tmp_path / "out").model), outputs(twice))
    # A linear layer of the stock shape in its place is no edit any more.
    weight = {"between.1.map.weight": torch.randn(16, 32)}
    sizes = {"in_features": 32, "out_features": 16, "bias": False}
    back = edit(twice, Change((Replace("between.1.map", "linear", sizes),), weight)).model
    assert [e["path"] for e in back.config.edits] == ["between.1.norm", "blocks.0.attention"]


@pytest.mark.slow
def test_factors_between_stages_are_the_same_in_a_new_process(tmp_path: Path) -> None:
    result = edit(tiny("swin_transformer"), halved(tiny("swin_transformer"), "between.1.map")[0])
    save(result.model, tmp_path / "out")
    assert "import modwright" in str(check_reopens(result.model, tmp_path / "out"))


def test_values_between_stages_and_beside_blocks_travel_in_plans() -> None:
    for kind, address in (
        ("swin_transformer", "between.1.norm.bias"),
        ("metaformer", "between.1.map.weight"),
        ("metaformer", "between.2.positions.table"),
        ("sret", "blocks.0.attention_residual.alpha"),
        ("tnt", "blocks.1.fuse.proj.weight"),
    ):
        model = tiny(kind)
        before = snapshot(model)
        holder = "blocks.1.fuse" if "fuse" in address else address.rpartition(".")[0]
        name = address.removeprefix(f"{holder}.")
        old = Anatomy.of(model).part(holder).parameters()[name]
        new = torch.randn_like(old)
        result = apply(model, Change((), {address: new})).model
        assert torch.equal(Anatomy.of(result).part(holder).parameters()[name], new)
        assert unchanged(model, before)


def test_whole_blocks_go_and_what_leads_to_their_stage_stays() -> None:
    model = tiny("swin_transformer")
    anatomy = Anatomy.of(model)
    result = apply(model, Plan.of(anatomy, "by hand", remove(anatomy.blocks[1]))).model
    left = Anatomy.of(result)
    assert list(left.family.between) == ["between.1.norm", "between.1.map"]
    assert left.family.stage_starts == (0, 1)
    assert torch.equal(
        left.outer["between.1.map"].parameters()["weight"],
        anatomy.outer["between.1.map"].parameters()["weight"],
    )


def test_what_cannot_be_is_refused_in_one_line() -> None:
    model = tiny("swin_transformer")
    with pytest.raises(InvalidInputError, match="it can be replaced, not removed"):
        Remove("between.1.map")
    for path, said in (
        ("between.2.map", "unknown part outside the blocks 'between.2.map'"),
        ("between.1.nrom", "did you mean 'between.1.norm'"),
    ):
        with pytest.raises(InvalidInputError, match=said):
            apply(model, Change((Replace(path, "identity"),)))
    for path in ("between", "between.1", "between.x.map", "between.1.map.weight", "blocks.0.3"):
        with pytest.raises(InvalidInputError, match="is no address of a part"):
            split_address(path)
    smt = tiny("smt")
    conv = Anatomy.of(smt).outer["between.1.map"]
    with pytest.raises(
        InvalidInputError, match=r"between\.1\.map: a Convolution has no two factors"
    ):
        factorize(conv, torch.zeros(4, 1), torch.zeros(1, 4))  # type: ignore[arg-type]
    sizes = {"in_features": 4, "out_features": 4, "rank": 1}
    with pytest.raises(InvalidInputError, match="is a convolution; 'factors' cannot stand for it"):
        apply(smt, Change((Replace("between.1.map", "factors", sizes),)))
