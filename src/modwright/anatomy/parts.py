"""The typed parts of a Transformer. Methods are written once against these, never against modules.

Axes: d hidden_size, H query heads, K key/value heads, D channels of a head, I intermediate_size.
Addresses name parts alike in every family: ``blocks.3.attention.q``, ``blocks.3.mlp.down``,
``blocks.3.attention_norm``, ``final_norm``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn

from modwright.anatomy.projection import Projection
from modwright.core.capture import Tap
from modwright.core.errors import Refused
from modwright.nn import (
    AttentionShape,
    CRMSNorm,
    ExpertFeedForward,
    ExpertShape,
    FeedForward,
    FeedForwardShape,
    GroupedAttention,
    RestoringCRMSNorm,
)

if TYPE_CHECKING:
    from modwright.anatomy.experts import MixtureOfExperts

__all__ = ["Attention", "Block", "Embedding", "Layout", "Linear", "Mlp", "Norm", "Part"]
__all__ += ["BranchGain", "OtherMixer", "Patches", "Sublayer", "Tap", "Unread"]

Layout = Literal["pre", "post", "parallel"]


class Part(ABC):
    """Anything with an address and parameters of its own."""

    address: str
    module: nn.Module

    @abstractmethod
    def parameters(self) -> dict[str, Tensor]:
        """Parameters (and buffers that belong to the structure) by the name that write() takes."""

    def stored_at(self, name: str) -> tuple[nn.Module, str]:
        """The module that holds a tensor of :meth:`parameters`, and its name there.

        Several names may lie in one tensor, as the rows of a fused projection do.
        """
        path, _, leaf = name.rpartition(".")
        return self.module.get_submodule(path), leaf

    @abstractmethod
    def write(self, name: str, value: Tensor) -> None:
        """Stores ``value`` under a name of :meth:`parameters`."""

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters().values() if p.is_floating_point())


def _store(part: Part, name: str, value: Tensor) -> None:
    """Writes into what ``part.parameters()`` gives, which shares the model's memory."""
    known = part.parameters()
    if name not in known or known[name].shape != value.shape:
        raise Refused(
            f"{part.address}: cannot write {name!r} {tuple(value.shape)}; it has "
            + (", ".join(f"{n} {tuple(p.shape)}" for n, p in known.items()) or "nothing")
        )
    known[name].copy_(value)


class _ModulePart(Part):
    """A part that is one module with its own ``weight`` and perhaps ``bias``."""

    def __init__(self, module: nn.Module, address: str) -> None:
        self.module, self.address = module, address

    def parameters(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.module.named_parameters(recurse=False)}

    def write(self, name: str, value: Tensor) -> None:
        _store(self, name, value)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address}, {self.num_parameters:,} parameters)"


class Unread(_ModulePart):
    """A module whose inside is not read: it is counted as a whole."""

    def parameters(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.module.named_parameters()}


NormKind = Literal["layer", "rms", "crms", "other"]


class Norm(_ModulePart):
    """A normalization.

    Attributes:
        kind: "layer" (centring), "rms", "crms" (of a zero-mean stream that is stored without one
            coordinate), or "other".
        offset: 1 for norms that multiply by (1 + w).
    """

    def __init__(self, module: nn.Module, address: str) -> None:
        super().__init__(module, address)
        name = type(module).__name__
        self.kind = _norm_kind(module)
        self.offset = 1.0 if name.startswith(("Gemma", "NemotronLayerNorm1P")) else 0.0

    @property
    def gain(self) -> Tensor | None:
        """(d,): what it multiplies by; None where that is one."""
        weight = self.parameters().get("weight")
        return weight if weight is None or not self.offset else weight + self.offset

    @property
    def shift(self) -> Tensor | None:
        """(d,): what it adds at the end, or None."""
        return self.parameters().get("bias")

    @property
    def eps(self) -> float:
        for name in ("eps", "variance_epsilon"):
            value = getattr(self.module, name, None)
            if isinstance(value, float):
                return value
        raise Refused(f"{self.address}: {type(self.module).__name__} shows no epsilon")


class BranchGain(Norm):
    """What a branch is multiplied by, channel by channel; nothing is normalized."""

    @property
    def gain(self) -> Tensor | None:
        return self.parameters().get("gamma")


