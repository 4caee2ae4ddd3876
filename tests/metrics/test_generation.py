"""A sample is greedy, holds the new text only, and leaves the model as it was."""

from __future__ import annotations

import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from modwright.core.errors import InvalidInputError
from modwright.metrics import Subject, make_metric
from modwright.metrics.generation import generate_sample, repetition

END = 50
VOCABULARY = 52
TEMPLATE = "{% for m in messages %}w1 {{ m.content }} w2 {% endfor %}"


def word_tokenizer(**special: object) -> PreTrainedTokenizerFast:
    vocabulary = {f"w{index}": index for index in range(END)} | {"<end>": END, "<unk>": 51}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **special)


def llama(**changed: object) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.5,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    return LlamaForCausalLM(LlamaConfig(**(sizes | changed))).eval()


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
    ends = {"bos_token_id": None, "eos_token_id": None}
    return GPT2LMHeadModel(GPT2Config(**sizes, **ends, initializer_range=0.5)).eval()


@torch.no_grad()
def greedy(model, ids: list[int], count: int) -> list[int]:
    """Without a cache, one full forward pass for every token."""
    for _ in range(count):
        ids = [*ids, int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())]
    return ids[-count:]


@pytest.fixture
def warned(monkeypatch) -> list[str]:
    import transformers.generation.configuration_utils as configuration
    import transformers.generation.utils as generation

    said: list[str] = []
    for module in (configuration, generation):
        for level in ("warning", "warning_once"):
            monkeypatch.setattr(module.logger, level, lambda text, *_: said.append(text))
    return said


@pytest.mark.parametrize("make", [llama, gpt2])
def test_a_sample_is_the_greedy_continuation(make, warned):
    sample = generate_sample(make(), word_tokenizer(), "w3 w4 w5", max_new_tokens=12)
    expected = greedy(make(), [3, 4, 5], 12)
    assert sample.text == word_tokenizer().decode(expected)
    assert sample.prompt == "w3 w4 w5"
    assert sample.new_tokens == 12
    assert sample.seconds > 0
    assert sample.tokens_per_second == pytest.approx(12 / sample.seconds)
    assert warned == []


def test_the_settings_are_json_and_complete():
    settings = generate_sample(llama(), word_tokenizer(), "w3", max_new_tokens=2, seed=7).settings
    assert json.loads(json.dumps(settings)) == settings
    assert settings == {
        "decoding": "greedy",
        "max_new_tokens": 2,
        "use_cache": True,
        "eos_token_id": None,
        "pad_token_id": 0,
        "seed": 7,
        "chat": False,
        "dtype": "float32",
    }


def test_the_models_own_sampling_and_penalties_are_left_aside_and_kept(warned):
    model = llama()
    own = model.generation_config
    own.update(do_sample=True, temperature=5.0, repetition_penalty=3.0, max_length=5, top_p=0.5)
    sample = generate_sample(model, word_tokenizer(), "w3 w4 w5", max_new_tokens=12)
    assert sample.text == word_tokenizer().decode(greedy(llama(), [3, 4, 5], 12))
    assert model.generation_config is own
    assert (own.do_sample, own.temperature, own.max_length) == (True, 5.0, 5)
    assert warned == []


@pytest.mark.parametrize("many", [False, True])
def test_end_tokens_of_the_model_end_the_sample(many):
    third = greedy(llama(), [3, 4, 5], 3)[-1]
    model = llama()
    model.generation_config.eos_token_id = [END, third] if many else third
    sample = generate_sample(model, word_tokenizer(), "w3 w4 w5", max_new_tokens=12)
    assert sample.new_tokens <= 3
    assert sample.text.endswith(f"w{third}")
    assert sample.settings["eos_token_id"] == model.generation_config.eos_token_id


def test_special_tokens_are_not_in_the_text():
    model = llama()
    model.lm_head.weight.data.zero_()
    model.generation_config.eos_token_id = 0
    tokenizer = word_tokenizer(additional_special_tokens=["w0"])
    sample = generate_sample(model, tokenizer, "w3 w4", max_new_tokens=5)
    assert (sample.text, sample.new_tokens) == ("", 1)


