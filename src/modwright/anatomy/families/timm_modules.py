"""What the modules of a timm model tell: whether it is a plain ViT, and how timm builds it.

Nothing here imports timm: a block is known by what it holds, in which order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from modwright.core.errors import UnsupportedArchitecture
from modwright.nn import FeedForward, GroupedAttention, Opaque, ZeroModule

__all__ = ["SPELLED_OUT", "activation_of", "arguments_of", "is_of_timm", "ratio"]
__all__ += ["reason_against", "wrap"]

_OF_BLOCK = ["norm1", "attn", "norm2", "mlp"]
_OF_ATTENTION = {"qkv", "proj", "q_norm", "k_norm", "norm", "attn_drop", "proj_drop"}

# The name for a model that was built without one; every argument can be given to it.
_PLAIN = "vit_base_patch16_224"

SPELLED_OUT = ("depth", "embed_dim", "mlp_ratio", "num_heads")
"""What edits may change; told even where the name says the same."""

_ACTIVATIONS = {
    "GELUTanh": "gelu_pytorch_tanh",
    "QuickGELU": "quick_gelu",
    "ReLU": "relu",
    "SiLU": "silu",
    "Swish": "silu",
    "Tanh": "tanh",
    "Sigmoid": "sigmoid",
}


def is_of_timm(model: nn.Module) -> bool:
    """The model's class, or one that it extends, is defined in timm."""
    return any(kind.__module__.partition(".")[0] == "timm" for kind in type(model).__mro__)


def activation_of(module: nn.Module) -> str:
    """The name that transformers has for an activation; its class name where it has none."""
    name = type(module).__name__
    if name == "GELU":
        exact = getattr(module, "approximate", "none") == "none"
        return "gelu" if exact else "gelu_pytorch_tanh"
    return _ACTIVATIONS.get(name, name)


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
    reasons = ((index, _reason_of_block(block)) for index, block in enumerate(blocks))
    return next((f"block {index} {reason}" for index, reason in reasons if reason), "")


def _reason_of_block(block: Any) -> str:
    held = [name for name, _ in block.named_children() if name in _OF_BLOCK]
    if sorted(held) != sorted(_OF_BLOCK):
        lacking = next(name for name in _OF_BLOCK if name not in held)
        return f"({type(block).__name__}) has no {lacking!r}"
    if held != _OF_BLOCK:
        return f"({type(block).__name__}) normalizes what its sublayers return"
    return _reason_of_attention(block.attn) or _reason_of_mlp(block.mlp)


def _reason_of_attention(attention: Any) -> str:
    if isinstance(attention, GroupedAttention | ZeroModule | Opaque):
        return ""
    fused: Any = getattr(attention, "qkv", None)
    if not all(isinstance(m, nn.Linear) for m in (fused, getattr(attention, "proj", None))):
        return "has no attention with the maps qkv and proj"
    for name in ("q_norm", "k_norm", "norm"):
        if not _is_idle(attention, name):
            return f"normalizes inside its attention ({name})"
    more = {name for name, _ in attention.named_children()} - _OF_ATTENTION
    more |= {name for name, _ in attention.named_parameters(recurse=False)}
    more |= {name for name, _ in attention.named_buffers(recurse=False)}
    if more:
        return f"has more than qkv and proj in its attention ({', '.join(sorted(more))})"
    rows, heads = fused.out_features, attention.num_heads
    if rows % (3 * heads):
        return f"has {rows} rows in qkv, not three times {heads} heads"
    return ""


def _reason_of_mlp(mlp: Any) -> str:
    if isinstance(mlp, FeedForward | ZeroModule | Opaque):
        return ""
    if not all(getattr(mlp, name, None) is not None for name in ("fc1", "fc2", "act")):
        return "has no MLP of the maps fc1 and fc2"
    if not _is_idle(mlp, "norm"):
        return "normalizes inside its MLP"
    width = getattr(mlp.fc1, "out_features", None)
    if width is None or width != getattr(mlp.fc2, "in_features", None):
        return "has a gated MLP whose two halves are one map"
    return ""


def _is_idle(module: Any, name: str) -> bool:
    """Nothing stands under a name, or timm's identity for what a variant has not."""
    return isinstance(getattr(module, name, nn.Identity()), nn.Identity)


