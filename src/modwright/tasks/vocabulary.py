"""Whether two models read the same tokens, before what they say of them is compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modwright.calibration.text import TextData, load_text
from modwright.core.errors import InvalidInputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["require_same_tokenizer"]

# A text of this many characters is enough to see that two tokenizers cut differently.
_CHARACTERS = 20_000


def require_same_tokenizer(
    one: PreTrainedTokenizerBase | None,
    other: PreTrainedTokenizerBase | None,
    names: tuple[str, str],
    data: TextData | str | None = None,
) -> None:
    """Refuse two tokenizers that differ, naming the first difference.

    They are the same if every token has the same id in both and, where a text is given, both cut it
    alike: two tables of tokens can be equal and the rules that join letters to them not.

    Args:
        one: tokenizer of the first model.
        other: tokenizer of the second model.
        names: what messages call the two models.
        data: a text to cut with both, such as the one to be measured on.

    Raises:
        InvalidInputError: a tokenizer is missing or differs.
    """
    for tokenizer, name in zip((one, other), names):
        if tokenizer is None:
            raise InvalidInputError(
                f"{name} brings no tokenizer, so it cannot be told whether both models read the "
                "same tokens; give a checkpoint that has one"
            )
    assert one is not None and other is not None
    told = _first_difference(one, other, names)
    if told is None and data is not None:
        told = _first_other_cut(one, other, names, load_text(data)[:_CHARACTERS])
    if told is not None:
        raise InvalidInputError(
            f"{names[0]} and {names[1]} have different tokenizers: {told}; what two models predict "
            "can be compared token by token only over one vocabulary"
        )


def _first_difference(
    one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, names: tuple[str, str]
) -> str | None:
    """The lowest id that does not stand for the same token in both."""
    tables = [{at: token for token, at in t.get_vocab().items()} for t in (one, other)]
    ids = sorted(tables[0].keys() | tables[1].keys())
    differing = next((at for at in ids if tables[0].get(at) != tables[1].get(at)), None)
    if differing is None:
        return None
    said = [
        f"{table[differing]!r} in {name}" if differing in table else f"no token in {name}"
        for table, name in zip(tables, names)
    ]
    return f"{len(tables[0]):,} and {len(tables[1]):,} tokens, of which id {differing} is the " + (
        f"first that differs ({' and '.join(said)})"
    )


def _first_other_cut(
    one: PreTrainedTokenizerBase,
    other: PreTrainedTokenizerBase,
    names: tuple[str, str],
    text: str,
) -> str | None:
    """The first place of a text where the two give another token."""
    cuts = [t(text, add_special_tokens=False, verbose=False)["input_ids"] for t in (one, other)]
    if cuts[0] == cuts[1]:
        return None
    shorter = min(map(len, cuts))
    at = next((i for i in range(shorter) if cuts[0][i] != cuts[1][i]), shorter)
    said = [
        f"{t.convert_ids_to_tokens(cut[at])!r} in {name}" if at < len(cut) else f"its end in {name}"
        for t, cut, name in zip((one, other), cuts, names)
    ]
    return f"the same tokens, but token {at:,} of the text is {' and '.join(said)}"
