"""How a family reads the parts of a block, and where others go in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from modwright.anatomy.families.table import FamilyTable
from modwright.anatomy.projection import Projection, as_projection
from modwright.anatomy.views import (
    Attention,
    Block,
    Embedding,
    Layout,
    Linear,
    MixtureOfExperts,
    Mlp,
    Norm,
    OpaqueMixer,
    Part,
)
from modwright.core.capture import HookPoint
from modwright.core.errors import InvalidInputError
from modwright.nn import (
    AttentionShape,
    ExpertFeedForward,
    FeedForward,
    GroupedAttention,
    Identity,
    Opaque,
    PlacedMixer,
    SkippedAttention,
    ZeroModule,
)

__all__ = ["Family", "Placement"]

Placement = tuple[str, str, dict[str, Any]]
"""(path of a module inside its block, name of a registered part, its keyword arguments)."""


class Family(FamilyTable):
    """Reads the parts of one architecture from its modules, and places others there.

    Subclasses fill the tables of :class:`FamilyTable`; few need code.
    """

    def fitting(self, model: nn.Module) -> Family:
        """The family whose names are those of this model; other versions may name modules
        differently."""
        return self

    # Reading parts

    def read_block(self, module: nn.Module, index: int) -> Block:
        address = f"blocks.{index}"
        layout = self.layout(module)
        norms = {}
        for role in ("attention_norm", "mlp_norm"):
            path = self.block.get(role)
            if path is not None:
                norm = module.get_submodule(path)
                if not isinstance(norm, nn.Identity):
                    norms[role] = Norm(norm, f"{address}.{role}")
        return Block(
            index=index,
            module=module,
            layout=layout,
            attention=self._read_attention(module, address, layout, norms),
            mlp=self._read_mlp(module, address, layout, norms),
            norms=norms,
            others=self._read_others(module, address, layout, norms),
        )

    def _hook_points(self, block: nn.Module, role: str, layout: Layout) -> dict[str, Any]:
        inputs = HookPoint(block.get_submodule(self.block[role]), "input")
        norm = block.get_submodule(self.block[f"{role}_norm"])
        return {
            "resid_pre": inputs if layout == "post" else HookPoint(norm, "input"),
            "sublayer_input": inputs,
            "sublayer_output": HookPoint(block.get_submodule(self._last_of(role)), "output"),
            "resid_post": HookPoint(norm, "output") if layout == "post" else None,
        }

    def _last_of(self, role: str) -> str:
        """Path of the module that returns what a sublayer adds: its own, or one beside it."""
        own = self.block[role]
        last = self.block.get("attention.o" if role == "attention" else "mlp.down", own)
        return own if last.startswith(f"{own}.") else last

    def _read_others(
        self, block: nn.Module, address: str, layout: Layout, norms: dict[str, Norm]
    ) -> dict[str, OpaqueMixer]:
        """What an edit put where an attention or an MLP was, and is of another kind."""
        others = {}
        for role in ("attention", "mlp"):
            module = block.get_submodule(self.block[role])
            if isinstance(module, PlacedMixer | Opaque):
                hook_points = self._hook_points(block, role, layout)
                here, norm = f"{address}.{role}", norms.get(f"{role}_norm")
                others[role] = OpaqueMixer(address=here, module=module, norm=norm, **hook_points)
        return others

    def _read_attention(
        self, block: nn.Module, address: str, layout: Layout, norms: dict[str, Norm]
    ) -> Attention | None:
        module = block.get_submodule(self.block["attention"])
        if isinstance(module, ZeroModule | SkippedAttention | Identity | PlacedMixer | Opaque):
            return None
        here = f"{address}.attention"
        parts: dict[str, Any]
        if isinstance(module, GroupedAttention):
            parts = self._read_generic(block, module, here)
        else:
            parts = self.read_attention(block, module, here)
        return Attention(
            address=here,
            module=module,
            norm=norms.get("attention_norm"),
            **parts,
            **self._hook_points(block, "attention", layout),
        )

    def _read_generic(
        self, block: nn.Module, module: GroupedAttention, address: str
    ) -> dict[str, Any]:
        out: nn.Module | None = module.o_proj
        if out is None:
            out = block.get_submodule(self.block["attention.o"])
        named = {"q": module.q_proj, "k": module.k_proj, "v": module.v_proj, "o": out}
        norms = {
            role: Norm(getattr(module, role), f"{address}.{role}")
            for role in ("q_norm", "k_norm")
            if getattr(module, role) is not None
        }
        return {
            **{role: as_projection(m, f"{address}.{role}") for role, m in named.items()},
            **norms,
            "shape": module.shape,
        }

    def read_attention(self, block: nn.Module, module: Any, address: str) -> dict[str, Any]:
        """q, k, v, o and the shape of the family's own attention; this one for separate linears."""
        projections = {
            role: self.projection(block, f"attention.{role}", f"{address}.{role}")
            for role in ("q", "k", "v", "o")
        }
        return {**projections, "shape": self.attention_shape(module, projections)}

    def projection(self, block: nn.Module, role: str, address: str) -> Projection:
        module = block.get_submodule(self.block[role])
        # A linear layer that was put in place by an edit stores [out, in] whatever the family does.
        stock = self.transposed and not isinstance(module, nn.Linear)
        return as_projection(module, address, transposed=stock)

    def attention_shape(
        self, module: Any, projections: Mapping[str, Projection], **given: Any
    ) -> AttentionShape:
        """The shape of a stock attention: widths from the weights, the rest from the module."""
        head_dim = given.pop("head_dim")
        num_heads = projections["q"].out_features // head_dim
        return AttentionShape(
            hidden_size=projections["q"].in_features,
            num_heads=num_heads,
            num_kv_heads=projections["k"].out_features // head_dim,
            qk_head_dim=head_dim,
            v_head_dim=head_dim,
            scaling=float(module.scaling),
            biases="".join(role for role, p in projections.items() if p.bias is not None),
            causal=self.is_causal(),
            **{
                "sliding_window": getattr(module, "sliding_window", None),
                "project_out": self._last_of("attention") == self.block["attention"],
                **given,
            },
        )

    def _read_mlp(
        self, block: nn.Module, address: str, layout: Layout, norms: dict[str, Norm]
    ) -> Mlp | MixtureOfExperts | None:
        module = block.get_submodule(self.block["mlp"])
        if isinstance(module, ZeroModule | Identity | Opaque):
            return None
        here = f"{address}.mlp"
        if isinstance(module, FeedForward):
            maps = self._read_feed_forward(module, here)
        else:
            maps = self.read_mlp(block, here)
        return Mlp(
            address=here,
            module=module,
            norm=norms.get("mlp_norm"),
            **{"gate": None, **maps},
            **self._hook_points(block, "mlp", layout),
        )

    def read_mlp(self, block: nn.Module, address: str) -> dict[str, Any]:
        """up, down, perhaps gate, and the activation's name, of the family's own MLP."""
        roles = [role for role in ("gate", "up", "down") if f"mlp.{role}" in self.block]
        maps = {role: self.projection(block, f"mlp.{role}", f"{address}.{role}") for role in roles}
        return {**maps, "activation": str(self.get("activation"))}

    @staticmethod
    def _read_feed_forward(module: FeedForward, address: str) -> dict[str, Any]:
        named = {"gate": module.gate_proj, "up": module.up_proj, "down": module.down_proj}
        return {
            "activation": module.shape.activation,
            **{
                role: as_projection(linear, f"{address}.{role}")
                for role, linear in named.items()
                if linear is not None
            },
        }

    def read_outer(self, model: nn.Module) -> dict[str, Part]:
        """Embeddings, final norm and head, as far as the model has them."""
        backbone = self.backbone(model)
        parts: dict[str, Part] = {}
        for address, path in self.outer.items():
            if address == "blocks":
                continue
            module = backbone.get_submodule(path)
            make: Callable[[nn.Module, str], Part] = Norm if address.endswith("norm") else Embedding
            parts[address] = (Linear if isinstance(module, nn.Linear) else make)(module, address)
        head = getattr(model, "get_output_embeddings", lambda: None)()
        if head is not None:
            parts["head"] = Embedding(head, "head")
        return parts

    # Placing parts: what an edit means in terms of modules

    def place(
        self, block: nn.Module, role: str, part: str, kwargs: dict[str, Any]
    ) -> list[Placement]:
        """Where a registered part goes when it replaces ``role`` ("attention", "mlp.up", ...)."""
        path = self.block.get(role)
        outer, _, inner = role.partition(".")
        if inner and outer in ("attention", "mlp"):
            core = block.get_submodule(self.block[outer])
            if isinstance(core, ExpertFeedForward):
                raise InvalidInputError(
                    f"{role}: experts share their maps; merge the experts first"
                )
            # An output map that the part leaves to the family is None there.
            own = getattr(core, f"{inner}_proj", None)
            if isinstance(core, GroupedAttention | FeedForward) and own is not None:
                path = f"{self.block[outer]}.{inner}_proj"
        if path is None:
            raise InvalidInputError(
                f"{self.name} blocks have no {role!r}; they have {', '.join(self.block)}"
            )
        if part == "attention":
            return self._place_attention(path, kwargs)
        idle = list(self.beside.get(role, ()))
        if role == "attention" and self._last_of("attention") != path:
            idle.append(self._last_of("attention"))  # the part does its work, too
        return [(path, part, kwargs), *((other, "identity", {}) for other in idle)]

    def _place_attention(self, path: str, kwargs: dict[str, Any]) -> list[Placement]:
        """The output map goes where this model's tree has it, wherever the edit was planned."""
        last = self._last_of("attention")
        placed: list[Placement] = [(path, "attention", {**kwargs, "project_out": last == path})]
        if last != path:
            width = kwargs["num_heads"] * kwargs["v_head_dim"]
            bias = "o" in kwargs.get("biases", "")
            sizes = {"in_features": width, "out_features": kwargs["hidden_size"], "bias": bias}
            placed.append((last, "linear", sizes))
        return placed

    def place_outside(
        self, model: nn.Module, role: str, part: str, kwargs: dict[str, Any]
    ) -> list[Placement]:
        """Where a registered part goes when it replaces what stands outside the blocks.

        The bare backbone of a model with another head has no head, so nothing goes there.
        """
        if role == "head":
            head = getattr(model, "get_output_embeddings", lambda: None)()
            paths = [name for name, module in model.named_modules() if module is head]
            return [(path, part, kwargs) for path in paths]
        if role not in self.outer or role == "blocks":
            known = ", ".join(word for word in self.outer if word != "blocks")
            raise InvalidInputError(
                f"{self.name} has no {role!r}; outside its blocks it has {known}"
            )
        return [(self.prefix(model) + self.outer[role], part, kwargs)]

    def place_absent(self, role: str, drop_norm: bool) -> list[Placement]:
        """What stands in a block once its attention or MLP is removed.

        A pre-norm block adds nothing to the stream and its norm is dead weight, so both go,
        whatever ``drop_norm`` says. A post-norm block is left with norm(h), or with h itself if the
        norm goes too.
        """
        absent = {"attention": "absent_attention", "mlp": "absent"}
        self.check_removable(role)
        own, last = self.block[role], self._last_of(role)
        placed: list[Placement] = [(own, absent[role], {})]
        if last != own:
            placed.append((last, "absent", {}))
        if drop_norm or not self.is_post_norm():
            placed.append((self.block[f"{role}_norm"], "identity", {}))
        return placed

    @staticmethod
    def check_removable(role: str) -> None:
        """Refuses what is not a sublayer of a block."""
        if role not in ("attention", "mlp"):
            raise InvalidInputError(
                f"only attention, mlp and whole blocks can be removed, not {role!r}"
            )

    def stock_class_guard(self, role: str, kwargs: dict[str, Any] | None) -> dict[str, Any]:
        """A truthful entry about one layer that makes the stock class refuse the checkpoint.

        A stock class that meets a checkpoint with a part missing starts that part from random
        numbers and only warns. It stops, however, when a field that it reads differs between
        layers.

        Args:
            role: what was edited in the layer.
            kwargs: of the part that stands there now; None when nothing does.
        """
        outer = role.partition(".")[0]
        fields = {"attention": self._attention_fields, "mlp": self._mlp_fields}.get(outer)
        told = fields(kwargs) if fields is not None else {}
        if any(value != getattr(self.config, name, None) for name, value in told.items()):
            return told
        # The numbers are those of the stock part, but it is not the stock part: say it is not
        # there.
        word = "intermediate_size"
        if outer == "attention":
            word = "num_heads" if self.get("num_kv_heads") is None else "num_kv_heads"
        return {self.field(word): 0, "skip": [outer]}

    def _attention_fields(self, kwargs: dict[str, Any] | None) -> dict[str, Any]:
        shape = kwargs or {}
        needed = ("num_heads", "num_kv_heads", "qk_head_dim", "v_head_dim")
        if not all(shape.get(name) for name in needed):
            return {}  # nothing is there, or something that is no attention
        if shape["qk_head_dim"] != shape["v_head_dim"]:
            return {}
        words = {"num_heads": "num_heads", "num_kv_heads": "num_kv_heads", "head_dim": "v_head_dim"}
        return {
            self.field(word): shape[name]
            for word, name in words.items()
            if self.get(word) is not None
        }

    def _mlp_fields(self, kwargs: dict[str, Any] | None) -> dict[str, Any]:
        names = ("in_features", "out_features", "intermediate_size")
        sizes = {(kwargs or {}).get(name) for name in names}
        width = sizes - {None, self.get("hidden_size")}
        return {self.field("intermediate_size"): width.pop()} if len(width) == 1 else {}
