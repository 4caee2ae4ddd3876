"""A live timm model is known by its modules; what no ViT is, is refused in one line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from small_vits import KINDS, SMALL
from torch import nn

import modwright
from helpers import worst
from modwright.anatomy import Anatomy
from modwright.core.errors import InvalidInputError, UnsupportedArchitecture

OUTSIDE = ("head", "attn_pool", "head_dist")
"""What stands after the stream: no part of it."""


def images(model: Any, rows: int = 2) -> torch.Tensor:
    size = model.patch_embed.img_size
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, model.patch_embed.proj.in_channels, *size, generator=generator)


@pytest.mark.parametrize("name", KINDS)
def test_a_live_model_is_opened_with_its_own_weights(vit: Callable[..., Any], name: str) -> None:
    model = vit(name)
    checkpoint = modwright.open(model)
    anatomy = checkpoint.anatomy
    assert anatomy.family.name == "timm_vit" and len(anatomy.blocks) == SMALL["depth"]
    assert checkpoint.model.timm_model is model
    x = images(model)
    with torch.no_grad():
        out = checkpoint.model(pixel_values=x)
        expected = model(x) if model.num_classes else model.forward_features(x)
        assert torch.equal(out[0], expected)
    assert all(block.attention.num_heads == 4 for block in anatomy.blocks)
    assert [b.mlp.intermediate_size for b in anatomy.blocks] == [
        block.mlp.fc1.out_features for block in model.blocks
    ]


@pytest.mark.parametrize("name", KINDS)
def test_every_parameter_belongs_to_one_part(vit: Callable[..., Any], name: str) -> None:
    model = vit(name)
    anatomy = Anatomy.of(model)
    tensors = [t for _, part in anatomy.parts() for t in part.parameters().values()]
    outside = sum(p.numel() for n, p in model.named_parameters() if n.startswith(OUTSIDE))
    assert sum(t.numel() for t in tensors) + outside == anatomy.num_parameters
    for block in anatomy.blocks:
        scales = sum(n.num_parameters for role, n in block.norms.items() if role.endswith("gain"))
        own = sum(part.num_parameters for _, part in block.sublayers())
        assert own + scales == block.num_parameters


@pytest.mark.contract("B4")
@pytest.mark.parametrize("fused", [True, False], ids=["fused function", "by hand"])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit3_small_patch16_224"])
def test_views_and_hook_points_compute_what_the_block_computes(
    vit: Callable[..., Any], name: str, fused: bool
) -> None:
    model = vit(name)
    for block in model.blocks:
        block.attn.fused_attn = fused
    block = Anatomy.of(model).blocks[1]
    attention, mlp = block.attention, block.mlp
    assert attention is not None and mlp is not None
    seen: dict[str, torch.Tensor] = {}
    hooks = []
    for label, hook_point in (
        ("x", attention.sublayer_input),
        ("added", attention.sublayer_output),
        ("h", attention.resid_pre),
        ("middle", mlp.resid_pre),
        ("mlp", mlp.sublayer_output),
        ("out", block.resid_post),
    ):
        side = hook_point.side

        def keep(m: Any, args: Any, out: Any, label: str = label, side: str = side) -> None:
            seen[label] = args[0] if side == "input" else out

        hooks.append(hook_point.module.register_forward_hook(keep))
    with torch.no_grad():
        model(images(model))
    for hook in hooks:
        hook.remove()

    def project(weight: torch.Tensor, bias: Any) -> torch.Tensor:
        y = torch.einsum("btd,hcd->bhtc", seen["x"], weight)
        return y if bias is None else y + bias.view(len(weight), 1, -1)

    q = project(attention.read_q(), attention.q.bias)
    k = project(attention.read_k(), attention.k.bias)
    v = project(attention.read_v(), attention.v.bias)
    weights = (q @ k.transpose(-1, -2) * attention.shape.scaling).softmax(-1)
    mixed = torch.einsum("bhtc,hcd->btd", weights @ v, attention.read_o()) + attention.o.bias
    scale = block.norms.get("attention_gain")
    mixed = mixed if scale is None else mixed * scale.scale
    torch.testing.assert_close(mixed, seen["added"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(seen["h"] + seen["added"], seen["middle"])
    torch.testing.assert_close(seen["middle"] + seen["mlp"], seen["out"])
    with_gain = "attention_gain" in block.norms
    assert with_gain == ("deit3" in name)


def test_it_is_known_by_its_modules_and_not_by_its_name() -> None:
    """A model that was built without a name, of a class of the user's own."""

    class Own(timm.models.VisionTransformer):
        pass

    plain = timm.models.VisionTransformer(**SMALL, num_classes=3, reg_tokens=2).eval()
    assert Anatomy.of(plain).config.architecture == "vit_base_patch16_224"
    x = images(plain)
    with torch.no_grad():
        assert torch.equal(modwright.open(plain).model(pixel_values=x)[0], plain(x))
    with pytest.raises(UnsupportedArchitecture, match="the live Own is not what timm builds"):
        Anatomy.of(Own(**SMALL))


