"""What the configs of transformers' Mamba, Falcon-Mamba and Mamba-2 say of their mixers.

A config is read by the names of its fields: what it says becomes the arguments of the component
that has the tensors of the stock mixer, by name, and computes the same from them.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from modwright.nn.token_mixers.state_space import StateSpaceOptions

__all__ = ["has_known_activation", "is_stock_mamba", "is_stock_mamba2", "stock_arguments"]

_START_VALUES = ("dt_min", "dt_max", "dt_init_floor", "dt_init", "dt_scale", "out_proj_scale")
_SILU = ("silu", "swish")


def stock_arguments(config: Any) -> dict[str, Any]:
    """The arguments of ``mamba1``, or of ``mamba2`` for a config of Mamba-2, as JSON values.

    Example:
        >>> from transformers import MambaConfig
        >>> told = stock_arguments(MambaConfig(hidden_size=32, state_size=8))
        >>> told["d_model"], told["d_state"], told["expand"], told["dt_rank"]
        (32, 8, 2, 2)
    """
    told = {
        "d_model": config.hidden_size,
        "d_state": config.state_size,
        "d_conv": config.conv_kernel,
        "bias": config.use_bias,
        "conv_bias": config.use_conv_bias,
    }
    dt = {
        "dt_min": config.time_step_min,
        "dt_max": config.time_step_max,
        "dt_init_floor": config.time_step_floor,
    }
    if config.model_type.endswith("mamba2"):
        low, high = config.time_step_limit
        sizes = {"n_heads": config.num_heads, "head_dim": config.head_dim}
        sizes |= {"n_groups": config.n_groups, "chunk": config.chunk_size}
        limit = [float(low), None if math.isinf(high) else float(high)]
        return {**told, **sizes, **dt, "dt_limit": limit, "norm_eps": config.layer_norm_epsilon}
    dt |= {"dt_init": config.time_step_init_scheme, "dt_scale": config.time_step_scale}
    expand = config.expand
    if int(expand * config.hidden_size) != config.intermediate_size:
        expand = config.intermediate_size / config.hidden_size
    told |= {"expand": expand, "dt_rank": int(config.time_step_rank), **dt}
    eps = getattr(config, "mixer_rms_eps", None)
    return told if eps is None else {**told, "read_norm_eps": eps}


def has_known_activation(config: Any) -> bool:
    """The mixers have SiLU behind the convolution and in the gate, as the components do."""
    return config.hidden_act in _SILU


def is_stock_mamba(kind: Any, config: Any, arguments: Mapping[str, Any]) -> bool:
    """``mamba1`` with these arguments is what the stock class of a config of Mamba computes."""
    return _is_stock(kind, config, arguments, ("mamba", "falcon_mamba"), ())


def is_stock_mamba2(kind: Any, config: Any, arguments: Mapping[str, Any]) -> bool:
    """``mamba2`` with these arguments is what the stock class of a config of Mamba-2 computes."""
    return _is_stock(kind, config, arguments, ("mamba2",), ("chunk",))


def _is_stock(
    kind: Any,
    config: Any,
    arguments: Mapping[str, Any],
    types: tuple[str, ...],
    idle: tuple[str, ...],
) -> bool:
    """Start values, and arguments that change nothing but speed, do not count."""
    if str(getattr(config, "model_type", "")).removeprefix("modwright_") not in types:
        return False
    if not has_known_activation(config):
        return False
    found, wanted = (_settings(kind, told) for told in (arguments, stock_arguments(config)))
    return all(
        found[name] == wanted[name] for name in wanted if name not in (*idle, *_START_VALUES)
    )


def _settings(kind: Any, told: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments, with their defaults, as numbers."""
    taken = inspect.signature(kind).parameters.values()
    usual = {p.name: p.default for p in taken if p.default is not p.empty}
    every = {**asdict(StateSpaceOptions()), **usual, **told}
    width = every["d_model"]
    if every.get("dt_rank") == "auto":
        every["dt_rank"] = math.ceil(width / 16)
    if every.get("n_heads") == "auto":
        every["n_heads"] = 2 * width // every["head_dim"]
    if "expand" in every:
        every["expand"] = int(every["expand"] * width)
    low, high = every["dt_limit"]
    every["dt_limit"] = (float(low or 0.0), high)
    return every
