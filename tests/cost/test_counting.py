from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from modwright import cost
from modwright.anatomy import Anatomy, Embedding, Part
from modwright.anatomy.coerce import cache_keyword
from modwright.core.errors import InvalidInputError, UnsupportedArchitecture
from modwright.cost import Cost, Pass, count, part_macs

LENGTH, BATCH = 10, 2


def counted_by_torch(model: Any, inputs: Any, **kwargs: Any) -> int:
    """Without the angles of rotary positions, which older transformers write as a product."""
    with (
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        model(inputs, **kwargs)
    by_module = counter.get_flop_counts()
    angles = [n for name, n in by_module.items() if name.endswith("rotary_emb")]
    flops = counter.get_total_flops() - sum(sum(n.values()) for n in angles)
    assert flops % 2 == 0
    return flops // 2


def tokens(length: int = LENGTH, batch: int = BATCH) -> torch.Tensor:
    return torch.randint(3, 100, (batch, length), generator=torch.Generator().manual_seed(0))


def read_by(model: Any) -> torch.Tensor:
    """What a model of any family reads, ``LENGTH`` tokens of text or as much as an image is."""
    generator = torch.Generator().manual_seed(0)
    inputs = Anatomy.of(model).family.inputs().random(BATCH, LENGTH, generator)
    return inputs[model.main_input_name]


def tensors_of(model: Any) -> list[torch.Tensor]:
    return list({id(t): t for t in model.state_dict(keep_vars=True).values()}.values())


def test_prefill_equals_the_counter_of_torch(model: Any) -> None:
    counted = count(model, length=LENGTH, batch=BATCH)
    assert counted.prefill_macs == counted_by_torch(model, read_by(model))


def test_decoding_equals_the_counter_of_torch(model: Any) -> None:
    counted = count(model, length=3, batch=BATCH, context=LENGTH)
    if not Anatomy.of(model).family.is_causal():
        assert counted.decode_macs == 0
        return
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(tokens(), **{cache_keyword(model): cache})
    assert counted.decode_macs == counted_by_torch(
        model, tokens(1), **{cache_keyword(model): cache}
    )


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_eager_attention_costs_the_same(make: Any, attention: str) -> None:
    model = make("tiny-llama", attn_implementation=attention)
    assert model.config._attn_implementation == attention
    assert count(model, length=LENGTH, batch=1).prefill_macs == counted_by_torch(
        model, tokens(batch=1)
    )


def test_decoding_behind_a_sliding_window_equals_the_counter_of_torch(make: Any) -> None:
    model = make("tiny-llama", sliding_window=6)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(tokens(), **{cache_keyword(model): cache})
    assert cache.layers[0].keys.shape[2] == 5
    found = count(model, length=LENGTH, batch=BATCH)
    assert found.decode_macs == counted_by_torch(model, tokens(1), **{cache_keyword(model): cache})
    assert found.decode_macs == count(model, length=1, batch=BATCH, context=5).decode_macs


@pytest.mark.parametrize(
    "name",
    [
        "BertForMaskedLM",
        "BertForPreTraining",
        "BertForSequenceClassification",
        "BertForTokenClassification",
        "BertForQuestionAnswering",
        "BertForNextSentencePrediction",
        "LlamaModel",
        "LlamaForSequenceClassification",
        "LlamaForTokenClassification",
        "GPT2ForSequenceClassification",
        "OPTForSequenceClassification",
        "ViTForImageClassification",
    ],
)
def test_other_heads_equal_the_counter_of_torch(make: Any, name: str) -> None:
    kind = getattr(transformers, name)
    preset = f"tiny-{kind.config_class.model_type}"
    model = kind(make(preset).config).eval()
    counted = count(model, length=LENGTH, batch=BATCH)
    assert counted.prefill_macs == counted_by_torch(model, read_by(model))
    assert counted.parameters == sum(p.numel() for p in model.parameters())


def test_rows_add_up_to_the_model(model: Any) -> None:
    counted = count(model)
    assert counted.parameters == sum(p.numel() for p in model.parameters())
    assert counted.stored_bytes == sum(t.numel() * t.element_size() for t in tensors_of(model))
    addresses = [row.address for row in counted.rows]
    assert len(set(addresses)) == len(addresses)
    parts = [address for address, _ in Anatomy.of(model).parts()]
    assert [address for address in addresses if address != "other"] == parts
    kinds = counted.by_kind().values()
    assert sum(row.prefill_macs for row in kinds) == counted.prefill_macs
    assert sum(row.parameters for row in kinds) == counted.parameters


@pytest.mark.parametrize("change", ["dense", "uneven heads", "several"])
def test_stored_bytes_are_those_of_the_file(
    dense: Any, edit: Any, change: str, tmp_path: Path
) -> None:
    model = edit(dense, change)
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        stored = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118
    assert count(model).stored_bytes == sum(t.numel() * t.element_size() for t in stored)


def test_bytes_follow_the_dtype(make: Any) -> None:
    model = make("tiny-gpt2").to(torch.bfloat16)
    counted = count(model)
    assert counted.stored_bytes == 2 * counted.parameters
    assert counted.recipe["dtype"] == "bfloat16"


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_head_has_no_parameters_of_its_own_but_its_products(make: Any, tied: bool) -> None:
    model = make("tiny-llama", tie_word_embeddings=tied)
    rows = {row.address: row for row in count(model, length=LENGTH).rows}
    assert rows["head"].parameters == (0 if tied else 128 * 48)
    assert rows["embed"].parameters == 128 * 48
    assert rows["head"].prefill_macs == LENGTH * 128 * 48
    assert rows["head"].decode_macs == 128 * 48
    assert rows["embed"].prefill_macs == 0


def test_an_image_has_a_length_of_its_own(make: Any) -> None:
    model = make("tiny-vit")
    counted = count(model, length=LENGTH, batch=3)
    assert counted == count(model, length=500, batch=3)
    assert counted.recipe["length"] == 17 and "context" not in counted.recipe
    assert counted.recipe["input"] == (
        "an image of 16 x 16 pixels and 3 channels is 16 patches and 1 token beside them"
    )
    rows = {row.address: row for row in counted.rows}
    assert rows["embed"].kind == "patchembedding"
    assert rows["embed"].prefill_macs == 3 * 16 * (48 * 3 * 4 * 4)
    assert rows["positions"].parameters == 48 + 17 * 48 and rows["positions"].prefill_macs == 0
    assert rows["other"].prefill_macs == 3 * 48 * 48, "the pooler reads the class token"
    assert counted.kv_bytes == counted.decode_macs == 0


def test_fault_B10_the_decoder_of_masked_images_is_counted(make: Any) -> None:
    config = make("tiny-vit").config
    config.encoder_stride = config.patch_size
    model = transformers.ViTForMaskedImageModeling(config).eval()
    images = torch.randn(BATCH, 3, config.image_size, config.image_size)
    assert count(model, batch=BATCH).prefill_macs == counted_by_torch(model, images)
    model.decoder[0] = torch.nn.Conv2d(config.hidden_size, 12, 3, padding=1)
    with pytest.raises(UnsupportedArchitecture, match=r"decoder\.0: a convolution outside the pa"):
        count(model)


def test_projections_of_the_stream_count_for_every_token(make: Any) -> None:
    rows = {row.address: row for row in count(make("tiny-opt-post"), length=LENGTH).rows}
    for name in ("project_in", "project_out"):
        assert rows[name].kind == "linear" and rows[name].parameters == 24 * 48
        assert rows[name].prefill_macs == LENGTH * 24 * 48 and rows[name].decode_macs == 24 * 48
    assert list(rows)[:3] == ["embed", "positions", "project_in"]
    assert list(rows)[-2:] == ["project_out", "head"]


def test_the_pooler_stands_in_the_row_other(make: Any) -> None:
    rows = {row.address: row for row in count(make("tiny-bert"), length=LENGTH, batch=3).rows}
    assert rows["other"].parameters == 48 * 48 + 48
    assert rows["other"].prefill_macs == 3 * 48 * 48


def test_a_model_without_weights_costs_the_same(dense: Any) -> None:
    with torch.device("meta"):
        empty = type(dense)(dense.config)
    assert count(empty) == count(dense)
    assert count(Anatomy.of(empty)) == count(dense)


def test_closed_forms_of_a_known_size(make: Any) -> None:
    rows = {row.address: row for row in count(make("tiny-llama"), length=5, context=7).rows}
    maps = 48 * 72 + 2 * 48 * 24 + 72 * 48
    assert rows["blocks.0.attention"].prefill_macs == 5 * maps + 6 * 5 * 5 * (12 + 12)
    assert rows["blocks.0.attention"].decode_macs == maps + 6 * (7 + 1) * (12 + 12)
    assert rows["blocks.0.mlp"].prefill_macs == 5 * 3 * 48 * 96
    assert rows["final_norm"].prefill_macs == 0


def test_a_factor_pair_costs_its_factors(make: Any, edit: Any) -> None:
    dense = make("tiny-llama")
    before = {row.address: row for row in count(dense, length=1).rows}
    after = {row.address: row for row in count(edit(dense, "factor pairs"), length=1).rows}
    saved = 48 * 96 - 5 * (48 + 96)
    for name in ("parameters", "prefill_macs", "decode_macs"):
        was, became = (getattr(rows["blocks.1.mlp"], name) for rows in (before, after))
        assert was - became == saved
    assert before["blocks.0.mlp"] == after["blocks.0.mlp"]


def test_growth_in_length_is_what_it_says(make: Any) -> None:
    model = make("tiny-llama")
    one, two, four = (count(model, length=length) for length in (64, 128, 256))
    assert two.kv_bytes == 2 * one.kv_bytes
    assert two.activation_bytes == 2 * one.activation_bytes
    assert two.by_kind()["mlp"].prefill_macs == 2 * one.by_kind()["mlp"].prefill_macs
    assert two.by_kind()["head"].prefill_macs == 2 * one.by_kind()["head"].prefill_macs
    # a T^2 + b T has the second difference 6 a T^2 between T, 2 T and 4 T
    at = [c.by_kind()["attention"].prefill_macs for c in (one, two, four)]
    assert at[2] - 3 * at[1] + 2 * at[0] == 6 * 64**2 * 4 * 6 * (12 + 12)
    steps = [c.decode_macs for c in (one, two, four)]
    assert steps[2] - steps[1] == 2 * (steps[1] - steps[0])
    assert set(one.growth()) == {
        "attention",
        "mlp",
        "head",
        "embedding",
        "kv_bytes",
        "activation_bytes",
    }
    assert not {"head", "kv_bytes"} & set(count(make("tiny-bert")).growth())


@pytest.mark.parametrize("name", ["length", "batch", "context"])
@pytest.mark.parametrize("value", [0, -3, 2.0, True])
def test_numbers_out_of_range_are_refused_with_the_valid_range(
    make: Any, name: str, value: object
) -> None:
    with pytest.raises(InvalidInputError, match=rf"{name} must be a whole number, 1 or more, not "):
        count(make("tiny-gpt2"), **{name: value})  # type: ignore[arg-type]


class Mystery(Part):
    """A view of another kind."""

    address = "blocks.0.mystery"

    def parameters(self) -> dict[str, torch.Tensor]:
        return {}

    def write(self, name: str, value: torch.Tensor) -> None:
        pass


def test_a_part_without_a_formula_is_refused() -> None:
    with pytest.raises(UnsupportedArchitecture, match=r"blocks\.0\.mystery.*a view of.*`macs`"):
        part_macs(Mystery(), Pass(1, 1))
    assert part_macs(Embedding(torch.nn.Embedding(9, 4), "embed"), Pass(2, 3)) == 0


def test_the_recipe_says_what_was_counted(make: Any) -> None:
    counted = count(make("tiny-gpt2"), length=300, batch=2)
    recipe = counted.recipe
    assert (recipe["length"], recipe["batch"], recipe["context"]) == (300, 2, 300)
    assert recipe["dtype"] == "float32"
    assert "256 positions" in recipe["positions"]
    assert "positions" not in count(make("tiny-gpt2"), length=255).recipe
    assert "context" not in count(make("tiny-bert")).recipe


def test_json_holds_everything(model: Any) -> None:
    counted = count(model)
    told = json.loads(json.dumps(counted.to_dict()))
    assert told["parameters"] == counted.parameters == sum(r["parameters"] for r in told["rows"])
    assert told["kv_bytes"] == counted.kv_bytes
    assert len(told["rows"]) == len(counted.rows)


def test_the_room_has_a_verb_of_its_own_name(make: Any) -> None:
    assert cost.cost is count
    counted = cost.cost(make("tiny-gpt2"))
    assert isinstance(counted, Cost)
    assert repr(counted) == "Cost(131.6 k parameters, 526.5 kB, 160.4 M MACs for 512 tokens)"