def arguments_of(vit: Any) -> dict[str, Any]:
    """What the modules say of the arguments that the model was built with.

    Numbers of the blocks are those of the first block that has its sublayers still. Of a gain only
    is known that it is there: its first value does not matter.
    """
    embed, register = vit.patch_embed, getattr(vit, "reg_token", None)
    dropped = getattr(getattr(vit.blocks[-1], "drop_path1", None), "drop_prob", None)
    norms = (getattr(vit, "norm", None), getattr(vit, "fc_norm", None))
    found = {
        "img_size": list(embed.img_size),
        "patch_size": list(embed.patch_size),
        "in_chans": embed.proj.in_channels,
        "embed_dim": embed.proj.out_channels,
        "depth": len(vit.blocks),
        "class_token": getattr(vit, "cls_token", None) is not None,
        "reg_tokens": 0 if register is None else int(register.shape[1]),
        "pos_embed": "none" if vit.pos_embed is None else "learn",
        "pre_norm": not _is_idle(vit, "norm_pre"),
        "final_norm": not all(isinstance(norm, nn.Identity | None) for norm in norms),
        "fc_norm": not _is_idle(vit, "fc_norm"),
        "drop_rate": _rate(getattr(vit, "head_drop", None)),
        "pos_drop_rate": _rate(getattr(vit, "pos_drop", None)),
        "patch_drop_rate": float(getattr(getattr(vit, "patch_drop", None), "prob", 0.0)),
        "drop_path_rate": round(float(dropped or 0.0), 6),  # timm keeps it in single precision
    }
    told = ("global_pool", "no_embed_class", "dynamic_img_size", "pool_include_prefix")
    found |= {name: getattr(vit, name) for name in told if hasattr(vit, name)}
    if hasattr(embed, "dynamic_img_pad"):
        found["dynamic_img_pad"] = embed.dynamic_img_pad
    for block in vit.blocks:
        attention, mlp, scale = block.attn, block.mlp, getattr(block, "ls1", None)
        if "num_heads" not in found and isinstance(getattr(attention, "qkv", None), nn.Linear):
            found |= {
                "num_heads": attention.num_heads,
                "qkv_bias": attention.qkv.bias is not None,
                "proj_bias": attention.proj.bias is not None,
                "attn_drop_rate": _rate(attention.attn_drop),
                "proj_drop_rate": _rate(attention.proj_drop),
            }
        if "mlp_ratio" not in found and hasattr(mlp, "fc1"):
            found["mlp_ratio"] = ratio(mlp.fc1.out_features, mlp.fc1.in_features)
        if "init_values" not in found and scale is not None:
            found["init_values"] = None if isinstance(scale, nn.Identity) else 1e-5
    return found


def ratio(width: int, hidden_size: int) -> float:
    """The ``mlp_ratio`` that timm makes ``width`` of; it rounds down.

    Example:
        >>> ratio(768, 192), int(49 * ratio(29, 49))
        (4.0, 29)
    """
    found = width / hidden_size
    return found if int(hidden_size * found) == width else (width + 0.5) / hidden_size


def _rate(dropout: Any) -> float:
    return float(getattr(dropout, "p", 0.0))


def wrap(vit: Any) -> Any:
    """transformers' wrapper with a live timm model in it, if timm builds it from its arguments."""
    told = getattr(vit, "pretrained_cfg", None) or getattr(vit, "default_cfg", None) or {}
    name = str(told.get("architecture") or _PLAIN)
    before, live = arguments_of(_built(name, vit, {}).timm_model), arguments_of(vit)
    named = {key: value for key, value in live.items() if before.get(key, ...) != value}
    wrapper = _built(name, vit, {key: live[key] for key in SPELLED_OUT} | named)
    # The wrapper of a checkpoint is built from name and arguments: both must say all of it.
    ours, theirs = _described(wrapper.timm_model), _described(vit)
    for path in [*theirs, *ours]:
        if ours.get(path) != theirs.get(path):
            raise UnsupportedArchitecture(
                f"the live {type(vit).__name__} is not what timm builds under the name {name!r}: "
                f"{path or 'the model'} is {theirs.get(path, 'missing')}, there "
                f"{ours.get(path, 'missing')}"
            )
    wrapper.timm_model = vit
    wrapper.training = vit.training
    return wrapper


def _built(name: str, vit: Any, arguments: dict[str, Any]) -> Any:
    """The wrapper that transformers builds, without weights."""
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification, TimmWrapperModel

    classes = int(getattr(vit, "num_classes", 0))
    config = TimmWrapperConfig(
        architecture=name, model_args=arguments, **({"num_labels": classes} if classes else {})
    )
    kind = TimmWrapperForImageClassification if classes else TimmWrapperModel
    try:
        with torch.device("meta"):
            return kind(config)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise UnsupportedArchitecture(
            f"timm does not build {name!r} with {arguments}: {str(error).splitlines()[0]}"
        ) from error


def _described(model: nn.Module) -> dict[str, str]:
    """Path of a module -> its class, its settings and the shapes of its own parameters."""
    told = {}
    for path, module in model.named_modules():
        kind = type(module).__name__  # rates of dropping are no part of the structure
        settings = "" if "Drop" in kind else module.extra_repr().replace("\n", " ")
        shapes = [f"{n} {tuple(p.shape)}" for n, p in module.named_parameters(recurse=False)]
        told[path] = " ".join([f"{kind}({settings})", *shapes])
    return told
