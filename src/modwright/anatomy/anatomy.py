"""The anatomy of a live model."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

from torch import Tensor, nn

from modwright.anatomy.coerce import model_of, require_no_adapters
from modwright.anatomy.families import family_of, wrapped
from modwright.anatomy.families.family import Family
from modwright.anatomy.stream import ResidualStream, stream_of
from modwright.anatomy.views import Block, Embedding, Part
from modwright.core.errors import InvalidInputError, UnsupportedArchitecture, unknown_name

__all__ = ["Anatomy"]


class Anatomy:
    """A model as typed parts. It reads; only :meth:`write` changes weights, in place.

    Attributes:
        model: the live model.
        family: what maps its names.
        blocks: its layers, as :class:`Block`.
        outer: embeddings, norms outside the blocks, what stands between stages, and head, by
            address.

    Example:
        >>> import modwright
        >>> anatomy = modwright.open("preset:tiny-llama").anatomy
        >>> anatomy.blocks[0].attention
        Attention(blocks.0.attention: 6 heads, 2 kv, qk 12, v 12)
        >>> anatomy.blocks[0].attention.read_q().shape
        torch.Size([6, 12, 48])
    """

    def __init__(self, model: nn.Module, family: Family) -> None:
        self.model, self.family = model, family
        self.config: Any = family.config
        layers = family.layers(model)
        if len({id(layer) for layer in layers}) != len(layers):
            raise UnsupportedArchitecture(
                f"{family.name}: some layers are one module used twice; shared layers are not "
                "supported"
            )
        self.blocks: tuple[Block, ...] = tuple(
            family.read_block(layer, i) for i, layer in enumerate(layers)
        )
        self.outer: dict[str, Part] = {**family.read_outer(model), **family.read_between(model)}

    @classmethod
    def of(cls, model: Any) -> Anatomy:
        """The anatomy of a model, of an opened checkpoint or of what an edit returned.

        Raises:
            UnsupportedArchitecture: no family knows its ``config.model_type``.
            InvalidInputError: it is quantized, has PEFT adapters or ``return_dict`` off.
        """
        if isinstance(model, cls):
            return model
        require_no_adapters(model_of(model))
        model = wrapped(model_of(model))
        config: Any = model.config
        if getattr(config, "quantization_config", None) or getattr(model, "is_quantized", False):
            raise InvalidInputError(
                "the model is quantized; open it dequantised (dtype float32 or bfloat16)"
            )
        if getattr(config, "return_dict", True) is False:
            raise InvalidInputError(
                "the model's config asks for tuples (return_dict is false), which are not read; "
                "set model.config.return_dict = True"
            )
        return cls(model, family_of(config, model))

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream, as the parts have it."""
        return next(self._found_widths(), 0) or int(self.family.get("hidden_size"))

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths of the residual stream, one where it has one all the way."""
        return tuple(sorted(set(self._found_widths()))) or (self.hidden_size,)

    @property
    def last_width(self) -> int:
        """Width of the residual stream behind the last block."""
        return ([*self._found_widths()] or [self.hidden_size])[-1]

    def _found_widths(self) -> Iterator[int]:
        for block in self.blocks:
            for _, sublayer in block.sublayers():
                if sublayer.hidden_size is not None:
                    yield sublayer.hidden_size

    @property
    def num_parameters(self) -> int:
        """Numbers stored: a tied table counts once."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def num_bytes(self) -> int:
        return sum(p.numel() * p.element_size() for p in self.model.parameters())

    @property
    def is_tied(self) -> bool:
        """The head and the token table are one tensor."""
        head, embed = self.outer.get("head"), self.outer.get("embed")
        if not (isinstance(head, Embedding) and isinstance(embed, Embedding)):
            return False
        return head.module.weight is embed.module.weight

    @property
    def stock_mixers(self) -> list[Any]:
        """Mixers of stock classes for which components have the same tensors, see `fast_scan`."""
        mixers = (block.at("attention") for block in self.blocks)
        return [mixer for mixer in mixers if mixer is not None and mixer.has_twin]

    @property
    def after_blocks(self) -> tuple[str, ...]:
        """Addresses outside the blocks that the stream reaches after them, in its order."""
        table = list(self.family.outer)
        later = [*table[table.index("blocks") + 1 :], "head"]
        return tuple(address for address in later if address in self.outer)

    @property
    def stream(self) -> ResidualStream:
        """Who writes to the residual stream and who reads it."""
        return stream_of(self)

    def block(self, index: int) -> Block:
        if not 0 <= index < len(self.blocks):
            raise InvalidInputError(
                f"no block {index}; the model has blocks 0 to {len(self.blocks) - 1}"
            )
        return self.blocks[index]

    def parts(self) -> Iterator[tuple[str, Part]]:
        """Every part with parameters, by address, in the order of the forward pass."""
        later, between = self.after_blocks, self.family.between
        yield from ((a, p) for a, p in self.outer.items() if a not in {*later, *between})
        for block in self.blocks:
            yield from self.between(block.index).items()
            for role, part in (*block.sublayers(), *block.norms.items(), *block.extras.items()):
                yield f"{block.address}.{role}", part
        yield from self.between(len(self.blocks)).items()
        yield from ((a, p) for a, p in self.outer.items() if a in later)

    def between(self, index: int) -> dict[str, Part]:
        """What stands between the stage before and the one that begins with block ``index``, by
        address; with the number of blocks, what stands behind the last stage."""
        starts = [*self.family.stage_starts, len(self.blocks)]
        stages = [str(stage) for stage, start in enumerate(starts) if start == index]
        return {a: self.outer[a] for a in self.family.between if a.split(".")[1] in stages}

    def part(self, address: str) -> Any:
        """What stands at an address: a part, a projection of one, or a block.

        Raises:
            InvalidInputError: nothing does; names the nearest.

        Example:
            >>> import modwright
            >>> anatomy = modwright.open("preset:tiny-llama").anatomy
            >>> anatomy.part("blocks.3.mlp_norm"), anatomy.part("blocks.3.mlp.up").weight.shape
            (Norm(blocks.3.mlp_norm, 48 parameters), torch.Size([96, 48]))
        """
        found: dict[str, Any] = dict(self.parts())
        for block in self.blocks:
            found[block.address] = block
            for _, sublayer in block.sublayers():
                found |= {p.address: p for p in sublayer.projections().values()}
        if address not in found:
            raise unknown_name("part", address, found)
        return found[address]

    def write(self, address: str, value: Tensor) -> None:
        """Stores a tensor at the address of a parameter, such as "blocks.3.mlp.up.weight"."""
        found, pieces = dict(self.parts()), address.split(".")
        heads = (".".join(pieces[:cut]) for cut in range(len(pieces) - 1, 0, -1))
        part = next((head for head in heads if head in found), None)
        if part is None:
            raise unknown_name("parameter address", address, found)
        found[part].write(address.removeprefix(f"{part}."), value)

    def _repr_html_(self) -> str:
        """The parts as a collapsible tree, for notebooks; `modwright.cost.inspect` has costs."""

        def line(part: Part) -> str:
            if self.is_tied and part is self.outer.get("head"):
                return "<li><code>head</code> the table of embed, 0 parameters of its own</li>"
            said = repr(part)
            count = "" if "parameters" in said else f" {part.num_parameters:,} parameters"
            return f"<li><code>{escape(said)}</code>{count}</li>"

        blocks = "".join(
            f"<details><summary><code>{escape(repr(block))}</code> {block.num_parameters:,} "
            "parameters</summary><ul>"
            + "".join(line(part) for _, part in block.sublayers())
            + "</ul></details>"
            for block in self.blocks
        )
        outer = "".join(line(part) for part in self.outer.values())
        return f"<div><b>{escape(repr(self))}</b><ul>{outer}</ul>{blocks}</div>"

    def __repr__(self) -> str:
        return (
            f"Anatomy({self.family.name}, {len(self.blocks)} blocks, hidden_size "
            f"{self.hidden_size}, {self.num_parameters:,} parameters)"
        )
