"""Next token: against its formula token by token, with prompts, padding and transformers' own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from modwright.core.errors import InvalidInputError
from modwright.training.objectives import NextToken
from modwright.training.objectives.next_token import naive_next_token, next_tokens

from .stubs import Says, logits, tokens

IDS = tokens()
RIGHT = torch.tensor([[1, 1, 1, 1, 1, 0, 0], [1] * 7])
BATCHES = {
    "plain": {"input_ids": IDS},
    "right padding": {"input_ids": IDS, "attention_mask": RIGHT},
    "left padding": {"input_ids": IDS, "attention_mask": RIGHT.flip(1)},
    "prompts": {"input_ids": IDS, "labels": IDS.masked_fill(torch.arange(7) < 3, -100)},
}


@pytest.mark.parametrize("kind", BATCHES)
def test_the_loss_and_its_gradient_are_those_of_the_formula(kind: str) -> None:
    batch, given = BATCHES[kind], logits(2, 7, 9)
    fast, slow = Says(given.clone()), Says(given.clone())
    loss, named = NextToken()(fast, batch)
    truth = naive_next_token(slow.logits, batch)
    loss.backward()
    truth.backward()
    assert torch.allclose(loss.double(), truth, atol=1e-6) and not named
    assert torch.allclose(fast.logits.grad, slow.logits.grad, atol=1e-6)
    assert set(fast.seen) == set(batch) - {"labels"}


def test_padding_is_neither_asked_for_nor_asked() -> None:
    left = next_tokens(BATCHES["left padding"])
    assert (left[0] == -100).sum() == 2 and (left[1] != -100).all()
    right = next_tokens(BATCHES["right padding"])
    assert (right[0] == -100).sum() == 2 and right[0, 4] == -100


def test_nothing_asked_for_is_no_loss() -> None:
    loss, _ = NextToken()(
        Says(logits(1, 7, 9)), {"input_ids": IDS[:1], "labels": IDS[:1] * 0 - 100}
    )
    assert float(loss) == 0


def test_the_loss_is_that_of_transformers(tiny: Any) -> None:
    for preset in ("tiny-llama", "tiny-gpt2"):
        model, ids = tiny(preset), tokens(2, 9, 100)
        theirs = model(input_ids=ids, labels=ids).loss
        assert torch.allclose(NextToken()(model, {"input_ids": ids})[0], theirs, atol=1e-6)


def test_what_cannot_be_predicted_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"label_smoothing lies in \[0, 1\), not 1"):
        NextToken(1.0)
    with pytest.raises(
        InvalidInputError, match="neither labels nor input_ids; it has pixel_values"
    ):
        NextToken()(Says(logits(1, 7, 9)), {"pixel_values": IDS})
