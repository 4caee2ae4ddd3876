"""Rewrites all that touches a residual stream so that its mean is gone, one part at a time.

The functions at the end are the algebra of it; each takes the axis along which the stream runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from modwright.anatomy import Anatomy, Block, Norm
from modwright.anatomy.stream import ReadingPart, WriteProjection
from modwright.anatomy.views import Sublayer
from modwright.edits import Change, Edit, Replace, RevertEdit, untie
from modwright.edits.change import place_map, resize
from modwright.nn.zero_mean import recentered
from modwright.surgery.stream_blockers import Form, covering, runs_centered

__all__ = ["Conversion", "folded", "recentered", "relative_to", "rounded", "without"]


class Conversion:
    """One conversion of one model: what happens to every writer, reader and norm of its stream.

    Nothing stands in the way, see :func:`modwright.surgery.stream_blockers.blockers`. ``form`` is
    "rms", or "crms", which drops the coordinate ``drop_index``; ``training`` recentres as the model
    runs; ``fold`` folds the affine step of the norms into the readers, also in form "rms".
    """

    def __init__(
        self, anatomy: Anatomy, form: Form, training: bool, fold: bool, drop_index: int
    ) -> None:
        self.anatomy, self.stream = anatomy, anatomy.stream
        assert self.stream.last_norm is not None, "without one, something stands in the way"
        self.last_norm: Norm = self.stream.last_norm
        self.training, self.narrows = training, form == "crms"
        self.width, self.index = anatomy.hidden_size, drop_index % anatomy.hidden_size
        self.is_new = any(norm.centers for norm in self.stream.norms)
        self.wants_fold = fold or self.narrows

    def folds(self, norm: Norm | None) -> bool:
        """The affine step of a norm goes into its readers; they must all be known."""
        known = norm is not self.last_norm or self.stream.last_reader is not None
        return norm is not None and self.wants_fold and known

    @cached_property
    def is_tied(self) -> bool:
        """The head and a writer of the stream are one table."""
        return self.anatomy.is_tied and any(w.address == "embed" for w in self.stream.writers)

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

    def block(self, block: Block) -> Change:
        """Rewrites the norms of a block, what reads through them, and what writes."""
        change = sum(
            (self._norm(n) for n in block.norms.values() if n in self.stream.norms), Change()
        )
        for scale in block.scales.values():  # it is in the map that it multiplied
            change += Change((Replace(scale.address, "identity", {}),))
        for _, sublayer in block.sublayers():
            values: dict[str, dict[str, Tensor]] = {}
            for role, projection in sublayer.projections().items():
                if role not in sublayer.writes_residual:
                    values[role] = self._read(projection, sublayer.norm)
                elif not self.runs(projection):
                    values[role] = self._written(projection)
                elif not projection.is_zero_mean:  # it keeps what it stores
                    kept = place_map(
                        projection.address, projection.parameters(), "zero_mean_linear"
                    )
                    change += Change(kept.edits)
            change += self._store(sublayer, values)
        return change

    def outside(self) -> Change:
        """Rewrites what stands before and behind the blocks."""
        change = self._norm(self.last_norm)
        for writer in self.stream.writers:
            if writer.address.startswith("blocks."):
                continue
            if self.runs(writer):
                if covering(self.stream, writer) is writer and not writer.is_zero_mean:
                    change += Change((Replace(writer.address, "zero_mean", {}),))
                continue
            edits: tuple[Edit, ...] = (RevertEdit(writer.address),) if writer.is_zero_mean else ()
            if self.narrows:
                axes = {n: a for n, a in writer.output_axes.items() if n in writer.parameters()}
                sizes = {"axes": axes, "size": self.width - 1}
                edits = (Replace(writer.address, "narrowed", sizes),)
            change += Change(edits, _named(writer, self._written(writer)))
        return change + self._behind_the_blocks()

    def _behind_the_blocks(self) -> Change:
        reader = self.stream.last_reader
        new = {} if reader is None else self._read(reader.part, reader.norm)
        if self.unties:
            return untie(self.anatomy, new.get("weight"), new.get("bias"))
        if reader is None or not new:
            return Change()
        if new.keys() <= reader.part.parameters().keys() and not self.narrows:
            return Change((), _named(reader.part, new))
        return place_map(reader.part.address, {**reader.part.parameters(), **new})

    def _norm(self, norm: Norm) -> Change:
        plain = self.folds(norm)
        named = {} if plain else {"weight": norm.scale, "bias": norm.bias}
        values = {name: tensor for name, tensor in named.items() if tensor is not None}
        sizes: dict[str, Any] = {"hidden_size": self.width, "eps": norm.eps}
        affine = {"weight": "weight" in values, "bias": "bias" in values}
        if self.narrows and plain:
            edit = Replace(norm.address, "crms_norm", sizes | {"hidden_size": self.width - 1})
        elif self.narrows:
            kwargs = {**sizes, "index": self.index, **affine}
            edit = Replace(norm.address, "restoring_crms_norm", kwargs)
        elif norm.centers or (plain and _affects(norm)):
            edit = Replace(norm.address, "rms_norm", {**sizes, **affine, "cast_first": False})
        else:
            return Change()
        return Change((edit,), _named(norm, values))

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

    def _read(self, part: ReadingPart, norm: Norm | None) -> dict[str, Tensor]:
        """New values of a reader's parameters; none where the stream and the norm stay."""
        if norm is None or not self.folds(norm) or not (self.narrows or _affects(norm)):
            return {}
        stored = part.parameters()
        (reads,) = part.input_axes
        new = {name: tensor.double() for name, tensor in stored.items()}
        affine = [None if t is None else t.double() for t in (norm.scale, norm.bias)]
        new = folded(new, reads, *affine)
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
            if old[role].is_zero_mean and new:
                change += place_map(old[role].address, new)
            else:
                change += Change((), _named(old[role], new))
        return change

    def parameters_gone(self) -> int:
        """Parameters that the result has less than the model."""
        norms = [norm for norm in self.stream.norms if self.folds(norm)]
        readers = [reader for reader in self.stream.readers if self.folds(reader.norm)]
        replaced = [n for n in norms if self.narrows or n.centers or _affects(n)]
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


