"""What the modules of a timm model tell: whether it is a plain ViT, and what its parts are.

Nothing here imports timm, and nothing asks for a class by its name: a block is known by what it
holds and by the order in which it holds it.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from modwright.nn import FeedForward, GroupedAttention, Opaque, PlacedMixer, ZeroModule

__all__ = ["activation_of", "is_of_timm", "reason_against"]

_OF_BLOCK = ("norm1", "attn", "norm2", "mlp")


def is_of_timm(model: nn.Module) -> bool:
    """The model's class, or one that it extends, is defined in timm."""
    return any(kind.__module__.partition(".")[0] == "timm" for kind in type(model).__mro__)


def reason_against(vit: Any) -> str:
    """Why a model of timm is no plain ViT, in a few words; empty for one that is."""
    blocks = getattr(vit, "blocks", None)
    embed: Any = getattr(vit, "patch_embed", None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList) or not len(blocks):
        return "it has no list of Transformer blocks of one width"
    if not isinstance(getattr(embed, "proj", None), nn.Conv2d):
        return "it does not cut images into patches with one convolution"
    plain = {name for name, _ in embed.named_children()} <= {"proj", "norm"}
    if not plain or tuple(embed.proj.kernel_size) != tuple(embed.patch_size):
        return "its patches come out of a network of their own"
    if not hasattr(embed, "img_size") or not hasattr(embed, "num_patches"):
        return "its patches do not say what size of image they come from"
    for index, block in enumerate(blocks):
        reason = _reason_of_block(block)
        if reason:
            return f"block {index} {reason}"
    return ""


def _reason_of_block(block: Any) -> str:
    held = [name for name, _ in block.named_children() if name in _OF_BLOCK]
    if sorted(held) != sorted(_OF_BLOCK):
        lacking = next(name for name in _OF_BLOCK if name not in held)
        return f"({type(block).__name__}) has no {lacking!r}"
    if held != list(_OF_BLOCK):
        return f"({type(block).__name__}) normalizes what its sublayers return"
    return _reason_of_attention(block.attn) or _reason_of_mlp(block.mlp)


def _reason_of_attention(attention: Any) -> str:
    if isinstance(attention, GroupedAttention | ZeroModule | PlacedMixer | Opaque):
        return ""
    known = {"qkv", "proj", "q_norm", "k_norm", "norm", "attn_drop", "proj_drop"}
    fused, out = getattr(attention, "qkv", None), getattr(attention, "proj", None)
    if not isinstance(fused, nn.Linear) or not isinstance(out, nn.Linear):
        return "has no attention with the maps qkv and proj"
    for name in ("q_norm", "k_norm", "norm"):
        if not isinstance(getattr(attention, name, nn.Identity()), nn.Identity):
            return f"normalizes inside its attention ({name})"
    more = {name for name, _ in attention.named_children()} - known
    more |= {name for name, _ in attention.named_parameters(recurse=False)}
    more |= {name for name, _ in attention.named_buffers(recurse=False)}
    if more:
        return f"has more than qkv and proj in its attention ({', '.join(sorted(more))})"
    if fused.out_features % (3 * attention.num_heads):
        return f"has {fused.out_features} rows in qkv, not three times {attention.num_heads} heads"
    return ""


def _reason_of_mlp(mlp: Any) -> str:
    if isinstance(mlp, FeedForward | ZeroModule | Opaque):
        return ""
    up, down = getattr(mlp, "fc1", None), getattr(mlp, "fc2", None)
    if up is None or down is None or not hasattr(mlp, "act"):
        return "has no MLP of the maps fc1 and fc2"
    if not isinstance(getattr(mlp, "norm", nn.Identity()), nn.Identity):
        return "normalizes inside its MLP"
    widths = getattr(up, "out_features", None), getattr(down, "in_features", None)
    if None in widths or widths[0] != widths[1]:
        return "has a gated MLP whose two halves are one map"
    return ""


def activation_of(module: nn.Module) -> str:
    """The name that transformers has for an activation; its class name where it has none."""
    name = type(module).__name__
    if name == "GELU":
        exact = getattr(module, "approximate", "none") == "none"
        return "gelu" if exact else "gelu_pytorch_tanh"
    known = {"GELUTanh": "gelu_pytorch_tanh", "QuickGELU": "quick_gelu", "ReLU": "relu"}
    known |= {"SiLU": "silu", "Swish": "silu", "Tanh": "tanh", "Sigmoid": "sigmoid"}
    return known.get(name, name)
