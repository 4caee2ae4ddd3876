"""The arguments that timm would build a live ViT with, and the transformers wrapper around it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from modwright.core.errors import UnsupportedArchitecture

__all__ = ["SPELLED_OUT", "arguments_of", "ratio", "wrap"]

_PLAIN = "vit_base_patch16_224"
"""The name for a model that was built without one; every argument can be given to it."""

SPELLED_OUT = ("depth", "embed_dim", "mlp_ratio", "num_heads")
"""What edits may change; told even where the name says the same."""


def arguments_of(vit: Any) -> dict[str, Any]:
    """What the modules say of the arguments that the model was built with.

    Numbers of the blocks are those of the first block that has its sublayers still. Of a gain only
    is known that it is there: its first value does not matter.
    """
    embed = vit.patch_embed
    found = {
        "img_size": list(embed.img_size),
        "patch_size": list(embed.patch_size),
        "in_chans": embed.proj.in_channels,
        "embed_dim": embed.proj.out_channels,
        "depth": len(vit.blocks),
        "class_token": getattr(vit, "cls_token", None) is not None,
        "reg_tokens": _length(getattr(vit, "reg_token", None)),
        "pos_embed": "none" if vit.pos_embed is None else "learn",
        "pre_norm": not isinstance(getattr(vit, "norm_pre", nn.Identity()), nn.Identity),
        "final_norm": not _both_absent(vit),
        "fc_norm": not isinstance(getattr(vit, "fc_norm", nn.Identity()), nn.Identity),
        "drop_rate": _rate(getattr(vit, "head_drop", None)),
        "pos_drop_rate": _rate(getattr(vit, "pos_drop", None)),
        "patch_drop_rate": float(getattr(getattr(vit, "patch_drop", None), "prob", 0.0)),
        "drop_path_rate": _drop_path(vit.blocks[-1]),
    }
    for name in ("global_pool", "no_embed_class", "dynamic_img_size", "pool_include_prefix"):
        if hasattr(vit, name):
            found[name] = getattr(vit, name)
    if hasattr(embed, "dynamic_img_pad"):
        found["dynamic_img_pad"] = embed.dynamic_img_pad
    return {**found, **_of_blocks(vit)}


def _of_blocks(vit: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for block in vit.blocks:
        attention, mlp = block.attn, block.mlp
        if "num_heads" not in found and isinstance(getattr(attention, "qkv", None), nn.Linear):
            found["num_heads"] = attention.num_heads
            found["qkv_bias"] = attention.qkv.bias is not None
            found["proj_bias"] = attention.proj.bias is not None
            found["attn_drop_rate"] = _rate(attention.attn_drop)
            found["proj_drop_rate"] = _rate(attention.proj_drop)
        if "mlp_ratio" not in found and hasattr(mlp, "fc1"):
            found["mlp_ratio"] = ratio(mlp.fc1.out_features, mlp.fc1.in_features)
        scale = getattr(block, "ls1", None)
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


def _length(token: Any) -> int:
    return 0 if token is None else int(token.shape[1])


def _rate(dropout: Any) -> float:
    return float(getattr(dropout, "p", 0.0))


def _drop_path(block: Any) -> float:
    rate = getattr(getattr(block, "drop_path1", None), "drop_prob", None) or 0.0
    return round(float(rate), 6)  # timm keeps it in single precision


def _both_absent(vit: Any) -> bool:
    norms = (getattr(vit, "norm", None), getattr(vit, "fc_norm", None))
    return all(norm is None or isinstance(norm, nn.Identity) for norm in norms)


def wrap(vit: Any) -> Any:
    """transformers' wrapper with a live timm model in it; nothing is copied.

    Raises:
        UnsupportedArchitecture: timm would not build this model from its name and arguments.
    """
    name = _architecture(vit)
    usual = _built(name, vit, {})
    before, live = arguments_of(usual.timm_model), arguments_of(vit)
    named = {key: value for key, value in live.items() if before.get(key, ...) != value}
    wrapper = _built(name, vit, {key: live[key] for key in SPELLED_OUT} | named)
    _check_same(name, wrapper.timm_model, vit)
    wrapper.timm_model = vit
    wrapper.training = vit.training
    return wrapper


def _architecture(vit: Any) -> str:
    told = getattr(vit, "pretrained_cfg", None) or getattr(vit, "default_cfg", None) or {}
    return str(told.get("architecture") or _PLAIN)


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


def _check_same(name: str, built: nn.Module, live: nn.Module) -> None:
    """The wrapper of a checkpoint is built from name and arguments: both must say all of it."""
    ours, theirs = _described(built), _described(live)
    for path in [*theirs, *ours]:
        if ours.get(path) != theirs.get(path):
            raise UnsupportedArchitecture(
                f"the live {type(live).__name__} is not what timm builds under the name {name!r}: "
                f"{path or 'the model'} is {theirs.get(path, 'missing')}, there "
                f"{ours.get(path, 'missing')}"
            )


def _described(model: nn.Module) -> dict[str, str]:
    """Path of a module -> its class, its settings and the shapes of its own parameters.

    Rates of dropping are no part of the structure.
    """
    told = {}
    for path, module in model.named_modules():
        kind = type(module).__name__
        settings = "" if "Drop" in kind else module.extra_repr().replace("\n", " ")
        shapes = [f"{n} {tuple(p.shape)}" for n, p in module.named_parameters(recurse=False)]
        told[path] = " ".join([f"{kind}({settings})", *shapes])
    return told
