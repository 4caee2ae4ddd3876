"""What adds to the residual stream, whatever its kind."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from modwright.anatomy.forward_pass import Pass
from modwright.anatomy.projection import Projection, component_module, projections_of
from modwright.anatomy.views.neurons import Neurons
from modwright.anatomy.views.part import ModulePart, Norm, Part
from modwright.core.capture import HookPoint
from modwright.core.errors import UnsupportedArchitecture
from modwright.core.macs import forward_macs
from modwright.nn import ExpertFeedForward, Opaque

__all__ = ["OpaqueMixer", "Scores", "Sublayer", "component_module"]


class Scores(NamedTuple):
    """What a sublayer computes beside its linear layers: between positions, or to choose experts.

    Attributes:
        description: of what there are scores, in words.
        macs: multiply-accumulates in the pass that was asked about.
    """

    description: str
    macs: int


@dataclass(kw_only=True)
class Sublayer(Part):
    """What adds to the residual stream: an attention or an MLP, with the places to watch it.

    Attributes:
        norm: the norm that is removed with it; None where the block has none of its own.
        resid_pre: the residual stream h that the sublayer (with its norm) reads.
        sublayer_input: what the sublayer proper reads, norm(h) in a pre-norm block.
        sublayer_output: what the sublayer proper returns.
        resid_post: the residual stream after it; None where that is h plus ``sublayer_output``.
        writes_residual: roles of the maps that write to the stream; the others read it.
        generic: modwright's modules that may stand in place of the family's.
        blocker: why its heads cannot go one by one, though its maps are known; else empty.
    """

    encloses_parts = True
    writes_residual: ClassVar[tuple[str, ...]]
    generic: ClassVar[tuple[type[nn.Module], ...]] = ()

    address: str
    module: nn.Module
    norm: Norm | None
    resid_pre: HookPoint
    sublayer_input: HookPoint
    sublayer_output: HookPoint
    resid_post: HookPoint | None = None
    blocker: str = ""

    @property
    def is_generic(self) -> bool:
        """The family's own module was replaced by one of modwright's."""
        return isinstance(self.module, self.generic)

    @property
    def hidden_size(self) -> int | None:
        """Channels of the stream that it reads; None where no linear layer tells."""
        return None

    @property
    def resized_as(self) -> str | None:
        """The component that stands there once its linear layers have other widths; empty where
        they are replaced one by one, None where they cannot."""
        return None

    @property
    def has_twin(self) -> bool:
        """It is a stock module for which a component of the same tensors answers."""
        return False

    @property
    def neurons(self) -> Neurons | None:
        """Its neurons, which statistics are made of and which may be narrowed or split into
        experts; None of what has none that are known."""
        return None

    @property
    def routed(self) -> ExpertFeedForward | None:
        """Its module, where that groups its neurons into experts and chooses from them without a
        router; how it does so can be changed in place, and the experts merged."""
        return None

    @abstractmethod
    def projections(self) -> dict[str, Projection]:
        """Its linear layers by role: "q", "up" and the like."""

    @property
    def reads_residual(self) -> tuple[str, ...]:
        """Roles of the maps that read the stream."""
        return tuple(role for role in self.projections() if role not in self.writes_residual)

    def members(self) -> Mapping[str, Projection | ModulePart]:
        """What holds its parameters, by role: its linear layers, norms and an activation in it."""
        return self.projections()

    def buffers(self) -> dict[str, Tensor]:
        """What a part of modwright's stores beside its weights, by name: index tables and such."""
        return dict(self.module.named_buffers(recurse=False)) if self.is_generic else {}

    def parameters(self) -> dict[str, Tensor]:
        weights = {
            f"{role}.{name}": tensor
            for role, member in self.members().items()
            for name, tensor in member.parameters().items()
        }
        return weights | {name: buffer.detach() for name, buffer in self.buffers().items()}

    def stored_at(self, name: str) -> tuple[nn.Module, str]:
        role, _, leaf = name.rpartition(".")
        member = self.members().get(role)
        return super().stored_at(name) if member is None else member.stored_at(leaf)

    def write(self, name: str, value: Tensor) -> None:
        role, _, leaf = name.rpartition(".")
        member = self.members().get(role)
        if member is None:
            super().write(name, value)
        else:
            member.write(leaf, value)

    @property
    def num_parameters(self) -> int:
        """With the norm that goes when the sublayer goes."""
        own = sum(member.num_parameters for member in self.members().values())
        return own + (self.norm.num_parameters if self.norm is not None else 0)

    def modules(self) -> list[nn.Module]:
        """Also those of its linear layers that lie beside its own module."""
        roots = [self.module, *(projection.module for projection in self.projections().values())]
        return [module for root in roots for module in root.modules()]

    def projection_macs(self) -> dict[str, int]:
        """Multiply-accumulates of each linear layer for one position, by role."""
        return {role: projection.macs for role, projection in self.projections().items()}

    def scores(self, run: Pass) -> Scores | None:
        """What it computes between positions, or to choose experts; None where there is nothing."""
        return None

    def macs(self, run: Pass) -> int:
        """Its linear layers at every position, and its scores."""
        scores = self.scores(run)
        beside = 0 if scores is None else scores.macs
        return run.positions * sum(self.projection_macs().values()) + beside

    def kv_bytes(self, positions: int, dtype: torch.dtype | None = None) -> int:
        """Keys and values that it keeps of so many positions of one sequence.

        ``dtype`` is that of the kept numbers; None for that of the weights.
        """
        return 0

    def state_bytes(self, dtype: torch.dtype | None = None) -> int:
        """What it keeps of one sequence whatever its length, of numbers of ``dtype``."""
        return 0


