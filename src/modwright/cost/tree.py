"""A model as a tree of its parts, each with what it is and what it costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import TYPE_CHECKING, Any

from torch import nn

from modwright.anatomy import (
    Anatomy,
    Attention,
    Block,
    Embedding,
    FactoredProjection,
    Linear,
    Mlp,
    Norm,
    OpaqueMixer,
    OpaqueModule,
    Part,
    PatchEmbedding,
    Projection,
)
from modwright.anatomy.views import Sublayer
from modwright.core.errors import InvalidInputError
from modwright.core.formatting import format_number
from modwright.cost.checks import as_anatomy
from modwright.cost.counting import PartCost, counted
from modwright.cost.macs import Pass, projection_macs, score_macs
from modwright.cost.meta_trace import trace_on_meta

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["Group", "Node", "Tree", "describe", "inspect"]


@dataclass(frozen=True)
class Node:
    """One part, or one line of a part, with all below it.

    Attributes:
        address: "blocks.3.attention.q"; empty for the model.
        kind: model, blocks, block, attention, mlp, norm, embedding, patches, linear, head,
            projection, scores or other.
        description: what it is, in words and sizes.
        parameters: numbers that it owns; a tied table belongs to the embedding.
        bytes: what a checkpoint stores for it.
        macs: multiply-accumulates to read one sequence of the tree's length.
    """

    address: str
    kind: str
    description: str
    parameters: int = 0
    bytes: int = 0
    macs: int = 0
    children: tuple[Node, ...] = ()

    @property
    def name(self) -> str:
        return self.address.rpartition(".")[2] or "model"

    def same_structure(self, other: Node) -> bool:
        """The same structure and numbers; only the address may differ."""
        return (
            (self.kind, self.description, self.parameters, self.bytes, self.macs)
            == (other.kind, other.description, other.parameters, other.bytes, other.macs)
            and len(self.children) == len(other.children)
            and all(a.same_structure(b) for a, b in zip(self.children, other.children, strict=True))
        )

    def walk(self) -> Iterator[Node]:
        """This node and all below it, from top to bottom."""
        yield self
        for child in self.children:
            yield from child.walk()

    def groups(self) -> list[Group]:
        """What stands right below it; neighboring blocks that are alike stand together."""
        groups: list[Group] = []
        for node in self.children:
            last = groups[-1] if groups else None
            if last is not None and node.kind == "block" and last.node.same_structure(node):
                groups[-1] = Group(last.node, last.count + 1)
            else:
                groups.append(Group(node))
        return groups

    def to_dict(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("address", "kind", "description")}
        costs = {name: getattr(self, name) for name in ("parameters", "bytes", "macs")}
        return {**own, **costs, "children": [child.to_dict() for child in self.children]}


@dataclass(frozen=True)
class Group:
    """Neighbours that are alike, shown as one: the first of them and how many there are."""

    node: Node
    count: int = 1

    @property
    def label(self) -> str:
        if self.node.kind != "block":
            return self.node.name
        first = int(self.node.name)
        if self.count == 1:
            return f"block {first}"
        return f"blocks {first}-{first + self.count - 1} ({self.count} x)"


@dataclass(frozen=True, repr=False)
class Tree:
    """The parts of a model; shown as a table in a terminal and as a tree to unfold in a notebook.

    Attributes:
        root: the model.
        length: tokens of the sequence for which multiply-accumulates are counted.
        image: what is read, in words, where that is an image of one size.
    """

    root: Node
    length: int
    image: str = ""

    @property
    def top(self) -> Group:
        """The model as a group of one."""
        return Group(self.root)

    @property
    def reads(self) -> str:
        """For what multiply-accumulates are counted, in words."""
        return self.image or f"one sequence of {self.length} tokens"

    def find(self, address: str) -> Node:
        """The node at an address.

        Raises:
            InvalidInputError: there is none.
        """
        for node in self.root.walk():
            if node.address == address:
                return node
        raise InvalidInputError(f"no part at {address!r}; the top ones are {self._top()}")

    def _top(self) -> str:
        return ", ".join(child.address for child in self.root.children)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; every block by itself."""
        return {"length": self.length, "model": self.root.to_dict()}

    def __repr__(self) -> str:
        return f"Tree({self.root.description}: {format_number(self.root.parameters)} parameters)"

    def __rich__(self) -> RenderableType:
        from modwright.cost.render import tree_table

        return tree_table(self)

    def _repr_html_(self) -> str:
        from modwright.cost.html import tree_html

        return tree_html(self)


def inspect(model: Anatomy | nn.Module, length: int = 512) -> Tree:
    """What a model consists of, down to single linear layers, with the cost of each.

    The numbers of a node are the sums of those of its children.

    Args:
        model: an anatomy or a model; weights are not read, so it may be on the meta device.
        length: tokens of the sequence for which multiply-accumulates are counted; an image has
            its own.

    Raises:
        InvalidInputError: ``length`` below 1.

    Example:
        >>> import modwright
        >>> tree = inspect(modwright.open("preset:tiny-llama").model)
        >>> tree.find("blocks.0.attention").description
        '6 heads, 2 kv, qk 12, v 12'
    """
    anatomy = as_anatomy(model)
    trace = trace_on_meta(anatomy)
    rows = {row.address: row for row in counted(anatomy, trace, length=length).rows}
    length = anatomy.family.inputs().positions(length)
    run = Pass(1, length)
    outer = {address: _outer_node(anatomy, address, rows[address]) for address in anatomy.outer}
    later = [outer.pop(address) for address in anatomy.after_blocks]
    blocks = tuple(
        _block_node(block, rows, run if trace is None else trace.of(block.address, run))
        for block in anatomy.blocks
    )
    held = f"{len(blocks)} layers" if blocks else "none left"
    children = [*outer.values(), _sum("blocks", "blocks", held, blocks), *later]
    if "other" in rows:
        children.append(_leaf(rows["other"], "what belongs to no part above"))
    dtype = str(next(anatomy.model.parameters()).dtype).removeprefix("torch.")
    told = f"{anatomy.family.name}, {len(blocks)} blocks, {_wide(anatomy)} wide, {dtype}"
    return Tree(_sum("", "model", told, children), length, anatomy.family.inputs().describe())


