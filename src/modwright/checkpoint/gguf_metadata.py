"""What a GGUF file says of its model, held against the config that was made of it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError

from modwright.core.errors import CheckpointError

__all__ = ["ROTARY_FACTORS", "settle", "unexplained_tensors"]

ROTARY_FACTORS = "rope_freqs.weight"
"""The tensor that rotary frequencies are divided by: Llama 3.1 and later have it."""

# Keys that say where a file comes from, how it was made, and how text becomes tokens.
_ABOUT = re.compile(
    r"(GGUF|general|quantize|mradermacher|split)\."
    r"|tokenizer\.(chat_template(s?$|\.)|(huggingface\.json|rwkv\.world)$)"
    r"|tokenizer\.ggml\.(.*_token_ids?|add_(bos|eos|sep)_token|add_space_prefix|merges|model|pre"
    r"|precompiled_charsmap|remove_extra_whitespaces|scores|tokens|token_type(_count)?)$"
)
# Below the architecture's name: hints that no forward pass looks at.
_SILENT = {
    "context_length",
    "pooling_type",
    "rope.scaling.finetuned",
    "tensor_data_layout",
    "vocab_size",
}
# Old files hold the rotary table of each block, and no reader uses it.
_SILENT_TENSORS = (".attn_rot_embd.weight", ".rope_freqs.weight")
_EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon")
# Key -> the fields of a config that say it; the first that the config has counts.
_FIELDS: dict[str, tuple[str, ...]] = {
    "attention.layer_norm_epsilon": _EPSILONS,
    "attention.layer_norm_rms_epsilon": _EPSILONS,
    "attention.key_length": ("head_dim", "d_kv"),
    "attention.value_length": ("head_dim", "d_kv"),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "decoder_block_count": ("num_decoder_layers",),
    "expert_feed_forward_length": ("moe_intermediate_size", "intermediate_size"),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    "expert_weights_norm": ("norm_topk_prob",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "use_parallel_residual": ("use_parallel_residual",),
}
# Key -> the value at which it says nothing beyond the stock architecture.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0,),
    "attention.head_count": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.sliding_window": (0,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "expert_shared_count": (0,),
    "expert_weights_scale": (0, 1),
    "feed_forward_length": (0,),
    "leading_dense_block_count": (0,),
    "logit_scale": (0, 1),
    "nextn_predict_layers": (0,),
    "rope.scale_linear": (0, 1),
    "rope.scaling.attn_factor": (0, 1),
    "rope.scaling.factor": (0, 1),
    "rope.scaling.original_context_length": (0,),
    "rope.scaling.type": ("none",),
    "ssm.dt_b_c_rms": (False,),
}


def settle(
    file: Path,
    architecture: str,
    keys: Mapping[str, Any],
    config: transformers.PreTrainedConfig,
    factors: np.ndarray | None = None,
) -> None:
    """Make ``config`` say what the file says, or refuse the file.

    transformers' parser passes over keys that it does not know, so a file with an own epsilon would
    open as another function. Every key is either known to change nothing, or the config says the
    same, or is made to; what is left is refused by name.

    Args:
        file: for messages.
        architecture: what the names of its own keys begin with.
        keys: the metadata; of lists that were stepped over, anything.
        config: as transformers' parser left it; fields are set where it missed a plain number.
        factors: values of `ROTARY_FACTORS`, if the file has them.

    Raises:
        CheckpointError: a key would change what the model computes, and is not read.
    """
    if keys.get("split.count", 1) not in (0, 1):
        raise CheckpointError(
            f"{file} is one of {keys['split.count']} parts; merge them first (llama-gguf-split "
            "--merge)"
        )
    note = _note(architecture, config)
    prefix = f"{architecture}."
    own = {key.removeprefix(prefix): v for key, v in keys.items() if not _ABOUT.match(key)}
    for key, value in _without_linear_scaling(own, config).items():
        if key in note or key in _SILENT or value in _NEUTRAL.get(key, ()):
            continue
        explain = _EXPLAIN.get(key) or partial(_by_field, _FIELDS.get(key, ()))
        try:
            explained = explain(config, value)
        except (ArithmeticError, TypeError, ValueError, StrictDataclassError):
            explained = False  # a value of another type than such a key has
        if not explained:
            name = key if key in keys else f"{architecture}.{key}"
            raise CheckpointError(
                f"{file}: its key {name} = {value!r} is not read here, and the model would compute "
                "something else without it; open the original checkpoint instead"
            )
    if factors is not None and not np.allclose(factors, 1):
        _scale_rotary(file, config, factors.astype(np.float64))


def unexplained_tensors(names: Collection[str], head: str | None) -> list[str]:
    """Of tensors that the model has no place for, those that a forward pass would use.

    Example:
        >>> unexplained_tensors(["blk.0.attn_q.bias", "blk.0.attn_rot_embd.weight"], None)
        ['blk.0.attn_q.bias']
    """
    output = ("output.weight", "output.bias") if head is not None else ()
    return sorted(
        name
        for name in names
        if name not in (ROTARY_FACTORS, *output) and not name.endswith(_SILENT_TENSORS)
    )


def _note(architecture: str, config: transformers.PreTrainedConfig) -> set[str]:
    """The keys that transformers' parser took into the config, as the config bears out."""
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    with suppress(ImportError):  # before 5.18
        from transformers.integrations.gguf import gguf_config_mapping

        if rules := gguf_config_mapping.GGUF_CONFIG_ARCHS.get(architecture):
            asked = _Asked(architecture)
            rules(asked, ())
            return asked.names
    spelled = (config.model_type.removesuffix("_text"), architecture.replace("-", "_"))
    mapped: dict[str, str | None] = next(
        (GGUF_CONFIG_MAPPING[name] for name in spelled if name in GGUF_CONFIG_MAPPING), {}
    )
    return {key for key, name in mapped.items() if name is not None and key not in _EXPLAIN}