def _norm_kind(module: nn.Module) -> NormKind:
    if isinstance(module, CRMSNorm | RestoringCRMSNorm):
        return "crms"
    name = type(module).__name__
    return "rms" if "RMSNorm" in name else "layer" if "LayerNorm" in name else "other"


class Embedding(_ModulePart):
    """A table of vectors, one per token or per position: weight [entries, d].

    Vision models hold learned tokens and positions as bare parameters (1, entries, d). A head over
    the vocabulary is one too: it reads the stream where the others write to it.
    """

    input_axes: ClassVar[Mapping[str, int]] = {"weight": 1}

    @property
    def output_axes(self) -> dict[str, int]:
        """As those of a :class:`Projection`."""
        return dict.fromkeys(self.parameters(), -1)


class Linear(_ModulePart):
    """A linear map of the stream outside the blocks: weight [out, in], perhaps a bias."""

    input_axes, output_axes = Projection.input_axes, Projection.output_axes


class Patches(_ModulePart):
    """Maps each of ``count`` patches of a picture: weight [d, channels, height, width].

    ``count`` is None where pictures of any size are read.
    """

    output_axes = Projection.output_axes

    def __init__(self, module: nn.Module, address: str, count: int | None) -> None:
        super().__init__(module, address)
        self.count = count


class Sublayer(Part):
    """What adds to the residual stream: an attention or an MLP, with the places to watch it.

    Attributes:
        norm: the norm that is removed with it; None where the block has none of its own.
        stream_in: the residual stream h that the sublayer (with its norm) reads.
        core_in: what the sublayer proper reads, norm(h) in a pre-norm block.
        core_out: what the sublayer proper returns.
        stream_out: the residual stream after it; None where that is h plus ``core_out``.
        writing: roles of the maps that write to the stream; the others read it.
    """

    writing: ClassVar[tuple[str, ...]]
    norm: Norm | None
    stream_in: Tap
    core_in: Tap
    core_out: Tap
    stream_out: Tap | None

    @abstractmethod
    def projections(self) -> dict[str, Projection]:
        """Its linear maps by role: "q", "up" and the like."""

    def buffers(self) -> dict[str, Tensor]:
        """What a part of modwright's stores beside its weights, by name: index tables and such."""
        return {}

    def parameters(self) -> dict[str, Tensor]:
        weights = {
            f"{role}.{name}": tensor
            for role, projection in self.projections().items()
            for name, tensor in projection.parameters().items()
        }
        return weights | {name: buffer.detach() for name, buffer in self.buffers().items()}

    def stored_at(self, name: str) -> tuple[nn.Module, str]:
        role, _, leaf = name.rpartition(".")
        projection = self.projections().get(role)
        return super().stored_at(name) if projection is None else projection.stored_at(leaf)

    def write(self, name: str, value: Tensor) -> None:
        buffer = self.buffers().get(name)
        if buffer is not None:
            if buffer.shape != value.shape:
                raise Refused(f"{self.address}.{name}: shape {tuple(value.shape)} does not fit")
            buffer.copy_(value)
            return
        role, _, leaf = name.rpartition(".")
        projections = self.projections()
        if role not in projections:
            raise Refused(
                f"{self.address} has no part {role or name!r}; it has {', '.join(projections)}"
            )
        projections[role].write(leaf, value)

    @property
    def num_parameters(self) -> int:
        """With the norm that goes when the sublayer goes."""
        own = sum(p.num_parameters for p in self.projections().values())
        return own + (self.norm.num_parameters if self.norm is not None else 0)