def test_what_a_live_model_has_been_given_is_read_from_it(vit: Callable[..., Any]) -> None:
    model = vit("vit_tiny_patch16_224", mlp_ratio=29 / 48, qkv_bias=False, drop_path_rate=0.2)
    model.set_input_size((16, 24))
    model.reset_classifier(3)
    anatomy = Anatomy.of(model)
    told = anatomy.config.model_args
    assert told["img_size"] == [16, 24] and told["embed_dim"] == 48 and told["depth"] == 4
    assert told["qkv_bias"] is False and told["drop_path_rate"] == pytest.approx(0.2)
    assert anatomy.blocks[0].mlp.intermediate_size == 29
    assert anatomy.family.inputs().size == (16, 24) and anatomy.config.num_labels == 3


def test_a_name_alone_needs_no_more_arguments_than_edits_may_change() -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_tiny_patch16_224")
    assert Anatomy.of(model).config.model_args == {
        "depth": 12,
        "embed_dim": 192,
        "mlp_ratio": 4.0,
        "num_heads": 3,
    }


REFUSED = {
    "swin_tiny_patch4_window7_224": "has no list of Transformer blocks",
    "convnext_atto": "has no list of Transformer blocks",
    "resnet18": "has no list of Transformer blocks",
    "beit_base_patch16_224": "block 0 has more than qkv and proj in its attention",
    "eva02_tiny_patch14_224": "block 0 has more than qkv and proj in its attention",
    "vit_relpos_small_patch16_224": "in its attention",
    "vit_relpos_base_patch16_rpn_224": "normalizes what its sublayers return",
    "vit_small_r26_s32_224": "out of a network of their own",
    "vit_giant_patch14_dinov2": "gated MLP",
    "vit_base_patch16_rope_reg1_gap_256": "block 0",
    "mixer_s16_224": "with one convolution",
    "xcit_nano_12_p16_224": "with one convolution",
}


@pytest.mark.contract("H4")
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_plain_vit_is_refused_in_one_line(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    with pytest.raises(UnsupportedArchitecture) as refusal:
        Anatomy.of(model)
    told = str(refusal.value)
    assert "\n" not in told and type(model).__name__ in told and REFUSED[name] in told


@pytest.mark.parametrize(
    ("arguments", "said"),
    [({"qk_norm": True}, "q_norm"), ({"scale_mlp_norm": True}, "inside its MLP")],
)
def test_variants_that_edits_would_break_are_refused(
    vit: Callable[..., Any], arguments: dict[str, Any], said: str
) -> None:
    with pytest.raises(UnsupportedArchitecture, match=said):
        Anatomy.of(vit("vit_tiny_patch16_224", **arguments))


def test_a_model_that_timm_would_not_build_again_is_refused(vit: Callable[..., Any]) -> None:
    """Cut by hand, or by a tool that leaves name and arguments as they were."""
    model = vit("vit_tiny_patch16_224")
    model.blocks[2].mlp.fc1 = nn.Linear(48, 100)
    model.blocks[2].mlp.fc2 = nn.Linear(100, 48)
    with pytest.raises(UnsupportedArchitecture, match=r"blocks\.2\.mlp\.fc1 is .*100.*192"):
        Anatomy.of(model)


def test_other_models_without_a_config_are_refused_as_before() -> None:
    with pytest.raises(UnsupportedArchitecture, match="Linear has no config"):
        Anatomy.of(nn.Linear(2, 2))
    with pytest.raises(InvalidInputError, match="taken as it is; dtype is for checkpoints"):
        modwright.open(timm.models.VisionTransformer(**SMALL), dtype="bfloat16")
    with pytest.raises(InvalidInputError, match="a path, a name or a model, not int"):
        modwright.open(3)  # type: ignore[arg-type]


def test_other_timm_models_in_the_wrapper_are_refused_too() -> None:
    from transformers import TimmWrapperConfig, TimmWrapperModel

    with torch.device("meta"):
        model = TimmWrapperModel(TimmWrapperConfig(architecture="resnet18"))
    with pytest.raises(UnsupportedArchitecture, match=r"timm's 'resnet18' \(ResNet\) is no ViT"):
        Anatomy.of(model)


def test_nothing_is_copied(vit: Callable[..., Any]) -> None:
    model = vit("vit_tiny_patch16_224")
    held = {n: p.data_ptr() for n, p in model.named_parameters()}
    wrapped = modwright.open(model).model
    assert {
        n.removeprefix("timm_model."): p.data_ptr() for n, p in wrapped.named_parameters()
    } == held
    assert not wrapped.training and modwright.open(model.train()).model.training


def test_positions_are_read_and_not_replaced(vit: Callable[..., Any]) -> None:
    anatomy = Anatomy.of(vit("vit_small_patch14_reg4_dinov2"))
    held = anatomy.outer["positions"].parameters()
    assert set(held) == {"cls_token", "reg_token", "pos_embed"}
    assert worst(held["cls_token"], anatomy.model.timm_model.cls_token.detach()) == 0


CORE = """
import sys
import modwright
model = modwright.open("preset:tiny-llama").model
modwright.Anatomy.of(model)
assert "timm" not in sys.modules
"""


def test_timm_is_not_imported_before_it_is_wanted() -> None:
    subprocess.run([sys.executable, "-c", CORE], check=True, timeout=300)
