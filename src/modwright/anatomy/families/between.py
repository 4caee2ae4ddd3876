"""What stands between the stages of a model, and beside its blocks: found in the tree of modules.

``between.N.ROLE`` stands on the way into stage N, counted from 0: N is the number of the stage that
begins there, and the number of stages for what stands behind the last one. Roles:

- ``norm``: what the map reads through, or the norm that closes the stage before;
- ``map``: the linear layer or convolution that makes maps coarser or wider;
- ``map_norm``: a norm of what the map returns;
- ``positions``: what is added to the stream before the first block of the stage;
- the module's own name for anything else, which is counted as a whole.

What stands deeper in a stage belongs to the nearest block: ``blocks.I.NAME``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from modwright.anatomy.views import Convolution, Embedding, Linear, Norm, OpaqueModule, Part
from modwright.nn import FactorPair
from modwright.nn.grid_positions import LearnedGrid, LearnedTable

__all__ = ["Surroundings", "around", "part_at", "split_step"]

_MAPS = (nn.Linear, nn.Conv2d, FactorPair)


@dataclass(frozen=True)
class Surroundings:
    """What stands among the blocks and in none of their sublayers.

    Attributes:
        between: address -> path, in the order of the forward pass.
        starts: number of the first block of each stage.
        beside: block -> name -> path.
    """

    between: Mapping[str, str] = field(default_factory=dict)
    starts: tuple[int, ...] = ()
    beside: Mapping[int, Mapping[str, str]] = field(default_factory=dict)


def around(model: nn.Module, blocks: Sequence[str]) -> Surroundings:
    """What stands around blocks, which are named by their paths in the order of the forward pass.

    A stage is an entry of a list of modules that holds a list of blocks, as in
    ``stages.1.blocks.0``; a list of blocks alone is one stage.

    Example:
        >>> from modwright.models import create_model
        >>> sizes = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "image_size": 32}
        >>> swin = create_model("swin_tiny_patch4_window7_224", **sizes)
        >>> found = around(swin, ["stages.0.blocks.0", "stages.1.blocks.0"])
        >>> list(found.between), found.starts
        (['between.1.norm', 'between.1.map'], (0, 1))
    """
    stage_of = [_stage(path) for path in blocks]
    stages = list(dict.fromkeys(stage_of))
    order = {path: place for place, (path, _) in enumerate(model.named_modules())}
    between: dict[str, str] = {}
    beside: dict[int, dict[str, str]] = {}
    for path in _gaps(model, blocks, order):
        index = _way_into(path, stages, stage_of, blocks, order)
        if index is None:
            block = _nearest(path, blocks, order)
            name = path[len(_shared(path, blocks[block])) :].strip(".").replace(".", "_")
            name = _word(model, path) if name[:1].isdigit() else name
            _add(beside.setdefault(block, {}), name, path)
            continue
        for role, inner in split_step(model, path).items():
            _add(between, f"between.{index}.{role}", inner)
    ordered = dict(sorted(between.items(), key=lambda item: int(item[0].split(".")[1])))
    return Surroundings(ordered, tuple(stage_of.index(stage) for stage in stages), beside)


def _stage(block: str) -> str:
    """Path of the stage of a block: of the entry of the outermost of several lists, or the list."""
    pieces = block.split(".")
    entries = [i for i, piece in enumerate(pieces) if piece.isdigit()]
    at = entries[0] if entries else len(pieces)
    return ".".join(pieces[: at + 1] if len(entries) > 1 else pieces[:at])


def _gaps(model: nn.Module, blocks: Sequence[str], order: Mapping[str, int]) -> list[str]:
    """The largest modules with parameters and without blocks, below what holds blocks."""
    pieces = [block.split(".") for block in blocks]
    holders = {".".join(way[:i]) for way in pieces for i in range(1, len(way))}
    found = {
        f"{holder}.{name}"
        for holder in holders
        for name, child in model.get_submodule(holder).named_children()
        if any(True for _ in child.parameters())
    }
    return sorted(found - holders - set(blocks), key=order.__getitem__)


def _way_into(
    path: str,
    stages: Sequence[str],
    stage_of: Sequence[str],
    blocks: Sequence[str],
    order: Mapping[str, int],
) -> int | None:
    """The number of the stage that begins behind a module; None where it stands inside of one."""
    holder = path.rpartition(".")[0]
    if holder in stages and holder.rpartition(".")[2].isdigit():
        last = max(order[b] for b, stage in zip(blocks, stage_of) if stage == holder)
        return stages.index(holder) + (order[path] > last)
    if any(stage.startswith(f"{holder}.") for stage in stages):
        return sum(order[stage] < order[path] for stage in stages)
    return None


def _nearest(path: str, blocks: Sequence[str], order: Mapping[str, int]) -> int:
    """The block that shares most of the way with a module; of several the one next to it."""
    shared = [len(_shared(path, block)) for block in blocks]
    best = [i for i, length in enumerate(shared) if length == max(shared)]
    before = [i for i in best if order[blocks[i]] < order[path]]
    return before[-1] if before else best[0]


def _shared(one: str, two: str) -> str:
    """The longest path that leads to both."""
    pairs = list(zip(one.split("."), two.split(".")))
    same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
    return ".".join(a for a, _ in pairs[:same])


def _add(named: dict[str, str], name: str, path: str) -> None:
    count = sum(known.rstrip("0123456789_") == name for known in named)
    named[f"{name}_{count + 1}" if count else name] = path


def _word(model: nn.Module, path: str) -> str:
    """What a module is called: by its attribute, or by its class where it is an entry of a list."""
    name = path.rpartition(".")[2]
    return type(model.get_submodule(path)).__name__.lower() if name.isdigit() else name


def split_step(model: nn.Module, path: str) -> dict[str, str]:
    """Role -> path of the norms and the one map that a step between stages consists of.

    A norm reads before the map where it is as wide as what the map reads, and behind it where it is
    as wide as what the map returns. A step of other parts is one part, by its own name.
    """
    whole = {_word(model, path): path}
    leaves = {f"{path}.{n}" if n else path: m for n, m in _leaves(model.get_submodule(path))}
    maps = [inner for inner, leaf in leaves.items() if isinstance(leaf, _MAPS)]
    norms = [inner for inner, leaf in leaves.items() if "Norm" in type(leaf).__name__]
    first = next(iter(leaves.values()))
    if len(leaves) == 1 and isinstance(first, LearnedGrid | LearnedTable):
        return {"positions": next(iter(leaves))}
    if len(maps) > 1 or len(maps) + len(norms) < len(leaves):
        return whole
    if not maps:
        return {"norm": norms[0]} if len(norms) == 1 else whole
    roles = {"map": maps[0]}
    reads, writes = _widths(leaves[maps[0]])
    names = list(leaves)
    for norm in norms:
        width = len(next(leaves[norm].parameters(recurse=False)))
        first_in_code = names.index(norm) < names.index(maps[0])
        before = first_in_code if reads == writes else width == reads
        roles["norm" if before else "map_norm"] = norm
    if len(roles) <= len(norms):
        return whole
    return {role: roles[role] for role in ("norm", "map", "map_norm") if role in roles}


def _leaves(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """What holds parameters of its own."""
    for name, inner in module.named_modules():
        if any(True for _ in inner.parameters(recurse=False)):
            yield name, inner


def _widths(layer: Any) -> tuple[int, int]:
    """Channels that a map reads and returns."""
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels, layer.out_channels
    return layer.in_features, layer.out_features


def part_at(module: nn.Module, address: str) -> Part:
    """The view of what stands between stages, or beside a block."""
    if isinstance(module, nn.Linear | FactorPair):
        return Linear(module, address)
    if isinstance(module, nn.Conv2d):
        return Convolution(module, address)
    if isinstance(module, LearnedGrid | LearnedTable):
        return Embedding(module, address)
    norm = "Norm" in type(module).__name__ and not list(module.children())
    return Norm(module, address) if norm else OpaqueModule(module, address)