def test_the_chat_template_is_used_where_there_is_one():
    plain, chatty = word_tokenizer(), word_tokenizer()
    chatty.chat_template = TEMPLATE
    told = generate_sample(llama(), chatty, "w7", max_new_tokens=6)
    assert told.text == plain.decode(greedy(llama(), [1, 7, 2], 6))
    assert (told.prompt, told.settings["chat"]) == ("w7", True)
    untold = generate_sample(llama(), chatty, "w7", max_new_tokens=6, chat=False)
    assert untold.text == plain.decode(greedy(llama(), [7], 6))
    assert generate_sample(llama(), plain, "w7", max_new_tokens=6).text == untold.text
    with pytest.raises(
        InvalidInputError, match="no chat template; valid values of chat: False, None"
    ):
        generate_sample(llama(), plain, "w7", chat=True)


def test_the_random_state_and_the_modes_are_left_alone():
    model = gpt2().train()
    before = torch.random.get_rng_state()
    texts = {
        generate_sample(model, word_tokenizer(), "w3 w4", max_new_tokens=8, seed=seed).text
        for seed in (0, 1)
    }
    assert texts == {word_tokenizer().decode(greedy(gpt2(), [3, 4], 8))}
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(module.training for module in model.modules())


def small_bert() -> BertForMaskedLM:
    sizes = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    return BertForMaskedLM(BertConfig(vocab_size=VOCABULARY, **sizes))


def small_t5() -> T5ForConditionalGeneration:
    sizes = {
        "vocab_size": VOCABULARY,
        "d_model": 8,
        "d_kv": 4,
        "d_ff": 8,
        "num_layers": 1,
        "num_heads": 2,
    }
    return T5ForConditionalGeneration(T5Config(**sizes))


@pytest.mark.parametrize(
    "make", [small_bert, small_t5, lambda: GPT2Model(gpt2().config), lambda: torch.nn.Linear(1, 1)]
)
def test_models_that_cannot_continue_a_prompt_are_refused(make):
    with pytest.raises(
        InvalidInputError, match="cannot continue a prompt; a causal language model can"
    ):
        generate_sample(make(), word_tokenizer(), "w3")


@pytest.mark.parametrize(
    ("prompt", "count", "said"),
    [
        ("", 5, "the prompt is empty"),
        ("  ", 5, "gives no token"),
        ("w3", 0, "max_new_tokens is 0; valid values: 1 and more"),
        ("w3 w4", 63, r"after a prompt of 2 tokens, .* 64 positions; valid values: 1\.\.62"),
        ("w3 " * 64, 1, "the prompt itself is too long"),
    ],
)
def test_prompts_and_lengths_outside_their_range_are_refused(prompt, count, said):
    with pytest.raises(InvalidInputError, match=said):
        generate_sample(llama(), word_tokenizer(), prompt, max_new_tokens=count)


def test_repetition_counts_four_grams_that_stood_before():
    assert repetition("") == 0.0
    assert repetition("a a a") == 0.0
    assert repetition("a b c d") == 0.0
    assert repetition("a b c d a b c d") == pytest.approx(1 / 5)
    assert repetition("the " * 40) == pytest.approx(36 / 37)
    assert repetition("!" * 40) == pytest.approx(36 / 37)


def test_repetition_of_prose_is_small():
    from modwright.data.text import load_text

    assert repetition(load_text("lee")[:600]) < 0.05


def test_of_several_prompts_the_worst_answer_is_shown_and_all_are_stored() -> None:
    model, tokenizer = llama(), word_tokenizer()
    prompts = ["w3 w4", "w5", "w6 w7 w8"]
    metric = make_metric("generation", {"prompt": prompts, "max_new_tokens": 12})
    found = metric.measure(Subject(model, tokenizer=tokenizer))
    alone = [generate_sample(model, tokenizer, one, max_new_tokens=12) for one in prompts]
    assert [(one.prompt, one.text) for one in found.samples] == [
        (one.prompt, one.text) for one in alone
    ]
    assert found.repetition == max(one.repetition for one in alone)
    shown = next(one for one in alone if one.prompt == found.prompt)
    assert (shown.text, shown.repetition) == (found.text, found.repetition)
    one = make_metric("generation", {"prompt": "w5", "max_new_tokens": 12})
    assert one.measure(Subject(model, tokenizer=tokenizer)).samples == ()
