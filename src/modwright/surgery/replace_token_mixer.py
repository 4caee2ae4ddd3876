"""Puts another token mixer where an attention is: MetaFormer's experiment on any model.

A block keeps its norms, its residuals and its MLP (arXiv 2111.11418); only what mixes the tokens
changes. What is put in has start values, so the model is to be trained afterwards.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from modwright.anatomy import Anatomy, Images, pick_layers
from modwright.core.errors import InvalidInputError, refusing, unknown_name
from modwright.core.progress import Progress
from modwright.cost.meta_trace import run_on_meta
from modwright.edits import Change
from modwright.edits.edit import Replace
from modwright.edits.hf_adapters import needs_grid
from modwright.edits.placeable import arguments_of
from modwright.edits.registry import make_part
from modwright.nn import AttentionShape
from modwright.nn.component import Component, components
from modwright.surgery.method import Decision, Requirements, WithoutData, register_method

__all__ = ["ReplaceTokenMixer"]

_New = tuple[dict[str, Tensor], dict[str, Any]]
"""What stands there: its values, and what it is built with."""


class _Place(NamedTuple):
    """What a mixer of a block reads: channels, and positions of a grid; 0 without one."""

    width: int
    positions: int


@register_method(
    "replace_token_mixer",
    paper="metaformer",
    requires=Requirements(parts=("attention",)),
    examples=({"mixer": "identity", "blocks": "1"}, {"mixer": "pool", "blocks": "0, -1"}),
)
@dataclass(frozen=True)
class ReplaceTokenMixer(WithoutData):
    """Replaces what mixes the tokens of some blocks (arXiv 2111.11418).

    Attributes:
        mixer: a registered token mixer: "pool" (mean of a neighborhood minus the position),
            "identity", "depthwise" (a convolution per channel), "spatial_fc" (a linear layer over
            the positions), "random" (a fixed one), "attention" where there is none, or another.
        blocks: which, as in "3, 7", "8:", "*".
        kernel_size: side of the neighborhood of "pool" and "depthwise", odd.
        num_heads: of "attention"; heads of 32 channels, or one, unless it is said.
        seed: of the start values.

    Tokens that are no position of the image, such as a class token, get the mean of all positions
    minus themselves. In models of text a mixer must keep what they promise: no position sees a
    later one, padding has no influence, cached decoding equals uncached. "identity" does, and so do
    components that are registered for that, as "mamba2" is.

    Example:
        >>> import modwright
        >>> pooling = ReplaceTokenMixer("pool", blocks="0:2")
        >>> edited = modwright.apply(modwright.open("preset:tiny-vit"), pooling)
        >>> modwright.Anatomy.of(edited).blocks[0]
        Block(0, pre-norm, holds Pooling, mlp)
    """

    mixer: str
    blocks: str = "*"
    kernel_size: int = 3
    num_heads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mixer not in (known := _mixers()):
            raise unknown_name("token mixer", self.mixer, known)

    def title(self) -> str:
        return f"{self.mixer} mixes tokens in {self.blocks}"

    def decide(self, anatomy: Anatomy, progress: Progress) -> Decision:
        """Puts the mixer into the blocks; a sublayer that is removed already is refused."""
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise _refusal(f"kernel_size is odd, not {self.kernel_size}")
        component = _mixers()[self.mixer]
        if why := _why_not(component, anatomy):
            valid = [name for name, one in _mixers().items() if not _why_not(one, anatomy)]
            raise _refusal(f"{self.mixer!r} {why}; valid there: {_listed(valid)}")
        chosen = pick_layers(self.blocks, len(anatomy.blocks))
        places = _places(anatomy)
        change = Change()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            for index in chosen:
                block = anatomy.block(index)
                if block.at("attention") is None:
                    raise _refusal(f"block {index} mixes no tokens any more")
                if component.state != "keys":
                    values, kwargs = self._mixer(component, anatomy, index, places[index])
                elif block.attention is not None:
                    raise _refusal(f"block {index} has an attention already")
                else:
                    values, kwargs = self._attention(anatomy, places[index].width)
                address = f"{block.address}.attention"
                named = {f"{address}.{name}": tensor for name, tensor in values.items()}
                change += Change((Replace(address, self.mixer, kwargs),), named)
        reasons = {"replaced": [f"blocks.{index}.attention" for index in chosen]}
        return change, reasons, ("New mixers have start values: train the model.",)

    def _mixer(self, component: Component, anatomy: Anatomy, index: int, place: _Place) -> _New:
        if needs_grid(component) and not place.positions:
            valid = _listed([name for name, one in _mixers().items() if not needs_grid(one)])
            raise _refusal(f"the tokens of block {index} lie on no grid; valid there: {valid}")
        known = dict.fromkeys(("hidden_size", "d_model"), place.width)
        known |= dict.fromkeys(("kernel_size", "pool_size"), self.kernel_size)
        known |= {"num_tokens": place.positions}
        known |= {} if self.num_heads is None else {"num_heads": self.num_heads}
        arguments = arguments_of(self.mixer, "attention")
        lacking = [name for name, one in arguments.items() if one.needed and name not in known]
        if lacking:
            raise _refusal(
                f"{self.mixer} needs {', '.join(lacking)}; put it in place with an edit or with "
                "modwright.edits.compose, which take them"
            )
        kwargs = {name: value for name, value in known.items() if name in arguments}
        stands: Any = anatomy.block(index).at("attention")
        stands = copy.deepcopy(stands.module)  # a component may alter it
        with refusing("replace_token_mixer", (ValueError, TypeError)):
            made: Any = make_part(component.make, component.shape, anatomy.config, kwargs, stands)
            if hasattr(made, "reset_parameters"):
                made.reset_parameters()
        tensors = (*made.named_parameters(), *made.named_buffers())
        return {name: tensor.detach() for name, tensor in tensors}, kwargs

    def _attention(self, anatomy: Anatomy, width: int) -> _New:
        heads = self.num_heads or (width // 32 if width % 32 == 0 else 1)
        if width % heads:
            raise _refusal(f"{heads} heads do not divide a width of {width}")
        size = width // heads
        shape = AttentionShape(
            hidden_size=width,
            num_heads=heads,
            num_kv_heads=heads,
            qk_head_dim=size,
            v_head_dim=size,
            scaling=size**-0.5,
            biases="qkvo",
            causal=anatomy.family.is_causal(),
        )
        values: dict[str, Tensor] = {}
        for role in "qkvo":
            values[f"{role}.weight"] = nn.init.trunc_normal_(torch.empty(width, width), std=0.02)
            values[f"{role}.bias"] = torch.zeros(width)
        return values, shape.to_dict()


def _refusal(said: str) -> InvalidInputError:
    return InvalidInputError(f"replace_token_mixer: {said}")


def _mixers() -> dict[str, Component]:
    """What can stand there: token mixers, but what only marks an attention that is gone."""
    found = components("token_mixer")
    return {name: one for name, one in found.items() if not getattr(one.make, "host_called", False)}


def _why_not(component: Component, anatomy: Anatomy) -> str:
    """Why a mixer does not stand in a model of text; empty where it does, and for images."""
    family = anatomy.family
    if not family.inputs().is_text:
        return ""
    if needs_grid(component):
        return f"is for images, and {family.name} reads text"
    if family.is_causal() and not component.causal:
        return f"is not registered as causal, and no position of {family.name} sees a later one"
    return ""


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, sorted(names)))


def _places(anatomy: Anatomy) -> list[_Place]:
    """Width and positions of each block."""
    family, reads = anatomy.family, anatomy.family.inputs()
    if not family.counts_by_running:
        told = family.token_grid()
        positions = 0 if told is None else told[0][0] * told[0][1]
        return [_Place(int(anatomy.hidden_size), positions)] * len(anatomy.blocks)
    # What blocks were called with tells.
    ran, found = run_on_meta(anatomy), []
    for width, (_, tokens), grid in zip(ran.widths, ran.passes, ran.grids):
        positions = 0 if grid is None else grid[0] * grid[1]
        if grid is None and isinstance(reads, Images) and tokens == reads.positions(tokens):
            positions = reads.patches
        found.append(_Place(width, positions if tokens >= positions else 0))
    return found
