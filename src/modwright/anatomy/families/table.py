"""What a family says of itself: names and layouts as tables, and what its configs say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from torch import nn

from modwright.anatomy.inputs import Images, Inputs, Tokens
from modwright.anatomy.views import Layout
from modwright.core.compat.torch import child_modules
from modwright.core.errors import UnsupportedArchitecture
from modwright.nn import Opaque

__all__ = ["TINY", "Convention", "FamilyTable", "paths", "tiny"]

Convention = Literal["transformers", "timm", "modwright"]

TINY = {
    "vocab_size": 128,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
"""What presets have in common."""

_USUAL = {
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "activation": "hidden_act",
}


def tiny(**fields: Any) -> dict[str, Any]:
    """A preset of a decoder: what presets have in common, special tokens and its own fields."""
    return {**TINY, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0, **fields}


def paths(role: str, own: str, norm: str, **maps: str) -> dict[str, str]:
    """Entries of a table for a sublayer whose maps, by role, lie within its own module.

    Example:
        >>> paths("mlp", "feed", "before_feed", up="open")
        {'mlp': 'feed', 'mlp.up': 'feed.open', 'mlp_norm': 'before_feed'}
    """
    inside = {f"{role}.{name}": f"{own}.{path}" for name, path in maps.items()}
    return {role: own, **inside, f"{role}_norm": norm}


class FamilyTable:
    """Maps the parts of one architecture to their modules. Subclasses fill tables; few need code.

    Class attributes:
        name: how the family is called in messages.
        model_types: the ``config.model_type`` values that it serves; empty where it knows its
            models by their modules, see :meth:`recognizes`.
        outer: address -> module path, relative to the backbone, for what stands outside the blocks,
            in the order of the forward pass; "blocks" is the list of layers.
        block: address inside a block -> module path relative to the block; "attention_gain" and
            "mlp_gain" multiply what a sublayer returns, channel by channel.
        beside: role -> modules that belong to the part but lie outside its own module; they become
            pass-throughs where a part of modwright's does their work.
        config_fields: modwright's word -> the config's field, where it is not the usual one; empty
            where it has none.
        shape_fields: field of the shape of an attention -> where its module has it; ``head_dim`` is
            one of them.
        convention: how blocks call what stands at an attention's or an MLP's place: those of
            "transformers" hand masks and caches by name; those of "modwright" tell the grid of the
            tokens or the map that they give.
        reshapes_attention: blocks take apart what an attention returns, so that zeros in its place
            have its shape.
        presets: name -> config arguments of a tiny random model, for trying things out.
        transposed: its linear layers store [in, out].
        last_norm_keeps_width: its forward takes what the norm behind the blocks returns for as wide
            as what entered the blocks.
        pairs: blocks take (output, attention weights) from an attention.
        state: attributes of its modules that a forward pass sets, and that no config tells.
        masks_single_tokens: a token that comes alone may be padding, as a mask says; else it is
            taken for a real one whatever the mask says.
        maps_by_layer: attention maps that a forward pass returns are one for each layer.
        post_norm: blocks normalize h + sublayer(h), so a norm has work to do without its sublayer.
        causal: no position sees later ones.
        between: address -> module path, relative to the backbone, for what stands between stages;
            ``stage_starts`` are the numbers of the first blocks of the stages.
        counts_by_running: positions differ between blocks, or parts are of kinds without a formula;
            so the model is run, without numbers, to count what it costs.
    """

    name: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]]
    outer: Mapping[str, str]
    block: ClassVar[Mapping[str, str]]
    between: Mapping[str, str] = {}
    stage_starts: Sequence[int] = ()
    beside: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    config_fields: ClassVar[Mapping[str, str]] = {}
    shape_fields: ClassVar[Mapping[str, str]] = {}
    convention: ClassVar[Convention] = "transformers"
    reshapes_attention: ClassVar[bool] = False
    presets: ClassVar[Mapping[str, dict[str, Any]]] = {}
    transposed: ClassVar[bool] = False
    last_norm_keeps_width: ClassVar[bool] = False
    pairs: ClassVar[bool] = True
    state: ClassVar[tuple[str, ...]] = ()
    masks_single_tokens: ClassVar[bool] = True
    maps_by_layer: ClassVar[bool] = True
    post_norm: bool = False
    causal: ClassVar[bool] = True
    counts_by_running: ClassVar[bool] = False

    def __init__(self, config: Any) -> None:
        self.config = config

    # What the config says

    def field(self, word: str) -> str:
        """The config's own name for one of num_layers, hidden_size, intermediate_size, num_heads,
        num_kv_heads, head_dim, activation."""
        return self.config_fields.get(word, _USUAL.get(word, word))

    def get(self, word: str, default: Any = None) -> Any:
        return getattr(self.config, self.field(word), default)

    def put(self, config: Any, word: str, value: Any) -> None:
        """Sets in a config what :meth:`get` reads from it."""
        setattr(config, self.field(word), value)

    def write_live_fields(self, config: Any) -> None:
        """Sets in a config what a live model may change by a method of its own: nothing, mostly."""

    def keep_blocks(self, config: Any, kept: Sequence[int]) -> None:
        """Lets a stock config say that blocks ``kept`` stand in this order, or refuses."""
        types = getattr(config, "layer_types", None)
        if types is not None:
            config.__dict__["layer_types"] = [types[i] for i in kept]
        self.put(config, "num_layers", len(kept))

    @classmethod
    def wrap(cls, model: nn.Module) -> nn.Module | None:
        """A transformers model around one of another library, with the same weights; None where
        the family does not know the library."""
        return None

    @classmethod
    def recognizes(cls, model: nn.Module) -> bool:
        """A model whose type no family names is one of this family, by what its modules are."""
        return False

    def stock_mixer(self) -> tuple[str, dict[str, Any]] | None:
        """The component, by name, and the arguments of it, that has the tensors of a stock token
        mixer and computes the same from them; None where there is none."""
        return None

    def check(self) -> None:
        """Refuses variants of the family that are not supported, before any work."""
        for flag in ("add_cross_attention", "is_encoder_decoder"):
            if getattr(self.config, flag, False):
                raise UnsupportedArchitecture(
                    f"{self.name} with {flag}=True is not supported: there is no part for "
                    "cross-attention"
                )

    def layout(self, block: nn.Module) -> Layout:
        return "post" if self.is_post_norm() else "pre"

    def is_post_norm(self) -> bool:
        return self.post_norm

    def is_causal(self) -> bool:
        return self.causal

    def inputs(self) -> Inputs:
        """What the model reads."""
        return Tokens(self.config.vocab_size)

    def token_grid(self) -> tuple[tuple[int, int], int] | None:
        """The grid of patches that an attention's tokens lie on, and how many tokens come before
        them; None where there is none, or where blocks tell it."""
        reads = self.inputs()
        if not isinstance(reads, Images) or reads.patch == reads.size:
            return None
        rows, columns = (side // cut for side, cut in zip(reads.size, reads.patch))
        return (rows, columns), reads.extra

    def pools(self, model: nn.Module) -> bool:
        """Heads on top of the backbone read one vector of each sequence, not every position."""
        return getattr(self.backbone(model), "pooler", None) is not None

    @property
    def chained(self) -> bool:
        """What a block returns is what the next one reads."""
        return True

    def returns_stream(self, model: nn.Module) -> bool:
        """The first output is the residual stream itself, which no norm read."""
        return False

    # Paths

    def backbone(self, model: nn.Module) -> nn.Module:
        """The model without its head."""
        return getattr(model, "base_model", model)

    def prefix(self, model: nn.Module) -> str:
        """Path of the backbone inside the model, with a trailing dot; empty for a bare backbone."""
        return "" if self.backbone(model) is model else f"{model.base_model_prefix}."

    def blocks_path(self, model: nn.Module) -> str:
        return self.prefix(model) + self.outer["blocks"]

    def layer_paths(self, model: nn.Module) -> list[str]:
        """Paths of the blocks, first to last; with a block goes all that lies below its path."""
        container = self.blocks_path(model)
        return [f"{container}.{name}" for name in child_modules(model.get_submodule(container))]

    def layers(self, model: nn.Module) -> list[nn.Module]:
        """The modules of the blocks, first to last; one that is used twice is listed twice."""
        return list(child_modules(model.get_submodule(self.blocks_path(model))).values())

    def cache_layer_owner(self, block: nn.Module) -> nn.Module | None:
        """The module of a block that holds ``layer_idx``, or None when it owns no cache slot."""
        module = block.get_submodule(self.block["attention"])
        owns = hasattr(module, "layer_idx") and not isinstance(module, Opaque)
        return module if owns else None
