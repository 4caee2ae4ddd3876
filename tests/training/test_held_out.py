"""Held-out texts: as perplexity and divergence measure them, window by window."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from helpers import edit
from modwright.core.errors import InvalidInputError
from modwright.edits import remove
from modwright.metrics.divergence import divergence
from modwright.metrics.perplexity import PerplexityRecipe, perplexity
from modwright.training.held_out import HeldOutTexts, compared_tokens
from wordy import word_tokenizer, write_text


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_text(tmp_path_factory.mktemp("text") / "words.txt", 400))


@pytest.mark.parametrize("kept", [False, True])
def test_it_is_what_perplexity_and_divergence_say(
    kept: bool, text: str, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modwright.training.held_out._KEPT", 1 << 28 if kept else 0)
    teacher, tokenizer = tiny("tiny-llama"), word_tokenizer()
    student = edit(tiny.copy("tiny-llama"), remove("blocks.0.attention"), check=False).model
    recipe = PerplexityRecipe(text, windows=3, length=32)
    texts = HeldOutTexts(teacher, tokenizer, {"words": text}, windows=3, length=32)
    for _ in range(2):
        found = texts.measure(student)["words"]
    assert found.perplexity == pytest.approx(perplexity(student, tokenizer, recipe).value, rel=1e-5)
    both = divergence(teacher, student, tokenizer, recipe)
    assert found.divergence == pytest.approx(both.kl, rel=1e-4) and found.top1 == both.top1
    assert found.tokens == both.tokens == 93
    same = texts.measure(teacher)["words"]
    assert same.divergence == pytest.approx(0, abs=1e-6) and same.top1 == 1


def test_fault_B25_the_tokens_that_both_know_are_compared(tiny: Any) -> None:
    small, padded = tiny("tiny-llama"), tiny("tiny-llama", vocab_size=160)
    assert compared_tokens(small, small, word_tokenizer()) is None
    assert compared_tokens(small, padded, word_tokenizer()) == 128
    with pytest.raises(InvalidInputError, match="compared only at one size"):
        compared_tokens(small, padded, word_tokenizer(140))


def test_what_cannot_be_held_out_is_refused(tiny: Any, text: str) -> None:
    with pytest.raises(InvalidInputError, match="give at least one"):
        HeldOutTexts(tiny("tiny-llama"), word_tokenizer(), {})
    with pytest.raises(InvalidInputError, match="windows of 64 text tokens"):
        HeldOutTexts(tiny("tiny-llama"), word_tokenizer(), {"words": text}, 50, 64)
    with pytest.raises(InvalidInputError, match="rows have one length"):
        rows = [{"input_ids": torch.arange(5)}, {"input_ids": torch.arange(6)}]
        HeldOutTexts(tiny("tiny-llama"), word_tokenizer(), {"rows": rows})
