"""How a family reads the parts of a block, and where others go in it."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Any

from torch import nn

from modwright.anatomy.families.between import part_at
from modwright.anatomy.families.table import FamilyTable
from modwright.anatomy.projection import Projection, as_projection, stored_in
from modwright.anatomy.views import (
    Attention,
    Block,
    Embedding,
    LayerScale,
    Layout,
    Linear,
    MixtureOfExperts,
    Mlp,
    ModulePart,
    Norm,
    OpaqueMixer,
    Part,
)
from modwright.core.capture import HookPoint
from modwright.core.errors import InvalidInputError
from modwright.nn import (
    AttentionShape,
    ExpertFeedForward,
    FactorPair,
    FeedForward,
    GroupedAttention,
    Identity,
    Opaque,
    SkippedAttention,
    ZeroModule,
)

__all__ = ["Family", "Placement", "mlp_width"]

Placement = tuple[str, str, dict[str, Any]]
"""(path of a module inside its block, name of a registered part, its keyword arguments)."""


class Family(FamilyTable):
    """Reads the parts of one architecture from its modules, and places others there."""

    def fitting(self, model: nn.Module) -> Family:
        """The family whose names are those of this model; versions may name modules differently."""
        return self

    # Reading parts

    def read_block(self, module: nn.Module, index: int) -> Block:
        block = Block(index, module, self.layout(module), axis=self.axis(module))
        for role in ("attention", "mlp"):
            core: Any = attrgetter(self.block[role])(module) if role in self.block else None
            if core is None:
                continue
            here = f"{block.address}.{role}"
            norm = module.get_submodule(self.block[f"{role}_norm"])
            if not isinstance(norm, nn.Identity):
                block.norms[f"{role}_norm"] = Norm(norm, f"{here}_norm")
            if (gain := self._gain(module, role)) is not None:
                block.norms[f"{role}_gain"] = LayerScale(gain, f"{here}_gain")
            if isinstance(core, ZeroModule | SkippedAttention | Identity):
                continue
            told: dict[str, Any] = {
                "address": here,
                "module": core,
                "norm": block.norms.get(f"{role}_norm"),
                **self._hook_points(module, role, block.layout),
            }
            parts = self.read_parts(module, core, role, here)
            if parts is None or "maps" in parts:
                block.others[role] = OpaqueMixer(**told, **(parts or {}))
            elif role == "attention":
                block.attention = Attention(**told, **parts)
            elif "router" in parts:
                block.mlp = MixtureOfExperts(**told, **parts)
            else:
                block.mlp = Mlp(**told, **parts)
        return block

    @staticmethod
    def axis(module: Any, usual: int = -1) -> int:
        """Where the channels lie in what a module reads."""
        return usual

    def _gain(self, block: nn.Module, role: str) -> nn.Module | None:
        path = self.block.get(f"{role}_gain")
        gain = getattr(block, path, None) if path else None
        return None if isinstance(gain, nn.Identity) else gain

    def _hook_points(self, block: nn.Module, role: str, layout: Layout) -> dict[str, Any]:
        core, norm, last = (
            block.get_submodule(path)
            for path in (self.block[role], self.block[f"{role}_norm"], self._last_of(role))
        )
        stream = self.axis(block)
        inner, gain, post = self.axis(core, stream), self._gain(block, role), layout == "post"
        inputs, output = HookPoint(core, "input", inner), HookPoint(last, "output", inner)
        return {
            "resid_pre": inputs if post else HookPoint(norm, "input", stream),
            "sublayer_input": inputs,
            "sublayer_output": output if gain is None else HookPoint(gain, "output", stream),
            "resid_post": HookPoint(norm, "output") if post else None,
        }

    def _last_of(self, role: str) -> str:
        """Path of the module that returns what a sublayer adds: its own, or one beside it."""
        own = self.block[role]
        last = self.block.get("attention.o" if role == "attention" else "mlp.down", own)
        return own if last.startswith(f"{own}.") else last

    def read_parts(
        self, block: nn.Module, core: Any, role: str, address: str
    ) -> dict[str, Any] | None:
        """The fields of a view; None of what an edit put there and is of another kind."""
        if isinstance(core, Opaque):
            return None
        if isinstance(core, GroupedAttention | FeedForward):
            return self._read_own(block, core, address)
        if role == "attention":
            return self.read_attention(block, core, address)
        return self.read_mlp(block, address)

    def _read_own(self, block: nn.Module, core: Any, address: str) -> dict[str, Any]:
        """The parts of one of modwright's modules, which names them by their roles."""
        if isinstance(core, FeedForward):
            told: dict[str, Any] = {"activation": core.shape.activation}
            maps = {role: getattr(core, f"{role}_proj") for role in ("gate", "up", "down")}
        else:
            told = {"shape": core.shape}
            maps = {role: getattr(core, f"{role}_proj") for role in "qkvo"}
            if maps["o"] is None:
                maps["o"] = block.get_submodule(self.block["attention.o"])
            norms = {role: getattr(core, role) for role in ("q_norm", "k_norm")}
            told |= {r: Norm(n, f"{address}.{r}") for r, n in norms.items() if n is not None}
        views = {r: as_projection(m, f"{address}.{r}") for r, m in maps.items() if m is not None}
        return {**told, **views}

    def read_attention(self, block: nn.Module, module: Any, address: str) -> dict[str, Any]:
        """q, k, v, o and the shape of the family's own attention."""
        maps = self.read_qkv(block, module, address)
        maps["o"] = self.projection(block, "attention.o", f"{address}.o")
        return {**maps, "shape": self.attention_shape(module, maps)}

    def read_qkv(self, block: nn.Module, module: Any, address: str) -> dict[str, Projection]:
        """Its maps to queries, keys and values; this one for separate linear layers."""
        return {r: self.projection(block, f"attention.{r}", f"{address}.{r}") for r in "qkv"}

    def side_by_side(self, fused: nn.Module, width: int, address: str) -> dict[str, Projection]:
        """The three maps of one that holds queries, then keys, then values, each of one width."""
        rows = {role: slice(i * width, (i + 1) * width) for i, role in enumerate("qkv")}
        return {
            role: Projection(fused, f"{address}.{role}", own, self.transposed)
            for role, own in rows.items()
        }

    def projection(self, block: nn.Module, role: str, address: str) -> Projection:
        module = block.get_submodule(self.block[role])
        # A linear layer that was put in place by an edit stores [out, in] whatever the family does.
        stock = self.transposed and not isinstance(module, nn.Linear)
        return as_projection(module, address, transposed=stock)

    def attention_shape(
        self, module: Any, projections: Mapping[str, Projection], **given: Any
    ) -> AttentionShape:
        """The shape of a stock attention: widths from the weights, the rest from the module.

        ``shape_fields`` and what is given name ``head_dim``, the width of a head, and the like.
        """
        fields = {"scaling": "scaling", **self.shape_fields}
        told: dict[str, Any] = {
            "sliding_window": getattr(module, "sliding_window", None),
            "project_out": self._last_of("attention") == self.block["attention"],
            **{n: attrgetter(path)(module) for n, path in fields.items() if n not in given},
            **given,
        }
        told |= {n: float(told[n]) for n in ("scaling", "dropout", "output_dropout") if n in told}
        head_dim = told.pop("head_dim")
        return AttentionShape(
            hidden_size=projections["q"].in_features,
            num_heads=projections["q"].out_features // head_dim,
            num_kv_heads=projections["k"].out_features // head_dim,
            qk_head_dim=head_dim,
            v_head_dim=head_dim,
            biases="".join(role for role in "qkvo" if projections[role].bias is not None),
            causal=self.is_causal(),
            **told,
        )

    def read_mlp(self, block: nn.Module, address: str) -> dict[str, Any]:
        """up, down, perhaps gate, and the activation's name, of the family's own MLP."""
        roles = [role for role in ("gate", "up", "down") if f"mlp.{role}" in self.block]
        maps = {role: self.projection(block, f"mlp.{role}", f"{address}.{role}") for role in roles}
        return {**maps, "activation": str(self.get("activation"))}

    def read_outer(self, model: nn.Module) -> dict[str, Part]:
        """Embeddings, final norm and head, as far as the model has them."""
        backbone = self.backbone(model)
        parts: dict[str, Part] = {}
        for address, path in self.outer.items():
            if address != "blocks":
                module = backbone.get_submodule(path)
                make: type[ModulePart] = Norm if address.endswith("norm") else Embedding
                kind = Linear if isinstance(module, nn.Linear) else make
                parts[address] = kind(module, address)
        head = getattr(model, "get_output_embeddings", lambda: None)()
        return parts if head is None else {**parts, "head": Embedding(head, "head")}

    def read_between(self, model: nn.Module) -> dict[str, Part]:
        """What stands between stages, by address."""
        backbone = self.backbone(model)
        return {a: part_at(backbone.get_submodule(path), a) for a, path in self.between.items()}

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
            elif (said := stored_in(core, inner)) is not None:
                path = f"{self.block[outer]}.{said}"
        if path is None:
            raise InvalidInputError(
                f"{self.name} blocks have no {role!r}; they have {', '.join(self.block)}"
            )
        placed: list[Placement] = [(path, part, kwargs)]
        last = self._last_of("attention")
        if part == "attention":
            # The output map goes where this model's tree has it, wherever the edit was planned.
            placed = [(path, part, {**kwargs, "project_out": last == path})]
            if last != path:
                sizes = {
                    "in_features": kwargs["num_heads"] * kwargs["v_head_dim"],
                    "out_features": kwargs["hidden_size"],
                    "bias": "o" in kwargs.get("biases", ""),
                }
                placed.append((last, "linear", sizes))
        else:
            idle = list(self.beside.get(role, ()))
            if role == "attention" and last != path:
                idle.append(last)  # the part does its work, too
            placed += [(other, "identity", {}) for other in idle]
        return placed

    def place_outside(
        self, model: nn.Module, role: str, part: str, kwargs: dict[str, Any]
    ) -> list[Placement]:
        """Where a registered part goes when it replaces what stands outside the blocks: nowhere for
        the head of a bare backbone."""
        if role == "head":
            head = getattr(model, "get_output_embeddings", lambda: None)()
            found = [name for name, module in model.named_modules() if module is head]
            return [(path, part, kwargs) for path in found]
        if role in self.between:
            path = self.prefix(model) + self.between[role]
            if part == "factors" and not isinstance(
                model.get_submodule(path), nn.Linear | FactorPair
            ):
                raise InvalidInputError(f"{role} is a convolution; {part!r} cannot stand for it")
            return [(path, part, kwargs)]
        if role not in self.outer or role == "blocks":
            known = ", ".join([*(word for word in self.outer if word != "blocks"), *self.between])
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
        if role not in ("attention", "mlp"):
            raise InvalidInputError(
                f"only attention, mlp and whole blocks can be removed, not {role!r}"
            )
        own, last = self.block[role], self._last_of(role)
        placed: list[Placement] = [(own, "absent", {})]
        if role == "attention" and self.pairs:
            placed = [(own, "absent_attention", {"whole": True} if self.reshapes_attention else {})]
        if last != own:
            placed.append((last, "absent", {}))
        if drop_norm or not self.is_post_norm():
            placed.append((self.block[f"{role}_norm"], "identity", {}))
        if self.has_gain(role):
            placed.append((self.block[f"{role}_gain"], "identity", {}))
        return placed

    def has_gain(self, role: str) -> bool:
        """Blocks multiply what a sublayer returns, channel by channel."""
        return False

    def stock_class_guard(self, role: str, kwargs: dict[str, Any] | None) -> dict[str, Any]:
        """A truthful entry about one layer that makes the stock class refuse the checkpoint.

        It would start a missing part from random numbers and only warn; it stops, however, when a
        field that it reads differs between layers. ``role`` is what was edited in the layer,
        ``kwargs`` are of the part that stands there now; None when nothing does.
        """
        outer, shape = role.partition(".")[0], kwargs or {}
        told: dict[str, Any] = {}
        if outer == "attention":
            sizes = {word: shape.get(word) for word in ("num_heads", "num_kv_heads")}
            sizes["head_dim"] = shape.get("v_head_dim")
            # Else it is no attention, or one that no field tells.
            if all(sizes.values()) and sizes["head_dim"] == shape.get("qk_head_dim"):
                told = {self.field(w): n for w, n in sizes.items() if self.get(w) is not None}
        elif outer == "mlp" and (width := mlp_width(shape, self.get("hidden_size"))):
            told = {self.field("intermediate_size"): width}
        if any(value != getattr(self.config, name, None) for name, value in told.items()):
            return told
        # The numbers are those of the stock part, but it is not that: say it is not there.
        word = "intermediate_size"
        if outer == "attention":
            word = "num_heads" if self.get("num_kv_heads") is None else "num_kv_heads"
        return {self.field(word): 0, "skip": [outer]}


def mlp_width(shape: Mapping[str, Any], hidden_size: Any) -> int | None:
    """The width that the arguments of a part at an MLP's place tell; None where they do not."""
    names = ("in_features", "out_features", "intermediate_size")
    widths: set[Any] = {shape.get(name) for name in names} - {None, hidden_size}
    return widths.pop() if len(widths) == 1 else None
