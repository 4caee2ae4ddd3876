"""What is exported: a live model and what belongs to it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from modwright.checkpoint.opening import Checkpoint
from modwright.checkpoint.source import Source
from modwright.core.errors import InvalidInputError

__all__ = ["ExportJob"]


@dataclass(frozen=True, eq=False)
class ExportJob:
    """A model to export.

    Attributes:
        model: live, on the CPU.
        checkpoint: what it was opened as; None for a model that was made here.
    """

    model: Any
    checkpoint: Checkpoint | None = None

    @classmethod
    def of(cls, what: Any) -> ExportJob:
        """From a checkpoint or a model.

        Raises:
            InvalidInputError: it is neither, or its weights are not in the CPU's memory.
        """
        checkpoint = what if isinstance(what, Checkpoint) else None
        model = what if hasattr(what, "save_pretrained") else getattr(what, "model", what)
        if not hasattr(model, "config") or not hasattr(model, "save_pretrained"):
            raise InvalidInputError(
                f"a {type(what).__name__} cannot be exported; give what modwright.open returns, or "
                "a transformers model"
            )
        for name, tensor in model.state_dict().items():
            if tensor.device.type != "cpu":
                raise InvalidInputError(
                    f"{name} is on {tensor.device}; export works on the CPU: open the model there"
                )
        return cls(model, checkpoint)

    @property
    def source(self) -> Source | None:
        return None if self.checkpoint is None else self.checkpoint.source

    @property
    def name(self) -> str:
        """A short name for files and titles."""
        found = self.checkpoint.name if self.checkpoint is not None else ""
        return found or str(self.model.config.model_type)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer that belongs to it, or None."""
        return None if self.checkpoint is None else self.checkpoint.tokenizer

    @property
    def loose_tokenizer(self) -> Any:
        """The tokenizer where no files of it travel: it came inside a GGUF file, say."""
        from modwright.checkpoint.tokenizer import has_tokenizer

        source = self.source
        return None if source is None or has_tokenizer(source.files) else self.tokenizer

    @cached_property
    def plain(self) -> bool:
        """Stock transformers loads its checkpoint."""
        from modwright.edits.remodeled import is_plain

        return is_plain(self.model)