@dataclass
class Attention(Sublayer):
    """Multi-head attention. ``shape`` holds every number that fixes its structure."""

    writing = ("o",)

    address: str
    q: Projection
    k: Projection
    v: Projection
    o: Projection
    shape: AttentionShape
    module: nn.Module
    norm: Norm | None
    stream_in: Tap
    core_in: Tap
    core_out: Tap
    stream_out: Tap | None = None
    q_norm: Norm | None = None
    k_norm: Norm | None = None

    @property
    def hidden_size(self) -> int:
        return self.shape.hidden_size

    @property
    def num_heads(self) -> int:
        return self.shape.num_heads

    @property
    def num_kv_heads(self) -> int:
        return self.shape.num_kv_heads

    @property
    def is_generic(self) -> bool:
        """The family's own attention was replaced by modwright's."""
        return isinstance(self.module, GroupedAttention)

    def projections(self) -> dict[str, Projection]:
        return {"q": self.q, "k": self.k, "v": self.v, "o": self.o}

    def buffers(self) -> dict[str, Tensor]:
        return dict(self.module.named_buffers(recurse=False)) if self.is_generic else {}

    def _norms(self) -> dict[str, Norm]:
        named = {"q_norm": self.q_norm, "k_norm": self.k_norm}
        return {name: norm for name, norm in named.items() if norm is not None}

    def parameters(self) -> dict[str, Tensor]:
        found = super().parameters()
        for role, norm in self._norms().items():
            found.update({f"{role}.{name}": p for name, p in norm.parameters().items()})
        return found

    def stored_at(self, name: str) -> tuple[nn.Module, str]:
        role, _, leaf = name.rpartition(".")
        norm = self._norms().get(role)
        return super().stored_at(name) if norm is None else norm.stored_at(leaf)

    def write(self, name: str, value: Tensor) -> None:
        role, _, leaf = name.rpartition(".")
        if role in self._norms():
            self._norms()[role].write(leaf, value)
        else:
            super().write(name, value)

    @property
    def num_parameters(self) -> int:
        return super().num_parameters + sum(n.num_parameters for n in self._norms().values())

    def read_q(self) -> Tensor:
        """Query weights (H, D, d)."""
        return self.q.weight.reshape(self.shape.num_heads, self.shape.qk_head_dim, -1)

    def read_k(self) -> Tensor:
        """Key weights (K, D, d)."""
        return self.k.weight.reshape(self.shape.num_kv_heads, self.shape.qk_head_dim, -1)

    def read_v(self) -> Tensor:
        """Value weights (K, D, d)."""
        return self.v.weight.reshape(self.shape.num_kv_heads, self.shape.v_head_dim, -1)

    def read_o(self) -> Tensor:
        """Output weights (H, D, d): what channel D of head H adds to the stream."""
        return self.o.weight.T.reshape(self.shape.num_heads, self.shape.v_head_dim, -1)

    def kv_of_head(self) -> Tensor:
        """(H,): the key/value head that each query head reads."""
        if self.is_generic and self.shape.kv_map:
            return self.module.get_buffer("kv_index").detach()
        groups = self.shape.num_heads // self.shape.num_kv_heads
        return torch.arange(self.shape.num_heads) // groups

    def rotary_index(self) -> Tensor | None:
        """(K, D): the rotary channel that each channel turns with (``rotary_dim``: none)."""
        shape = self.shape
        if not shape.rotary_dim:
            return None
        if shape.rotary_gather:
            return self.module.get_buffer("rotary_index").detach()
        own = torch.arange(shape.qk_head_dim).clamp(max=shape.rotary_dim)
        return own.repeat(shape.num_kv_heads, 1)

    def __repr__(self) -> str:
        s = self.shape
        return (
            f"Attention({self.address}: {s.num_heads} heads, {s.num_kv_heads} kv, "
            f"qk {s.qk_head_dim}, v {s.v_head_dim})"
        )


@dataclass
class OtherMixer(Sublayer):
    """What stands at the place of an attention or an MLP and is neither: pooling, a convolution.

    It is counted as a whole, and can be removed and replaced.
    """

    writing = ()

    address: str
    module: nn.Module
    norm: Norm | None
    stream_in: Tap
    core_in: Tap
    core_out: Tap
    stream_out: Tap | None = None

    def projections(self) -> dict[str, Projection]:
        """None that are known."""
        return {}

    def parameters(self) -> dict[str, Tensor]:
        stored = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        return {name: tensor.detach() for name, tensor in stored.items()}

    def write(self, name: str, value: Tensor) -> None:
        _store(self, name, value)

    @property
    def num_parameters(self) -> int:
        own = sum(p.numel() for p in self.module.parameters())
        return own + (self.norm.num_parameters if self.norm is not None else 0)

    def __repr__(self) -> str:
        return f"OtherMixer({self.address}: {type(self.module).__name__})"


