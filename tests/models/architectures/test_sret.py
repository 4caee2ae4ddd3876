"""SReT (arXiv 2111.05297): counts, slices and permutations, shared blocks, files, refusals."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from models.counting import check_counts
from modwright.core.errors import InvalidInputError
from modwright.cost import forward_macs
from modwright.models import create_model, import_weights, to_checkpoint_format
from modwright.models.architectures.sret import SReTConfig, SReTForImageClassification
from modwright.nn.block import Block, ScaledResidual
from modwright.nn.channel_mixers.mlp import Mlp
from modwright.nn.recursive import RecursiveStage, looping
from modwright.nn.token_mixers.self_attention import SelfAttention
from modwright.nn.token_mixers.sliced_attention import SlicedAttention, naive_sliced_attention

# parameters, MACs in billions; None where no exact figure is given
COUNTS: dict[str, tuple[int | None, float | None]] = {
    "sret_t_wo_slice": (4_755_979, 1.366),
    "sret_t": (4_755_979, 1.112),
    "sret_lt_wo_slice": (4_988_024, None),
    "sret_lt": (4_988_024, 1.164),
    "sret_lt_fine_slice": (4_988_024, 1.225),
    "sret_s_wo_slice": (20_899_692, 4.671),
    "sret_s": (20_899_692, 4.173),
    "sret_t_wo_slice_384": (4_853_259, 6.408),
    "sret_s_wo_slice_384": (21_091_212, 18.443),
}
GOLDEN = sorted((Path(__file__).parents[2] / "golden" / "sret").glob("*.safetensors"))


def small(**fields: Any) -> SReTForImageClassification:
    torch.manual_seed(0)
    chosen: dict[str, Any] = {"head_dim": 4, "num_heads": [2, 4], "depths": [4, 2]}
    chosen |= {"blocks": [2, 1], "groups_first": [4, 2], "groups_later": [2, 1]}
    chosen |= {"image_size": 64, "num_labels": 5}
    return SReTForImageClassification(SReTConfig(**{**chosen, **fields})).eval()


def stir(module: nn.Module) -> Any:
    """Random parameters, so that nothing is near nothing."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3)
    return module.eval()


def logits(model: Any, x: Tensor, **more: Any) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(x, **more).logits
    return out


# Counts


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_and_products_are_those_of_the_released_code(name: str) -> None:
    check_counts(name, *COUNTS[name])


def test_the_largest_image_rounds_to_what_is_printed() -> None:
    with torch.device("meta"):
        model = create_model("sret_s_wo_slice_512")
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == 21.3
    assert forward_macs(model, 1, 3, 512, 512) / 1e9 == pytest.approx(42.8, rel=5e-3)


def test_stochastic_depth_grows_by_passes_and_stands_at_the_place_of_the_block() -> None:
    with torch.device("meta"):
        model = create_model("sret_t")
    rates = [block.drop_path.rate for stage in model.stages for block in stage.blocks.shared]
    places = [0, 1, 4, 5, 6, 7, 8, 14, 15, 16]
    assert rates == pytest.approx([0.1 * place / 20 for place in places])
    behind = [part.drop_path.rate for stage in model.stages for part in stage.blocks.projections]
    assert len(behind) == 20 and not any(behind)


def test_initial_numbers_are_those_of_the_recipe() -> None:
    model = small(head_dim=32)
    weight = model.stages[1].blocks.shared[0].mixer.qkv.weight.detach()
    bound = weight.shape[1] ** -0.5  # torch's own rule for linear layers
    assert bound * 0.95 < float(weight.abs().max()) <= bound
    assert float(model.stem.positions.table.detach().std()) == pytest.approx(0.02, rel=0.1)
    scalars = [p for m in model.modules() if isinstance(m, ScaledResidual) for p in m.parameters()]
    assert scalars and all(p.equal(torch.ones(1)) for p in scalars)


def test_scalars_and_positions_take_no_weight_decay() -> None:
    kept = small().no_weight_decay()
    assert "stem.positions.table" in kept
    assert "stages.0.blocks.shared.0.res1.alpha" in kept
    assert "stages.0.blocks.projections.1.res2.beta" in kept
    assert not [name for name in kept if name.endswith("weight")]


# Slices


