"""Generation with a draft that was cut out of the model: the greedy text, and what it costs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import modwright
from modwright.core.errors import InvalidInputError
from modwright.edits.granularity import nested_parts
from modwright.metrics.assisted import generate_assisted
from modwright.surgery.nest import extract


def test_the_text_is_the_greedy_one_and_passes_are_counted(tiny: Any) -> None:
    whole = modwright.apply(copy.deepcopy(tiny("tiny-llama")), "nest", check=False).model
    made = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for part in nested_parts(whole):  # so that smaller widths say something else
            for parameter in part.module.parameters():
                parameter.normal_(0, 0.4, generator=made)
    ids = torch.arange(5, 12).view(1, -1)
    given = {"attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": 20}
    alone = whole.generate(ids, **given)
    rates = {}
    for width in ("S", "XL"):
        before = whole.generation_config.to_dict()
        draft = extract(whole, width, share=True)
        found = generate_assisted(whole, draft, ids, 20, num_draft_tokens=4)
        assert torch.equal(found.tokens, alone) and found.new_tokens == alone.shape[1] - 7
        assert found.draft_passes >= found.drafted
        assert 0 <= found.acceptance_rate <= 1
        assert found.passes_per_token == found.passes / found.new_tokens <= 1
        assert whole.generation_config.to_dict() == before
        rates[width] = found.acceptance_rate
    assert rates["S"] < rates["XL"] == 1.0


def test_what_cannot_be_is_refused(tiny: Any) -> None:
    model = tiny("tiny-llama")
    with pytest.raises(InvalidInputError, match="one prompt"):
        generate_assisted(model, model, torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises(InvalidInputError, match="at least 1"):
        generate_assisted(model, model, torch.zeros(1, 3, dtype=torch.long), 0)