@dataclass
class Mlp(Sublayer):
    """A feed-forward part: down(act(up x)), or down(act(gate x) * up x) when it is gated."""

    writing = ("down",)

    address: str
    up: Projection
    down: Projection
    gate: Projection | None
    activation: str
    module: nn.Module
    norm: Norm | None
    stream_in: Tap
    core_in: Tap
    core_out: Tap
    stream_out: Tap | None = None

    @property
    def intermediate_size(self) -> int:
        return self.down.in_features

    @property
    def hidden_size(self) -> int:
        return self.up.in_features

    @property
    def is_generic(self) -> bool:
        """The family's own MLP was replaced by modwright's."""
        return isinstance(self.module, FeedForward)

    @property
    def shape(self) -> FeedForwardShape:
        """Every number that fixes its structure."""
        if isinstance(self.module, FeedForward):
            return self.module.shape
        maps = self.projections()
        return FeedForwardShape(
            self.hidden_size,
            self.intermediate_size,
            self.activation,
            self.gate is not None,
            "".join(role[0] for role, projection in maps.items() if projection.bias is not None),
        )

    @property
    def experts(self) -> ExpertShape | None:
        """How its neurons are split into experts; None where they are not."""
        return self.module.shape if isinstance(self.module, ExpertFeedForward) else None

    @property
    def num_experts(self) -> int:
        """1 where the neurons are not split into experts."""
        return 1 if self.experts is None else self.experts.num_experts

    @property
    def top_k(self) -> int:
        """Experts by whose rank those of a token are chosen; 1 where there are none."""
        return 1 if self.experts is None else self.experts.top_k

    @property
    def inner(self) -> Tap:
        """What the down projection reads: (b, t, I)."""
        return Tap(self.down.module, "input", self.down.axis)

    def buffers(self) -> dict[str, Tensor]:
        return dict(self.module.named_buffers(recurse=False)) if self.is_generic else {}

    def projections(self) -> dict[str, Projection]:
        gate = {} if self.gate is None else {"gate": self.gate}
        return {**gate, "up": self.up, "down": self.down}

    def __repr__(self) -> str:
        gated = "gated, " if self.gate is not None else ""
        split = "" if self.experts is None else f", {self.experts.describe()}"
        wide = f"{gated}{self.intermediate_size} wide, {self.activation}"
        return f"Mlp({self.address}: {wide}{split})"


@dataclass
class Block:
    """One layer: how it is wired and what stands in it. A removed part is None.

    Attributes:
        others: what stands at the place "attention" or "mlp" and is of another kind.
        axis: where the channels of the stream lie.
    """

    index: int
    module: nn.Module
    layout: Layout
    attention: Attention | None
    mlp: Mlp | MixtureOfExperts | None
    norms: dict[str, Norm] = field(default_factory=dict)
    others: dict[str, OtherMixer] = field(default_factory=dict)
    axis: int = -1

    @property
    def address(self) -> str:
        return f"blocks.{self.index}"

    @property
    def stream_in(self) -> Tap:
        return Tap(self.module, "input", self.axis)

    @property
    def stream_out(self) -> Tap:
        return Tap(self.module, "output", self.axis)

    @property
    def gains(self) -> dict[str, Norm]:
        """What multiplies the result of a sublayer, channel by channel, by the sublayer's role."""
        end = "_gain"
        return {r.removesuffix(end): norm for r, norm in self.norms.items() if r.endswith(end)}

    def at(self, place: str) -> Sublayer | None:
        """What stands at a place, "attention" or "mlp", of whatever kind."""
        named: dict[str, Sublayer | None] = {"attention": self.attention, "mlp": self.mlp}
        return named[place] or self.others.get(place)

    def sublayers(self) -> Iterator[tuple[str, Sublayer]]:
        """What stands at the places "attention" and "mlp", in this order."""
        for place in ("attention", "mlp"):
            found = self.at(place)
            if found is not None:
                yield place, found

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.module.parameters())

    def __repr__(self) -> str:
        named = (
            type(part.module).__name__ if name in self.others else name
            for name, part in self.sublayers()
        )
        stands = ", ".join(named) or "nothing"
        return f"Block({self.index}, {self.layout}-norm, holds {stands})"
