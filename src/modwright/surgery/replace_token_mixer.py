"""Puts another token mixer where an attention is: MetaFormer's experiment on any model.

A block keeps its norms, its residuals and its MLP (arXiv 2111.11418); only what mixes the tokens
changes. What is put in has start values, so the model is to be trained afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from modwright.anatomy import Anatomy, Images, pick_layers
from modwright.core.errors import InvalidInputError
from modwright.core.progress import Progress
from modwright.cost.meta_trace import run_on_meta
from modwright.edits import Change
from modwright.edits.edit import Replace
from modwright.nn import AttentionShape, PlacedMixer
from modwright.surgery.method import Decision, Requirements, WithoutData, register_method

__all__ = ["ReplaceTokenMixer"]

Mixer = Literal["pool", "identity", "depthwise", "spatial_fc", "attention"]


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
        mixer: "pool" (mean of a neighborhood minus the place), "identity", "depthwise" (a
            convolution per channel), "spatial_fc" (a linear layer over the places), or "attention"
            where there is none.
        blocks: which, as in "3, 7", "8:", "*".
        kernel_size: side of the neighborhood of "pool" and "depthwise", odd.
        num_heads: of "attention"; heads of 32 channels, or one, unless it is said.
        seed: of the start values.

    Tokens that are no place of the image, such as a class token, get the mean of all places minus
    themselves. In models of text only "identity" keeps what they promise (no position sees a later
    one, padding has no influence, cached decoding equals uncached).

    Example:
        >>> import modwright
        >>> model = modwright.open("preset:tiny-vit").model
        >>> edited = modwright.apply(model, ReplaceTokenMixer("pool", blocks="0:2")).model
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

    def parameter_bounds(self, anatomy: Anatomy) -> tuple[int, int]:
        """What goes, exactly, less what comes."""
        plan = self.plan(anatomy)
        come = sum(tensor.numel() for tensor in plan.tensors.values())
        go = 0
        for index in pick_layers(self.blocks, len(anatomy.blocks)):
            standing = anatomy.block(index).at("attention")
            assert standing is not None
            own = standing.norm.num_parameters if standing.norm is not None else 0
            go += standing.num_parameters - own
        return go - come, go - come

    def decide(self, anatomy: Anatomy, progress: Progress) -> Decision:
        """Puts the mixer into the blocks; a place that is empty already is refused."""
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise InvalidInputError(
                f"replace_token_mixer: kernel_size is odd, not {self.kernel_size}"
            )
        reads = anatomy.family.inputs()
        if not isinstance(reads, Images) and self.mixer != "identity":
            raise InvalidInputError(
                f"replace_token_mixer: {self.mixer!r} mixes the places of an image, and "
                f"{anatomy.family.name} reads text; valid there: 'identity'"
            )
        chosen = pick_layers(self.blocks, len(anatomy.blocks))
        grids = _grids(anatomy)
        change = Change()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            for index in chosen:
                block = anatomy.block(index)
                if block.at("attention") is None:
                    raise InvalidInputError(
                        f"replace_token_mixer: block {index} mixes no tokens any more"
                    )
                if self.mixer == "attention":
                    change += self._attention(anatomy, index, grids[index])
                else:
                    change += self._mixer(anatomy, index, grids[index])
        reasons = {"replaced": [f"blocks.{index}.attention" for index in chosen]}
        notes = ("New mixers have start values: train the model.",)
        return change, reasons, notes

    def _mixer(self, anatomy: Anatomy, index: int, spatial_shape: dict[str, Any]) -> Change:
        if self.mixer != "identity" and not spatial_shape.get("places"):
            raise InvalidInputError(
                f"replace_token_mixer: the tokens of block {index} lie on no grid; valid there: "
                "'identity'"
            )
        kwargs = {"mixer": self.mixer, **spatial_shape, "kernel_size": self.kernel_size}
        part = PlacedMixer(**kwargs)
        address = f"blocks.{index}.attention"
        values = {f"{address}.{name}": t.detach() for name, t in part.named_parameters()}
        return Change((Replace(address, "token_mixer", kwargs),), values)

    def _attention(self, anatomy: Anatomy, index: int, spatial_shape: dict[str, Any]) -> Change:
        if anatomy.block(index).attention is not None:
            raise InvalidInputError(f"replace_token_mixer: block {index} has an attention already")
        width = spatial_shape["hidden_size"]
        heads = self.num_heads or (width // 32 if width % 32 == 0 else 1)
        if width % heads:
            raise InvalidInputError(
                f"replace_token_mixer: {heads} heads do not divide a width of {width}"
            )
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
        address = f"blocks.{index}.attention"
        values: dict[str, Tensor] = {}
        for role in "qkvo":
            weight = torch.empty(width, width)
            values[f"{address}.{role}.weight"] = nn.init.trunc_normal_(weight, std=0.02)
            values[f"{address}.{role}.bias"] = torch.zeros(width)
        return Change((Replace(address, "attention", shape.to_dict()),), values)


def _grids(anatomy: Anatomy) -> list[dict[str, Any]]:
    """Width, grid and tokens before it of each block, as a mixer is built with them."""
    reads = anatomy.family.inputs()
    if anatomy.family.counts_by_running:
        ran = run_on_meta(anatomy)
        calls = zip(ran.widths, ran.passes, ran.grids)
        return [
            _called(width, tokens, spatial_shape) for width, (_, tokens), spatial_shape in calls
        ]
    told: dict[str, Any] = {"hidden_size": anatomy.hidden_size}
    if isinstance(reads, Images):
        rows, columns = (side // cut for side, cut in zip(reads.size, reads.patch))
        told |= {"places": rows * columns, "grid": [rows, columns], "prefix": reads.extra}
    return [told] * len(anatomy.blocks)


def _called(width: int, tokens: int, spatial_shape: tuple[int, int] | None) -> dict[str, Any]:
    """As above, from what a block was called with; its host tells the mixer the grid."""
    places = 0 if spatial_shape is None else spatial_shape[0] * spatial_shape[1]
    prefix = tokens - places
    if not places or prefix < 0:
        return {"hidden_size": width}
    return {"hidden_size": width, "places": places} | ({"prefix": prefix} if prefix else {})
