"""What stands in the way of taking the mean out of a residual stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from modwright.anatomy import Anatomy, ResidualStream
from modwright.anatomy.stream import WriteProjection
from modwright.core.compat.torch import tensor_tables
from modwright.core.errors import InvalidInputError

__all__ = ["Form", "blockers", "covering", "mean_share", "runs_centered"]

Form = Literal["rms", "crms"]

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SHARE = 16
"""Units of rounding up to which a mean counts as none, see :func:`mean_share`."""


def blockers(
    anatomy: Anatomy,
    form: Form = "rms",
    *,
    training: bool = False,
    fold: bool = False,
    counting: bool = False,
) -> list[str]:
    """Every place that stands in the way, with the reason; empty where nothing does.

    ``fold``: the affine step of the norms is to go into the maps that read them. ``counting``: only
    shapes are wanted, so weights may be missing.
    """
    found = list(_unread(anatomy))
    if found:
        return found
    stream = anatomy.stream
    found = list(_writing_norms(anatomy, stream)) or list(_reads(anatomy, stream))
    if found:
        return found
    absent = [name for name, p in anatomy.model.named_parameters() if p.is_meta]
    if absent and not counting:
        found.append(f"{absent[0]} is on the meta device (offloaded or not loaded); load it first")
    found += [
        f"{name} is {parameter.dtype}; open the model in float32, bfloat16 or float16"
        for name, parameter in anatomy.model.named_parameters()
        if parameter.dtype not in _FLOATS
    ]
    found += _shared(anatomy)
    if form == "crms":
        found += [*_narrow(anatomy, stream), *_unplaceable(anatomy, stream, "narrowed")]
    if training:
        found += [*_untrainable(anatomy, stream), *_unplaceable(anatomy, stream, "zero_mean")]
    if training or fold or form == "crms":
        found += _experts(anatomy)
    if not found and not absent and any(norm.keeps_mean for norm in stream.norms):
        found += _means(stream)
    return found


def _unread(anatomy: Anatomy) -> Iterator[str]:
    if len(anatomy.widths) > 1:
        widths = ", ".join(map(str, anatomy.widths))
        yield f"the stream is {widths} wide in one stage or another; it must be one stream"
    elif not anatomy.family.chained:
        yield "between its blocks other modules write to the stream"
    for part in anatomy.outer.values():
        if part.is_opaque and part.address not in anatomy.after_blocks:
            name = type(part.module).__name__
            yield f"{part.address} is a {name}, and what writes to the stream in it is not known"
    for block in anatomy.blocks:
        for other in block.others.values():
            name = type(other.module).__name__
            inside = f"not plain ({other.blocker})" if other.maps else "not known"
            yield f"{other.address} is a {name}, and what reads and writes in it is {inside}"


def _writing_norms(anatomy: Anatomy, stream: ResidualStream) -> Iterator[str]:
    for block in anatomy.blocks:
        if block.layout == "post":
            yield (
                f"{block.address} is post-norm: its main branch itself passes the norms "
                f"({', '.join(type(n.module).__name__ for n in block.norms.values())}), so the "
                "mean of the stream is not free; only pre-norm and parallel blocks can be converted"
            )
        elif block.norms_write:
            yield f"{block.address} writes to the stream through its norms, which have gains"
    for norm in stream.norms_within:
        if not norm.address.startswith("blocks."):
            yield (
                f"{norm.address} ({type(norm.module).__name__}) writes to the stream, and what a "
                "norm with gain and shift returns cannot be recentered by its weights"
            )


def _reads(anatomy: Anatomy, stream: ResidualStream) -> Iterator[str]:
    alike = len({norm.form for norm in stream.norms}) < 2
    for norm in stream.norms:
        name = type(norm.module).__name__
        shape = getattr(norm.module, "normalized_shape", ())
        if norm.restores_coordinate:
            yield f"{norm.address} is a {name}: the model is Pre-CRMSNorm already"
        elif not norm.is_known:
            yield f"{norm.address} is a {name}; only LayerNorm can become an RMSNorm exactly"
        elif len(shape) > 1:
            yield f"{norm.address} normalizes over the axes {tuple(shape)}, not over the last alone"
        elif norm.keeps_mean and not alike:
            yield f"{norm.address} is a {name} beside norms of another kind: the stream has a mean"
    for reader in stream.readers:
        if reader.norm is None:
            yield f"{reader.part.address} reads the stream without a norm, so it sees its mean"
    if stream.last_norm is None:
        yield "no norm stands behind the blocks, so the outputs are the stream with its mean"
    elif anatomy.family.returns_stream(anatomy.model):
        yield (
            f"the model returns the stream as it is before {stream.last_norm.address}, with its "
            "mean; convert it with its classifier"
        )


def _narrow(anatomy: Anatomy, stream: ResidualStream) -> Iterator[str]:
    if anatomy.hidden_size < 2:
        yield f"a stream {anatomy.hidden_size} wide has no coordinate to spare"
    if stream.last_reader is None and anatomy.family.last_norm_keeps_width:
        yield (
            f"not all that reads {stream.last_norm.address if stream.last_norm else 'it'} is a "
            f"known part, and {anatomy.family.name} leaves no room to give the dropped coordinate "
            "back to it; convert the model with its head over the vocabulary, or use form 'rms'"
        )


def _shared(anatomy: Anatomy) -> Iterator[str]:
    """A tensor that two modules store; the head may share the token table."""
    tied = {id(getattr(anatomy.outer.get(role), "module", None)) for role in ("embed", "head")}
    held: dict[int, list[tuple[str, nn.Module]]] = {}
    for path, module in anatomy.model.named_modules(remove_duplicate=False):
        for name, parameter in tensor_tables(module)[0].items():
            if parameter is not None and not parameter.is_meta and parameter.numel():
                held.setdefault(parameter.data_ptr(), []).append((f"{path}.{name}", module))
    for places in held.values():
        if len(places) > 1 and not {id(module) for _, module in places} <= tied:
            yield (
                f"{places[0][0]} and {places[1][0]} are one tensor; recentring it for one would "
                "change the other"
            )


def covering(stream: ResidualStream, writer: WriteProjection) -> WriteProjection:
    """The writer itself, or one outside the blocks whose module holds it and returns the sum."""
    outside = [w for w in stream.writers if not w.address.startswith("blocks.")]
    for other in outside if writer in outside else ():
        held = other.module.modules() if other is not writer else ()
        if any(module is writer.module for module in held):
            return other
    return writer


def runs_centered(stream: ResidualStream, writer: WriteProjection) -> bool:
    """What it writes is recentered when the model runs."""
    return covering(stream, writer).is_zero_mean


def _unplaceable(anatomy: Anatomy, stream: ResidualStream, part: str) -> Iterator[str]:
    """What stands outside the blocks and cannot be altered there."""
    for writer in stream.writers:
        if writer.address.startswith("blocks.") or covering(stream, writer) is not writer:
            continue
        try:
            anatomy.family.place_outside(anatomy.model, writer.address, part, {})
        except InvalidInputError as refusal:
            yield f"{writer.address}: {refusal}"


def _untrainable(anatomy: Anatomy, stream: ResidualStream) -> Iterator[str]:
    for writer in stream.writers:
        if writer.is_factored:
            yield (
                f"{writer.address} is a factor pair; the training form keeps all parameters, and "
                "has no form for pairs: convert first, factorize after"
            )
        elif writer.address in stream.scales:
            yield (
                f"{writer.address} is multiplied by {stream.scales[writer.address].address} on its "
                "way; the training form keeps all parameters, and has no form for gains"
            )


def _experts(anatomy: Anatomy) -> Iterator[str]:
    for block in anatomy.blocks:
        if block.mlp is not None and block.mlp.experts is not None:
            yield (
                f"{block.mlp.address} consists of experts, which are chosen by what its norm "
                "returns, so its maps must stay as they are; merge the experts first, or use "
                "form 'rms' without folding"
            )


def mean_share(tensor: Tensor, axis: int) -> float:
    """How far a parameter is from zero mean along one axis: 0 is zero mean, 1 that of noise.

    The root mean square of the means, over that of the entries, times the root of d.
    """
    wide = tensor.double()
    size = float(wide.square().mean().sqrt())
    if not size:
        return 0.0
    means = float(wide.mean(axis).square().mean().sqrt())
    return means / size * tensor.shape[axis] ** 0.5


def _means(stream: ResidualStream) -> Iterator[str]:
    """A stream that RMS norms read has a mean that counts, unless nobody writes one."""
    for writer in stream.writers:
        if runs_centered(stream, writer):
            continue
        stored = writer.parameters()
        for name, value in stream.written(writer).items():
            share = mean_share(value, writer.output_axes[name])
            if share > _SHARE * torch.finfo(stored[name].dtype).eps:
                yield (
                    f"the norms are RMSNorm already, and {writer.address}.{name} does not write "
                    f"with zero mean ({share:.2g} of what noise has): the mean of the stream counts"
                )
                break