def _wide(anatomy: Anatomy) -> str:
    widths = anatomy.widths
    return " to ".join(str(w) for w in dict.fromkeys((min(widths), max(widths))))


@singledispatch
def describe(part: Part) -> str:
    """What a part is, in words and sizes; another kind of part registers its own."""
    return type(part).__name__.lower()


@describe.register
def _(part: Attention) -> str:
    s = part.shape
    window = "" if s.sliding_window is None else f", window {s.sliding_window}"
    groups = ", groups of unequal size" if s.kv_map else ""
    return (
        f"{s.num_heads} heads, {s.num_kv_heads} kv, qk {s.qk_head_dim}, v {s.v_head_dim}"
        f"{window}{groups}"
    )


@describe.register
def _(part: Mlp) -> str:
    gated = "" if part.gate is None else "gated, "
    split = "" if part.experts is None else f", {part.experts.describe()}"
    return f"{gated}{part.intermediate_size} wide, {part.activation}{split}"


@describe.register
def _(part: Norm) -> str:
    try:
        return f"{part.kind}, eps {part.eps:g}"
    except InvalidInputError:
        return part.kind


@describe.register
def _(part: Embedding) -> str:
    stored = part.parameters()
    if isinstance(part.module, nn.Linear):
        return _in_and_out(part.module)
    if "weight" in stored:
        return " x ".join(map(str, stored["weight"].shape))
    held = (f"{' x '.join(map(str, t.shape[1:]))} {name}" for name, t in stored.items())
    return ", ".join(held)


@describe.register
def _(part: Linear) -> str:
    return _in_and_out(part.module)


@describe.register
def _(part: PatchEmbedding) -> str:
    width, *patch = part.parameters()["weight"].shape
    count = "" if part.count is None else f"{part.count} "
    return f"{count}patches, {' x '.join(map(str, patch))} -> {width}"


@describe.register
def _(part: OpaqueMixer) -> str:
    return type(part.module).__name__


@describe.register
def _(part: OpaqueModule) -> str:
    return type(part.module).__name__


def _in_and_out(module: nn.Module) -> str:
    return f"{module.in_features} -> {module.out_features}"


def _describe_map(projection: Projection) -> str:
    rank = f"{projection.rank} -> " if isinstance(projection, FactoredProjection) else ""
    bias = "" if projection.bias is None else ", bias"
    return f"{projection.in_features} -> {rank}{projection.out_features}{bias}"


def _leaf(row: PartCost, description: str, children: Sequence[Node] = ()) -> Node:
    return Node(
        row.address,
        row.kind,
        description,
        row.parameters,
        row.bytes,
        row.prefill_macs,
        tuple(children),
    )


def _sum(address: str, kind: str, description: str, children: Sequence[Node]) -> Node:
    return Node(
        address,
        kind,
        description,
        sum(child.parameters for child in children),
        sum(child.bytes for child in children),
        sum(child.macs for child in children),
        tuple(children),
    )


def _outer_node(anatomy: Anatomy, address: str, row: PartCost) -> Node:
    tied = ", tied to embed" if address == "head" and anatomy.is_tied else ""
    return _leaf(row, describe(anatomy.outer[address]) + tied)


def _block_node(block: Block, rows: dict[str, PartCost], run: Pass) -> Node:
    standing = {place: block.at(place) for place in ("attention", "mlp")}
    children = [
        Node(f"{block.address}.{role}", role, "removed")
        if part is None
        else _leaf(rows[part.address], describe(part), _lines(part, rows[part.address], run))
        for role, part in standing.items()
    ]
    children += [_leaf(rows[norm.address], describe(norm)) for norm in block.norms.values()]
    return _sum(block.address, "block", f"{block.layout}-norm", children)


def _lines(part: Sublayer, row: PartCost, run: Pass) -> list[Node]:
    """The linear layers of a part, its scores, and the rest, so that they add up to its row."""
    if not part.projections():
        return []
    macs = projection_macs(part)
    lines = [
        Node(
            projection.address,
            "projection",
            _describe_map(projection),
            projection.num_parameters,
            projection.num_parameters * _itemsize(projection.module),
            run.positions * macs[role],
        )
        for role, projection in part.projections().items()
    ]
    lines += _scores(part, run)
    known = _sum("", "", "", lines)
    rest = Node(
        f"{part.address}.rest",
        "other",
        "norms of queries and keys, index buffers and the like",
        row.parameters - known.parameters,
        row.bytes - known.bytes,
        row.prefill_macs - known.macs,
    )
    return [*lines, rest] if any((rest.parameters, rest.bytes, rest.macs)) else lines


def _scores(part: Sublayer, run: Pass) -> list[Node]:
    """What an attention computes between positions, and what chooses the experts of a token."""
    if isinstance(part, Attention):
        seen = f"{part.num_heads} heads x {run.tokens} x {run.attended(part.address)}"
        macs = score_macs(part, run)
    elif isinstance(part, Mlp) and part.experts is not None:
        seen = f"{run.positions} x {part.num_experts} experts"
        macs = run.positions * projection_macs(part)["scores"]
    else:
        return []
    return [Node(f"{part.address}.scores", "scores", seen, macs=macs)]


def _itemsize(module: nn.Module) -> int:
    return next(module.parameters()).element_size()