def with_gradients(part: nn.Module, function: Any, x: Tensor) -> list[Tensor]:
    """What a function of the part's parameters gives, and its gradients."""
    given = x.clone().requires_grad_()
    out = function(given)
    # a loss with a curve, so that gradients differ from place to place
    loss = out.tanh().square().mean()
    return [out.detach(), *torch.autograd.grad(loss, [given, *part.parameters()])]


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("groups", [1, 3, 6])
def test_slices_are_full_attention_with_a_mask_forward_and_backward(
    groups: int, shuffled: bool
) -> None:
    part = stir(SlicedAttention(8, 2, [groups]))
    x = torch.randn(2, 24, 8)
    order = torch.randperm(24) if shuffled else None
    found = with_gradients(part, lambda y: part(y, permutation=order), x)
    expected = with_gradients(part, lambda y: naive_sliced_attention(part, y, groups, order), x)
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6, rtol=1e-5)


def test_with_one_group_it_is_plain_attention_on_every_pass() -> None:
    part = stir(SlicedAttention(8, 2, [1, 1]))
    plain = SelfAttention(8, 2)
    plain.load_state_dict(part.state_dict())
    x = torch.randn(2, 24, 8)
    q, k, v = part.heads(x)
    direct = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    for loop in range(3):
        assert part.train()(x, loop=loop).equal(plain(x))
        assert torch.allclose(part(x, loop=loop), part.proj(direct), atol=1e-6)


def test_passes_have_their_own_groups_and_later_ones_are_shuffled() -> None:
    part = stir(SlicedAttention(8, 2, [4, 2], seed=3))
    x = torch.randn(2, 24, 8)
    order = torch.tensor(part.fixed_permutation(24))
    with torch.no_grad():
        assert torch.allclose(part(x), naive_sliced_attention(part, x, 4), atol=1e-6)
        later = naive_sliced_attention(part, x, 2, order)
        for loop in (1, 2, 5):
            assert torch.allclose(part(x, loop=loop), later, atol=1e-6)
    assert sorted(order.tolist()) == list(range(24)) != order.tolist()


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_slices_divide_the_products_of_tokens_with_tokens(groups: int) -> None:
    part, tokens, dim = SlicedAttention(64, 2, [groups]), 784, 64
    whole = forward_macs(part, 1, tokens, dim)
    maps = forward_macs(part, 1, tokens, dim, attention=False)
    assert maps == 4 * tokens * dim**2
    assert whole - maps == 2 * tokens**2 * dim // groups


def test_the_identity_as_a_permutation_changes_nothing() -> None:
    part = stir(SlicedAttention(8, 2, [2, 2], eval_permutation="none"))
    x = torch.randn(2, 24, 8)
    unshuffled = part(x, loop=1)
    assert part(x, permutation=torch.arange(24)).equal(unshuffled)
    part.eval_permutation = "fixed"
    assert not torch.allclose(part(x, loop=1), unshuffled, atol=1e-3)
    part.fix_permutation(range(24))
    assert part(x, loop=1).equal(unshuffled)


def test_permutations_are_random_in_training_and_fixed_behind_it() -> None:
    part = stir(SlicedAttention(8, 2, [4, 4]))
    x = torch.randn(1, 64, 8)
    assert part(x, loop=1).equal(part(x, loop=1))
    twin = copy.deepcopy(part)
    assert twin(x, loop=1).equal(part(x, loop=1))
    other = SlicedAttention(8, 2, [4, 4], seed=1).eval()
    assert other.fixed_permutation(64) != part.fixed_permutation(64)
    part.train()
    assert part(x).equal(part(x))  # the first pass is never shuffled
    assert not part(x, loop=1).equal(part(x, loop=1))
    assert not [name for name in part.state_dict() if "perm" in name]


# Shared blocks


def recursive(loops: int = 2, count: int = 2, behind: int | None = None) -> RecursiveStage:
    def layer(mixer: nn.Module | None) -> Block:
        return Block(8, mixer, Mlp(8, 16), lambda: nn.LayerNorm(8), scaled=True)

    blocks = [layer(SlicedAttention(8, 2, [4, 2], seed=b)) for b in range(count)]
    number = count * loops if behind is None else behind
    return stir(RecursiveStage(blocks, [layer(None) for _ in range(number)], loops))


def unrolled(stage: RecursiveStage) -> list[tuple[Block, int, Block]]:
    """Each pass with a block of its own, and the layer behind it."""
    return [
        (copy.deepcopy(block), loop, copy.deepcopy(stage.projections[r * stage.loops + loop]))
        for r, block in enumerate(stage.shared)
        for loop in range(stage.loops)
    ]