def _named(part: WriteProjection | Norm, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{part.address}.{name}": tensor for name, tensor in values.items()}


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


def without(tensor: Tensor, axis: int, index: int) -> Tensor:
    """A writer's parameter without one coordinate of the stream: d -> d - 1.

    Example:
        >>> without(torch.tensor([[1.0, 2.0, 3.0]]), axis=1, index=-1)
        tensor([[1., 2.]])
    """
    kept = [i for i in range(tensor.shape[axis]) if i != index % tensor.shape[axis]]
    return tensor.index_select(axis, torch.tensor(kept, device=tensor.device))


def rounded(tensor: Tensor, axis: int, dtype: torch.dtype) -> Tensor:
    """Rounds so that sums along an axis stay: what one entry lost, the next one gets.

    Rounded one by one, neighbors of one size that were all moved by the same mean err to the same
    side, and the coordinate that is minus the sum of the others gets all their errors.

    Example:
        >>> x = torch.full((8,), 1 / 3, dtype=torch.float64)
        >>> off = x.sum() - rounded(x, 0, torch.bfloat16).double().sum()
        >>> f"{abs(float(off)):.4f}"
        '0.0007'
    """
    if torch.finfo(dtype).bits >= 32:
        return tensor.to(dtype)
    rows = tensor.movedim(axis, 0)
    out, rest = torch.empty_like(rows, dtype=dtype), torch.zeros_like(rows[0])
    for index, row in enumerate(rows):
        out[index] = wanted = row + rest
        rest = wanted - out[index].to(tensor.dtype)
    return out.movedim(0, axis)


def relative_to(tensor: Tensor, axis: int, index: int) -> Tensor:
    """A reader's parameter for a zero-mean stream that is stored without one coordinate.

    The coordinate left out is minus the sum of the others, so its column is taken off theirs.

    Example:
        >>> relative_to(torch.tensor([[1.0, 2.0, 3.0]]), axis=1, index=-1)
        tensor([[-2., -1.]])
    """
    at = index % tensor.shape[axis]
    return without(tensor, axis, index) - tensor.narrow(axis, at, 1)


def folded(
    stored: Mapping[str, Tensor], reads: str, scale: Tensor | None, bias: Tensor | None
) -> dict[str, Tensor]:
    """A reader that does the affine step of the norm before it: W diag(scale), b + W bias.

    ``stored`` is weight (out, d), or the factors weight (out, r) and reduce (r, d), and perhaps
    bias (out,), which comes where the norm's is not zero. ``reads`` names what has d columns.

    Example:
        >>> w = torch.tensor([[1.0, 2.0]])
        >>> folded({"weight": w}, "weight", torch.tensor([3.0, 1.0]), torch.tensor([1.0, 1.0]))
        {'weight': tensor([[3., 2.]]), 'bias': tensor([3.])}
    """
    new = dict(stored)
    if bias is not None and bool(bias.any()):
        moved = stored[reads] @ bias
        if reads != "weight":
            moved = stored["weight"] @ moved
        new["bias"] = stored["bias"] + moved if "bias" in stored else moved
    if scale is not None:
        new[reads] = stored[reads] * scale
    return new
