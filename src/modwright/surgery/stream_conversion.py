"""Rewrites all that touches a residual stream so that its mean is gone, one part at a time."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from modwright.anatomy import Anatomy, Block, Norm, Projection
from modwright.anatomy.stream import WriteProjection
from modwright.anatomy.views import Embedding, Linear, Sublayer
from modwright.edits import Change, Edit, Replace, RevertEdit, untie
from modwright.edits.resize import resize
from modwright.nn import ZeroMean
from modwright.surgery.centering import folded, recentered, relative_to, rounded, without
from modwright.surgery.stream_blockers import Form, covering, runs_centered

__all__ = ["Conversion"]


class Conversion:
    """One conversion of one model: what happens to every writer, reader and norm of its stream.

    Args:
        anatomy: of the model; nothing of it stands in the way, see
            :func:`modwright.surgery.stream_blockers.blockers`.
        form: "rms", or "crms", which drops a coordinate.
        training: recentre as the model runs.
        fold: fold the affine step of the norms into the readers, also in form "rms".
        drop_index: the coordinate that "crms" drops.
    """

    def __init__(
        self, anatomy: Anatomy, form: Form, training: bool, fold: bool, drop_index: int
    ) -> None:
        self.anatomy, self.stream = anatomy, anatomy.stream
        assert self.stream.last_norm is not None, "without one, something stands in the way"
        self.last_norm: Norm = self.stream.last_norm
        self.training, self.narrows = training, form == "crms"
        self.width = anatomy.hidden_size
        self.index = drop_index % self.width
        self.is_new = any(norm.kind == "layer" for norm in self.stream.norms)
        self.wants_fold = fold or self.narrows

    # What happens where

    def folds(self, norm: Norm | None) -> bool:
        """The affine step of a norm goes into its readers; they must all be known."""
        known = norm is not self.last_norm or self.stream.last_reader is not None
        return norm is not None and self.wants_fold and known

    @cached_property
    def is_tied(self) -> bool:
        """The head and a writer of the stream are one table."""
        written = any(writer.address == "embed" for writer in self.stream.writers)
        return self.anatomy.is_tied and written

    @cached_property
    def unties(self) -> bool:
        """The head gets a table of its own: it will hold other numbers than the embedding."""
        changes = self.folds(self.last_norm) and _affects(self.last_norm)
        return self.is_tied and (self.narrows or changes)

    def runs(self, writer: WriteProjection) -> bool:
        """It keeps its parameters and is recentered as the model runs.

        A tied table is, if recentring it would change the logits. They change by the mean of a row
        times the sum of what the head reads, which is zero behind a bare norm.
        """
        shared = writer.address == "embed" and self.is_tied and not self.unties
        return self.training or (shared and _affects(self.last_norm, up_to_scale=True))

    def has_work(self) -> bool:
        """Something would change."""
        folds = any(self.folds(norm) and _affects(norm) for norm in self.stream.norms)
        other = any(self.runs(w) != runs_centered(self.stream, w) for w in self.stream.writers)
        return self.is_new or self.narrows or folds or other

    # The rewrites

    def block(self, block: Block) -> Change:
        """Rewrites the norms of a block, what reads through them, and what writes."""
        change = Change()
        for norm in block.norms.values():
            change += self._norm(norm) if norm in self.stream.norms else Change()
        for scale in block.scales.values():  # it is in the map that it multiplied
            change += Change((Replace(scale.address, "identity", {}),))
        for _, sublayer in block.sublayers():
            values: dict[str, dict[str, Tensor]] = {}
            for role, projection in sublayer.projections().items():
                if role not in sublayer.writes_residual:
                    values[role] = self._read(projection, sublayer.norm)
                elif self.runs(projection):
                    change += _recentered_as_it_runs(projection)
                else:
                    values[role] = self._written(projection)
            change += self._store(sublayer, values)
        return change

    def outside(self) -> Change:
        """Rewrites what stands before and behind the blocks."""
        change = self._norm(self.last_norm)
        for writer in self.stream.writers:
            if writer.address.startswith("blocks."):
                continue
            centred = isinstance(writer.module, ZeroMean)
            if self.runs(writer):
                if covering(self.stream, writer) is writer and not centred:
                    change += Change((Replace(writer.address, "zero_mean", {}),))
                continue
            new = self._written(writer)
            edits: list[Edit] = [self._narrowed(writer)] if self.narrows else []
            edits += [RevertEdit(writer.address)] * (centred and not self.narrows)
            change += Change(tuple(edits), {f"{writer.address}.{n}": t for n, t in new.items()})
        return change + self._behind_the_blocks()

    def _behind_the_blocks(self) -> Change:
        reader = self.stream.last_reader
        new = {} if reader is None else self._read(reader.part, reader.norm)
        if self.unties:
            return untie(self.anatomy, new.get("weight"), new.get("bias"))
        if reader is None or not new:
            return Change()
        if new.keys() <= reader.part.parameters().keys() and not self.narrows:
            return Change((), {f"{reader.part.address}.{n}": t for n, t in new.items()})
        return _own_map(reader.part, {**reader.part.parameters(), **new})

    def _norm(self, norm: Norm) -> Change:
        plain = self.folds(norm)
        scale, bias = (None, None) if plain else (norm.scale, norm.bias)
        here: dict[str, Any] = {"eps": norm.eps}
        affine = {"weight": scale is not None, "bias": bias is not None}
        if self.narrows and plain:
            edit = Replace(norm.address, "crms_norm", {"hidden_size": self.width - 1, **here})
        elif self.narrows:
            here |= {"index": self.index, **affine}
            edit = Replace(norm.address, "restoring_crms_norm", {"hidden_size": self.width, **here})
        elif norm.kind == "layer" or (plain and _affects(norm)):
            here |= {**affine, "cast_first": False}
            edit = Replace(norm.address, "rms_norm", {"hidden_size": self.width, **here})
        else:
            return Change()
        named = {"weight": scale, "bias": bias}
        return Change(
            (edit,), {f"{norm.address}.{n}": t for n, t in named.items() if t is not None}
        )

    def _narrowed(self, writer: WriteProjection) -> Replace:
        axes = {n: axis for n, axis in writer.output_axes.items() if n in writer.parameters()}
        return Replace(writer.address, "narrowed", {"axes": axes, "size": self.width - 1})

    def _written(self, writer: WriteProjection) -> dict[str, Tensor]:
        """New values of a writer's parameters; none where they are good already."""
        if not self.is_new and not self.narrows and not runs_centered(self.stream, writer):
            return {}
        stored, new = writer.parameters(), {}
        for name, value in self.stream.written(writer).items():
            axis = writer.output_axes[name]
            value = recentered(value, axis)
            value = without(value, axis, self.index) if self.narrows else value
            new[name] = rounded(value, axis, stored[name].dtype)
        return new

    def _read(self, part: Projection | Embedding | Linear, norm: Norm | None) -> dict[str, Tensor]:
        """New values of a reader's parameters; none where the stream and the norm stay."""
        if norm is None or not self.folds(norm) or not (self.narrows or _affects(norm)):
            return {}
        stored = part.parameters()
        (reads,) = part.input_axes
        new = {name: tensor.double() for name, tensor in stored.items()}
        new = folded(new, reads, _double(norm.scale), _double(norm.bias))
        if self.narrows:
            new[reads] = relative_to(new[reads], part.input_axes[reads], self.index)
        return {name: tensor.to(stored["weight"].dtype) for name, tensor in new.items()}

    def _store(self, sublayer: Sublayer, values: Mapping[str, Mapping[str, Tensor]]) -> Change:
        """As values alone where the shapes stay, else as a refitted part."""
        old = sublayer.projections()
        if self.narrows or any(v.keys() - old[r].parameters().keys() for r, v in values.items()):
            return resize(sublayer, values)
        change = Change()
        for role, new in values.items():
            if isinstance(old[role].module, ZeroMean) and new:
                change += _own_map(old[role], new, "linear")
            else:
                change += Change((), {f"{old[role].address}.{n}": t for n, t in new.items()})
        return change

    # Counting and telling

    def parameters_gone(self) -> int:
        """Parameters that the result has less than the model."""
        norms = [norm for norm in self.stream.norms if self.folds(norm)]
        readers = [reader for reader in self.stream.readers if self.folds(reader.norm)]
        replaced = [n for n in norms if self.narrows or n.kind == "layer" or _affects(n)]
        gone = sum(norm.num_parameters for norm in replaced)
        for reader in readers:
            stored = reader.part.parameters()
            if "bias" not in stored and reader.norm is not None and _biases(reader.norm):
                gone -= stored["weight"].shape[0]
        if self.narrows:
            gone += sum(_channel(w.parameters(), w.output_axes) for w in self.stream.writers)
            gone += sum(_channel(r.part.parameters(), r.part.input_axes) for r in readers)
        gone += sum(scale.num_parameters for scale in self.stream.scales.values())
        if self.unties:
            entries, width = self.anatomy.outer["head"].parameters()["weight"].shape
            # A reader's missing channel was counted, and the table is new with all its entries.
            gone -= entries * width
        return gone


