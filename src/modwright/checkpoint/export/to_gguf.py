"""A GGUF file, for a plain model of a family that the format and its readers know."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

import gguf
import numpy as np
import torch
from transformers import PreTrainedConfig

from modwright.checkpoint.export.comparing import ParityReport, compare, rounding
from modwright.checkpoint.export.gguf_tokens import add_tokenizer, compare_tokens
from modwright.checkpoint.export.serving import differences
from modwright.checkpoint.export.target import Target, register_target
from modwright.checkpoint.gguf_header import read_header
from modwright.checkpoint.opening import Checkpoint
from modwright.checkpoint.opening import open as open_checkpoint
from modwright.checkpoint.silence import quiet
from modwright.core.errors import InvalidInputError, ModwrightError, VerificationError, first_line
from modwright.core.progress import Progress
from modwright.edits.remodeled import is_remodeled

__all__ = ["Gguf"]

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""Model type of transformers -> architecture of llama.cpp."""

# Rows of queries and keys stand there as rotary pairs (0, 1), (2, 3) and so on, where transformers
# pairs the halves of a head.
_PERMUTED = ("llama",)
_TYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}

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


@register_target("gguf")
@dataclass(frozen=True)
class Gguf(Target):
    """One ``.gguf`` file with weights, tokenizer and chat template, for llama.cpp and its kin.

    Attributes:
        type: of the matrices: "f32", "f16", "bf16", "q8_0" (8-bit blocks), or "auto" for the
            model's own; vectors are float32.
    """

    type: Literal["auto", "f32", "f16", "bf16", "q8_0"] = "auto"

    def refusal(self, model: Any) -> str | None:
        found = differences(model)
        if found:
            return (
                f'layers differ ({"; ".join(found)}); of llama.cpp\'s architectures, "deci" takes '
                "heads and widths per layer, and it is not written yet"
            )
        if is_remodeled(model):
            return (
                "the config names components that a stock class needs not; export --to plain first"
            )
        if model.config.model_type not in ARCHITECTURES:
            return (
                f"model type {model.config.model_type!r} is not written as GGUF here; valid: "
                f"{', '.join(ARCHITECTURES)}"
            )
        if not type(model).__name__.endswith("ForCausalLM"):
            return f"a {type(model).__name__} is no causal language model"
        return _lost(model.config)

    def _type_for(self, model: Any) -> str:
        """The type of the matrices; "auto" follows the model."""
        own = str(model.dtype).removeprefix("torch.")
        if self.type == "auto" and own not in _TYPES:
            raise InvalidInputError(
                f"no GGUF type is as wide as {own}; give one: f32, f16, bf16, q8_0"
            )
        return _TYPES[own] if self.type == "auto" else self.type

    def _file_name(self, work: Checkpoint) -> str:
        stem = re.sub(r"[^\w.-]+", "-", work.name).strip("-") or "model"
        return f"{stem}-{self._type_for(work.model).upper()}.gguf"

    def write(self, work: Checkpoint, folder: Path, progress: Progress) -> None:
        model, kind = work.model, self._type_for(work.model).upper()
        file = folder / self._file_name(work)
        writer = gguf.GGUFWriter(file, ARCHITECTURES[model.config.model_type])
        writer.add_type("model")
        # transformers takes a llama file with just this name for an architecture it cannot read.
        writer.add_name("Mistral" if work.name == "mistral" else work.name)
        named = "ALL_F32" if kind == "F32" else f"MOSTLY_{kind}"
        writer.add_file_type(gguf.LlamaFileType[named])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        add_config(writer, model.config)
        add_tokenizer(writer, work)
        _write_tensors(writer, model, _plan_tensors(model, kind), file, progress)

    def compare(self, work: Checkpoint, folder: Path) -> ParityReport:
        model = work.model
        again = open_checkpoint(folder / self._file_name(work), dtype=model.dtype)
        _check_tensors(model, again.model, _plan_tensors(model, self._type_for(model).upper()))
        return compare(
            work,
            lambda batch: again.model(**batch)[0],
            opened_with="transformers' GGUF reader",
            tolerance=rounding(model),
            weights=dict(again.model.named_parameters()),
            said=compare_tokens(work.tokenizer, again.tokenizer) if work.tokenizer else "",
        )

    def holds(self, name: str) -> bool:
        return name.startswith(("tokenizer", "vocab", "merges", "special_tokens_map", "added_tok"))

    def opening(self, work: Checkpoint) -> str:
        opened = {"AutoModelForCausalLM": "model"}
        if work.tokenizer:
            opened["AutoTokenizer"] = "tokenizer"
        lines = [f"from transformers import {', '.join(opened)}", ""]
        lines += [
            f'{what} = {auto}.from_pretrained(".", gguf_file="{self._file_name(work)}")'
            for auto, what in opened.items()
        ]
        return "\n".join(lines)


