"""Options of the metrics that are measured on windows of a text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from modwright.data.text import TextData
from modwright.metrics.forward import PerplexityRecipe, cut_windows
from modwright.metrics.registry import Metric, Subject

__all__ = ["AtLeastOne", "WindowOptions", "forward_bytes"]

AtLeastOne = Annotated[int, Field(ge=1)]

# A forward pass holds about this many times what it cannot do without.
_TEMPORARIES = 2
# Logits are compared in slices of this many bytes, which stand up to three times.
_SLICE = 1 << 25


@dataclass(frozen=True)
class WindowOptions(Metric):
    """A text, cut into windows of tokens.

    Attributes:
        data: a text by name (lee and others), a text file, a folder of text files, a file of rows
            (jsonl, csv, parquet), or datasets:NAME; or ``{text: NAME}`` with its options.
        split: of a dataset.
        column: that holds the text, in a file of rows or a dataset.
        encoding: of text files.
        windows: how many windows, from the start of the text.
        length: tokens of a window, special tokens included.
        stride: tokens between starts of windows; null lets them not overlap.
        bos: special tokens of each window: auto for those that the tokenizer adds by itself, true
            for BOS, false for none.
        batch_size: windows at once.
    """

    data: str | Mapping[str, Any] = "lee"
    split: str = "train"
    column: str = "text"
    encoding: str = "utf-8"
    windows: AtLeastOne = 6
    length: Annotated[int, Field(ge=2)] = 512
    stride: AtLeastOne | None = None
    bos: Literal["auto", True, False] = "auto"
    batch_size: AtLeastOne = 1

    def text_windows(self) -> PerplexityRecipe:
        """The same as what measures takes it."""
        data: Any = self.data
        if isinstance(data, str):
            data = TextData(data, self.split, self.column, self.encoding)
        return PerplexityRecipe(
            data, self.windows, self.length, self.stride, self.bos, self.batch_size
        )

    def digest(self, subject: Subject) -> str:
        """Of the tokens; too little text and windows that do not fit are refused."""
        return str(
            cut_windows(subject.model, subject.tokenizer, self.text_windows()).recipe["sha256"]
        )

    def memory_estimate(self, anatomy: Any) -> int:
        """Of a batch of windows."""
        return forward_bytes(anatomy, self.length, self.batch_size)


def forward_bytes(anatomy: Any, length: int, batch: int, logits: bool = True) -> int:
    """Bytes of the activations of a forward pass, with the logits where they are looked at."""
    from modwright.cost import activation_bytes

    vocabulary = int(getattr(anatomy.config, "vocab_size", None) or 0) if logits else 0
    found = _TEMPORARIES * activation_bytes(anatomy, length, batch)
    return int(found + 3 * min(_SLICE, 4 * length * vocabulary))
