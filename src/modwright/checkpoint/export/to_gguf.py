"""A GGUF file, for a plain model of a family that the format and its readers know."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from modwright.checkpoint.export.comparing import ParityReport, compare, rounding
from modwright.checkpoint.export.differences import differences
from modwright.checkpoint.export.export_job import ExportJob
from modwright.checkpoint.export.gguf_header import ARCHITECTURES, add_config, lost
from modwright.checkpoint.export.target import Target, register_target
from modwright.checkpoint.opening import open as open_checkpoint
from modwright.core.errors import InvalidInputError, VerificationError
from modwright.core.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Gguf"]

_TEXTS = (
    "The capital of France is Paris, isn't it?",
    "In 1984 there were 12345 llamas;\n\n\tthey'd eaten 3.14 apples each.",
    "def f(x):\n    return x ** 2  # Grüße, 日本語, 🙂",
)


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
        config = model.config
        if config.model_type not in ARCHITECTURES:
            return (
                f"model type {config.model_type!r} is not written as GGUF here; valid: "
                f"{', '.join(ARCHITECTURES)}"
            )
        if not type(model).__name__.endswith("ForCausalLM"):
            return f"a {type(model).__name__} is no causal language model"
        return lost(config)

    def type_for(self, model: Any) -> str:
        """The type of the matrices; "auto" follows the model."""
        if self.type != "auto":
            return self.type
        own = str(model.dtype).removeprefix("torch.")
        known = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
        if own not in known:
            raise InvalidInputError(
                f"no GGUF type is as wide as {own}; give one: f32, f16, bf16, q8_0"
            )
        return known[own]

    def file_name(self, work: ExportJob) -> str:
        stem = re.sub(r"[^\w.-]+", "-", work.name).strip("-") or "model"
        return f"{stem}-{self.type_for(work.model).upper()}.gguf"

    def write(self, work: ExportJob, folder: Path, progress: Progress) -> None:
        import gguf

        from modwright.checkpoint.export.gguf_tensors import (
            FILE_TYPES,
            plan_tensors,
            write_tensors,
        )
        from modwright.checkpoint.export.gguf_tokens import add_tokenizer

        architecture = ARCHITECTURES[work.model.config.model_type]
        file, type_name = folder / self.file_name(work), self.type_for(work.model)
        writer = gguf.GGUFWriter(file, architecture.name)
        writer.add_type("model")
        # transformers takes a llama file with just this name for an architecture it cannot read.
        writer.add_name("Mistral" if work.name == "mistral" else work.name)
        writer.add_file_type(FILE_TYPES[type_name][1])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        add_config(writer, work.model.config)
        add_tokenizer(writer, work)
        planned = plan_tensors(work.model, architecture, type_name)
        write_tensors(writer, work.model, planned, file, progress)

    def compare(self, work: ExportJob, folder: Path) -> ParityReport:
        import torch

        from modwright.checkpoint.export.gguf_tensors import check_tensors, plan_tensors

        again = open_checkpoint(folder / self.file_name(work), dtype=work.model.dtype)

        def run(batch: dict[str, Tensor]) -> Tensor:
            with torch.no_grad():
                found: Tensor = again.model(**batch)[0]
            return found

        architecture = ARCHITECTURES[work.model.config.model_type]
        planned = plan_tensors(work.model, architecture, self.type_for(work.model))
        check_tensors(work.model, again.model, planned)
        return compare(
            work,
            run,
            opened_with="transformers' GGUF reader",
            tolerance=rounding(work.model),
            weights=dict(again.model.named_parameters()),
            said=_tokens_compared(work.tokenizer, again.tokenizer) if work.tokenizer else "",
        )

    def holds(self, name: str) -> bool:
        return name.startswith(("tokenizer", "vocab", "merges", "special_tokens_map", "added_tok"))

    def opening(self, work: ExportJob) -> str:
        name = self.file_name(work)
        opened = ["AutoModelForCausalLM", *(["AutoTokenizer"] if work.tokenizer else [])]
        lines = [f"from transformers import {', '.join(opened)}", ""]
        for auto, what in zip(opened, ("model", "tokenizer")):
            lines.append(f'{what} = {auto}.from_pretrained(".", gguf_file="{name}")')
        return "\n".join(lines)


def _tokens_compared(own: Any, read: Any) -> str:
    """Holds the vocabularies to each other; says whether texts are split alike.

    Raises:
        VerificationError: a token has another number.
    """
    one, two = own.get_vocab(), read.get_vocab()
    odd = next((word for word, index in one.items() if two.get(word) != index), None)
    if odd is not None:
        raise VerificationError(
            f"the token {odd!r} is {one[odd]} in the tokenizer and {two.get(odd)} in the file"
        )
    same = sum(
        own.encode(t, add_special_tokens=False) == read.encode(t, add_special_tokens=False)
        for t in _TEXTS
    )
    return f"{len(one)} tokens keep their numbers, {same} of {len(_TEXTS)} texts split alike"