def test_gradients_of_shared_blocks_are_sums_over_their_passes() -> None:
    stage = recursive(loops=3)
    steps = unrolled(stage)
    x = torch.randn(2, 24, 8)
    y = x
    for block, loop, behind in steps:
        y = behind(block(y, (4, 6), loop=loop), (4, 6))
    found = stage(x, (4, 6))
    assert torch.allclose(found, y, atol=1e-6)
    found.tanh().square().mean().backward()
    y.tanh().square().mean().backward()
    for r, block in enumerate(stage.shared):
        copies = [dict(own.named_parameters()) for own, _, _ in steps[3 * r : 3 * r + 3]]
        for name, parameter in block.named_parameters():
            total = torch.stack([own[name].grad for own in copies]).sum(0)
            off = (parameter.grad - total).norm() / total.norm()
            assert off <= 1e-5, name
    for p, projection in enumerate(stage.projections):
        for name, parameter in projection.named_parameters():
            own = dict(steps[p][2].named_parameters())[name]
            assert torch.allclose(parameter.grad, own.grad, atol=1e-6)


def test_fewer_loops_leave_out_the_last_passes_and_their_projections() -> None:
    stage = recursive()
    x = torch.randn(1, 24, 8)
    y = x
    for block, loop, behind in unrolled(stage):
        if loop == 0:
            y = behind(block(y, (4, 6), loop=0), (4, 6))
    assert stage(x, (4, 6), loops=1).equal(y)
    with looping(stage, 1):
        assert stage(x, (4, 6)).equal(y)
    assert not stage(x, (4, 6)).equal(y)
    for call in (lambda: stage(x, (4, 6), loops=3), lambda: looping(stage, 3).__enter__()):
        with pytest.raises(ValueError, match="3 loops need projections for as many passes"):
            call()
    with pytest.raises(ValueError, match="at least once, not 0 times"):
        stage(x, (4, 6), loops=0)


@pytest.mark.parametrize("behind", [0, 2])
def test_without_projections_of_each_pass_any_depth_has_the_same_parameters(behind: int) -> None:
    stage = recursive(loops=2, behind=behind)
    x = torch.randn(1, 24, 8)
    assert stage(x, (4, 6), loops=5).isfinite().all()
    deeper = recursive(loops=4, behind=behind)
    counts = [sum(p.numel() for p in s.parameters()) for s in (stage, deeper)]
    assert counts[0] == counts[1]
    deeper.load_state_dict(stage.state_dict())
    assert deeper(x, (4, 6)).equal(stage(x, (4, 6), loops=4))


# The model


def test_answers_in_eval_mode_do_not_change() -> None:
    model = stir(small())
    x = torch.randn(2, 3, 64, 64)
    assert logits(model, x).equal(logits(model, x))
    reference = small(eval_permutation="random")
    reference.load_state_dict(model.state_dict())
    assert not logits(reference, x).equal(logits(reference, x))


def test_loops_of_one_call_can_be_said() -> None:
    model, x = stir(small()), torch.randn(2, 3, 64, 64)
    whole = logits(model, x)
    assert logits(model, x, num_loops=2).equal(whole)
    assert not torch.allclose(logits(model, x, num_loops=1), whole, atol=1e-3)
    assert logits(model, x).equal(whole)
    with pytest.raises(InvalidInputError, match="3 loops need projections"):
        model(x, num_loops=3)
    free = small(projections="per_block")
    assert logits(free, x, num_loops=4).isfinite().all()


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_names_of_shared_tensors_are_those_of_released_files(path: Path) -> None:
    with safe_open(path, "pt") as stored:
        meta = json.loads(stored.metadata()["meta"])
        names = {n.removeprefix("weight.") for n in stored.keys() if n.startswith("weight.")}  # noqa: SIM118
    from golden_checks.sret import _config

    weights = to_checkpoint_format(SReTForImageClassification(_config(meta["config"])), "official")
    assert set(weights) == names | set(meta["aliases"])
    assert all(weights[alias] is weights[first] for alias, first in meta["aliases"].items())


def test_files_under_all_official_names_give_the_same_logits_and_others_are_refused(
    tmp_path: Path,
) -> None:
    model, twin = stir(small()), small()
    torch.save({"model": to_checkpoint_format(model, "official")}, tmp_path / "sret.pth")
    import_weights(twin, tmp_path / "sret.pth")
    x = torch.randn(2, 3, 64, 64)
    assert logits(twin, x).equal(logits(model, x))
    weights = to_checkpoint_format(model, "official")
    name = "transformers.0.blocks.6.attn.qkv.weight"
    weights[name] = weights[name] + 1
    with pytest.raises(InvalidInputError, match=rf"{name} and .*blocks\.4.* hold other numbers"):
        import_weights(twin, weights)


def test_a_saved_file_holds_each_shared_tensor_once(tmp_path: Path) -> None:
    model = small()
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as stored:
        held = sum(stored.get_tensor(name).numel() for name in stored.keys())  # noqa: SIM118
    statistics = sum(b.numel() for b in model.buffers())
    assert held == sum(p.numel() for p in model.parameters()) + statistics


