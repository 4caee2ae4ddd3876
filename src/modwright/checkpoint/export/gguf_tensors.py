"""The tensors of a GGUF file: names, order of rows, types; written one at a time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from modwright.checkpoint.export.gguf_header import Architecture
from modwright.core.errors import ModwrightError, VerificationError
from modwright.core.progress import Progress

__all__ = ["FILE_TYPES", "Stored", "check_tensors", "plan_tensors", "write_tensors"]

FILE_TYPES = {
    "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}
"""Type as users write it -> type of the matrices, and how the file calls itself."""


@dataclass(frozen=True)
class Stored:
    """One tensor of the file, and where it comes from.

    Attributes:
        name: in the file.
        source: in the model's state dict.
        kind: how its numbers are stored.
        heads: of how many heads its rows are, where they are put in rotary pairs; else 0.
    """

    name: str
    source: str
    kind: gguf.GGMLQuantizationType
    heads: int = 0


def plan_tensors(model: Any, architecture: Architecture, type_name: str) -> list[Stored]:
    """Every tensor that a model stores, a tied one once, as the file has it.

    Matrices get the type that was asked for, vectors float32. A matrix whose rows do not divide
    into blocks of the type gets float16.
    """
    arch = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture.name)
    names = gguf.get_tensor_name_map(arch, model.config.num_hidden_layers)
    wanted = FILE_TYPES[type_name][0]
    heads = {
        "attn_q": model.config.num_attention_heads,
        "attn_k": model.config.num_key_value_heads,
    }
    planned, seen = [], set()
    for source, tensor in model.state_dict(keep_vars=True).items():
        if tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        name = names.get_name(source, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise ModwrightError(f"GGUF's {architecture.name} has no tensor for {source}")
        kind = wanted if tensor.ndim > 1 else gguf.GGMLQuantizationType.F32
        block = gguf.GGML_QUANT_SIZES[kind][0]
        if tensor.shape[-1] % block:
            kind = gguf.GGMLQuantizationType.F16
        role = name.split(".")[-2]
        planned.append(
            Stored(name, source, kind, heads.get(role, 0) if architecture.permuted else 0)
        )
    return planned


def write_tensors(
    writer: Any, model: Any, planned: list[Stored], file: Path, progress: Progress
) -> None:
    """Writes header, metadata and tensors; one tensor at a time is held beside the model."""
    state = model.state_dict()
    for stored in planned:
        tensor = state[stored.source]
        block, size = gguf.GGML_QUANT_SIZES[stored.kind]
        nbytes = tensor.numel() // block * size
        writer.add_tensor_info(
            stored.name, tuple(tensor.shape), np.dtype(np.float32), nbytes, stored.kind
        )
    writer.write_header_to_file(file)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    with progress.phase(f"write {file.name}", len(planned)) as task:
        for stored in planned:
            writer.write_tensor_data(_packed(state[stored.source], stored))
            task.advance()
    writer.close()


def check_tensors(model: Any, read: Any, planned: list[Stored]) -> None:
    """Holds every tensor that was read back to the model's own, rounded as the file stores it.

    Raises:
        VerificationError: names the first that holds something else.
    """
    own, found = model.state_dict(), read.state_dict()
    for stored in planned:
        tensor = own[stored.source]
        packed = gguf.quantize(tensor.detach().float().numpy(), stored.kind)
        wanted = torch.from_numpy(gguf.dequantize(packed, stored.kind)).to(tensor.dtype)
        if not torch.equal(found[stored.source], wanted.view_as(tensor)):
            raise VerificationError(f"the file holds other values at {stored.name}")


def _packed(tensor: Any, stored: Stored) -> np.ndarray:
    values = tensor.detach().float().numpy()
    if stored.heads:
        values = _as_rotary_pairs(values, stored.heads)
    packed: np.ndarray = gguf.quantize(np.ascontiguousarray(values), stored.kind)
    return packed


def _as_rotary_pairs(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head, paired by halves (j, j + D / 2), as neighbors (2 j, 2 j + 1)."""
    half = values.shape[0] // heads // 2
    by_half = values.reshape(heads, 2, half, *values.shape[1:])
    return by_half.swapaxes(1, 2).reshape(values.shape)
