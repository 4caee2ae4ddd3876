"""Edited decoders generate what a loop without any cache generates, in every way of generating."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from decoding import NEW, endless, generate, greedy_without_cache, one_row
from edit_cases import CASES, KINDS

from helpers import batch_of, edit
from modwright.anatomy import Anatomy
from modwright.anatomy.coerce import cache_keyword
from modwright.core.errors import InvalidInputError
from modwright.edits import Change, remove

on_kinds = pytest.mark.covering(lambda params: params["case"] in KINDS)


@on_kinds
@pytest.mark.contract("D2")
@pytest.mark.parametrize("case", [*CASES, "no-block-0"])
def test_every_way_to_decode_gives_the_same_tokens(
    tiny: Any, edited: Any, decoder: str, case: str
) -> None:
    check_every_way(endless(edited(decoder, case).copy()), endless(tiny.copy(decoder)))


FULL, WINDOW = "full_attention", "sliding_attention"
KNOWS_EMPTY_SLOTS = hasattr(transformers.cache_utils, "DummyLayer")


@pytest.mark.parametrize("gone", [(0,), (0, 3), (1, 2), (0, 1, 3)])
@pytest.mark.parametrize(
    "types", [(WINDOW, FULL, FULL, WINDOW), (FULL, WINDOW, FULL, WINDOW)], ids=["wffw", "fwfw"]
)
@pytest.mark.parametrize("name", ["tiny-qwen2-mixed", "tiny-qwen3"])
def test_layers_of_mixed_types_decode_whichever_attentions_go(
    tiny: Any, name: str, types: tuple[str, ...], gone: tuple[int, ...]
) -> None:
    """Also where no layer of the first slot's type has an attention any more."""
    mixed = {"layer_types": list(types), "use_sliding_window": True, "sliding_window": 5}
    source = tiny(name, **mixed)
    blocks = Anatomy.of(source).blocks
    change = sum((remove(blocks[i].attention) for i in gone), Change())
    if not KNOWS_EMPTY_SLOTS and types[0] not in {types[i] for i in range(4) if i not in gone}:
        with pytest.raises(InvalidInputError, match=f"all {types[0]} layers would go"):
            edit(source, change)
        return
    applied = edit(source, change)
    assert applied.verification is not None and applied.verification.ok
    check_every_way(endless(applied.model), endless(tiny.copy(name, **mixed)))
    ids = batch_of(source)["input_ids"]
    with torch.no_grad():
        whole = applied.model(ids, use_cache=False).logits
        first = applied.model(ids[:, :7], use_cache=True)
        held = {cache_keyword(applied.model): first[cache_keyword(applied.model)]}
        second = applied.model(ids[:, 7:], use_cache=True, **held)
    torch.testing.assert_close(torch.cat((first.logits, second.logits), dim=1), whole)


def check_every_way(model: Any, dense: Any) -> None:
    """Greedy with a padded row, static cache, beams, and assisted on either side."""
    batch = batch_of(model)
    greedy = greedy_without_cache(model, batch)
    assert torch.equal(generate(model, batch), greedy)
    assert torch.equal(generate(model, batch, cache_implementation="static"), greedy)
    beams = generate(model, batch, num_beams=3, use_cache=False)
    assert torch.equal(generate(model, batch, num_beams=3), beams)

    row = one_row(batch)
    as_target = generate(model, row, assistant_model=dense)
    assert torch.equal(as_target, greedy_without_cache(model, row))
    as_draft = generate(dense, row, assistant_model=model)
    assert torch.equal(as_draft, greedy_without_cache(dense, row))


@pytest.mark.parametrize("case", ["no-attention-0", "narrow-heads", "several"])
def test_a_prompt_may_be_read_in_chunks(edited: Any, decoder: str, case: str) -> None:
    model = endless(edited(decoder, case).copy())
    batch = batch_of(model)
    greedy = greedy_without_cache(model, batch)
    for cache in ("dynamic", "static"):
        chunked = generate(model, batch, prefill_chunk_size=5, cache_implementation=cache)
        assert torch.equal(chunked, greedy)


