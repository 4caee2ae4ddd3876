"""Recurrent components stand in decoders beside attentions, and keep their state in the cache."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_recurrent
import transformers
from decoding import NEW, endless, generate, greedy_without_cache, one_row
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from torch import nn
from toy_recurrent import ToyRecurrent, toys
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache

import modwright
from helpers import batch_of, edit, outputs, random_data, snapshot, unchanged
from modwright.anatomy import Anatomy, OpaqueMixer
from modwright.anatomy.coerce import cache_keyword
from modwright.checkpoint import save
from modwright.checkpoint.export import export
from modwright.core.compat.torch import tensors_of
from modwright.core.errors import InvalidInputError, VerificationError
from modwright.core.modes import set_mode
from modwright.cost import count, inspect
from modwright.cost.memory import part_state_bytes
from modwright.edits import Change, Replace, remove
from modwright.edits.cache_state import StateLayer
from modwright.edits.verify import check_reopens
from modwright.nn.component import COMPONENTS
from modwright.surgery import plan
from modwright.surgery.method import make_method

PLACES: dict[str, tuple[int, ...]] = {"block 0": (0,), "block 1": (1,), "all blocks": (0, 1, 2, 3)}


@pytest.fixture(scope="module")
def stateful(tiny: Any) -> Callable[..., Any]:
    """``stateful(preset, where)``: the edited model, verified; shared, so it stays as it is."""
    made: dict[tuple[str, str], Any] = {}

    def make(preset: str, where: str) -> Any:
        if (preset, where) not in made:
            source = tiny(preset)
            before = snapshot(source)
            applied = edit(source, toys(Anatomy.of(source), PLACES[where]))
            assert applied.verification is not None and applied.verification.ok
            assert unchanged(source, before)
            made[preset, where] = endless(applied.model)
        return made[preset, where]

    return make


def has_static_windows(model: Any) -> bool:
    layers = StaticCache(config=model.config, max_cache_len=32).layers
    return any(layer.is_sliding for layer in layers if hasattr(layer, "is_sliding"))


on_all = pytest.mark.covering(lambda params: params["where"] == "block 0")


@on_all
@pytest.mark.parametrize("where", PLACES)
def test_every_way_to_generate_gives_the_same_tokens(
    tiny: Any, stateful: Any, decoder: str, where: str
) -> None:
    model, dense = stateful(decoder, where), tiny.copy(decoder)
    batch = batch_of(model)
    greedy = greedy_without_cache(model, batch)
    assert torch.equal(generate(model, batch), greedy)
    if has_static_windows(model):
        with pytest.raises(InvalidInputError, match="static cache with sliding windows"):
            generate(model, batch, cache_implementation="static")
    else:
        assert torch.equal(generate(model, batch, cache_implementation="static"), greedy)
    caches: list[dict[str, Any]] = [{}, {"cache_implementation": "static"}, {"use_cache": False}]
    rows = [
        generate(model, batch, num_beams=3, num_return_sequences=2, **cache)
        for cache in caches
        if "cache_implementation" not in cache or not has_static_windows(model)
    ]
    assert rows[0].shape == (4, batch["input_ids"].shape[1] + NEW)
    assert all(torch.equal(found, rows[-1]) for found in rows)
    row = one_row(batch)
    refused = pytest.raises(InvalidInputError, match="no part in assisted generation")
    with refused:
        generate(model, row, assistant_model=dense)
    with refused:
        generate(endless(dense), row, assistant_model=model)
    with refused:
        generate(model, row, prompt_lookup_num_tokens=2)


@on_all
@pytest.mark.parametrize("where", PLACES)
@torch.no_grad()
def test_chunks_and_handed_back_caches_are_one_pass(
    stateful: Any, decoder: str, where: str
) -> None:
    model, name = stateful(decoder, where), cache_keyword(stateful(decoder, where))
    batch = batch_of(model)
    ids = batch["input_ids"][:1]
    whole = model(ids, use_cache=False).logits
    for first in ({}, {name: DynamicCache()}, {name: DynamicCache(config=model.config)}):
        one = model(ids[:, :5], use_cache=True, **first)
        two = model(ids[:, 5:], use_cache=True, **{name: one[name]})
        torch.testing.assert_close(torch.cat((one.logits, two.logits), dim=1), whole)
    greedy = greedy_without_cache(model, batch)
    cache = DynamicCache(config=model.config)
    short = model.generate(
        **batch, max_new_tokens=3, do_sample=False, **{name: cache}, return_dict_in_generate=True
    )
    mask = nn.functional.pad(batch["attention_mask"], (0, 3), value=1)
    longer = model.generate(
        short.sequences,
        attention_mask=mask,
        max_new_tokens=NEW - 3,
        do_sample=False,
        **{name: cache},
    )
    assert torch.equal(longer, greedy)
    for kind in ("dynamic", "static")[: 1 if has_static_windows(model) else 2]:
        chunked = generate(model, batch, prefill_chunk_size=5, cache_implementation=kind)
        assert torch.equal(chunked, greedy)


@torch.no_grad()
def test_the_cache_holds_states_beside_keys_and_their_bytes_do_not_grow(stateful: Any) -> None:
    model = stateful("tiny-llama", "block 1")
    name = cache_keyword(model)
    held = []
    for length in (4, 9):
        cache = model(torch.full((2, length), 7), use_cache=True)[name]
        slot = Anatomy.of(model).blocks[1].module.self_attn.layer_idx
        assert slot == 3 and isinstance(cache.layers[slot], StateLayer)
        assert cache.get_seq_length() == cache.get_seq_length(slot) == length
        held.append(sum(t.nbytes for t in tensors_of(cache.layers[slot].state)))
    assert held[0] == held[1] == 2 * ToyRecurrent(48).state_bytes(torch.float32)


@torch.no_grad()
def test_a_cache_of_another_batch_or_model_is_refused(tiny: Any, stateful: Any) -> None:
    model, dense = stateful("tiny-llama", "block 1"), tiny("tiny-llama")
    name, ids = cache_keyword(model), torch.full((2, 5), 7)
    with pytest.raises(InvalidInputError, match="states of 2 sequences, and the batch has 1"):
        model(ids[:1], **{name: model(ids, use_cache=True)[name]})
    with pytest.raises(InvalidInputError, match="keys and values in slot 3"):
        model(ids, **{name: dense(ids, use_cache=True)[name]})
    with pytest.raises(InvalidInputError, match="holds a recurrent state where an attention"):
        dense(ids, **{name: model(ids, use_cache=True)[name]})
    cache = model(ids, use_cache=True)[name]
    with pytest.raises(InvalidInputError, match="cannot be rolled back"):
        cache.crop(-2)


@torch.no_grad()
def test_a_cache_of_states_can_be_used_again_after_a_reset(stateful: Any) -> None:
    model, ids = stateful("tiny-llama", "all blocks"), torch.full((2, 5), 7)
    cache = model(ids, use_cache=True)[cache_keyword(model)]
    whole = model(ids[:1, 2:], use_cache=False).logits
    cache.reset()
    torch.testing.assert_close(model(ids[:1, 2:], **{cache_keyword(model): cache}).logits, whole)


@torch.no_grad()
def test_rows_of_a_cache_can_be_repeated_and_selected(stateful: Any) -> None:
    model = copy.deepcopy(stateful("tiny-llama", "all blocks")).double()
    name, ids = cache_keyword(model), torch.tensor([[5, 6, 7, 8, 9], [9, 8, 7, 6, 5]])
    whole = model(ids, use_cache=False).logits[:, 3:]
    for change in ("batch_repeat_interleave", "batch_select_indices", "offload"):
        cache = model(ids[:, :3], use_cache=True)[name]
        rows = torch.tensor([0, 1])
        if change == "offload":
            for layer in cache.layers:
                layer.offload()
                layer.prefetch()
        elif change == "batch_repeat_interleave":
            cache.batch_repeat_interleave(2)
            rows = torch.tensor([0, 0, 1, 1])
        else:
            cache.batch_select_indices(rows := torch.tensor([1]))
        found = model(ids[rows, 3:], **{name: cache}).logits
        torch.testing.assert_close(found, whole[rows])


@pytest.mark.parametrize("where", PLACES)
def test_a_saved_model_opens_in_another_process(
    stateful: Any, fresh_process: Any, where: str, tmp_path: Path
) -> None:
    model = stateful("tiny-gpt2", where)
    model.save_pretrained(tmp_path / "saved")
    batch = batch_of(model)
    save_file(batch, tmp_path / "batch.safetensors")
    answer = fresh_process(
        tmp_path / "saved",
        "AutoModelForCausalLM",
        batch=str(tmp_path / "batch.safetensors"),
        out=str(tmp_path / "out.safetensors"),
        modules=[toy_recurrent.__file__],
    )
    assert answer["class"] == "ModwrightGPT2LMHeadModel"
    with torch.no_grad():
        live = model(**batch).logits
    torch.testing.assert_close(load_file(tmp_path / "out.safetensors")["out"], live)
    with pytest.raises(StrictDataclassError):
        transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "saved")


@pytest.mark.slow
def test_a_new_process_is_told_of_what_registered_it(stateful: Any, tmp_path: Path) -> None:
    model = stateful("tiny-llama", "block 1")
    save(model, tmp_path / "saved")
    assert "bit-equal" in str(check_reopens(model, tmp_path / "saved"))


@pytest.mark.families("tiny-llama", "tiny-gpt-neox", "tiny-bert", "tiny-mixtral", "tiny-vit")
def test_it_is_read_counted_dropped_and_edited_again(tiny: Any, preset: str) -> None:
    source = tiny(preset)
    model = edit(source, toys(Anatomy.of(source), (1,))).model
    anatomy = Anatomy.of(model)
    part = anatomy.blocks[1].at("attention")
    assert isinstance(part, OpaqueMixer) and isinstance(part.module, ToyRecurrent)
    path = anatomy.family.block["attention"]
    names = {n for n, _ in model.named_parameters() if f"{path}.inner.qk" in n}
    assert len(names) == 2, "tensors are named as in the component, below the host's place"
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(outputs(twin), outputs(model))
    counted = count(model, length=10)
    row = next(row for row in counted.rows if row.address == "blocks.1.attention")
    toy: Any = part.module
    assert row.prefill_macs == toy.macs(1, anatomy.family.inputs().positions(10))
    assert counted.state_bytes == toy.state_bytes(torch.float32) == count(model).state_bytes
    told = inspect(model).find("blocks.1.attention").description
    assert told.startswith("a toy with 4 rows, state of") and told.endswith("constant in length")
    assert counted.parameters == sum(p.numel() for p in model.parameters())
    assert inspect(model).find("blocks.1.attention").parameters == part.num_parameters - (
        part.norm.num_parameters if part.norm else 0
    )
    gone = edit(model, remove(part), check=False).model
    assert Anatomy.of(gone).blocks[1].at("attention") is None
    assert count(gone).state_bytes == 0
    fewer = Anatomy.of(edit(model, remove(anatomy.blocks[0]), check=False).model)
    assert isinstance(fewer.blocks[0].at("attention"), OpaqueMixer)


def test_llm_drop_scores_it_like_an_attention(stateful: Any) -> None:
    model = stateful("tiny-llama", "block 1")
    data = random_data(model, count=2, length=12, batch_size=2)
    decided = plan(model, make_method("llm_drop", target="attention", n=2), data)
    assert len(decided.reasons["scores"]["attention"]) == 4
    applied = modwright.apply(model, decided)
    assert applied.verification is not None and applied.verification.ok


def test_its_attention_map_is_a_hole(stateful: Any) -> None:
    model = copy.deepcopy(stateful("tiny-llama", "block 1"))
    fused = outputs(model)
    model.set_attn_implementation("eager")
    torch.testing.assert_close(outputs(model), fused)  # its masks are added to scores
    with torch.no_grad():
        found = model(**batch_of(model), output_attentions=True)
    assert [weights is None for weights in found.attentions] == [False, True, False, False]


@pytest.mark.parametrize("where", PLACES)
def test_gradients_are_those_of_a_checkpointed_pass(stateful: Any, where: str) -> None:
    model = copy.deepcopy(stateful("tiny-llama", where))
    set_mode(model, True)
    batch = batch_of(model)
    found = []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        model(**batch, labels=batch["input_ids"]).loss.backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters()})
    assert all(grad.abs().sum() > 0 for name, grad in found[0].items() if "self_attn" in name)
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize(
    ("fault", "look_at"),
    [("step", "see its step and its state"), ("padding", "how it reads the padding mask")],
)
@pytest.mark.families("tiny-llama", "tiny-gpt2", "tiny-gpt-neox", "tiny-opt-post")
@pytest.mark.parametrize("blocks", [(1,), (2, 3)])
def test_a_wrong_step_or_padding_is_found_and_where(
    tiny: Any, decoder: str, fault: str, look_at: str, blocks: tuple[int, ...]
) -> None:
    anatomy = Anatomy.of(tiny(decoder))
    right = sum((toys(anatomy, (i,)) for i in range(blocks[0])), Change())
    wrong = right + toys(anatomy, blocks, fault=fault)
    with pytest.raises(VerificationError, match=look_at) as failure:
        edit(anatomy.model, wrong)
    path = anatomy.family.layer_paths(anatomy.model)[blocks[0]]
    assert f"{path}.{anatomy.family.block['attention']} gives" in str(failure.value)
    assert "\n" not in str(failure.value)


def test_a_parameter_in_float32_stays_so_in_a_model_of_half_the_bytes(
    tiny: Any, tmp_path: Path
) -> None:
    source = tiny("tiny-llama", dtype=torch.bfloat16)
    applied = edit(source, toys(Anatomy.of(source), (1,)))
    assert applied.verification is not None and applied.verification.ok
    told = inspect(applied.model).find("blocks.1.attention").description
    assert told.endswith(", constant in length, decay in float32")
    applied.model.save_pretrained(tmp_path / "saved")
    half = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    whole.save_pretrained(tmp_path / "whole")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype=torch.bfloat16)
    for model in (applied.model, half, again):
        found = {name: p.dtype for name, p in model.named_parameters()}
        kept = [name for name, dtype in found.items() if dtype == torch.float32]
        assert kept == ["model.layers.1.self_attn.decay"]
        assert set(found.values()) == {torch.float32, torch.bfloat16}


@pytest.mark.slow
@pytest.mark.parametrize("target", ["standalone", "pt2"])
def test_exports_compute_the_same(stateful: Any, target: str, tmp_path: Path) -> None:
    """In a process without modwright, with its cache; and as a graph of any length."""
    if target == "pt2" and not hasattr(transformers, "exporters"):
        pytest.skip("this transformers has no exporters")
    done = export(stateful("tiny-llama", "block 1"), tmp_path / target, target)
    assert done.compared.largest <= 1e-5


def test_encoders_run_it_without_a_cache(tiny: Any) -> None:
    source = tiny("tiny-bert")
    applied = edit(source, toys(Anatomy.of(source), (0, 2)))
    assert applied.verification is not None and applied.verification.ok
    with pytest.raises(VerificationError, match="padding has no influence"):
        edit(source, toys(Anatomy.of(source), (0, 2), fault="padding"))


MIXERS: dict[str, dict[str, Any]] = {
    "mamba1": {"d_model": 48, "d_state": 4},
    "mamba2": {"d_model": 48, "d_state": 8, "head_dim": 16},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MIXERS)
def test_mixers_of_the_package_decode_beside_attentions(
    tiny: Any, name: str, dtype: torch.dtype
) -> None:
    """bfloat16 is verified alone: equal tokens would hang on near ties."""
    source, change = tiny("tiny-llama", dtype=dtype), Change()
    for block in (0, 2):
        address = f"blocks.{block}.attention"
        torch.manual_seed(block)
        values = COMPONENTS[name].make(**MIXERS[name]).state_dict()
        named = {f"{address}.{key}": value for key, value in values.items()}
        change += Change((Replace(address, name, MIXERS[name]),), named)
    applied = edit(source, change)
    assert applied.verification is not None and applied.verification.ok
    model = endless(applied.model)
    cost, part = count(model), Anatomy.of(model).blocks[0].at("attention")
    assert cost.state_bytes == 2 * part_state_bytes(part) > 0
    cache = model(torch.full((3, 4), 7), use_cache=True)[cache_keyword(model)]
    assert cost.state_bytes * 3 == sum(
        tensor.nbytes
        for layer in cache.layers
        if isinstance(layer, StateLayer)
        for tensor in tensors_of(layer.state)
    )
    if dtype == torch.float32:
        batch = batch_of(model)
        greedy = greedy_without_cache(model, batch)
        for options in ({}, {"cache_implementation": "static"}, {"prefill_chunk_size": 5}):
            assert torch.equal(generate(model, batch, **options), greedy)


def test_adapters_learn_in_a_mixer_and_in_attentions(stateful: Any) -> None:
    import peft

    model = copy.deepcopy(stateful("tiny-llama", "block 1"))
    wanted = peft.LoraConfig(r=2, target_modules=["qk", "out", "v_proj"], init_lora_weights=False)
    tuned = set_mode(peft.get_peft_model(model, wanted), True)
    batch = batch_of(model)
    tuned(**batch, labels=batch["input_ids"]).loss.backward()
    learned = {name: p.grad for name, p in tuned.named_parameters() if p.requires_grad}
    assert len(learned) == 2 * (2 + 3) and all(grad.abs().sum() > 0 for grad in learned.values())
    merged = set_mode(tuned.merge_and_unload(), False)
    assert not torch.equal(outputs(merged), outputs(stateful("tiny-llama", "block 1")))
    assert torch.equal(generate(merged, batch), greedy_without_cache(merged, batch))
