"""Loads a GGUF file into a plain model, holding one copy of the weights and a small window.

transformers knows how each architecture's names and layouts map (its config parser, its name map
and its tensor processors are used here); it collects all tensors before it fills the model, which
takes one and a half times the weights. Here each tensor is read when the model asks for it, a few
rows at a time, and goes straight into its final type.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from transformers import modeling_gguf_pytorch_utils as reference

from modwright.checkpoint.classes import model_class
from modwright.checkpoint.directory import Loaded, check_loading, placement
from modwright.checkpoint.gguf_header import Header, StoredTensor, has_rules, read_header
from modwright.checkpoint.gguf_metadata import ROTARY_FACTORS, unexplained_tensors
from modwright.checkpoint.memory import require_memory
from modwright.checkpoint.plausible import require_fit
from modwright.checkpoint.silence import silence_transformers
from modwright.core.compat.transformers import forget_quantization
from modwright.core.errors import CheckpointError, ModwrightError, first_line
from modwright.core.modes import set_eval
from modwright.core.progress import Progress, Task

__all__ = ["load_gguf"]

# Values dequantized at a time: the window that is held beside the weights, 1 MB in float32.
_WINDOW = 2**18


def load_gguf(
    file: Path,
    dtype: torch.dtype | None,
    device: torch.device | None,
    head: str | None,
    progress: Progress,
) -> Loaded:
    """Build the model of a GGUF file with dequantized weights, no record of quantization left.

    Args:
        file: the GGUF file.
        dtype: type of the weights, float32 by default; values are dequantized in float32 and
            rounded once.
        device: where the weights go; None is the CPU.
        head: another class than the causal language model, see `classes.HEADS`.
        progress: hears of each tensor.

    Raises:
        CheckpointError: the file is damaged, or of an architecture transformers cannot read.
    """
    dtype = dtype or torch.float32
    try:
        with silence_transformers():
            header = read_header(file)
        cls = model_class(header.config, head)
        values = sum(math.prod(tensor.shape) for tensor in header.tensors)
        require_fit(cls, header.config, values, str(file))
        if device is None:
            require_memory(values * dtype.itemsize, f"opening {file.name}")
        load = _load_by_rules if has_rules(header.architecture) else _load_streaming
        phase = progress.phase(f"opening {file.name}", len(header.tensors))
        with phase as task, silence_transformers():
            model, info = load(
                file,
                header,
                cls,
                task,
                config=header.config,
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **placement(device),
            )
    except ModwrightError:
        raise
    except Exception as error:
        raise CheckpointError(f"{file} cannot be loaded: {first_line(error)}") from error
    check_loading(info, str(file), cls.__name__)
    unexpected_keys = [name for name in sorted(info["unexpected_keys"]) if name != ROTARY_FACTORS]
    odd = unexplained_tensors(unexpected_keys, head)
    if odd:
        more = f" (and {len(odd) - 3} more)" if len(odd) > 3 else ""
        raise CheckpointError(
            f"{file}: {cls.__name__} has no place for {', '.join(odd[:3])}{more}, and would "
            "compute something else without; open the original checkpoint instead"
        )
    # What would keep a now plain model from being saved as one.
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        model.__dict__.pop(name, None)
    forget_quantization(model.config)
    model.config.name_or_path = model.name_or_path = ""
    return Loaded(set_eval(model), tuple(unexpected_keys))


def _load_streaming(
    file: Path, header: Header, cls: Any, task: Task, **arguments: Any
) -> tuple[transformers.PreTrainedModel, dict[str, Any]]:
    """Let transformers fill the model from tensors that are read when it asks for them."""
    make_processor = reference.TENSOR_PROCESSORS.get(header.architecture, reference.TensorProcessor)
    processor = make_processor(config=header.config.to_dict())
    names = _target_names(cls, header, processor)
    parts: dict[str, list[StoredTensor]] = {}
    unexpected_keys: set[str] = set()
    for tensor in header.tensors:
        target = _target(tensor, names)
        if target is None:
            unexpected_keys.add(tensor.name)
            task.advance()
        else:
            parts.setdefault(target, []).append(tensor)
    common = (file, processor, names, arguments["dtype"], task)
    state = {target: _OnDemand(*common, target, tensors) for target, tensors in parts.items()}
    model, info = cls.from_pretrained(None, state_dict=state, **arguments)
    return model, {**info, "unexpected_keys": unexpected_keys | set(info["unexpected_keys"])}


def _load_by_rules(
    file: Path, header: Header, cls: Any, task: Task, **arguments: Any
) -> tuple[transformers.PreTrainedModel, dict[str, Any]]:
    quantization = transformers.GgufConfig(dequantize=True)
    model, info = cls.from_pretrained(
        str(file.parent), gguf_file=file.name, quantization_config=quantization, **arguments
    )
    task.advance(len(header.tensors))
    return model, info


@dataclass(eq=False)
class _Top:
    """A model with its submodules seen one level deep: enough to map names, and a lot quicker."""

    module: torch.nn.Module
    levels: int

    @property
    def config(self) -> Any:
        return getattr(self.module, "config", None)

    def state_dict(self) -> dict[str, Any]:
        return self.module.state_dict()

    def named_children(self) -> list[tuple[str, _Top]]:
        children = self.module.named_children() if self.levels else ()
        return [(name, _Top(child, self.levels - 1)) for name, child in children]


def _target_names(cls: Any, header: Header, processor: Any) -> dict[str, str]:
    """The name map from the file to the model, by transformers' own rules."""
    with torch.device("meta"):
        skeleton = cls(copy.deepcopy(header.config))
    names: dict[str, str] = reference.get_gguf_hf_weights_map(_Top(skeleton, 1), processor)
    if any(_target(tensor, names) is None for tensor in header.tensors):
        names = reference.get_gguf_hf_weights_map(skeleton, processor)
    return names


