"""What transformers has no public name for. It is imported when it is asked for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

__all__ = ["attention_implementation", "attention_settings", "auto_classes"]
__all__ += ["blocks_in_one_piece", "build"]
__all__ += ["can_set_experts", "drops_final_norm", "extend_registered_configs"]
__all__ += ["forget_quantization", "has_adapters", "is_initialized", "is_loaded"]
__all__ += ["is_wholly_loaded", "keep_float32_on_loading", "keys_not_saved"]
__all__ += ["keys_without_a_type", "mark_initialized"]
__all__ += ["model_classes", "names_in_files", "names_when_read", "register_classes"]
__all__ += ["renew_parents", "set_attention"]


def model_classes(auto: Any, config_class: type[Any]) -> tuple[Any, ...]:
    """The classes that an Auto class may build for a config class, registered ones included."""
    mapping = auto._model_mapping
    if config_class not in mapping:
        return ()
    found = mapping[config_class]
    return tuple(found) if isinstance(found, list | tuple) else (found,)


def register_classes(auto: Any, config_class: type[Any], classes: tuple[Any, ...]) -> None:
    """Lets an Auto class build these classes for a config class: that which the config names, else
    the first."""
    auto._model_mapping.register(
        config_class, classes if len(classes) > 1 else classes[0], exist_ok=True
    )


def auto_classes() -> Iterator[Any]:
    """Every Auto class of models, in transformers' order: there is no list of them."""
    from transformers.models.auto import auto_factory, modeling_auto

    for auto in vars(modeling_auto).values():
        mapping = getattr(auto, "_model_mapping", None)
        if isinstance(auto, type) and isinstance(mapping, auto_factory._LazyAutoMapping):
            yield auto


def extend_registered_configs(mapping: Any, extended: Callable[[Any, Any], Any]) -> None:
    """Gives transformers' table of configs registered ones that are made when first asked for."""
    mapping._extra_content = extended(mapping._extra_content, mapping)


def attention_implementation(config: Any) -> str | None:
    """The attention function that a model runs; the public argument sets it and is not kept."""
    return getattr(config, "_attn_implementation", None)


def attention_settings(model: Any) -> list[tuple[Any, str | None]]:
    """Every config that a module of the model holds, or that lies in one, with its function.

    The public way to set it goes through a config to those inside of it, and reads one of them.
    """
    found: dict[int, tuple[Any, str | None]] = {}
    stack: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    while stack:
        config = stack.pop()
        if hasattr(config, "_attn_implementation_internal") and id(config) not in found:
            found[id(config)] = config, config._attn_implementation_internal
            stack += [getattr(config, name, None) for name in config.sub_configs]
    return list(found.values())


def set_attention(config: Any, name: str | None) -> None:
    """The attention function of one config, and not of those inside of it."""
    config._attn_implementation_internal = name


def can_set_experts(model_class: Any) -> bool:
    """Whether the class lets its experts be computed in several ways."""
    return bool(model_class._can_set_experts_implementation())


def is_loaded(tensor: Any) -> bool:
    """A checkpoint gave the tensor its values, so they are not drawn anew."""
    return bool(getattr(tensor, "_is_hf_initialized", False))


def is_initialized(module: Any) -> bool:
    """The values of the module's own tensors were drawn or loaded, so its host passes it over."""
    return bool(getattr(module, "_is_hf_initialized", False))


def mark_initialized(module: Any) -> None:
    """The rule of the model that a module stands in no longer draws its values."""
    module._is_hf_initialized = True


def is_wholly_loaded(module: Any) -> bool:
    """A module has parameters or buffers of its own, and a checkpoint gave all their values."""
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return bool(own) and all(map(is_loaded, own))


def renew_parents(module: Any) -> bool:
    """What holds a part without first values gets its own drawn again; true if there was one.

    A parent may set the first values of its children: GPT-2 scales those that write to the stream.
    """
    new = not getattr(module, "_is_hf_initialized", False)
    renewed = [renew_parents(child) for child in module.children()]
    if any(renewed):
        new, module._is_hf_initialized = True, False
    return new


def blocks_in_one_piece(model: Any) -> set[str]:
    """Names of the classes that are not split over devices: a model's blocks."""
    return set(getattr(model, "_no_split_modules", None) or ())


def keys_not_saved(model: Any) -> set[str]:
    """Tensors that ``save_pretrained`` leaves out."""
    return set(model._keys_to_ignore_on_save or ())


def keys_without_a_type(model: Any) -> list[str]:
    """Patterns of tensors that a class, or a model, keeps in float32 or does not read."""
    lists = ["_keep_in_fp32_modules", "_keep_in_fp32_modules_strict"]
    lists += ["_keys_to_ignore_on_load_unexpected"]
    return [key for name in lists for key in getattr(model, name, None) or ()]


def keep_float32_on_loading(model: Any, names: Iterable[str]) -> None:
    """Tensors of these names are float32 when a checkpoint is loaded into the model.

    They are found with the prefix of the backbone and without it.
    """
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    known = set(model._keep_in_fp32_modules_strict or ())
    ends = {re.escape(name.removeprefix(prefix)) for name in names}
    model._keep_in_fp32_modules_strict = known | {rf"(?:^|\.){end}$" for end in ends}


def has_adapters(model: Any) -> bool:
    """PEFT adapters are in the model, or around it: loaded, wrapped or injected."""
    return getattr(model, "_hf_peft_config_loaded", False) or any(
        type(module).__module__.startswith("peft.") for module in model.modules()
    )


def drops_final_norm(config: Any) -> bool:
    """An OPT of Meta's first checkpoints, which lacks the norm behind its blocks."""
    return bool(config._remove_final_layer_norm)


def build(model_class: Any, config: Any) -> Any:
    """A model with random weights; only Auto classes have a public ``from_config``."""
    return model_class._from_config(config)


def forget_quantization(config: Any) -> None:
    """A config no longer says that its weights were quantized."""
    for name in ("quantization_config", "_is_quantized"):
        config.__dict__.pop(name, None)


def names_in_files(model: Any, state: Mapping[str, Any]) -> tuple[set[str], dict[str, Any]]:
    """The names of what is saved, tied tensors once, and tensors by their names in files.

    For some families these are others; transformers applies the rules in the midst of saving. The
    tensors have shapes and no values.
    """
    import torch
    from transformers.core_model_loading import revert_weight_conversion
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    kept = remove_tied_weights_from_state_dict(dict(state), model)
    hollow = {name: torch.empty_like(tensor, device="meta") for name, tensor in kept.items()}
    return set(hollow), dict(revert_weight_conversion(model, dict(hollow)))


def names_when_read(model: Any, names: Iterable[str]) -> dict[str, str]:
    """Names in files -> the names that transformers makes of them when it opens such a model."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    others = [rule for rule in rules if not isinstance(rule, WeightRenaming)]
    return {name: rename_source_key(name, renamings, others)[0] for name in names}
