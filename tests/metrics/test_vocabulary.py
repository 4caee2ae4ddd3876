"""Two models are compared token by token only where they read the same tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_models import encoder_tokenizer, word_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from modwright.core.errors import InvalidInputError
from modwright.metrics.vocabulary import require_same_tokenizer

NAMES = ("small", "large")


def letters(merges: list[tuple[str, str]]) -> PreTrainedTokenizerFast:
    """The same tokens whatever the merges, which say how letters become them."""
    vocabulary = {token: at for at, token in enumerate(["a", "b", "c", "ab", "bc"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def renamed(at: int, token: str) -> PreTrainedTokenizerFast:
    vocabulary = {f"w{i}" if i != at else token: i for i in range(10)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_equal_tokenizers_pass(text: str) -> None:
    require_same_tokenizer(word_tokenizer(), word_tokenizer(), NAMES)
    require_same_tokenizer(word_tokenizer(), word_tokenizer(), NAMES, text)


@pytest.mark.contract("K1")
@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        (renamed(4, "x"), renamed(4, "y"), "id 4 is the first .*'x' in small and 'y' in large"),
        (renamed(9, "w9"), word_tokenizer(), "10 and 52 tokens, of which id 10 is the first"),
        (renamed(9, "w9"), word_tokenizer(), "no token in small and 'w10' in large"),
        (word_tokenizer(), encoder_tokenizer(), r"id 45 .*'w45' in small and '\[PAD\]' in large"),
        (None, word_tokenizer(), "small has no tokenizer"),
        (word_tokenizer(), None, "large has no tokenizer"),
    ],
)
def test_the_first_difference_is_named(one: Any, other: Any, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        require_same_tokenizer(one, other, NAMES)


def test_the_same_tokens_joined_by_other_rules_differ(tmp_path: Path) -> None:
    one, other = letters([("a", "b"), ("b", "c")]), letters([("b", "c"), ("a", "b")])
    assert one.get_vocab() == other.get_vocab()
    require_same_tokenizer(one, other, NAMES)
    file = tmp_path / "text.txt"
    file.write_text("ab bc abc")
    with pytest.raises(
        InvalidInputError, match="token 2 of the text is 'ab' in small and 'a' in large"
    ):
        require_same_tokenizer(one, other, NAMES, str(file))
    file.write_text("ab bc")
    require_same_tokenizer(one, other, NAMES, str(file))
