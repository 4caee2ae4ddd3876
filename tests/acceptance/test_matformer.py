"""MatFormer (arXiv 2310.07707): what one training gives at four widths, on a small language model.

A Llama that reads bytes of Debian's fortunes, with nested MLPs whose width is drawn at every step.
Beside it the same model trained without nesting, and one that is as narrow as its smallest width:
same start values where sizes agree, same windows in the same order, as many steps.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from figures import note
from small_language import Bytes, byte_llama
from torch import Tensor

import modwright
from modwright.edits.granularity import granularity
from modwright.metrics.assisted import generate_assisted
from modwright.surgery.nest import extract
from modwright.training import Settings, fit
from modwright.training.objectives import make_objective

pytestmark = pytest.mark.slow

STEPS, ROWS, LENGTH, WIDTH = 800, 16, 64, 512
NAMES = ("S", "M", "L", "XL")
SIZES = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 4, "max_position_embeddings": 512}


@pytest.fixture(scope="module")
def text() -> Bytes:
    return Bytes.of("fortunes", LENGTH, 512)


def learned(text: Bytes, mlp: str, objective: Any, width: int = WIDTH) -> Any:
    model = byte_llama(mlp, seed=0, swiglu_width=width, **SIZES)
    settings = Settings(1, batch_size=ROWS, learning_rate=2e-3, schedule="cosine")
    done = fit(model, text.drawn(STEPS * ROWS, seed=1), None, settings, objective)
    assert done.steps == STEPS
    return model.eval()


@pytest.fixture(scope="module")
def nested(text: Bytes) -> Any:
    return learned(text, "nested_feed_forward", make_objective("nested", {"mode": "sampled"}))


@pytest.fixture(scope="module")
def plain(text: Bytes) -> Any:
    return learned(text, "", "next_token")


def test_widths_are_ordered_and_what_is_mixed_lies_between(
    text: Bytes, nested: Any, plain: Any
) -> None:
    loss = {name: text.loss(extract(nested, name)) for name in NAMES}
    mixed = text.loss(extract(nested, ["S", "S", "M", "M"]))
    usual = modwright.apply(plain, "nest", check=False).model
    with granularity(usual, "S"):
        prefix = text.loss(usual)
    whole = text.loss(plain)
    note("matformer-losses", steps=STEPS, **loss, mixed=mixed, plain=whole, plain_prefix=prefix)
    assert loss["S"] > loss["M"] > loss["L"]
    assert loss["L"] >= loss["XL"] - 0.01
    assert prefix - loss["S"] >= 0.5
    assert loss["M"] - 0.02 <= mixed <= loss["S"] + 0.02
    assert loss["XL"] <= 1.03 * whole


@torch.no_grad()
def said(model: Any, text: Bytes) -> Tensor:
    """The byte that is thought most likely, everywhere in the windows that are held out."""
    rows: Tensor = torch.cat([model(input_ids=p.long()).logits for p in text.held_out.split(64)])
    return rows.argmax(-1)


def test_a_small_model_agrees_more_with_the_one_that_it_was_cut_from(
    text: Bytes, nested: Any, plain: Any
) -> None:
    small = learned(text, "", "next_token", width=WIDTH // 8)
    own = float((said(extract(nested, "S"), text) == said(nested, text)).double().mean())
    apart = float((said(small, text) == said(plain, text)).double().mean())
    note("matformer-agreement", own=own, apart=apart, small=text.loss(small))
    assert own > apart


def test_a_draft_that_is_cut_out_changes_no_byte_and_saves_passes(text: Bytes, nested: Any) -> None:
    draft, costs = extract(nested, "S", share=True), []
    for row in text.held_out[:8]:
        ids = row.long()[None, :32]
        alone = nested.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=64
        )
        found = generate_assisted(nested, draft, ids, 64)
        assert torch.equal(found.tokens, alone)
        costs.append((found.acceptance_rate, found.passes_per_token))
    rate, passes = (sum(one) / len(costs) for one in zip(*costs))
    note("matformer-draft", acceptance_rate=rate, passes_per_token=passes)
    assert passes < 1
