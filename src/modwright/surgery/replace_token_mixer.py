"""Puts another token mixer where an attention is: MetaFormer's experiment on any model.

A block keeps its norms, its residuals and its MLP (arXiv 2111.11418); only what mixes the tokens
changes. What is put in has start values, so the model is to be trained afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from modwright.anatomy import Anatomy, Images, Inputs, pick_layers
from modwright.core.errors import InvalidInputError
from modwright.core.progress import Progress
from modwright.cost.meta_trace import run_on_meta
from modwright.edits import Change
from modwright.edits.edit import Replace
from modwright.nn import AttentionShape, PlacedMixer
from modwright.nn.token_mixers.placed import MIXERS
from modwright.surgery.method import Decision, Requirements, WithoutData, register_method

__all__ = ["ReplaceTokenMixer"]

Mixer = Literal["pool", "identity", "depthwise", "spatial_fc", "attention"]
_New = tuple[str, dict[str, Tensor], dict[str, Any]]
"""What stands there: the name of its part, its values, and what it is built with."""


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
        mixer: "pool" (mean of a neighborhood minus the position), "identity", "depthwise" (a
            convolution per channel), "spatial_fc" (a linear layer over the positions), or
            "attention" where there is none.
        blocks: which, as in "3, 7", "8:", "*".
        kernel_size: side of the neighborhood of "pool" and "depthwise", odd.
        num_heads: of "attention"; heads of 32 channels, or one, unless it is said.
        seed: of the start values.

    Tokens that are no position of the image, such as a class token, get the mean of all positions
    minus themselves. In models of text only "identity" keeps what they promise (no position
    sees a later one, padding has no influence, cached decoding equals uncached).

    Example:
        >>> import modwright
        >>> pooling = ReplaceTokenMixer("pool", blocks="0:2")
        >>> edited = modwright.apply(modwright.open("preset:tiny-vit"), pooling)
        >>> modwright.Anatomy.of(edited).blocks[0]
        Block(0, pre-norm, holds PlacedMixer, mlp)
    """

    mixer: Mixer
    blocks: str = "*"
    kernel_size: int = 3
    num_heads: int | None = None
    seed: int = 0

    def title(self) -> str:
        return f"{self.mixer} mixes tokens in {self.blocks}"

    def decide(self, anatomy: Anatomy, progress: Progress) -> Decision:
        """Puts the mixer into the blocks; a sublayer that is removed already is refused."""
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise _refusal(f"kernel_size is odd, not {self.kernel_size}")
        if anatomy.family.inputs().is_text and self.mixer not in _without_grid():
            raise _refusal(
                f"{self.mixer!r} mixes the positions of an image, and "
                f"{anatomy.family.name} reads text; valid there: {_listed(_without_grid())}"
            )
        chosen = pick_layers(self.blocks, len(anatomy.blocks))
        grids = _grids(anatomy)
        change = Change()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            for index in chosen:
                block = anatomy.block(index)
                if block.at("attention") is None:
                    raise _refusal(f"block {index} mixes no tokens any more")
                if self.mixer in MIXERS:
                    part, values, kwargs = self._mixer(index, grids[index])
                elif block.attention is not None:
                    raise _refusal(f"block {index} has an attention already")
                else:
                    part, values, kwargs = self._attention(anatomy, grids[index])
                address = f"{block.address}.attention"
                named = {f"{address}.{name}": tensor for name, tensor in values.items()}
                change += Change((Replace(address, part, kwargs),), named)
        reasons = {"replaced": [f"blocks.{index}.attention" for index in chosen]}
        return change, reasons, ("New mixers have start values: train the model.",)

    def _mixer(self, index: int, spatial_shape: dict[str, Any]) -> _New:
        if self.mixer not in _without_grid() and not spatial_shape.get("places"):
            valid = _listed(_without_grid())
            raise _refusal(f"the tokens of block {index} lie on no grid; valid there: {valid}")
        kwargs = {"mixer": self.mixer, **spatial_shape, "kernel_size": self.kernel_size}
        values = {name: t.detach() for name, t in PlacedMixer(**kwargs).named_parameters()}
        return "token_mixer", values, kwargs

    def _attention(self, anatomy: Anatomy, spatial_shape: dict[str, Any]) -> _New:
        width = spatial_shape["hidden_size"]
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
        return "attention", values, shape.to_dict()


def _refusal(said: str) -> InvalidInputError:
    return InvalidInputError(f"replace_token_mixer: {said}")


def _without_grid() -> list[str]:
    """Mixers that work on tokens and maps alike, so that they stand in any model."""
    with torch.device("meta"):
        made = {name: make(1, 1, 1) for name, make in MIXERS.items()}
    return [name for name, mixer in made.items() if not hasattr(mixer, "layout")]


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names))


def _grids(anatomy: Anatomy) -> list[dict[str, Any]]:
    """Width, grid and tokens before it of each block, as a mixer is built with them."""
    reads = anatomy.family.inputs()
    told: dict[str, Any] = {"hidden_size": anatomy.hidden_size}
    if not anatomy.family.counts_by_running:
        return [told | _patches(reads)] * len(anatomy.blocks)
    # What blocks were called with tells; their host tells the mixer the grid.
    ran, found = run_on_meta(anatomy), []
    for width, (_, tokens), grid in zip(ran.widths, ran.passes, ran.grids):
        told = {"hidden_size": width}
        places = 0 if grid is None else grid[0] * grid[1]
        if grid is None and tokens == reads.positions(tokens):
            told |= _patches(reads)
        elif places and tokens >= places:
            told |= {"places": places} | ({"prefix": tokens - places} if tokens > places else {})
        found.append(told)
    return found


def _patches(reads: Inputs) -> dict[str, Any]:
    """The grid of patches of an image, for hosts that do not tell it."""
    if not isinstance(reads, Images):
        return {}
    rows, columns = (side // cut for side, cut in zip(reads.size, reads.patch))
    return {"places": rows * columns, "grid": [rows, columns], "prefix": reads.extra}
