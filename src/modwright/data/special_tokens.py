"""Special tokens around a window of text: those that the tokenizer adds by itself, or others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from modwright.core.errors import InvalidInputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Bos", "SpecialTokens", "special_tokens"]

Bos = bool | Literal["auto"]
# So many characters of a text show what a tokenizer puts around it.
_SAMPLE = 200


@dataclass(frozen=True)
class SpecialTokens:
    """Token ids that stand before and after the text tokens of every window."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.before) + len(self.after)

    def around(self, rows: Tensor) -> Tensor:
        """Rows (B, T) between them: (B, T + len(self)).

        Example:
            >>> SpecialTokens((1,), (2,)).around(torch.tensor([[7, 8]]))
            tensor([[1, 7, 8, 2]])
        """
        parts = (torch.tensor(ids, dtype=rows.dtype) for ids in (self.before, self.after))
        before, after = (ids.expand(len(rows), -1) for ids in parts)
        return torch.cat([before, rows, after], dim=1)

    def padded(self, marks: Tensor) -> Tensor:
        """Marks (B, T) of text tokens with False at the special tokens."""
        return F.pad(marks, (len(self.before), len(self.after)), value=False)

    def facts(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """What a recipe says of them."""
        to_names = tokenizer.convert_ids_to_tokens
        names = {"before": to_names(list(self.before)), "after": to_names(list(self.after))}
        return {"bos": bool(self.before), "special_tokens": names}


def special_tokens(
    tokenizer: PreTrainedTokenizerBase, text: str, bos: Bos = "auto"
) -> SpecialTokens:
    """The special tokens of every window of a text, whose beginning shows what is added to it.

    ``"auto"`` stands for what the tokenizer adds by itself before a text, and for a separator after
    it (``[CLS]`` .. ``[SEP]``), but no end of text: a window ends in the middle. True stands for
    the BOS token, whether the tokenizer adds it or not; False for none.

    Raises:
        InvalidInputError: no BOS token, or a text that is split differently with special tokens.
    """
    if bos is False:
        return SpecialTokens()
    if bos is True:
        if tokenizer.bos_token_id is None:
            raise InvalidInputError(
                "this tokenizer has no BOS token; valid values of bos: auto, False"
            )
        return SpecialTokens((int(tokenizer.bos_token_id),))
    if bos != "auto":
        raise InvalidInputError(f"bos is {bos!r}; valid values: auto, True, False")
    # A text may begin with characters that give no token at all.
    for sample in (text.strip()[:_SAMPLE], text):
        plain, whole = (
            list(tokenizer(sample, add_special_tokens=added, verbose=False)["input_ids"])
            for added in (False, True)
        )
        if plain:
            break
    starts = range(len(whole) - len(plain) + 1)
    at = next((i for i in starts if whole[i : i + len(plain)] == plain), None)
    if at is None:
        raise InvalidInputError(
            "this tokenizer splits a text differently when it adds its special tokens, so they "
            "cannot be told from the text; valid values of bos: True, False"
        )
    after = whole[at + len(plain) :]
    is_separator = tokenizer.sep_token_id is not None and tokenizer.sep_token_id in after
    return SpecialTokens(tuple(whole[:at]), tuple(after) if is_separator else ())
