"""Modules of our vision models as parts: attentions and MLPs where they are plain, and the rest."""

from __future__ import annotations

from typing import Any

from torch import nn

from modwright.anatomy.families.family import Family
from modwright.anatomy.families.timm_modules import activation_of
from modwright.anatomy.projection import PointwiseProjection, Projection, as_projection
from modwright.anatomy.views import Embedding, Linear, Norm, OpaqueModule, Part, PatchEmbedding
from modwright.nn import AttentionShape, BareAttention, FactorPair, FeedForward
from modwright.nn.channel_mixers.mlp import Mlp as VisionMlp
from modwright.nn.grid_positions import LearnedTable
from modwright.nn.prefix_tokens import PrefixTokens
from modwright.nn.token_mixers.self_attention import STORAGE, SelfAttention

__all__ = ["READERS", "outer_part"]


def outer_part(module: nn.Module, address: str) -> Part:
    """A module outside the blocks, as what it is."""
    made: Any = next((make for kinds, make in _STEM.items() if isinstance(module, kinds)), None)
    if made is None:
        made = Norm if type(module).__name__.endswith("Norm") else OpaqueModule
    part: Part = made(module, address)
    return part


_STEM: dict[Any, Any] = {
    nn.Conv2d: lambda module, address: PatchEmbedding(module, address, None),
    nn.Linear: Linear,
    (LearnedTable, PrefixTokens): Embedding,
}


def _read_attention(module: Any, address: str) -> dict[str, Any] | None:
    """Maps and shape of plain softmax attention; None of anything else."""
    if isinstance(module, BareAttention):
        roles = {r: Projection(getattr(module, f"{r}_proj"), f"{address}.{r}") for r in "qkvo"}
        return {**roles, "shape": module.shape}
    if type(module) is not SelfAttention or module.gate is not None or module.bias is not None:
        return None
    maps = {name: module.get_submodule(name) for name in STORAGE[module.storage]}
    out = _as_map(module.proj, f"{address}.o")
    if module.width != module.dim or any(type(m) is not nn.Linear for m in maps.values()):
        return None
    if out is None:
        return None
    width = module.width
    roles = {"o": out}
    for name in STORAGE[module.storage]:
        for i, role in enumerate(name):
            rows = slice(i * width, (i + 1) * width) if len(name) > 1 else None
            roles[role] = Projection(maps[name], f"{address}.{role}", rows)
    head_dim = width // module.num_heads
    shape = AttentionShape(
        hidden_size=module.dim,
        num_heads=module.num_heads,
        num_kv_heads=module.num_heads,
        qk_head_dim=head_dim,
        v_head_dim=head_dim,
        scaling=float(module.scale),
        biases="".join(role for role in "qkvo" if roles[role].bias is not None),
        causal=False,
        output_dropout=float(module.proj_drop.p),
    )
    return {**roles, "shape": shape}


def _read_mlp(module: Any, address: str) -> dict[str, Any] | None:
    """Maps of an MLP without anything inside; None of anything else."""
    if isinstance(module, FeedForward):
        return {"gate": None, **Family._read_feed_forward(module, address)}
    if type(module) is not VisionMlp or module.inside is not None or module.gate is not None:
        return None
    maps = {
        "up": _as_map(module.fc1, f"{address}.up"),
        "down": _as_map(module.fc2, f"{address}.down"),
    }
    if None in maps.values():
        return None
    return {**maps, "gate": None, "activation": activation_of(module.act)}


def _as_map(module: nn.Module, address: str) -> Projection | None:
    if isinstance(module, nn.Linear | FactorPair):
        return as_projection(module, address)
    one = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
    return PointwiseProjection(module, address) if one else None


READERS: dict[str, Any] = {"attention": _read_attention, "mlp": _read_mlp}
"""Place -> what reads a module there; it gives None where the module is of another kind."""
