"""Pre-RMSNorm and Pre-CRMSNorm: a ViT in its equivalent forms, a GPT in training, the norm alone.

The cases hold weights of models that transformers has too. They are put into those, and what is
compared is what our conversion makes of them.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, ViTConfig, ViTForImageClassification

from golden_checks import GoldenCase
from modwright.anatomy import Anatomy
from modwright.edits import Plan, apply, untie
from modwright.nn import CRMSNorm, RMSNorm
from modwright.nn.norms import restore_coordinate
from modwright.surgery import apply as convert
from modwright.surgery import make_method
from modwright.surgery.stream_conversion import relative_to

WEIGHTS, VALUES = 1e-14, 1e-12
SINGLE = {"values": 2e-6, "gradients": 1e-5}


def check(case: GoldenCase) -> None:
    if "output.crms_vec" in case:
        _norm(case)
    if "output.pre_ln" in case:
        _vit(case)
    if "output.logits" in case:
        _gpt(case)


# The norm


def _norm(case: GoldenCase) -> None:
    z, eps = case["input.crms_vec"].clone().requires_grad_(), case.config["eps"]
    out = CRMSNorm(z.shape[-1], eps)(z)
    out.backward(case["input.crms_upstream"])
    assert z.grad is not None
    case.close("output.crms_vec", out.detach(), atol=VALUES)
    case.close("grad.crms_vec", z.grad, atol=VALUES)
    whole = restore_coordinate(z.detach())
    rms = RMSNorm(whole.shape[-1], eps, weight=False)(whole)
    case.close("inter.rms_of_decompressed", rms, atol=VALUES)
    assert (rms[..., :-1] - out.detach()).abs().max() < VALUES


# The ViT


def _vit(case: GoldenCase) -> None:
    c, size = case.config, case.config["patch_size"]
    model = _vit_model(case)
    images = _patches_to_images(case["input.patches"], size)
    assert len(images) == c["batch"]

    @torch.no_grad()
    def logits(of: Any) -> Tensor:
        out: Tensor = of(pixel_values=images).logits
        return out

    case.close("output.pre_ln", logits(model), atol=VALUES)
    rms = convert(model, make_method("pre_rmsnorm", {"form": "rms"})).model
    case.close("output.pre_rms", logits(rms), atol=VALUES)
    _vit_weights(case, "inter.zm_", Anatomy.of(rms), ("att_out", "mlp_out"))
    recentered = _vit_model(case)
    recentered.load_state_dict(rms.state_dict())  # the same weights, read through LayerNorm
    case.close("output.zero_mean_pre_ln", logits(recentered), atol=VALUES)

    crms = convert(model, make_method("pre_rmsnorm", {"form": "crms"})).model
    assert Anatomy.of(crms).hidden_size == c["dim"] - 1
    case.close("output.pre_crms", logits(crms), atol=VALUES)
    every = ("att_in", "att_out", "mlp_in", "mlp_out")
    _vit_weights(case, "inter.compressed_", Anatomy.of(crms), every)
    # The labels' map is no part of the anatomy, so the last norm gives back what it reads.
    head = relative_to(case["weight.cls_head_linear_weight"], 1, -1)
    case.close("inter.compressed_cls_head_linear_weight", head, atol=WEIGHTS)


def _vit_weights(case: GoldenCase, start: str, found: Anatomy, maps: tuple[str, ...]) -> None:
    """Compares what the converted model stores with the tensors whose names begin so."""
    size = case.config["patch_size"]
    for name in maps:
        for leaf in ("weight", "bias"):
            whole = f"{start}{name}_linear_{leaf}"
            if whole in case:
                case.close(whole, _stacked(found, name, leaf), atol=WEIGHTS)
    embed, tokens = found.part("embed").parameters(), found.part("positions").parameters()
    case.close(f"{start}patch_linear_weight", _from_conv(embed["weight"], size), atol=WEIGHTS)
    case.close(f"{start}patch_linear_bias", embed["bias"], atol=WEIGHTS)
    case.close(f"{start}cls_token", tokens["cls_token"], atol=WEIGHTS)
    case.close(f"{start}pos_embedding", tokens["position_embeddings"][:, 1:], atol=WEIGHTS)


def _stacked(found: Anatomy, name: str, leaf: str) -> Tensor:
    """One kind of map of all layers, as the case has it."""
    rows = []
    for block in found.blocks:
        assert block.attention is not None and block.mlp is not None
        a, m = block.attention, block.mlp
        kinds = {"att_in": (a.q, a.k, a.v), "att_out": (a.o,), "mlp_in": (m.up,)}
        maps = kinds.get(name, (m.down,))
        rows.append(torch.cat([projection.parameters()[leaf] for projection in maps]))
    return torch.stack(rows)


def _vit_model(case: GoldenCase) -> ViTForImageClassification:
    c = case.config
    assert not c["norm_affine"] and c["gelu"] == "exact erf"
    width = case["weight.att_in_linear_weight"].shape[1] // 3
    config = ViTConfig(
        image_size=c["image_size"],
        patch_size=c["patch_size"],
        hidden_size=c["dim"],
        num_hidden_layers=c["depth"],
        num_attention_heads=c["heads"],
        intermediate_size=c["mlp_dim"],
        num_labels=c["num_classes"],
        layer_norm_eps=c["eps"],
        hidden_act="gelu",
    )
    config.head_dim = width // c["heads"]
    model = ViTForImageClassification(config).to(getattr(torch, c["dtype"])).eval()
    anatomy = Anatomy.of(model)
    for layer in range(c["depth"]):
        for name, roles in (
            ("att_in", ("attention.q", "attention.k", "attention.v")),
            ("att_out", ("attention.o",)),
            ("mlp_in", ("mlp.up",)),
            ("mlp_out", ("mlp.down",)),
        ):
            for leaf in ("weight", "bias"):
                stored = case[f"weight.{name}_linear_{leaf}"][layer]
                for role, piece in zip(roles, stored.chunk(len(roles))):
                    anatomy.write(f"blocks.{layer}.{role}.{leaf}", piece)
    anatomy.write("embed.weight", _to_conv(case["weight.patch_linear_weight"], c["patch_size"]))
    anatomy.write("embed.bias", case["weight.patch_linear_bias"])
    anatomy.write("positions.cls_token", case["weight.cls_token"])
    positions = F.pad(case["weight.pos_embedding"], (0, 0, 1, 0))  # the class token has none
    anatomy.write("positions.position_embeddings", positions)
    with torch.no_grad():
        model.classifier.weight.copy_(case["weight.cls_head_linear_weight"])
        model.classifier.bias.copy_(case["weight.cls_head_linear_bias"])
    return model


def _patches_to_images(patches: Tensor, size: int) -> Tensor:
    """(B, N, p1 p2 c) -> (B, c, height, width), of square images."""
    side = round(patches.shape[1] ** 0.5)
    spatial_shape = patches.view(len(patches), side, side, size, size, -1)
    return spatial_shape.permute(0, 5, 1, 3, 2, 4).reshape(
        len(patches), -1, side * size, side * size
    )


def _to_conv(weight: Tensor, size: int) -> Tensor:
    """(d, p1 p2 c) -> (d, c, p1, p2)."""
    return weight.view(len(weight), size, size, -1).permute(0, 3, 1, 2)


def _from_conv(weight: Tensor, size: int) -> Tensor:
    return weight.permute(0, 2, 3, 1).reshape(len(weight), -1)


# The GPT


def _gpt(case: GoldenCase) -> None:
    c = case.config
    assert c["causal"] and c["method"] == "pre-rms with runtime recentring"
    double = c["dtype"] == "float64"
    values = VALUES if double else SINGLE["values"]
    model = _gpt_model(case)
    ids, targets = case["input.ids"], case["input.targets"]
    with torch.no_grad():
        case.close("output.logits_pre_ln_same_weights", model(ids).logits, atol=values)
    trained = convert(model, make_method("pre_rmsnorm", {"training": True}), check=False).model
    logits = trained(ids).logits
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    loss.backward()
    case.close("output.logits", logits.detach(), atol=values)
    case.close("output.loss", loss.detach().view(1), atol=values)
    found = _gradients(trained)
    allowed = VALUES if double else SINGLE["gradients"]
    for name in case.names("grad."):
        pieces = [found[address] for address in _addresses(name.removeprefix("grad."))]
        case.close(name, torch.cat(pieces), atol=allowed)


def _addresses(name: str) -> list[str]:
    """Where a tensor of the reference's model stands: one address, or those of q, k and v."""
    outside = {"wte": "embed", "wpe": "positions", "final_linear": "head"}
    first, leaf = name.partition(".")[0], name.rpartition(".")[2]
    if first in outside:
        return [f"{outside[first]}.{leaf}"]
    block = f"blocks.{name.split('.')[2]}"
    inside = {"to_out": "attention.o", "net.0": "mlp.up", "net.2": "mlp.down"}
    for word, role in inside.items():
        if f".{word}." in name:
            return [f"{block}.{role}.{leaf}"]
    return [f"{block}.attention.{role}.{leaf}" for role in "qkv"]