class _Asked(dict[str, Any]):
    """Metadata that notes which of its keys are read; every number is one."""

    def __init__(self, architecture: str) -> None:
        super().__init__()
        self.architecture, self.names = architecture, set[str]()

    def __missing__(self, key: str) -> Any:
        self.names.add(key.removeprefix(f"{self.architecture}."))
        return [1] if key.endswith(("head_count_kv", "dimension_sections")) else 1

    def get(self, key: str, default: Any = None) -> Any:
        return self[key]


def _close(one: Any, other: Any) -> bool:
    if isinstance(one, bool) or not isinstance(one, int | float):
        return bool(one == other)
    if not isinstance(other, int | float):
        return False
    return math.isclose(one, other, rel_tol=1e-6)  # the file has float32


def _by_field(names: tuple[str, ...], config: Any, value: Any) -> bool:
    """Set the first of the fields that a config has, unless it says so already."""
    name = next((name for name in names if hasattr(config, name)), None)
    if name is None or (name == "head_dim" and config.head_dim is None):
        return "head_dim" in names and _close(value, _head_dim(config))
    if not _close(value, getattr(config, name)):
        setattr(config, name, value)
    return True


def _head_dim(config: Any) -> int | None:
    own = getattr(config, "head_dim", None)
    if own is not None:
        return int(own)
    heads = getattr(config, "num_attention_heads", None)
    return int(config.hidden_size) // heads if isinstance(heads, int) and heads else None


def _rotary(config: Any) -> dict[str, Any] | None:
    """The rotary settings, those of the layers that see everything where kinds differ."""
    settings = getattr(config, "rope_parameters", None)
    if not isinstance(settings, dict):
        return None
    nested = settings.get("full_attention")
    return nested if isinstance(nested, dict) else settings


def _base(config: Any, value: float) -> bool:
    rotary = _rotary(config)
    if rotary is None:
        return False
    if not _close(value, rotary.get("rope_theta")):
        rotary["rope_theta"] = value
    return True


def _local_base(config: Any, value: float) -> bool:
    local = (getattr(config, "rope_parameters", None) or {}).get("sliding_attention")
    return isinstance(local, dict) and _close(value, local.get("rope_theta"))


def _rotary_width(config: Any, value: int) -> bool:
    rotary, width = _rotary(config), _head_dim(config)
    if rotary is None or width is None:
        return False
    share = rotary.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", None))
    return int(width * (1.0 if share is None else share)) == value


def _window(config: Any, value: int) -> bool:
    if config.model_type in ("mistral", "phi3", "starcoder2"):  # windows in every layer, or none
        config.sliding_window = value
        return True
    return bool(getattr(config, "sliding_window", None) == value)


def _window_pattern(config: Any, value: Any) -> bool:
    kinds = [kind == "sliding_attention" for kind in getattr(config, "layer_types", None) or ()]
    if isinstance(value, int):
        value = [(layer + 1) % value != 0 for layer in range(len(kinds))] if value > 0 else None
    return bool(kinds) and value == kinds


def _softmax_scale(config: Any, value: float) -> bool:
    scalar = getattr(config, "query_pre_attn_scalar", None)
    usual = _head_dim(config) if scalar is None else scalar
    return usual is not None and _close(value, usual**-0.5)


def _gating(config: Any, value: int) -> bool:
    softmax = config.model_type in ("qwen2_moe", "qwen3_moe")
    named = getattr(config, "scoring_func", "softmax" if softmax else None)
    return bool({1: "softmax", 2: "sigmoid"}.get(value) == named)


def _yarn(field: str, config: Any, value: Any) -> bool:
    """gpt-oss says in its config how its rotary angles are scaled."""
    return _close(value, (_rotary(config) or {}).get(field))


