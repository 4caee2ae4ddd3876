"""The metadata of a GGUF file for a config, and what of the config such a file cannot say."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from modwright.core.errors import first_line

__all__ = ["ARCHITECTURES", "Architecture", "add_config", "lost"]


@dataclass(frozen=True)
class Architecture:
    """How llama.cpp knows a family.

    Attributes:
        name: its name there.
        permuted: rows of queries and keys stand as rotary pairs (0, 1), (2, 3) and so on, where
            transformers pairs the halves of a head.
    """

    name: str
    permuted: bool = False


ARCHITECTURES = {
    "llama": Architecture("llama", permuted=True),
    "mistral": Architecture("llama", permuted=True),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
}
"""Model type of transformers -> architecture of llama.cpp."""

# Fields that say nothing of what a forward pass computes, or that others say as well.
_SILENT = {
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "initializer_range",
    "max_window_layers",  # layer_types says what it leads to
    "pad_token_id",
    "pretraining_tp",
    "tie_word_embeddings",  # told by the tensors that are there
    "use_cache",
    "use_sliding_window",  # so does sliding_window
}


def add_config(writer: Any, config: Any) -> None:
    """Writes what shapes the model: widths, heads, rotary base, epsilon."""
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def lost(config: Any) -> str | None:
    """What a reader of the file would take for something else; None when it says everything.

    A header is written and read back by transformers' parser, and the two configs are compared.
    """
    import gguf

    from modwright.checkpoint.export.tracing import quiet
    from modwright.checkpoint.gguf_header import read_header

    architecture = ARCHITECTURES[config.model_type]
    with tempfile.TemporaryDirectory(prefix="modwright-") as place, quiet():
        file = Path(place, "header.gguf")
        writer = gguf.GGUFWriter(file, architecture.name)
        try:
            add_config(writer, config)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            read = read_header(file, settled=False).config
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return f"the config does not fit the format: {first_line(error)}"
    odd = [
        f"{name} {value!r} would be read as {getattr(read, name, None)!r}"
        for name, value in _shaping(config).items()
        if not _same(value, getattr(read, name, None))
    ]
    return f"of the file as it is written so far, {'; '.join(odd)}" if odd else None


def _shaping(config: Any) -> dict[str, Any]:
    """The fields of a config that belong to its architecture and shape a forward pass."""
    from transformers import PreTrainedConfig

    common = {field.name for field in fields(PreTrainedConfig)} | _SILENT
    own = (field.name for field in fields(type(config)))
    note = {name: getattr(config, name, None) for name in own if name not in common}
    if note.get("head_dim", 0) is None:
        note["head_dim"] = config.hidden_size // config.num_attention_heads
    return note


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, int | float):
        return abs(one - other) <= 1e-6 * abs(one)  # the file has float32
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    return bool(one == other)
