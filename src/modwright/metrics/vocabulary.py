"""Whether two models read the same tokens, before what they say of them is compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modwright.core.errors import InvalidInputError
from modwright.data.text import load_text
from modwright.data.text_sources import TextSource

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    _Two = tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase]

__all__ = ["require_same_tokenizer"]

# A text of this many characters is enough to see that two tokenizers cut differently.
_CHARACTERS = 20_000


def require_same_tokenizer(
    one: PreTrainedTokenizerBase | None,
    other: PreTrainedTokenizerBase | None,
    names: tuple[str, str],
    data: TextSource | None = None,
) -> None:
    """Refuse two tokenizers that differ, naming the first difference.

    They are the same if every token has the same id in both and, where a text is given, both cut it
    alike: two tables of tokens can be equal and the rules that join letters to them not. Messages
    call the two models by ``names``.

    Raises:
        InvalidInputError: a tokenizer is missing or differs.
    """
    for tokenizer, name in zip((one, other), names):
        if tokenizer is None:
            raise InvalidInputError(
                f"{name} has no tokenizer, so it cannot be told whether both models read the "
                "same tokens; give a checkpoint that has one"
            )
    assert one is not None and other is not None
    both = (one, other)
    told = _first_difference(both, names)
    if told is None and data is not None:
        told = _first_other_cut(both, names, load_text(data)[:_CHARACTERS])
    if told is not None:
        raise InvalidInputError(
            f"{names[0]} and {names[1]} have different tokenizers: {told}; what two models predict "
            "can be compared token by token only over one vocabulary"
        )


def _first_difference(both: _Two, names: tuple[str, str]) -> str | None:
    """The lowest id that does not stand for the same token in both."""
    tables = [{at: token for token, at in t.get_vocab().items()} for t in both]
    ids = sorted(tables[0].keys() | tables[1].keys())
    at = next((at for at in ids if tables[0].get(at) != tables[1].get(at)), None)
    if at is None:
        return None
    said = " and ".join(
        f"{table[at]!r} in {name}" if at in table else f"no token in {name}"
        for table, name in zip(tables, names)
    )
    return (
        f"{len(tables[0]):,} and {len(tables[1]):,} tokens, of which id {at} is the first that "
        f"differs ({said})"
    )


def _first_other_cut(both: _Two, names: tuple[str, str], text: str) -> str | None:
    """The first position of a text where the two give another token."""
    cuts = [t(text, add_special_tokens=False, verbose=False)["input_ids"] for t in both]
    if cuts[0] == cuts[1]:
        return None
    at = next((i for i, pair in enumerate(zip(*cuts)) if pair[0] != pair[1]), min(map(len, cuts)))
    said = " and ".join(
        f"{t.convert_ids_to_tokens(cut[at])!r} in {name}" if at < len(cut) else f"its end in {name}"
        for t, cut, name in zip(both, cuts, names)
    )
    return f"the same tokens, but token {at:,} of the text is {said}"
