"""What puts the parts of a standalone checkpoint in place; its source goes into that one's file.

So it uses torch, transformers and what needs no more than these, and reads the rest of the config.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from modwright.core.modes import set_mode
from modwright.edits.precision import keep_float32, keeping_float32
from modwright.edits.registry import make_part
from modwright.edits.remodeled import forward_with_all_maps
from modwright.edits.start_values import initialize, outermost, takes_host_rule
from modwright.edits.stock_class_guard import (
    add_stock_class_guard,
    strip_stock_class_guard,
    with_layers,
)

__all__ = ["StandaloneConfig", "StandaloneModel"]


class StandaloneConfig(PreTrainedConfig):
    """A stock config with ``modwright_layout``: what stands where, and what differs in a layer.

    ``parts``: [path, name of a part, its arguments] in the order in which they are placed;
    ``slots``: path of an attention or a state -> its slot in the cache; ``attentions``: path of
    what stands for an attention -> its layer; ``layers``: layer -> fields that differ there, told
    so that stock classes refuse the checkpoint; ``resolved``: the same as caches read it;
    ``kv_sharing_modes``: which slots stay empty.
    """

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("per_layer_config", None)  # follows from the layout
        self.modwright_layout = kwargs.pop("modwright_layout", None) or {}
        super().__post_init__(**kwargs)

    def _by_layer(self, name: str) -> dict[int, dict[str, Any]]:
        return {int(index): entry for index, entry in self.modwright_layout.get(name, {}).items()}

    @property
    def per_layer_config(self) -> list[Any]:
        """One resolved config per layer, as cache construction reads it."""
        overrides, resolved = self._by_layer("resolved"), []
        for index in range(self.num_hidden_layers):
            layer = copy.copy(self)
            layer.__dict__.update(overrides.get(index, {}))
            resolved.append(layer)
        return resolved

    @per_layer_config.setter
    def per_layer_config(self, value: Any) -> None:
        if value:
            raise ValueError("per_layer_config of this checkpoint follows from modwright_layout")

    @property
    def kv_sharing_modes(self) -> list[str | None]:
        """Tells the cache of slots that no attention fills."""
        modes = self.modwright_layout.get("kv_sharing_modes")
        return list(modes or [None] * self.num_hidden_layers)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        return super().from_dict(strip_stock_class_guard(config_dict), **kwargs)

    def to_dict(self) -> dict[str, Any]:
        return with_layers(super().to_dict(), self._by_layer("layers"))

    def to_diff_dict(self) -> dict[str, Any]:
        """What is written to a file."""
        overrides = self._by_layer("layers")
        note = with_layers(super().to_diff_dict(), overrides)
        return add_stock_class_guard(note, overrides, self, self.num_hidden_layers)


class StandaloneModel(PreTrainedModel):
    """Mixed in before a stock class: builds it, then puts the parts of the layout in place."""

    parts: ClassVar[dict[str, tuple[Callable[..., nn.Module], Any]]] = {}
    """Name -> what makes a part, and the class of its shape, if it has one."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        stock: Any = cls.__bases__[-1]
        # With its stock class; transformers adds a mixin behind it to some classes of a file.
        if len(cls.__bases__) > 1 and issubclass(stock, PreTrainedModel):
            made: Any = cls
            made.forward = forward_with_all_maps(stock, cls._replaced_attentions)
            for name in ("to", "half", "bfloat16"):
                setattr(made, name, keeping_float32(getattr(stock, name)))

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        layout = config.modwright_layout
        for path, name, arguments in layout.get("parts", ()):
            if (here := self._inside(path)) is not None:
                self._place(here, name, arguments)
        for path, slot in layout.get("slots", {}).items():
            if (here := self._inside(path)) is not None:
                self.get_submodule(here).layer_idx = slot
        keep_float32(self)
        self.post_init()

    def _place(self, path: str, name: str, arguments: dict[str, Any]) -> None:
        standing = self.get_submodule(path)
        part = make_part(*self.parts[name], self.config, arguments, standing)
        parent, _, leaf = path.rpartition(".")
        setattr(self.get_submodule(parent), leaf, set_mode(part, standing.training))

    def initialize_weights(self) -> None:
        """What no checkpoint stores, or one lacks, starts as the part around it says."""
        parts = self.config.modwright_layout.get("parts", ())
        places = [here for path, *_ in parts if (here := self._inside(path)) is not None]
        placed = [self.get_submodule(here) for here in places]
        own = [
            part
            for part in placed
            if hasattr(part, "reset_parameters") and not takes_host_rule(part)
        ]
        initialize(self, outermost(own), super().initialize_weights)

    def _replaced_attentions(self) -> tuple[int, dict[int, nn.Module]]:
        """Number of layers, and what stands in place of a stock attention, by layer."""
        config: Any = self.config
        found = {
            index: self.get_submodule(here)
            for path, index in config.modwright_layout.get("attentions", {}).items()
            if (here := self._inside(path)) is not None
        }
        return config.num_hidden_layers, found

    def _inside(self, path: str) -> str | None:
        """A path of the layout in this model: a bare backbone has no prefix and no head."""
        if hasattr(self, self.base_model_prefix):
            return path
        prefix, _, rest = path.partition(".")
        return rest if prefix == self.base_model_prefix else None

    def _get_static_cache_init_shape(self) -> None:
        """A static cache takes its shapes from the first keys and values, not from the config."""
