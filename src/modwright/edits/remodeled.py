"""A transformers class whose config carries the edits and whose constructor replays them.

``remodeled(LlamaForCausalLM)`` is a subclass with ``model_type = "modwright_llama"``. Everything
else (loading, saving, generating, training) stays transformers' own.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache, wraps
from typing import Any, TypeVar

import transformers
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from modwright.anatomy.families import family_of
from modwright.core.capture import Call, on_forward
from modwright.core.compat.transformers import (
    auto_classes,
    can_set_experts,
    model_classes,
    register_classes,
    renew_parents,
)
from modwright.core.errors import CheckpointError, InvalidInputError, refusing
from modwright.edits.edit import FORMAT, State, split_address, state_from_list
from modwright.edits.generating import check_cache, generate_with_states
from modwright.edits.precision import keep_float32, keeping_float32
from modwright.edits.registry import check_router_scores
from modwright.edits.replay import replay, unfilled_cache_layers
from modwright.edits.start_values import initialize, self_initialized
from modwright.edits.stock_class_guard import (
    add_stock_class_guard,
    strip_stock_class_guard,
    with_layers,
)
from modwright.edits.stock_parts import has_stock_tensors, keeps_keys

__all__ = ["base_class", "forward_with_all_maps", "is_plain", "is_remodeled"]
__all__ += ["register_models", "remodeled", "remodeled_config"]

_PREFIX = "Modwright"
M = TypeVar("M")


class _RemodeledConfig:
    """Mixed into a stock config: holds ``edits`` and keeps them honest towards stock classes."""

    edits: list[dict[str, Any]]
    modwright_format: int

    def __post_init__(self, **kwargs: Any) -> None:
        # What a stock class must not overlook is derived from the edits, never read back.
        kwargs.pop("per_layer_config", None)
        self.edits = list(kwargs.pop("edits", None) or [])
        self.modwright_format = kwargs.pop("modwright_format", FORMAT)
        if self.modwright_format > FORMAT:
            raise CheckpointError(
                f"the checkpoint has edits of format {self.modwright_format}; this modwright reads "
                f"up to {FORMAT}: install a newer one"
            )
        super().__post_init__(**kwargs)  # type: ignore[misc]
        own: Any = type(self)
        register_models(own)

    def layer_overrides(self) -> dict[int, dict[str, Any]]:
        """Layer -> what differs there, in the field names of the stock config."""
        family = family_of(self)
        overrides: dict[int, dict[str, Any]] = {}
        for edit in state_from_list(self.edits):
            if has_stock_tensors(edit, self):
                continue  # the stock class is right about the file
            index, role = split_address(edit.path)
            # What is not in a layer is told of the first one; its own numbers go before.
            entry = overrides.setdefault(index or 0, {})
            told = family.stock_class_guard(role, getattr(edit, "kwargs", None))
            if "skip" in told:
                told = {**told, "skip": sorted({*entry.get("skip", ()), *told["skip"]})}
            entry.update(told)
        return dict(sorted(overrides.items()))

    def _num_layers(self) -> int:
        return int(family_of(self).get("num_layers"))

    @property
    def per_layer_config(self) -> Sequence[Any]:
        """One resolved config per layer, as cache construction and exporters read it."""
        overrides = self.layer_overrides()
        # A cache of windows alone cannot be rolled back while nothing is in it.
        windows = {} if self._with_attention() else {"sliding_window": None}
        resolved = []
        for index in range(self._num_layers()):
            layer = copy.copy(self)
            layer.__dict__.update({**windows, **overrides.get(index, {})})
            resolved.append(layer)
        return resolved

    @per_layer_config.setter
    def per_layer_config(self, value: Any) -> None:
        if value:
            raise InvalidInputError("per_layer_config of a remodeled model follows from its edits")

    def _with_attention(self) -> list[int]:
        """The layers that have an attention."""
        gone = {edit.path for edit in state_from_list(self.edits) if not keeps_keys(edit)}
        layers = range(self._num_layers())
        return [index for index in layers if f"blocks.{index}.attention" not in gone]

    @property
    def kv_sharing_modes(self) -> list[str | None]:
        """Tells the cache of slots that no attention fills, in transformers' words for layers that
        use the keys of another one: it keeps nothing for them.
        """
        count, types = self._num_layers(), getattr(self, "layer_types", None)
        empty = unfilled_cache_layers(self._with_attention(), types, count)
        return ["reuse" if slot in empty else None for slot in range(count)]

    def to_dict(self) -> dict[str, Any]:
        return with_layers(super().to_dict(), self.layer_overrides())  # type: ignore[misc]

    def _guarded(self, told: dict[str, Any]) -> dict[str, Any]:
        return add_stock_class_guard(told, self.layer_overrides(), self, self._num_layers())

    def to_diff_dict(self) -> dict[str, Any]:
        """What is written to a file."""
        told = super().to_diff_dict()  # type: ignore[misc]
        return self._guarded(with_layers(told, self.layer_overrides()))

    def to_json_string(self, use_diff: bool = True) -> str:
        """What is written to a file: never without the lists, whichever form is asked for."""
        told: str = super().to_json_string(use_diff)  # type: ignore[misc]
        if use_diff:
            return told
        return json.dumps(self._guarded(json.loads(told)), indent=2, sort_keys=True) + "\n"


@cache
def remodeled_config(base: Any) -> type[PreTrainedConfig]:
    """The config class with ``edits`` for a stock config class.

    Dictionaries, files, Auto classes and copies with some fields changed all go through its
    constructor, which takes what its own files hold.
    """
    cls: Any = type(
        _PREFIX + base.__name__,
        (_RemodeledConfig, base),
        {
            "model_type": f"modwright_{base.model_type}",
            "__module__": __name__,
            "__reduce_ex__": _by_base,
            "_base": base,
        },
    )
    made_by_dataclass = cls.__init__

    @wraps(made_by_dataclass)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        made_by_dataclass(self, *args, **strip_stock_class_guard(kwargs))

    cls.__init__ = __init__
    found: type[PreTrainedConfig] = cls
    return found


@cache
def remodeled(base: Any) -> type[PreTrainedModel]:
    """The model class that replays its config's edits, for a stock model class.

    Example:
        >>> from transformers import LlamaForCausalLM
        >>> remodeled(LlamaForCausalLM).__name__
        'ModwrightLlamaForCausalLM'
    """
    config_class = remodeled_config(base.config_class)

    def __init__(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        super(cls, self).__init__(config, *args, **kwargs)
        replay(self, family_of(config, self), state_from_list(config.edits))
        renew_parents(self)
        with refusing(type(self).__name__):
            keep_float32(self)
        self.post_init()

    def initialize_weights(self: Any) -> None:
        """Parts of other packages, which stock classes do not know, start as they say."""
        initialize(self, self_initialized(self), super(cls, self).initialize_weights)

    cls: type[PreTrainedModel] = type(
        _PREFIX + base.__name__,
        (base,),
        {
            "__init__": __init__,
            # Of custom code transformers first initializes no module without tensors of its own.
            "is_custom_code": classmethod(lambda kind: False),
            "forward": _forward(base),
            **({"generate": generate_with_states(base)} if hasattr(base, "generate") else {}),
            "initialize_weights": initialize_weights,
            **{name: keeping_float32(getattr(base, name)) for name in ("to", "half", "bfloat16")},
            "__module__": __name__,
            "__doc__": f"{base.__name__} with the edits of its config.",
            "config_class": config_class,
            "config": None,
            # A static cache takes its shapes from the first keys and values, not from the config.
            "_get_static_cache_init_shape": lambda self: None,
            # transformers reads it off the source of a class's module: that of the stock one
            "_can_set_experts_implementation": classmethod(lambda kind: can_set_experts(base)),
            "__reduce_ex__": _by_base,
            "_base": base,
        },
    )
    return cls


def forward_with_all_maps(
    base: Any, replaced_in: Callable[[Any], tuple[int, Mapping[int, nn.Module]] | None]
) -> Any:
    """The forward of a stock class, for an edited model of it; None stands where there is no map.

    transformers records attention maps by the class of its own attentions. Where another part
    stands it records nothing, and the maps behind it would move up by a place.

    Args:
        base: the stock class.
        replaced_in: number of layers of a model, and what stands for attentions that were
            replaced, by layer; None where maps are not recorded layer by layer.
    """

    @wraps(base.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not kwargs.get("output_attentions", getattr(self.config, "output_attentions", False)):
            return base.forward(self, *args, **kwargs)
        if (found := replaced_in(self)) is None:
            return base.forward(self, *args, **kwargs)
        layers, replaced = found
        maps: dict[int, Tensor | None] = {}

        def note(index: int, call: Call) -> None:
            several = isinstance(call.output, tuple) and len(call.output) > 1
            maps[index] = call.output[1] if several and isinstance(call.output[1], Tensor) else None

        as_tuple = kwargs.get("return_dict", getattr(self.config, "return_dict", True)) is False
        if as_tuple:
            kwargs["return_dict"] = True
        with on_forward(replaced, note):
            out = base.forward(self, *args, **kwargs)
        if out.get("attentions") is not None:
            own = iter(out.attentions)
            # A fused attention gives no maps, and transformers then an empty tuple.
            out["attentions"] = tuple(
                maps.get(index) if index in replaced else next(own, None) for index in range(layers)
            )
        return out.to_tuple() if as_tuple else out

    return forward


def _forward(base: Any) -> Any:
    """The forward of a stock class, for an edited model of it."""
    with_all_maps = forward_with_all_maps(base, _replaced_attentions)

    @wraps(base.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("output_router_logits", getattr(self.config, "output_router_logits", False)):
            check_router_scores(self)
        check_cache(args, kwargs)
        return with_all_maps(self, *args, **kwargs)

    return forward


def _replaced_attentions(model: Any) -> tuple[int, dict[int, Any]] | None:
    """Number of layers, and what stands in place of a stock attention, by layer."""
    family = family_of(model.config, model)
    if not family.maps_by_layer:
        return None
    layers, replaced = family.layers(model), {}
    for edit in edits_of(model.config):
        index, role = split_address(edit.path)
        if index is not None and role == "attention":
            replaced[index] = layers[index].get_submodule(family.block[role])
    return len(layers), replaced


@cache
def register_models(config_class: Any) -> None:
    """Makes ``AutoModel...`` build the remodeled classes of one config, once the first is made."""
    stock = base_class(config_class)
    for auto in auto_classes():
        # Not another family's, which reads the config in part.
        own = [one for one in model_classes(auto, stock) if one.config_class is stock]
        if own:
            register_classes(auto, config_class, tuple(map(remodeled, own)))


def is_remodeled(model: Any) -> bool:
    """The model or config (or its class) carries edits."""
    kind = model if isinstance(model, type) else type(model)
    return "_base" in kind.__dict__


def is_plain(model: Any) -> bool:
    """Stock transformers opens the model's checkpoint: no edits, and no architecture of ours."""
    kind = model if isinstance(model, type) else type(model)
    return not is_remodeled(kind) and not kind.__module__.startswith("modwright.")


def base_class(kind: type[M]) -> type[M]:
    """The stock class behind a model or config class."""
    found: type[M] = kind.__dict__.get("_base", kind)
    return found


def edits_of(config: Any) -> tuple[State, ...]:
    """The edits that a model's config carries; none for a stock model."""
    return state_from_list(getattr(config, "edits", None) or []) if is_remodeled(config) else ()


def _by_base(self: Any, protocol: Any) -> tuple[Any, ...]:
    """How a config or model is pickled: by its stock class, which lies in a module of its own."""
    return _empty, (type(self)._base,), self.__dict__


def _empty(base: Any) -> Any:
    kind: Any = _class_over(base)
    return kind.__new__(kind)


def _class_over(base: Any) -> type[PreTrainedModel] | type[PreTrainedConfig]:
    return (remodeled if issubclass(base, PreTrainedModel) else remodeled_config)(base)


def __getattr__(name: str) -> Any:
    """Classes are made on demand; imports find them here by name, and so do older pickles."""
    stock = getattr(transformers, name.removeprefix(_PREFIX), None)
    if name.startswith(_PREFIX) and isinstance(stock, type):
        return _class_over(stock)
    raise AttributeError(f"module {sys.modules[__name__].__name__!r} has no attribute {name!r}")
