"""A mixture of E experts of I neurons: a router, and maps that lie in tensors (E, out, in)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn
from torch.nn import functional as F

from modwright.anatomy.forward_pass import Pass
from modwright.anatomy.projection import Projection
from modwright.anatomy.separable import is_separable
from modwright.anatomy.views.neurons import Neurons
from modwright.anatomy.views.part import Activation, ModulePart
from modwright.anatomy.views.sublayer import Sublayer
from modwright.core.capture import HookPoint
from modwright.nn import Mixture, MixtureShape, route

__all__ = ["Expert", "ExpertProjection", "MixtureOfExperts"]


class ExpertProjection(Projection):
    """One expert's linear layer: some rows of one slice of a parameter (E, out, in)."""

    def __init__(
        self, module: nn.Module, name: str, expert: int, address: str, rows: slice | None = None
    ) -> None:
        super().__init__(module, address, rows)
        self.name, self.expert = name, expert

    def stored_at(self, name: str) -> tuple[nn.Module, str]:
        return self.module, self.name

    def _stored(self, name: str) -> Tensor | None:
        stored = super()._stored(self.name) if name == "weight" else None
        return None if stored is None else stored[self.expert]


@dataclass(frozen=True)
class Expert:
    """One expert: down(act(gate x) * up x)."""

    gate: Projection
    up: Projection
    down: Projection

    def projections(self) -> dict[str, Projection]:
        return {"gate": self.gate, "up": self.up, "down": self.down}


@dataclass
class MixtureOfExperts(Sublayer):
    """What stands in the place of an MLP: ``top_k`` of its experts work on each position.

    Attributes:
        router: map to one score per expert, weight (E, d).
        stack: the module that holds all experts.
        top_k: experts of a position.
        act: the activation, and ``activation`` its name.
    """

    generic = (Mixture,)

    router: Projection
    stack: nn.Module
    top_k: int
    activation: str
    act: Callable[[Tensor], Tensor]

    @property
    def writes_residual(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(f"experts.{index}.down" for index in range(self.num_experts))

    @property
    def num_experts(self) -> int:
        return self.router.out_features

    @property
    def hidden_size(self) -> int:
        return self.router.in_features

    @property
    def intermediate_size(self) -> int:
        """Neurons of each expert."""
        return int(self.stack.get_parameter("down_proj").shape[-1])

    @property
    def separable(self) -> bool:
        """The neurons of an expert do not depend on each other."""
        return is_separable(self.act, self.intermediate_size)

    @property
    def shape(self) -> MixtureShape:
        """Every number that fixes its structure."""
        sizes = self.hidden_size, self.intermediate_size, self.num_experts, self.top_k
        own = self.module.shape.activation_kwargs if isinstance(self.module, Mixture) else None
        return MixtureShape(*sizes, self.activation, activation_kwargs=own)

    @cached_property
    def experts(self) -> tuple[Expert, ...]:
        inner, stacked = self.intermediate_size, "gate_up_proj"

        def view(index: int, role: str, name: str, rows: slice | None = None) -> Projection:
            address = f"{self.address}.experts.{index}.{role}"
            return ExpertProjection(self.stack, name, index, address, rows)

        return tuple(
            Expert(
                gate=view(i, "gate", stacked, slice(0, inner)),
                up=view(i, "up", stacked, slice(inner, 2 * inner)),
                down=view(i, "down", "down_proj"),
            )
            for i in range(self.num_experts)
        )

    def members(self) -> Mapping[str, Projection | ModulePart]:
        maps, act = self.projections(), self.act
        if not isinstance(act, nn.Module) or not (*act.parameters(), *act.buffers()):
            return maps
        return {**maps, "act": Activation(act, f"{self.address}.act")}

    def projections(self) -> dict[str, Projection]:
        maps = {"router": self.router}
        for index, expert in enumerate(self.experts):
            maps |= {f"experts.{index}.{role}": p for role, p in expert.projections().items()}
        return maps

    @property
    def neurons(self) -> Neurons:
        sizes = (self.intermediate_size, self.sublayer_input, self.num_experts)
        return Neurons(*sizes, self.choose, self.inner_of)

    def projection_macs(self) -> dict[str, int]:
        """Of the router, and of every expert the mean: a position goes through top_k of them."""
        every = super().projection_macs()
        return {
            role: macs if role == "router" else macs * self.top_k // self.num_experts
            for role, macs in every.items()
        }

    def macs(self, run: Pass) -> int:
        """Each position goes through the router and through top_k experts, all of one size."""
        expert = sum(p.macs for p in self.experts[0].projections().values())
        return run.positions * (self.router.macs + self.top_k * expert)

    def activation_width(self, scored: int = 0) -> int:
        """One expert after the other, on its share of the positions; and the router's scores."""
        return self.intermediate_size * 3 * self.top_k // self.num_experts + self.num_experts

    placed_as = "mixture"
    """The registered part of this structure."""

    @property
    def act_function(self) -> Callable[[Tensor], Tensor]:
        """The activation of all experts."""
        return self.act

    @property
    def activation_point(self) -> HookPoint:
        """What tells what the activation reads: see :meth:`activation_inputs`."""
        return self.sublayer_input

    def activation_inputs(self, seen: Tensor) -> Iterator[Tensor]:
        """What the mixture reads, (n, d) -> what each expert's activation reads, (m, neurons), of
        the positions that it works on.
        """
        chosen = self.choose(seen)
        for index, expert in enumerate(self.experts):
            here = seen[(chosen == index).any(-1)]
            if len(here):
                yield F.linear(here, expert.gate.weight)

    def choose(self, x: Tensor) -> Tensor:
        """The experts that work on each position: x (n, d) -> (n, top_k)."""
        return route(F.linear(x, self.router.weight), self.top_k)[0]

    def inner_of(self, index: int, x: Tensor) -> Tensor:
        """What the down projection of an expert reads: x (n, d) -> (n, I)."""
        expert = self.experts[index]
        return self.act(F.linear(x, expert.gate.weight)) * F.linear(x, expert.up.weight)

    def describe(self) -> str:
        chosen = f"{self.top_k} of {self.num_experts} experts"
        return f"{chosen}, {self.intermediate_size} wide, {self.activation}"

    def __repr__(self) -> str:
        return f"MixtureOfExperts({self.address}: {self.describe()})"