def _target(tensor: StoredTensor, names: dict[str, str]) -> str | None:
    """What the model calls a tensor; experts stand in the map without their ending."""
    return names.get(tensor.name) or names.get(tensor.name.removesuffix(".weight"))


@dataclass(eq=False)
class _OnDemand:
    """Stands in a state dict for the tensor that the model knows as ``target``.

    Indexing reads it, as with a slice of safetensors, a few rows of the file's ``parts`` at a time.
    """

    file: Path
    processor: Any
    names: dict[str, str]
    dtype: torch.dtype
    task: Task
    target: str
    parts: list[StoredTensor]

    def __getitem__(self, index: EllipsisType) -> torch.Tensor:
        if len(self.parts) == 1 and self._passes_through(self.parts[0].name):
            weights = self._dequantize(self.parts[0], self.dtype)
        else:
            weights = self._process()
        self.task.advance(len(self.parts))
        return weights

    def _passes_through(self, name: str) -> bool:
        """Whether the processor hands a tensor back untouched, without ever looking at it."""
        untouched = object()
        try:
            result = self.processor.process(
                weights=untouched,
                name=name,
                tensor_key_mapping={},
                parsed_parameters={"tensors": {}},
            )
        except (AttributeError, TypeError, ValueError):
            return False
        return result.weights is untouched and result.name == name

    def _process(self) -> torch.Tensor:
        """Whole tensors through the processor; experts are gathered on its side, under the name."""
        gathered: dict[str, dict[str, torch.Tensor]] = {"tensors": {}}
        for part in self.parts:
            result = self.processor.process(
                weights=self._dequantize(part, torch.float32).numpy(),
                name=part.name,
                tensor_key_mapping=self.names,
                parsed_parameters=gathered,
            )
            if result.name is not None:
                array = np.ascontiguousarray(result.weights, dtype=np.float32)
                gathered["tensors"][self.target] = torch.from_numpy(array)
        return gathered["tensors"][self.target].to(self.dtype)

    def _dequantize(self, tensor: StoredTensor, dtype: torch.dtype) -> torch.Tensor:
        weights = torch.empty(tensor.shape, dtype=dtype)
        rows = weights.view(-1, tensor.shape[-1])  # (every axis but the last, last)
        step = max(1, _WINDOW // tensor.shape[-1])
        row_bytes = tensor.nbytes // rows.shape[0]
        for start in range(0, rows.shape[0], step):
            part = rows[start : start + step]
            place, count = tensor.offset + start * row_bytes, part.shape[0] * row_bytes
            raw = np.fromfile(self.file, dtype=np.uint8, count=count, offset=place)
            values = gguf.dequantize(raw.reshape(part.shape[0], row_bytes), tensor.kind)
            part.copy_(torch.from_numpy(values))
        return weights
