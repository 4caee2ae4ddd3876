"""Presets: random-weight models made from a config alone, the same weights on every machine."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from modwright.core.errors import InvalidInputError, unknown_name
from modwright.core.registry import Registry

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

__all__ = ["PREFIX", "PRESETS", "preset_config", "preset_names", "register_preset"]

PREFIX = "preset:"
PRESETS: Registry[Callable[[], PreTrainedConfig]] = Registry("preset")


def register_preset(name: str, make_config: Callable[[], PreTrainedConfig]) -> None:
    """Make ``preset:NAME`` openable: a model with random weights (seed 0) from a config.

    Args:
        name: what follows ``preset:``; registering another config under a used name is refused.
        make_config: builds the config; called at each opening, so importing stays cheap.

    Example:
        >>> from transformers import LlamaConfig
        >>> register_preset("doc-tiny", lambda: LlamaConfig(hidden_size=16, num_hidden_layers=1))
        >>> "doc-tiny" in preset_names()
        True
    """
    if not name or name != name.strip():
        raise InvalidInputError(f"a preset needs a name without spaces around it, not {name!r}")
    PRESETS.add(name, make_config)


def preset_names() -> tuple[str, ...]:
    """All names, sorted, without the prefix ``preset:``: registered ones and those of families."""
    return tuple(sorted(_known()))


def _known() -> dict[str, Callable[[], PreTrainedConfig]]:
    """Every family brings a tiny model of its own to try things on."""
    from modwright.anatomy.families import families

    found: dict[str, Callable[[], PreTrainedConfig]] = {}
    for model_type, family in families().items():
        for name, settings in family.presets.items():
            found.setdefault(name, partial(_family_config, model_type, settings))
    return {**found, **PRESETS.all()}


def _family_config(model_type: str, settings: dict[str, Any]) -> PreTrainedConfig:
    from transformers import AutoConfig

    config: PreTrainedConfig = AutoConfig.for_model(model_type, **settings)
    return config


def preset_config(name: str) -> PreTrainedConfig:
    """A fresh config of the preset.

    Raises:
        InvalidInputError: unknown name; the valid ones are listed.
    """
    known = _known()
    if name not in known:
        raise unknown_name("preset", name, sorted(known))
    return known[name]()