def add_config(writer: gguf.GGUFWriter, config: Any) -> None:
    """Writes what shapes the model: widths, heads, rotary base, epsilon."""
    head_dim = _head_dim(config)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _lost(config: Any) -> str | None:
    """What a reader of the file would take for something else; None when it says everything.

    A header is written and read back by transformers' parser, and the two configs are compared.
    """
    with tempfile.TemporaryDirectory(prefix="modwright-") as place, quiet():
        file = Path(place, "header.gguf")
        writer = gguf.GGUFWriter(file, ARCHITECTURES[config.model_type])
        try:
            add_config(writer, config)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            read = read_header(file, settled=False).config
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return f"the config does not fit the format: {first_line(error)}"
    # What belongs to its architecture and shapes a forward pass.
    common = {field.name for field in fields(PreTrainedConfig)} | _SILENT
    own = {field.name: getattr(config, field.name, None) for field in fields(type(config))}
    if own.get("head_dim", 0) is None:
        own["head_dim"] = _head_dim(config)
    odd = [
        f"{name} {value!r} would be read as {getattr(read, name, None)!r}"
        for name, value in own.items()
        if name not in common and not _same(value, getattr(read, name, None))
    ]
    return f"of the file as it is written so far, {'; '.join(odd)}" if odd else None


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, int | float):
        return abs(one - other) <= 1e-6 * abs(one)  # the file has float32
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    return bool(one == other)


class _Stored(NamedTuple):
    """One tensor of the file: its name there and in the state dict, and how numbers are stored.

    Its rows are those of so many heads, where they are put in rotary pairs; else of 0.
    """

    name: str
    source: str
    kind: gguf.GGMLQuantizationType
    heads: int


def _plan_tensors(model: Any, kind_name: str) -> list[_Stored]:
    """Every tensor that a model stores, a tied one once, as the file has it.

    Matrices get the type that was asked for, vectors float32. A matrix whose rows do not divide
    into blocks of the type gets float16.
    """
    config, kinds = model.config, gguf.GGMLQuantizationType
    architecture = ARCHITECTURES[config.model_type]
    arch = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    planned, seen = [], set()
    for source, tensor in model.state_dict(keep_vars=True).items():
        if tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        name = names.get_name(source, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise ModwrightError(f"GGUF's {architecture} has no tensor for {source}")
        kind = kinds[kind_name] if tensor.ndim > 1 else kinds.F32
        if tensor.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
            kind = kinds.F16
        paired = heads.get(name.split(".")[-2], 0) if architecture in _PERMUTED else 0
        planned.append(_Stored(name, source, kind, paired))
    return planned


def _write_tensors(
    writer: gguf.GGUFWriter, model: Any, planned: list[_Stored], file: Path, progress: Progress
) -> None:
    """Writes header, metadata and tensors; one tensor at a time is held beside the model."""
    state, float32 = model.state_dict(), np.dtype(np.float32)
    for name, source, kind, _ in planned:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        nbytes = state[source].numel() // block * size
        writer.add_tensor_info(name, tuple(state[source].shape), float32, nbytes, kind)
    writer.write_header_to_file(file)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    with progress.phase(f"write {file.name}", len(planned)) as task:
        for _, source, kind, heads in planned:
            values = state[source].detach().float().numpy()
            if heads:
                values = _as_rotary_pairs(values, heads)
            writer.write_tensor_data(gguf.quantize(np.ascontiguousarray(values), kind))
            task.advance()
    writer.close()


def _as_rotary_pairs(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head, paired by halves (j, j + D / 2), as neighbors (2 j, 2 j + 1)."""
    half = values.shape[0] // heads // 2
    by_half = values.reshape(heads, 2, half, *values.shape[1:])
    return by_half.swapaxes(1, 2).reshape(values.shape)


def _check_tensors(model: Any, read: Any, planned: list[_Stored]) -> None:
    """Holds every tensor that was read back to the model's own, rounded as the file stores it."""
    own, found = model.state_dict(), read.state_dict()
    for name, source, kind, _ in planned:
        packed = gguf.quantize(own[source].detach().float().numpy(), kind)
        wanted = torch.from_numpy(gguf.dequantize(packed, kind)).to(own[source].dtype)
        if not torch.equal(found[source], wanted.view_as(own[source])):
            raise VerificationError(f"the file holds other values at {name}")
