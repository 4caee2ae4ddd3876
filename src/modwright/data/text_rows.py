"""Text to learn from: windows of tokens, each a row of token ids and labels.

Axes: T tokens of a row.
"""

from __future__ import annotations

from typing import Any

from modwright.core.digest import sha256_of
from modwright.core.errors import InvalidInputError
from modwright.data.dataset import IGNORED, Data, TensorRows
from modwright.data.registry import data_kind
from modwright.data.special_tokens import Bos, special_tokens
from modwright.data.text import require_count, tokenize_text, tokenizer_of
from modwright.data.text_sources import PATHS, Text, text_of_path

__all__ = ["held_out_rows", "text_rows"]


@data_kind("text", path=text_of_path, paths=PATHS, measured_by="perplexity")
def text_rows(
    made: Any,
    tokenizer: Any,
    name: str = "text",
    *,
    length: int = 512,
    windows: int | None = None,
    bos: Bos = "auto",
    held_out: float = 0.0,
) -> Data:
    """A text, cut into full windows of tokens one after the other; the rest is left out and said.

    Rows hold ``input_ids`` (T,) and ``labels`` (T,), the same tokens with special tokens as no
    targets, as causal language models take them.

    Args:
        made: a :class:`~modwright.data.text_sources.Text`, a string, or documents in a list.
        tokenizer: of the model.
        name: of the text, for messages.
        length: tokens of a row, special tokens included.
        windows: how many rows to take from the beginning; None takes all.
        bos: special tokens of each row: "auto" for those that the tokenizer adds by itself, True
            for its BOS token, False for none.
        held_out: share of the rows, the last ones, that is to measure on.

    Raises:
        InvalidInputError: a number outside its range, too little text, no BOS token.

    Example:
        >>> from modwright.data.tokenizers import byte_tokenizer
        >>> data = text_rows("to be or not to be", byte_tokenizer(), length=6)
        >>> len(data.train), data.train[0]["labels"].tolist(), data.notes
        (3, [116, 111, 32, 98, 101, 32], ())
    """
    tokenizer = tokenizer_of(tokenizer)
    tokens = tokenize_text(tokenizer, Text.of(made, name), name=name)
    special = special_tokens(tokenizer, tokens.text, bos)
    require_count("length", length, least=2 + len(special))
    content = length - len(special)
    available = tokens.available(content, content)
    if windows is not None:
        require_count("windows", windows)
    count = max(available, 1) if windows is None else windows
    tokens.require(count, content, content)
    train, test = held_out_rows(count, held_out, f"text {name!r}")
    rows, _ = tokens.cut([at * content for at in range(count)], content, special)
    labels = rows.clone()
    labels[:, : len(special.before)] = IGNORED
    labels[:, length - len(special.after) :] = IGNORED
    left = len(tokens.ids) - count * content
    notes = (f"text {name!r}: {left:,} tokens at its end fill no row and are left out",)
    return Data(
        TensorRows({"input_ids": rows[:train], "labels": labels[:train]}),
        TensorRows({"input_ids": rows[train:], "labels": labels[train:]}) if test else None,
        notes=notes if left and windows is None else (),
        sources=(sha256_of(tokens.text),),
    )


def held_out_rows(count: int, share: float, what: str) -> tuple[int, int]:
    """How many of so many rows are to learn from, and how many, at least one, are held out.

    Example:
        >>> held_out_rows(10, 0.25, "text"), held_out_rows(10, 0.0, "text")
        ((8, 2), (10, 0))
    """
    if not 0 <= share < 1:
        raise InvalidInputError(f"held_out lies in [0, 1), not {share:g}")
    test = max(round(count * share), 1) if share else 0
    if test >= count:
        raise InvalidInputError(f"{what} gives {count} rows; none is left to learn from")
    return count - test, test
