"""Opens a model from anywhere: `open` returns a `Checkpoint`."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from modwright.anatomy import Anatomy
from modwright.anatomy.families import wrapped
from modwright.checkpoint.classes import model_class
from modwright.checkpoint.directory import Loaded, load_directory
from modwright.checkpoint.saving import save
from modwright.checkpoint.source import Source, load_tokenizer, locate, preset_config
from modwright.checkpoint.state_spaces import has_state_spaces_layout, load_state_spaces
from modwright.core.compat.transformers import build
from modwright.core.errors import InvalidInputError, unknown_name
from modwright.core.modes import set_eval
from modwright.core.progress import SILENT, Progress

__all__ = ["DTYPES", "Checkpoint", "check_finite", "known_device", "open"]

DTYPES = ("float32", "bfloat16", "float16", "float64")
# Words of from_pretrained, and ours.
_OTHER_WORDS = {"torch_dtype": "dtype", "device_map": "device"}


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """An opened model with all that belongs to it.

    Attributes:
        model: in evaluation mode.
        source: where it came from, and the files that travel with it.
        unexpected_keys: stored tensors the model has no place for, which a saved copy will not
            hold.
        trust_remote_code: whether code of the source may run.
        remarks: what else to say of the opening, in sentences.
    """

    model: PreTrainedModel
    source: Source
    unexpected_keys: tuple[str, ...] = ()
    trust_remote_code: bool = field(default=False, repr=False)
    remarks: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on what was opened otherwise than it is stored, for people."""
        if not self.unexpected_keys:
            return self.remarks
        count, shown = len(self.unexpected_keys), ", ".join(self.unexpected_keys[:5])
        more = f" and {count - 5} more" if count > 5 else ""
        words = "tensor has no place in the model and is"
        if count > 1:
            words = "tensors have no place in the model and are"
        return (f"{count} stored {words} left out: {shown}{more}.", *self.remarks)

    @property
    def name(self) -> str:
        """A short name for titles and file names."""
        return self.source.short_name

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, loaded when it is first asked for; None if the source has none."""
        return load_tokenizer(self.source, trust_remote_code=self.trust_remote_code)

    @cached_property
    def anatomy(self) -> Anatomy:
        """The model as typed parts."""
        return Anatomy.of(self.model)

    def save(self, out: str | os.PathLike[str], **options: Any) -> Path:
        """Write the model with all its files; ``options`` as in `modwright.checkpoint.save`."""
        options = {"source": self.source, "tokenizer": self.__dict__.get("tokenizer"), **options}
        return save(self.model, out, **options)

    def __repr__(self) -> str:
        count = sum(parameter.numel() for parameter in self.model.parameters())
        size = f"{count / 1e6:.1f}M" if count >= 1e6 else f"{count / 1e3:.1f}k"
        return (
            f"Checkpoint({self.source.name!r}, {type(self.model).__name__}, "
            f"{size} parameters, {str(self.model.dtype).removeprefix('torch.')})"
        )


def open(
    source: str | os.PathLike[str] | Source | torch.nn.Module,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    head: str | None = None,
    trust_remote_code: bool = False,
    progress: Progress = SILENT,
    **unknown: Any,
) -> Checkpoint:
    """Open a model from anywhere, with at most a tenth more memory than its weights.

    Args:
        source: a directory with a ``config.json``, of transformers or of state-spaces/mamba, a
            ``.gguf`` file, a packaged name
            (``smollm2-135m``, ``minilm``, ``lab-lm``), ``preset:NAME`` or a hub id ``org/name``; or
            a live model, which is taken as it is. A ViT of timm is wrapped; its weights are shared.
        dtype: type of the weights, one of `DTYPES`; None keeps the checkpoint's own, and is
            float32 for GGUF.
        device: where the weights go; None is the CPU.
        head: build another class than the checkpoint was saved from: ``base``, ``causal-lm`` and
            so on. Its weights must all be there.
        trust_remote_code: allow model code that a checkpoint brings.
        progress: hears of long phases.
        unknown: refused, with the name that is meant.

    Raises:
        CheckpointError: the source cannot be found, is damaged, quantized, or lacks tensors.
        InvalidInputError: an argument is invalid, or memory is too short.
        UnsupportedArchitecture: no family knows a live model of another library.

    Example:
        >>> open("preset:tiny-llama")
        Checkpoint('preset:tiny-llama', LlamaForCausalLM, 98.7k parameters, float32)
    """
    for name in unknown:
        if name in _OTHER_WORDS:
            raise InvalidInputError(f"open has no argument {name!r}; use {_OTHER_WORDS[name]}=")
        known = ("dtype", "device", "head", "trust_remote_code", "progress")
        raise unknown_name("argument of open", name, known)
    if isinstance(source, Checkpoint):
        return source
    if not isinstance(source, str | os.PathLike | Source):
        return _open_live(source, dtype=dtype, device=device, head=head)
    kind, place, found = _dtype(dtype), known_device(device), locate(source)
    if found.path is None:
        loaded = _open_preset(found, kind, place, head)
    elif found.is_gguf:
        from modwright.checkpoint.gguf import load_gguf  # takes a while to import

        loaded = load_gguf(found.path, kind, place, head, progress)
    elif has_state_spaces_layout(found.path):
        loaded = load_state_spaces(found.path, kind, place, head)
    else:
        loaded = load_directory(found.path, kind, place, head, trust_remote_code)
    model, unexpected_keys, remarks = loaded
    return Checkpoint(model, found, unexpected_keys, trust_remote_code, remarks)


def _open_live(model: torch.nn.Module, **options: Any) -> Checkpoint:
    if not isinstance(model, torch.nn.Module):
        raise InvalidInputError(f"open takes a path, a name or a model, not {type(model).__name__}")
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise InvalidInputError(f"a live model is taken as it is; {given[0]} is for checkpoints")
    found = wrapped(model)
    return Checkpoint(found, Source("live", type(model).__name__, description="a live model"))


def check_finite(model: torch.nn.Module) -> None:
    """Refuse a model whose weights are not all finite, before a method computes with them.

    Raises:
        InvalidInputError: names the first tensor that holds NaN or infinity.
    """
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point() or tensor.numel() == 0 or tensor.is_meta:
            continue
        # The extremes are finite exactly when all values are, and need no second tensor.
        low, high = torch.aminmax(tensor)
        if not (torch.isfinite(low) and torch.isfinite(high)):
            bad = int((~torch.isfinite(tensor)).sum())
            raise InvalidInputError(
                f"the weights of {name!r} hold NaN or infinity ({bad} of {tensor.numel()} values); "
                "mend or replace the checkpoint first"
            )


def _open_preset(source: Source, dtype: Any, device: Any, head: str | None) -> Loaded:
    config = preset_config(source)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(model_class(config, head), config)
    # What no checkpoint stores, rotary frequencies above all, keeps its type, as in one that is
    # loaded.
    for tensor in model.state_dict(keep_vars=True).values():
        if dtype is not None and tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
    return Loaded(set_eval(model.to(device=device)))


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if dtype is None:
        return None
    name = dtype if isinstance(dtype, str) else str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise unknown_name("dtype", name, DTYPES)
    found: torch.dtype = getattr(torch, name)
    return found


def known_device(device: str | torch.device | None) -> torch.device | None:
    """The device, tried out; None for the CPU."""
    if device is None:
        return None
    try:
        place = torch.device(device)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError, TypeError) as error:
        valid = "cpu, cuda, cuda:0" if torch.cuda.is_available() else "cpu (no GPU is usable here)"
        raise InvalidInputError(
            f"device {str(device)!r} cannot be used; valid values: {valid}"
        ) from error
    if place.type == "meta":
        raise InvalidInputError("device 'meta' holds no weights; valid values: cpu, cuda, cuda:0")
    return None if place.type == "cpu" else place
