"""A model as a tree of its parts, each with what it is and what it costs."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

from torch import nn

from modwright.anatomy import Anatomy, Part, views
from modwright.core.errors import InvalidInputError
from modwright.core.formatting import format_number, percent
from modwright.cost.counting import PartCost, counted
from modwright.cost.macs import Pass
from modwright.cost.memory import part_state_bytes
from modwright.cost.meta_trace import trace_on_meta
from modwright.cost.render import CostTable, Shown, fold, page
from modwright.edits.precision import kept_in_float32

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
        one, two = (
            [(n.kind, n.description, n.parameters, n.bytes, n.macs, len(n.children)) for n in nodes]
            for nodes in (self.walk(), other.walk())
        )
        return one == two

    def walk(self) -> Iterator[Node]:
        """This node and all below it, from top to bottom."""
        yield self
        for child in self.children:
            yield from child.walk()

    def groups(self) -> list[Group]:
        """What stands right below it; neighboring blocks that are alike stand together."""
        groups: list[Group] = []
        for node in self.children:
            if groups and node.kind == "block" and groups[-1].node.same_structure(node):
                groups[-1] = Group(groups[-1].node, groups[-1].count + 1)
            else:
                groups.append(Group(node))
        return groups

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Group:
    """Neighbours that are alike, shown as one: the first of them and how many there are."""

    node: Node
    count: int = 1

    @property
    def label(self) -> str:
        if self.node.kind != "block":
            outside = self.node.address.startswith("between.")
            return self.node.address if outside else self.node.name
        first = int(self.node.name)
        if self.count == 1:
            return f"block {first}"
        return f"blocks {first}-{first + self.count - 1} ({self.count} x)"

    def visible(self, depth: int = 0) -> Iterator[tuple[int, Group]]:
        """The lines of a tree from top to bottom with their depth."""
        yield depth, self
        for child in self.node.groups():
            yield from child.visible(depth + 1)


@dataclass(frozen=True, repr=False)
class Tree(Shown):
    """The parts of a model; shown as a table in a terminal and as a tree to unfold in a notebook.

    Attributes:
        root: the model.
        length: tokens of the sequence for which multiply-accumulates are counted.
        image: what is read, in words, where that is an image of one size.
    """

    root: Node
    length: int
    image: str = ""

    def find(self, address: str) -> Node:
        """The node at an address.

        Raises:
            InvalidInputError: there is none.
        """
        for node in self.root.walk():
            if node.address == address:
                return node
        top = ", ".join(child.address for child in self.root.children)
        raise InvalidInputError(f"no part at {address!r}; the top ones are {top}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values; every block by itself."""
        return {"length": self.length, "model": self.root.to_dict()}

    def __repr__(self) -> str:
        return f"Tree({self.root.description}: {format_number(self.root.parameters)} parameters)"

    def table(self) -> CostTable:
        """One line per part; neighboring blocks that are alike share theirs."""
        lines = list(Group(self.root).visible())
        caption = f"MACs: {self.reads}; bytes: powers of 1000; share: of all parameters"
        if any(group.count > 1 for _, group in lines):
            caption += "; a line for several blocks, and those below it, show one of them"
        rows = [
            [
                " " * depth + group.label,
                group.node.description,
                format_number(group.node.parameters),
                percent(group.node.parameters, self.root.parameters, 0),
                format_number(group.node.bytes, "B"),
                format_number(group.node.macs),
            ]
            for depth, group in lines
        ]
        return CostTable(caption, ["part", "what it is", "params", "share", "bytes", "MACs"], rows)

    @property
    def reads(self) -> str:
        """For what multiply-accumulates are counted, in words."""
        return self.image or f"one sequence of {self.length} tokens"

    def _repr_html_(self) -> str:
        note = (
            f"<p>MACs: {self.reads}; bytes: powers of 1000; bar: share of all parameters. A line "
            "for several blocks, and those below it, show the numbers of one.</p>"
        )
        return page(self._unfolded(Group(self.root), 1, 0), note)

    def _unfolded(self, group: Group, repeats: int, depth: int) -> str:
        node, repeats = group.node, repeats * group.count
        told = percent(node.parameters * repeats, self.root.parameters)
        line = (
            f'<span class="bar" role="img" aria-label="{told} of all parameters" '
            f'title="{told} of all parameters"><span style="width: {told.replace(" ", "")}">'
            f"</span></span><b>{escape(group.label)}</b>"
            f'<span class="what">{escape(node.description)}</span>'
            f'<span class="numbers">{format_number(node.parameters)} parameters, '
            f"{format_number(node.bytes, 'B')}, {format_number(node.macs)} MACs"
            f"{' each' * (group.count > 1)}</span>"
        )
        if not node.children:
            return f'<div class="leaf">{line}</div>'
        inner = (self._unfolded(child, repeats, depth + 1) for child in node.groups())
        return fold(line, *inner, unfolded=depth < 2)


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
    anatomy = Anatomy.of(model)
    trace = trace_on_meta(anatomy)
    rows = {row.address: row for row in counted(anatomy, trace, length, 1, None).rows}
    length = anatomy.family.inputs().positions(length)
    run = Pass(1, length)
    outer = {address: _leaf(rows[address], describe(p)) for address, p in anatomy.outer.items()}
    if anatomy.is_tied:
        outer["head"] = _leaf(rows["head"], f"{describe(anatomy.outer['head'])}, tied to embed")
    later = [outer.pop(address) for address in anatomy.after_blocks]
    nodes: list[Node] = []
    for block in anatomy.blocks:
        nodes += [outer.pop(address) for address in anatomy.between(block.index)]
        there = run if trace is None else trace.of(block.address, run)
        nodes.append(_block_node(block, rows, there, anatomy.family.block))
    nodes += [outer.pop(address) for address in anatomy.between(len(anatomy.blocks))]
    blocks = anatomy.blocks
    held = f"{len(blocks)} layers" if blocks else "none left"
    children = [*outer.values(), _sum("blocks", "blocks", held, nodes), *later]
    if "other" in rows:
        children.append(_leaf(rows["other"], "what belongs to no part above"))
    dtype = str(next(anatomy.model.parameters()).dtype).removeprefix("torch.")
    wide = " to ".join(map(str, sorted({min(anatomy.widths), max(anatomy.widths)})))
    told = f"{anatomy.family.name}, {len(blocks)} blocks, {wide} wide, {dtype}"
    return Tree(_sum("", "model", told, children), length, anatomy.family.inputs().describe())


