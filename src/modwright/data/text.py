"""Text as token windows. Axes: B sequences of a batch, T tokens of each, N tokens of the text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from modwright.core.digest import sha256_of
from modwright.core.errors import InvalidInputError, unknown_name
from modwright.data.special_tokens import Bos, SpecialTokens, special_tokens
from modwright.data.text_sources import (
    TextData,
    TextSource,
    load_text,
    read_text,
    text_names,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Batch", "TextData", "TokenWindows", "TokenizedText", "from_sequences"]
__all__ += ["load_text", "require_count", "text_names", "token_windows", "tokenize_text"]

# A tokenizer without a limit of its own reports a number of thirty digits.
_SANE_LENGTH = 1_000_000
# Characters of a text whose tokens are kept for the next time.
_KEPT = 4_000_000


@dataclass(frozen=True, eq=False)
class TokenizedText:
    """A whole text as token ids (N,), without special tokens, and what a recipe says of it.

    ``ends`` (N,) holds the offset of the character after each token, where the tokenizer tells it.
    """

    text: str
    ids: Tensor
    ends: Tensor | None
    facts: dict[str, Any]

    def available(self, length: int, stride: int) -> int:
        """How many full windows of ``length`` tokens start every ``stride`` tokens."""
        return max(0, (len(self.ids) - length) // stride + 1)

    def cut(
        self, starts: Sequence[int], length: int, special: SpecialTokens
    ) -> tuple[Tensor, dict[str, Any]]:
        """Windows (len(starts), T) of ``length`` text tokens each with ``special``, and facts."""
        rows = special.around(torch.stack([self.ids[at : at + length] for at in starts]))
        return rows, {**self.facts, "sha256": sha256_of(rows.long())}

    def require(self, windows: int, length: int, stride: int) -> None:
        """Refuse when the text is too short for so many windows."""
        available = self.available(length, stride)
        if windows <= available:
            return
        valid = f"1..{available}" if available else f"none; the longest is {len(self.ids)} tokens"
        raise InvalidInputError(
            f"text {self.facts['data']!r} has {len(self.ids):,} tokens: {available} windows of "
            f"{length} text tokens every {stride}, and {windows} were asked for; valid values of "
            f"windows at this length: {valid}"
        )


def tokenizer_of(given: Any) -> PreTrainedTokenizerBase:
    """The tokenizer that is given, or that an opened checkpoint has; refuses anything else."""
    found = given if callable(given) else getattr(given, "tokenizer", None)
    if callable(found) and hasattr(found, "model_max_length"):
        return cast("PreTrainedTokenizerBase", found)
    raise InvalidInputError(
        f"expected a tokenizer, or what modwright.open returned for a model that has one, not "
        f"{type(given).__name__}"
    )


def tokenize_text(
    tokenizer: PreTrainedTokenizerBase,
    data: TextSource,
    *,
    offsets: bool = False,
    name: str = "text",
) -> TokenizedText:
    """Tokenize a whole text once, uncut; ``offsets`` asks for ``ends``, which not all can tell."""
    text, facts = read_text(data, name)
    offsets = offsets and tokenizer.is_fast
    encode = _encode if len(text) <= _KEPT else _encode.__wrapped__
    ids, ends = encode(tokenizer, len(tokenizer), text, offsets)
    if not len(ids):
        raise InvalidInputError(f"text {facts['data']!r} gives no token with this tokenizer")
    return TokenizedText(text, ids, ends, {**facts, "vocabulary": len(tokenizer)})


@lru_cache(maxsize=4)  # every stage of a run is measured on the same few texts
def _encode(
    tokenizer: PreTrainedTokenizerBase, size: int, text: str, offsets: bool
) -> tuple[Tensor, Tensor | None]:
    """Ids and, where they are asked for, ends; ``size`` tells tokenizers that grew apart."""
    # verbose: the text is cut afterwards, so the warning about its length would be wrong.
    encoded = tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=offsets, verbose=False
    )
    ids = torch.tensor(encoded["input_ids"], dtype=torch.int64)
    return ids, torch.tensor([end for _, end in encoded["offset_mapping"]]) if offsets else None


@dataclass(frozen=True, eq=False)
class Batch:
    """Token ids (B, T) int64, and a mask (B, T) int64 of ones at real tokens or None if all are."""

    input_ids: Tensor
    attention_mask: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """What a model is called with, by keyword."""
        mask = {} if self.attention_mask is None else {"attention_mask": self.attention_mask}
        return {"input_ids": self.input_ids, **mask}


@dataclass(frozen=True, eq=False)
class TokenWindows:
    """Batches of token ids and the recipe that gives them again; iterates over the batches.

    The recipe is JSON-able; it ends in the sha256 of the ids (as little-endian int64).
    """

    batches: tuple[Batch, ...]
    recipe: dict[str, Any]

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)

    @property
    def num_tokens(self) -> int:
        """Tokens in all batches, padding left out."""
        return int(self.recipe["tokens"])

    def describe(self) -> str:
        """One line for reports and logs.

        Example:
            >>> from_sequences([torch.tensor([5, 6, 7])], pad_id=0).describe()
            'sequences: 1 windows x 3 tokens = 3 tokens, padded right, batch 1'
        """
        said = self.recipe
        split = f" ({said['split']})" if said["split"] else ""
        times = "x" if said["windows"] * said["length"] == said["tokens"] else "of up to"
        special = said["special_tokens"] or {}
        around = " and ".join(
            f"{' '.join(special[side])} {where}"
            for side, where in (("before", "first"), ("after", "last"))
            if special.get(side)
        )
        bos = f", {around} in each" if around else ""
        return (
            f"{said['data']}{split}: {said['windows']} windows {times} {said['length']} tokens = "
            f"{said['tokens']:,} tokens, {said['order']}{bos}, batch {said['batch_size']}"
        )


def token_windows(
    tokenizer: Any,
    data: TextSource,
    *,
    windows: int,
    length: int,
    seed: int | None = None,
    batch_size: int = 1,
    bos: Bos = "auto",
) -> TokenWindows:
    """Cut a text into full, non-overlapping windows of token ids; no padding, no mask.

    Args:
        tokenizer: of the model that will read the windows, or the opened checkpoint.
        data: where the text comes from; a string is a name or a path.
        windows: how many windows to take.
        length: tokens of a window, special tokens included.
        seed: None takes the first windows; an integer draws them at random. Both keep their order.
        batch_size: windows of a batch; the last batch may be smaller.
        bos: special tokens of each window: "auto" for those that the tokenizer adds by itself,
            True for its BOS token, False for none.

    Raises:
        InvalidInputError: a number outside its range, too little text, no BOS token; names the
            valid values.
    """
    require_count("windows", windows)
    require_count("batch_size", batch_size)
    tokenizer = tokenizer_of(tokenizer)
    limit = tokenizer.model_max_length
    tokenized = tokenize_text(tokenizer, data)
    special = special_tokens(tokenizer, tokenized.text, bos)
    most = limit if limit < _SANE_LENGTH else None
    require_count("length", length, least=1 + len(special), most=most)
    content = length - len(special)
    tokenized.require(windows, content, content)
    chosen = torch.arange(windows)
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randperm(tokenized.available(content, content), generator=generator)
        chosen = drawn[:windows].sort().values
    rows, facts = tokenized.cut((chosen * content).tolist(), content, special)
    order = "first windows in order" if seed is None else f"random windows (seed {seed})"
    recipe = {**facts, "windows": windows, "length": length, "tokens": rows.numel(), "seed": seed}
    recipe |= {"order": order, "batch_size": batch_size, **special.facts(tokenizer)}
    return TokenWindows(tuple(Batch(part) for part in rows.split(batch_size)), recipe)


def from_sequences(
    sequences: Sequence[Tensor], pad_id: int, *, side: str = "right", batch_size: int = 1
) -> TokenWindows:
    """Batches of one's own 1-D tensors of token ids, each padded to its longest one and masked.

    ``side`` ("left" or "right") is where ``pad_id`` goes; the order of the sequences is kept.

    Example:
        >>> rows = [torch.tensor([5, 6, 7]), torch.tensor([8])]
        >>> from_sequences(rows, pad_id=0, side="left", batch_size=2).batches[0].attention_mask
        tensor([[1, 1, 1],
                [0, 0, 1]])
    """
    require_count("batch_size", batch_size)
    require_count("number of sequences", len(sequences))
    if side not in ("left", "right"):
        raise unknown_name("padding side", side, ("left", "right"))
    for number, ids in enumerate(sequences):
        if ids.dim() != 1 or not len(ids):
            said = f"sequence {number} has shape {tuple(ids.shape)}"
            raise InvalidInputError(f"{said}; each must be 1-D and not empty")

    def pad(part: Sequence[Tensor], value: int) -> Tensor:
        wide = [ids.to(torch.int64) for ids in part]
        return pad_sequence(wide, batch_first=True, padding_value=value, padding_side=side)

    parts = [sequences[at : at + batch_size] for at in range(0, len(sequences), batch_size)]
    batches = tuple(
        Batch(pad(part, pad_id), pad([torch.ones_like(ids) for ids in part], 0)) for part in parts
    )
    lengths = [len(ids) for ids in sequences]
    unknown = ("split", "column", "encoding", "documents", "vocabulary", "seed", "special_tokens")
    recipe: dict[str, Any] = {"data": "sequences", "bos": False, "order": f"padded {side}"}
    recipe |= dict.fromkeys(unknown)
    recipe |= {"windows": len(lengths), "length": max(lengths), "tokens": sum(lengths)}
    recipe |= {"batch_size": batch_size, "sha256": sha256_of(torch.cat(list(sequences)).long())}
    return TokenWindows(batches, recipe)


def require_count(name: str, value: int, least: int = 1, most: int | None = None) -> None:
    """Refuse a count outside ``least``..``most``, naming what is valid."""
    if value < least or (most is not None and value > most):
        valid = f"{least} and more" if most is None else f"{least}..{most}"
        raise InvalidInputError(f"{name} is {value}; valid values: {valid}")