@pytest.mark.parametrize("case", ["no-attention-0", "uneven-heads", "several"])
def test_two_chunks_by_hand_are_one_pass(edited: Any, decoder: str, case: str) -> None:
    """Positions continue by themselves: the first surviving attention fills the first slot."""
    model = edited(decoder, case).model
    ids = batch_of(model)["input_ids"]
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
        first = model(ids[:, :5], use_cache=True)
        held = {cache_keyword(model): first[cache_keyword(model)], "use_cache": True}
        second = model(ids[:, 5:], **held)
    torch.testing.assert_close(torch.cat((first.logits, second.logits), dim=1), whole)


@pytest.mark.parametrize("case", ["no-attention-0", "several"])
def test_several_sequences_for_one_prompt(edited: Any, decoder: str, case: str) -> None:
    model = endless(edited(decoder, case).copy())
    batch = batch_of(model)
    rows = [
        generate(model, batch, num_beams=4, num_return_sequences=3, use_cache=cached)
        for cached in (True, False)
    ]
    assert rows[0].shape == (6, batch["input_ids"].shape[1] + NEW)
    assert torch.equal(rows[0], rows[1])
    samples = []
    for cached in (True, False):
        torch.manual_seed(0)
        samples.append(
            model.generate(
                **batch,
                max_new_tokens=NEW,
                do_sample=True,
                num_return_sequences=3,
                use_cache=cached,
            )
        )
    assert torch.equal(samples[0], samples[1])


@on_kinds
@pytest.mark.parametrize("case", CASES)
def test_cache_bytes_are_those_of_the_heads_that_are_left(
    edited: Any, decoder: str, case: str
) -> None:
    source, model = edited(decoder, case).source, edited(decoder, case).model
    batch = batch_of(model)

    def cached(of: Any) -> int:
        with torch.no_grad():
            cache = of(**batch, use_cache=True)[cache_keyword(of)]
        held = (t for layer in cache.layers for t in (layer.keys, layer.values))
        return sum(t.numel() for t in held if t is not None)

    def needed(of: Any) -> int:
        """Keys and values of every position, or of those that a window can still see."""
        shapes = [b.attention.shape for b in Anatomy.of(of).blocks if b.attention is not None]
        rows, length = batch["input_ids"].shape
        return sum(
            rows
            * min(length, (s.sliding_window or length + 1) - 1)
            * s.num_kv_heads
            * (s.qk_head_dim + s.v_head_dim)
            for s in shapes
        )

    assert cached(model) == needed(model)
    assert cached(source) == needed(source)
    gone = {"no-attention-0": 1, "no-attention-0-2": 2, "no-attention-at-all": 4}
    alike = len({block.attention.shape for block in Anatomy.of(source).blocks}) == 1
    if case in gone and alike:
        assert cached(model) * 4 == cached(source) * (4 - gone[case])


@pytest.mark.parametrize("case", ["identity", "empty-block-1", "several"])
def test_hidden_states_are_one_more_than_the_blocks(edited: Any, preset: str, case: str) -> None:
    model = edited(preset, case).model
    with torch.no_grad():
        found = model(**batch_of(model), output_hidden_states=True).hidden_states
    assert len(found) == 1 + len(Anatomy.of(model).blocks)
    assert all(h.shape[-1] == Anatomy.of(model).hidden_size for h in found[:-1])
    for index, block in enumerate(Anatomy.of(model).blocks):
        if block.attention is None and block.mlp is None and block.layout != "post":
            assert torch.equal(found[index], found[index + 1])


@pytest.mark.contract("J1")
def test_an_end_token_list_survives_and_ends_generation(tiny: Any, tmp_path: Path) -> None:
    source = tiny.copy("tiny-llama")
    assert source.config.eos_token_id == [2, 5]
    source.generation_config.eos_token_id = [2, 5, 7]
    source.generation_config.repetition_penalty = 1.5
    model = edit(source, remove(Anatomy.of(source).blocks[0].attention)).model
    assert model.generation_config == source.generation_config
    assert model.generation_config is not source.generation_config
    model.save_pretrained(tmp_path)
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert back.generation_config.eos_token_id == [2, 5, 7]
    assert back.generation_config.repetition_penalty == 1.5
    model.generation_config.repetition_penalty = None
    batch = one_row(batch_of(model))
    third = int(greedy_without_cache(model, batch)[0, -NEW + 2])
    model.generation_config.eos_token_id = [126, third]
    out = generate(model, batch)
    assert out[0, -1] == third
    assert out.shape[1] <= batch["input_ids"].shape[1] + 3