def _recentered_as_it_runs(projection: Projection) -> Change:
    """A map in a block that keeps what it stores."""
    if isinstance(projection.module, ZeroMean):
        return Change()
    return Change(_own_map(projection, projection.parameters(), "zero_mean_linear").edits)


def _own_map(
    part: Projection | Embedding | Linear, stored: Mapping[str, Tensor], name: str = "linear"
) -> Change:
    """A linear layer in place of one that is stored in its family's way."""
    out_features, in_features = stored["weight"].shape
    sizes = {"in_features": in_features, "out_features": out_features, "bias": "bias" in stored}
    named = {f"{part.address}.{leaf}": tensor for leaf, tensor in stored.items()}
    return Change((Replace(part.address, name, sizes),), named)


def _double(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.double()


def _biases(norm: Norm) -> bool:
    """Its shift is not zero; one without values counts as such."""
    return norm.bias is not None and (norm.bias.is_meta or bool(norm.bias.any()))


def _affects(norm: Norm, up_to_scale: bool = False) -> bool:
    """Its affine step is not the identity, or not a common scale."""
    scale = norm.scale
    if scale is None or scale.is_meta:
        return scale is not None or _biases(norm)
    common = scale[0] if up_to_scale else torch.ones_like(scale[0])
    return bool((scale != common).any()) or _biases(norm)


def _channel(stored: Mapping[str, Tensor], axes: Mapping[str, int]) -> int:
    """Numbers that one channel of the stream takes."""
    return sum(
        stored[n].numel() // stored[n].shape[axis] for n, axis in axes.items() if n in stored
    )