_EXPLAIN: dict[str, Callable[[Any, Any], bool]] = {
    "attention.key_length_swa": lambda config, value: _close(value, _head_dim(config)),
    "attention.value_length_swa": lambda config, value: _close(value, _head_dim(config)),
    "attention.scale": _softmax_scale,
    "attention.sliding_window": _window,
    "attention.sliding_window_pattern": _window_pattern,
    "expert_gating_func": _gating,
    "rope.dimension_count": _rotary_width,
    "rope.freq_base": _base,
    "rope.freq_base_swa": _local_base,
    "rope.scaling.factor": partial(_yarn, "factor"),
    "rope.scaling.original_context_length": partial(_yarn, "original_max_position_embeddings"),
    "rope.scaling.type": partial(_yarn, "rope_type"),
    "rope.scaling.yarn_beta_fast": partial(_yarn, "beta_fast"),
    "rope.scaling.yarn_beta_slow": partial(_yarn, "beta_slow"),
}


def _without_linear_scaling(own: dict[str, Any], config: Any) -> dict[str, Any]:
    """Positions divided by one number are read; two keys can say so."""
    linear = own.get("rope.scaling.type", "linear") == "linear"
    factor = own.get("rope.scaling.factor", 0) if linear else 0
    factor = factor or own.get("rope.scale_linear", 0)
    rotary = _rotary(config)
    plain = rotary is not None and rotary is config.rope_parameters
    if not plain or not isinstance(factor, int | float) or factor in (0, 1):
        return own
    config.rope_parameters = {**config.rope_parameters, "rope_type": "linear", "factor": factor}
    read = {"rope.scaling.type", "rope.scaling.factor", "rope.scale_linear"}
    if linear:  # where the original context ended changes nothing then
        read.add("rope.scaling.original_context_length")
    return {key: value for key, value in own.items() if key not in read}


def _scale_rotary(file: Path, config: Any, factors: np.ndarray) -> None:
    """Find the rotary scaling whose frequencies are the usual ones divided by ``factors``."""
    rotary = _rotary(config)
    plain = rotary is not None and rotary is config.rope_parameters
    sane = bool(np.isfinite(factors).all()) and float(factors.min()) > 0
    if rotary and plain and sane and rotary.get("rope_type", "default") == "default":
        for found in _scalings(factors, rotary["rope_theta"]):
            if _gives(config, {**rotary, **found}, factors):
                config.rope_parameters = {**rotary, **found}
                return
    raise CheckpointError(
        f"{file}: its tensor {ROTARY_FACTORS} divides the rotary frequencies by "
        f"{factors.min():.4g} to {factors.max():.4g}, which no known rotary scaling of "
        f"{config.model_type} does; open the original checkpoint instead"
    )


def _scalings(factors: np.ndarray, base: float) -> Iterator[dict[str, Any]]:
    """What may give such factors: one for all, or Llama 3's.

    There short waves stay, long ones are divided, between them it is smooth. Of the three numbers
    that say where, two are told by the frequencies; the lower bound is one original context, as in
    all that were published.
    """
    if np.allclose(factors, factors[0]):
        yield {"rope_type": "linear", "factor": float(factors[0])}
    factor = float(factors.max())

    def llama3(high: float, original: int) -> dict[str, Any]:
        bounds = {"low_freq_factor": 1.0, "high_freq_factor": high}
        bounds["original_max_position_embeddings"] = original
        return {"rope_type": "llama3", "factor": factor, **bounds}

    for original in (8192, 4096, 2048):
        yield llama3(4.0, original)
    # (pairs,): waves of each frequency over one position
    waves = base ** (-np.arange(len(factors)) / len(factors)) / (2 * math.pi)
    between = (factors > 1 + 1e-5) & (factors < factor * (1 - 1e-5))
    if between.sum() < 2:
        return
    smooth = (1 / factors[between] - 1 / factor) / (1 - 1 / factor)
    slope, start = np.polyfit(waves[between], smooth, 1)
    if start < 0 < slope:
        high = float(1 - 1 / start)
        original = round(slope * (high - 1))
        yield llama3(float(round(high)), original)
        yield llama3(high, original)


def _gives(config: Any, settings: dict[str, Any], factors: np.ndarray) -> bool:
    """Whether transformers' own formula leads to the usual frequencies divided by ``factors``."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    tried = deepcopy(config)
    tried.rope_parameters = settings
    try:
        scaled, strength = ROPE_INIT_FUNCTIONS[settings["rope_type"]](tried, torch.device("cpu"))
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return False
    pairs = len(factors)
    if scaled.shape != (pairs,) or strength != 1:
        return False
    usual = settings["rope_theta"] ** (-np.arange(pairs) / pairs)
    return bool(np.allclose(scaled.double().numpy() * factors, usual, rtol=1e-4, atol=0))