def _gpt_model(case: GoldenCase) -> Any:
    c = case.config
    config = GPT2Config(
        vocab_size=c["vocab"],
        n_positions=c["seq"],
        n_embd=c["dim"],
        n_layer=c["depth"],
        n_head=c["heads"],
        n_inner=c["mlp_dim"],
        layer_norm_epsilon=c["eps"],
        activation_function="gelu",
        bos_token_id=None,
        eos_token_id=None,
    )
    model = GPT2LMHeadModel(config).to(getattr(torch, c["dtype"])).eval()
    anatomy = Anatomy.of(model)
    head = untie(anatomy, *(case[f"weight.final_linear.{leaf}"] for leaf in ("weight", "bias")))
    model = apply(model, Plan.of(anatomy, "a head with a bias", head), check=False).model
    anatomy = Anatomy.of(model)
    for name in case.names("weight."):
        addresses = _addresses(name.removeprefix("weight."))
        for address, piece in zip(addresses, case[name].chunk(len(addresses))):
            anatomy.write(address, piece)
    return model


def _gradients(model: Any) -> dict[str, Tensor]:
    """By the address of the parameter, in the anatomy's shapes."""
    twin = copy.deepcopy(model)
    for parameter, own in zip(twin.parameters(), model.parameters()):
        parameter.data = own.grad
    return {
        f"{address}.{name}": tensor
        for address, part in Anatomy.of(twin).parts()
        for name, tensor in part.parameters().items()
    }