@dataclass
class OpaqueMixer(Sublayer):
    """What stands at the place of an attention or an MLP and is not plain, or neither of the two.

    It can be removed and replaced as a whole. Its linear layers, where they are known, are parts
    of it as those of an attention are: counted, scored, factored. They are known where its module
    has ``projections()``, as attentions with a position bias, a gate or windows do.

    Attributes:
        maps: its linear layers by role.
        twin: a component that has the same tensors, without numbers; it answers in place of a
            module of another library, which says nothing of itself.
    """

    is_opaque = True

    maps: Mapping[str, Projection] = field(default_factory=dict)
    twin: nn.Module | None = None

    def __post_init__(self) -> None:
        self.maps = self.maps or projections_of(self.module, self.address)
        if self.maps and not self.blocker:
            told = getattr(self.component, "narrowing_blocker", "")
            kind = type(component_module(self.module)).__name__
            usual = "MLP" if self.address.endswith(".mlp") else "softmax attention"
            self.blocker = told or f"a {kind} is no plain {usual}"

    @property
    def has_twin(self) -> bool:
        return self.twin is not None

    @property
    def component(self) -> nn.Module:
        """What answers for it."""
        return component_module(self.module) if self.twin is None else self.twin

    @property
    def writes_residual(self) -> tuple[str, ...]:  # type: ignore[override]
        return self._roles("writes_residual", "o")

    @property
    def reads_residual(self) -> tuple[str, ...]:
        return self._roles("reads_residual", *"qkv")

    def _roles(self, name: str, *otherwise: str) -> tuple[str, ...]:
        roles = getattr(self.component, name, otherwise)
        return tuple(role for role in roles if role in self.maps)

    @property
    def hidden_size(self) -> int | None:
        reads = (self.maps[role].in_features for role in self.reads_residual)
        return next(reads, None)

    def projections(self) -> dict[str, Projection]:
        return dict(self.maps)

    def parameters(self) -> dict[str, Tensor]:
        """Those of its maps by role, and all others by their names in the module."""
        held = {id(projection.module) for projection in self.maps.values()}
        rest = {
            name: tensor.detach()
            for name, tensor in (*self.module.named_parameters(), *self.module.named_buffers())
            if id(self.module.get_submodule(name.rpartition(".")[0])) not in held
        }
        return {**super().parameters(), **rest}

    def aliases(self) -> dict[str, str]:
        paths = {id(module): path for path, module in self.module.named_modules()}
        return {
            f"{paths[id(p.module)]}.{name}": f"{role}.{name}"
            for role, p in self.maps.items()
            if p.rows is None and id(p.module) in paths
            for name in p.parameters()
        }

    def counted_maps(self) -> dict[str, Projection]:
        """They may see other positions than the block does, such as averages or windows."""
        return self.projections()

    @property
    def num_parameters(self) -> int:
        modules: list[Any] = [self.module, *(p.module for p in self.maps.values())]
        if self.norm is not None:
            modules.append(self.norm.module)
        return sum(p.numel() for p in {p for m in modules for p in m.parameters()})

    def describe(self) -> str:
        """As its module describes itself, else the name of its class."""
        told = self._answer("describe")
        return type(self.module).__name__ if told is None else str(told)

    def own_macs(self, batch: int, length: int, cached: int = 0) -> int | None:
        found = self._answer("macs", batch, length, cached)
        if found is None or self.twin is None:
            return None if found is None else int(found)
        # The layers may be factored meanwhile, and those of the twin are not.
        dense = sum(p.macs for p in projections_of(self.twin, self.address).values())
        return int(found) + batch * length * (sum(p.macs for p in self.maps.values()) - dense)

    def macs(self, run: Pass) -> int:
        """As it was counted while the model ran, or as its module says, else by running it."""
        if self.address in run.counted:
            return run.sequences * run.counted[self.address]
        own = self.own_macs(run.sequences, run.tokens, run.cached.get(self.address, 0))
        return run.sequences * self._macs_alone(run.tokens) if own is None else own

    def kv_bytes(self, positions: int, dtype: torch.dtype | None = None) -> int:
        return int(self._answer("kv_bytes", positions, dtype or self._dtype) or 0)

    def state_bytes(self, dtype: torch.dtype | None = None) -> int:
        return int(self._answer("state_bytes", dtype or self._dtype) or 0)

    @property
    def _dtype(self) -> torch.dtype:
        """Of its weights but those that stay in float32, else of its norm's, else torch's own."""
        modules = [self.module] if self.norm is None else [self.module, self.norm.module]
        kept = getattr(self.component, "keep_in_fp32", ())
        named = (named for module in modules for named in module.named_parameters())
        found = (parameter.dtype for name, parameter in named if name not in kept)
        return next(
            (dtype for dtype in found if dtype.is_floating_point), torch.get_default_dtype()
        )

    def _answer(self, question: str, *given: Any) -> Any:
        """What its module answers, or its twin; None where it has no such method."""
        method = getattr(self.component, question, None)
        return None if isinstance(method, nn.Module) or not callable(method) else method(*given)

    def _macs_alone(self, tokens: int) -> int:
        """Of one sequence of so many tokens, counted while the module runs by itself."""
        width = None
        if isinstance(self.module, Opaque):
            # Channels of the stream that it reads: its own word for it, or its norm's.
            width = getattr(self.module, "hidden_size", None)
            if not isinstance(width, int) and self.norm is not None:
                width = len(self.norm.parameters().get("weight", ())) or None
        if not isinstance(width, int):
            raise UnsupportedArchitecture(
                f"{self.address}: its cost is known of a running model only"
            )
        try:
            return forward_macs(self.module, 1, tokens, width)
        except Exception as error:  # whatever a module of someone else raises when called alone
            told = str(error).partition("\n")[0] or type(error).__name__
            raise UnsupportedArchitecture(
                f"{self.address}: a {type(self.module).__name__} does not run by itself, so its "
                f"cost is not known ({told}); give it a method `macs(batch, length, cached)`"
            ) from None

    def __repr__(self) -> str:
        maps = ", ".join(self.maps)
        held = f", {maps}" if maps else ""
        return f"OpaqueMixer({self.address}: {type(self.module).__name__}{held})"