def describe(part: Part) -> str:
    """What a part is, in words and sizes: :meth:`Part.describe`."""
    return part.describe()


def _leaf(row: PartCost, description: str, children: Sequence[Node] = ()) -> Node:
    costs = (row.parameters, row.bytes, row.prefill_macs)
    return Node(row.address, row.kind, description, *costs, tuple(children))


def _sum(address: str, kind: str, description: str, children: Sequence[Node]) -> Node:
    parameters, size, macs = (
        sum(getattr(child, name) for child in children) for name in ("parameters", "bytes", "macs")
    )
    return Node(address, kind, description, parameters, size, macs, tuple(children))


def _block_node(
    block: views.Block, rows: dict[str, PartCost], run: Pass, roles: Container[str]
) -> Node:
    """``roles``: what blocks of the family have; what is not among them was never there."""
    children = []
    for role in ("attention", "mlp"):
        part = block.at(role)
        if part is None and role in roles:
            children.append(Node(f"{block.address}.{role}", role, "removed"))
        elif part is not None:
            row = rows[part.address]
            told = describe(part)
            if state := part_state_bytes(part):
                told += f", state of {format_number(state, 'B')}, constant in length"
            told += _said_of_float32(part.module)
            children.append(_leaf(row, told, _lines(part, row, run)))
    beside = (*block.norms.values(), *block.extras.values())
    children += [_leaf(rows[part.address], describe(part)) for part in beside]
    return _sum(block.address, "block", f"{block.layout}-norm", children)


def _said_of_float32(module: nn.Module) -> str:
    """Which parameters are in float32 where others are not; empty where there are none."""
    kept, dtypes = sorted(kept_in_float32(module)), {p.dtype for p in module.parameters()}
    return f", {', '.join(kept)} in float32" if kept and len(dtypes) > 1 else ""


def _lines(part: views.Sublayer, row: PartCost, run: Pass) -> list[Node]:
    """The linear layers of a part, its scores, and the rest, so that they add up to its row.

    Scores are what an attention computes between positions, and what chooses experts.
    """
    if not part.projections():
        return []
    macs = part.projection_macs()
    lines = []
    for role, projection in part.projections().items():
        owned = projection.num_parameters
        size = owned * next(projection.module.parameters()).element_size()
        products = run.positions * macs[role]
        if projection.address in run.counted:
            products = run.sequences * run.counted[projection.address]
        costs = (owned, size, products)
        lines.append(Node(projection.address, "projection", projection.describe(), *costs))
    if (scores := part.scores(run)) is not None:
        told, products = scores
        lines.append(Node(f"{part.address}.scores", "scores", told, macs=products))
    known = _sum("", "", "", lines)
    norms = "norms of queries and keys, index buffers and the like"
    rest = Node(
        f"{part.address}.rest",
        "other",
        "scores, position biases and the like" if part.is_opaque else norms,
        row.parameters - known.parameters,
        row.bytes - known.bytes,
        row.prefill_macs - known.macs,
    )
    return [*lines, rest] if any((rest.parameters, rest.bytes, rest.macs)) else lines
