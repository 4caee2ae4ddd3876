"""Synthetic tasks ask for what can be known, and for nothing else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modwright.core.errors import InvalidInputError
from modwright.data.synthetic import (
    TokenDataset,
    answer_accuracy,
    induction_heads,
    selective_copying,
)
from modwright.edits.compose import compose
from modwright.training import Settings, fit

TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "intermediate_size": 16,
    "tie_word_embeddings": True,
}
TINY |= {"num_attention_heads": 2, "num_key_value_heads": 2}


def asked(data: TokenDataset) -> Tensor:
    """(S, L - 1): where a token's next one is an answer."""
    return data.labels[:, 1:] != -100


def test_what_is_copied_are_the_marked_tokens_in_their_order() -> None:
    data = selective_copying(50, length=20, marked=5, symbols=3)
    assert data.input_ids.shape == (50, 26) and data.vocab_size == 5
    for ids, labels in zip(data.input_ids, data.labels):
        context = ids[:20]
        assert context[context != 0].tolist() == labels[21:].tolist()
        assert (ids[20:] == 1).all() and (labels[:21] == -100).all()
    assert sorted(data.input_ids.unique().tolist()) == [0, 1, 2, 3, 4]
    marked = (data.input_ids[:, :20] > 1).float().mean(0)
    assert float(marked.min()) > 0.05 and float(marked.max()) < 0.5, "at any place, equally often"


@pytest.mark.parametrize("returns", [1, 3])
def test_what_follows_the_token_is_the_same_each_time_it_returns(returns: int) -> None:
    data = induction_heads(200, length=9, symbols=4, returns=returns)
    assert data.input_ids.shape == (200, 10) and data.vocab_size == 5
    for ids, labels, where in zip(data.input_ids, data.labels, asked(data)):
        seen = (ids == 0).nonzero()[:, 0]
        assert len(seen) == returns + 1 and int(seen[-1]) == 8
        assert len(ids[seen + 1].unique()) == 1
        assert where.nonzero()[:, 0].tolist() == seen[1:].tolist(), "the first cannot be known"
        assert (labels[seen[1:] + 1] == ids[seen[0] + 1]).all()
    first = (data.input_ids == 0).float().argmax(1)
    assert sorted(first.unique().tolist()) == list(range(9 - 2 * returns)), "at any place"


def test_the_shortest_sequence_holds_the_pairs_and_the_question() -> None:
    assert induction_heads(1, length=3).input_ids.shape == (1, 4)
    assert (induction_heads(2, length=7, returns=3).input_ids[:, ::2] == 0).all()
    assert (selective_copying(2, length=3, marked=3).input_ids[:, :3] > 1).all()


@pytest.mark.parametrize("make", [selective_copying, induction_heads])
def test_the_seed_alone_decides_what_is_drawn(make: Any) -> None:
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    one, same, other = make(4), make(4), make(4, seed=1)
    assert torch.random.get_rng_state().equal(state)
    assert one.input_ids.equal(same.input_ids) and not one.input_ids.equal(other.input_ids)


class Oracle(nn.Module):
    """Says what it is told to say next, as a model that counts as the labels do."""

    def __init__(self, answers: Tensor) -> None:
        super().__init__()
        self.answers = nn.Parameter(answers.float(), requires_grad=False)

    def forward(self, input_ids: Tensor, use_cache: bool) -> Any:
        row, self.answers.data = self.answers[: len(input_ids)], self.answers[len(input_ids) :]
        return SimpleNamespace(logits=F.one_hot(row.long(), 12).float())


def test_accuracy_is_the_share_of_answers_that_are_right() -> None:
    data = selective_copying(7, length=10, marked=4)
    right = data.labels.roll(-1, 1).clamp(min=0)
    assert answer_accuracy(Oracle(right), data, batch_size=3) == 1.0
    wrong = right.clone()
    wrong[:, 10] += 1  # the answer to the first question, of four
    assert answer_accuracy(Oracle(wrong), data, batch_size=3) == 0.75
    assert answer_accuracy(Oracle(torch.zeros_like(right)), data) == 0.0


@pytest.mark.parametrize("make", [selective_copying, induction_heads])
def test_a_language_model_is_trained_on_them_with_its_own_loss(make: Any) -> None:
    data = make(16, length=9)
    model = compose("llama", vocab_size=data.vocab_size, check=False, **TINY)
    whole = {"input_ids": data.input_ids, "labels": data.labels}
    with torch.no_grad():
        before, logits = model(**whole).loss, model(input_ids=data.input_ids).logits
    where = asked(data)
    by_hand = F.cross_entropy(logits[:, :-1][where], data.labels[:, 1:][where])
    assert torch.allclose(before, by_hand)

    def own_loss(model: Any, batch: Any) -> Any:
        return model(**batch).loss, {}

    settings = Settings(epochs=8, batch_size=4, learning_rate=1e-2)
    assert fit(model, data, settings=settings, objective=own_loss).steps == 32
    with torch.no_grad():
        assert model(**whole).loss < before


@pytest.mark.parametrize(
    ("make", "given", "says"),
    [
        (selective_copying, {"sequences": 0}, "sequences is at least 1, not 0"),
        (selective_copying, {"marked": 0}, "marked is at least 1, not 0"),
        (selective_copying, {"symbols": 0}, "symbols is at least 1, not 0"),
        (selective_copying, {"length": 7}, "8 tokens to be copied do not fit among 7"),
        (induction_heads, {"sequences": -1}, "sequences is at least 1, not -1"),
        (induction_heads, {"returns": 0}, "returns is at least 1, not 0"),
        (induction_heads, {"symbols": 0}, "symbols is at least 1, not 0"),
        (induction_heads, {"length": 6, "returns": 3}, "length is at least 7, not 6"),
    ],
)
def test_tasks_that_cannot_be_drawn_are_refused(make: Any, given: Any, says: str) -> None:
    with pytest.raises(InvalidInputError, match=f"^{says}$"):
        make(**{"sequences": 1, **given})