def test_positions_of_another_size_are_resized_on_request() -> None:
    model, larger = stir(small()), small(image_size=96)
    weights = to_checkpoint_format(model, "official")
    with pytest.raises(InvalidInputError, match=r"stem\.positions\.table is \(1, 8, 12, 12\) here"):
        import_weights(larger, weights)
    import_weights(larger, weights, resize=True)
    x = torch.randn(1, 3, 96, 96)
    assert torch.allclose(logits(larger, x), logits(model, x), atol=1e-5)
    table = weights["pos_embed"].detach()
    resized = F.interpolate(table, (12, 12), mode="bicubic", antialias=True)
    assert torch.allclose(larger.stem.positions.table, resized, atol=1e-6)


def test_passes_that_are_left_out_of_a_training_step_get_no_gradient() -> None:
    model = small().train()
    model(torch.randn(2, 3, 64, 64), torch.tensor([0, 3]), num_loops=1).loss.backward()
    idle = {name for name, p in model.named_parameters() if p.grad is None}
    of_second_passes = {
        name
        for name, _ in model.named_parameters()
        if re.search(r"stages\.0\.\S*projections\.[13]\.|stages\.1\.\S*projections\.1\.", name)
    }
    assert idle == of_second_passes != set()


def test_maps_have_strides_of_8_16_and_32() -> None:
    whole = {"groups_first": [1] * 3, "groups_later": [1] * 3, "depths": [2] * 3}
    model = small(**whole, blocks=[1] * 3, num_heads=[2, 4, 8], image_size=64)
    for size in ((64, 64), (96, 160), (224, 224)):
        maps = model.forward_intermediates(torch.zeros(1, 3, *size))
        assert [m.shape[1:] for m in maps] == [
            torch.Size((4 * heads, *(side // stride for side in size)))
            for heads, stride in ((2, 8), (4, 16), (8, 32))
        ]


# Bad input


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"groups_first": [3, 2]}, r"3 groups do not divide the 64 tokens of stage 0 \(8 x 8\)"),
        ({"groups_later": [2, 5]}, "5 groups do not divide the 16 tokens of stage 1"),
        ({"groups_first": [0, 1]}, "0 groups do not divide"),
        ({"depths": [5, 2]}, "5 passes of stage 0 cannot be shared out evenly to 2 blocks"),
        ({"num_heads": [2, 3]}, "the width 12 of stage 1 is no multiple of the 8"),
        ({"blocks": [2]}, "blocks has 1 entries for 2 stages"),
        ({"permutation": "fix"}, "unknown permutation 'fix'"),
        ({"projections": "all"}, "unknown projections 'all'"),
    ],
)
def test_impossible_structures_are_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        small(**fields)


def test_images_that_cannot_be_sliced_are_refused() -> None:
    model = small()
    with pytest.raises(InvalidInputError, match="4 groups do not divide the 81 tokens of stage 0"):
        model(torch.zeros(1, 3, 72, 72))
    with pytest.raises(InvalidInputError, match="at least 32 pixels"):
        model(torch.zeros(1, 3, 16, 64))


def test_bad_input_of_parts_is_refused() -> None:
    part = SlicedAttention(8, 2, [4])
    with pytest.raises(ValueError, match="4 groups do not divide 22 tokens"):
        part(torch.zeros(1, 22, 8))
    with pytest.raises(ValueError, match="no permutation of 24 tokens"):
        part(torch.zeros(1, 24, 8), permutation=torch.zeros(24, dtype=torch.long))
    with pytest.raises(ValueError, match="no permutation of 24 tokens"):
        part(torch.zeros(1, 24, 8), permutation=torch.arange(23))
    with pytest.raises(ValueError, match="no permutation of 3 tokens"):
        part.fix_permutation([0, 2, 3])
    with pytest.raises(ValueError, match="unknown permutation 'shuffle'"):
        SlicedAttention(8, 2, permutation="shuffle")
    with pytest.raises(ValueError, match="at least 1 group"):
        SlicedAttention(8, 2, [])
    with pytest.raises(ValueError, match="3 projections for 2 blocks and 2 loops"):
        recursive(behind=3)


def test_fault_A22_an_odd_first_width_is_halved_downwards() -> None:
    fields = {"head_dim": 3, "num_heads": [1, 2, 4], "image_size": 64, "num_classes": 5}
    model = create_model("sret_t_wo_slice", **fields)
    assert model.stem.convs.conv0.out_channels == 1
    assert model(torch.zeros(1, 3, 64, 64)).logits.shape == (1, 5)
