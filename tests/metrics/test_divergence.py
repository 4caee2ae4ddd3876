"""Divergence equals what is computed by hand from the whole logits, and refuses what has none."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import (
    BOS,
    VOCABULARY,
    disturbed,
    encoder_tokenizer,
    gpt2,
    llama,
    tiny_bert,
    tiny_t5,
    tiny_vit,
    word_tokenizer,
)
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertLMHeadModel,
    BertModel,
    LlamaForTokenClassification,
    LlamaModel,
)

from modwright.core.errors import InvalidInputError
from modwright.data.text import from_sequences
from modwright.metrics.divergence import divergence, require_comparable
from modwright.metrics.perplexity import PerplexityRecipe, perplexity


def ids_of(path: str, tokenizer: Any = None) -> Tensor:
    tokenizer = tokenizer or word_tokenizer()
    encoded = tokenizer(Path(path).read_text(), add_special_tokens=False)
    return torch.tensor(encoded.input_ids)


@torch.no_grad()
def naive(teacher: Any, student: Any, pieces: list[tuple[Tensor, list[int]]]) -> tuple[float, ...]:
    """Mean KL and top-1 over the given positions of each piece, in float64."""
    kls, same = [], []
    for ids, positions in pieces:
        one, two = (m(input_ids=ids[None]).logits[0].double() for m in (teacher, student))
        for at in positions:
            p, q = one[at].softmax(-1), two[at].softmax(-1)
            kls.append(float((p * (p / q).log()).sum()))
            same.append(int(one[at].argmax()) == int(two[at].argmax()))
    return sum(kls) / len(kls), sum(same) / len(same), len(kls)


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_next_tokens_equal_the_naive_loop(make: Any, batch_size: int, text: str) -> None:
    teacher = make()
    student = disturbed(teacher)
    recipe = PerplexityRecipe(text, windows=4, length=16, batch_size=batch_size)
    found = divergence(teacher, student, word_tokenizer(), recipe)
    pieces = [(row, list(range(15))) for row in ids_of(text)[:64].view(4, 16)]
    kl, top1, count = naive(teacher, student, pieces)
    assert found.tokens == count == 60
    assert found.kl == pytest.approx(kl, rel=1e-6)
    assert found.top1 == pytest.approx(top1)
    assert 0 < found.top1 < 1
    assert found.cosine is None
    assert found.finite


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("stride", [1, 5, None])
def test_the_tokens_compared_are_those_that_perplexity_counts(
    text: str, stride: int | None, bos: bool
) -> None:
    teacher, tokenizer = llama(), word_tokenizer()
    student = disturbed(teacher)
    recipe = PerplexityRecipe(text, windows=5, length=12, stride=stride, bos=bos, batch_size=2)
    found = divergence(teacher, student, tokenizer, recipe)
    content, ids = 12 - bos, ids_of(text)
    used = content if stride is None else stride
    pieces = []
    for index in range(5):
        window = ids[index * used : index * used + content]
        window = torch.cat([torch.tensor([BOS]), window]) if bos else window
        new = 11 if index == 0 else min(used, 11)
        pieces.append((window, list(range(11 - new, 11))))
    kl, top1, count = naive(teacher, student, pieces)
    counted = perplexity(teacher, tokenizer, recipe)
    assert found.tokens == count == counted.tokens
    assert found.kl == pytest.approx(kl, rel=1e-6)
    assert found.top1 == pytest.approx(top1)
    same = ("data", "windows", "length", "stride", "bos", "sha256", "split")
    assert {k: found.recipe[k] for k in same} == {k: counted.recipe[k] for k in same}


def test_a_model_agrees_with_itself_exactly(text: str) -> None:
    found = divergence(llama(), llama(), word_tokenizer(), PerplexityRecipe(text, 3, 16))
    assert (found.kl, found.top1) == (0.0, 1.0)


def test_the_direction_is_from_teacher_to_student(text: str) -> None:
    one = llama()
    other, recipe = disturbed(one, 0.3), PerplexityRecipe(text, 3, 16)
    there = divergence(one, other, word_tokenizer(), recipe)
    back = divergence(other, one, word_tokenizer(), recipe)
    assert there.top1 == back.top1
    assert there.kl is not None and abs(there.kl - back.kl) > 0.01 * there.kl
    assert there.recipe["direction"] == "KL(teacher || student)"


def test_slices_do_not_change_the_numbers(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = llama()
    given = (teacher, disturbed(teacher), word_tokenizer(), PerplexityRecipe(text, 2, 16))
    whole = divergence(*given)
    monkeypatch.setattr("modwright.metrics.divergence._SLICE", 2 * VOCABULARY)
    assert divergence(*given).kl == pytest.approx(whole.kl, rel=1e-12)


@pytest.mark.slow
def test_only_one_batch_of_logits_of_each_model_is_alive(text: str) -> None:
    """Whatever the number of windows: the outputs of earlier batches are gone."""
    import gc
    import weakref

    teacher = llama()
    student, alive, most = disturbed(teacher), [], 0

    def watch(model: Any, inputs: Any, output: Any) -> None:
        nonlocal most
        gc.collect()
        alive.append(weakref.ref(output.logits))
        most = max(most, sum(ref() is not None for ref in alive))

    for model in (teacher, student):
        model.register_forward_hook(watch)
    divergence(teacher, student, word_tokenizer(), PerplexityRecipe(text, 10, 8, batch_size=2))
    assert len(alive) > 10
    assert most == 2


# Padding


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_neither_compared_nor_seen(make: Any, side: str, text: str) -> None:
    teacher = make()
    student, ids = disturbed(teacher), ids_of(text)
    rows = [ids[:20], ids[20:29], ids[29:31]]
    padded = from_sequences(rows, pad_id=3, side=side, batch_size=3)
    found = divergence(teacher, student, word_tokenizer(), padded)
    kl, top1, count = naive(teacher, student, [(row, list(range(len(row) - 1))) for row in rows])
    assert found.tokens == count == 19 + 8 + 1
    assert found.kl == pytest.approx(kl, rel=1e-4)
    assert found.top1 == pytest.approx(top1)


def test_own_sequences_need_no_tokenizer_and_a_text_does(text: str) -> None:
    teacher, own = llama(), from_sequences([ids_of(text)[:9]], pad_id=0)
    assert divergence(teacher, disturbed(teacher), None, own).tokens == 8
    with pytest.raises(InvalidInputError, match="need the models' tokenizer"):
        divergence(teacher, teacher, None, PerplexityRecipe(text, 2, 8))


def test_padding_of_an_encoder_is_neither_masked_nor_seen(text: str) -> None:
    teacher, tokenizer = tiny_bert(BertForMaskedLM), encoder_tokenizer()
    student = disturbed(teacher)
    cls, sep = torch.tensor([tokenizer.cls_token_id]), torch.tensor([tokenizer.sep_token_id])
    ids = ids_of(text, tokenizer)
    rows = [torch.cat([cls, ids[a:b], sep]) for a, b in ((0, 20), (20, 28))]
    together = divergence(teacher, student, tokenizer, from_sequences(rows, 45, batch_size=2))
    alone = divergence(teacher, student, tokenizer, from_sequences(rows, 45, batch_size=1))
    assert together.tokens == alone.tokens == 4  # tokens 3, 10, 17 and 24 of 28
    assert together.kl == pytest.approx(alone.kl, rel=1e-4)


# Encoders


def test_a_masked_language_model_is_compared_where_tokens_are_masked(text: str) -> None:
    teacher, tokenizer = tiny_bert(BertForMaskedLM), encoder_tokenizer()
    student = disturbed(teacher)
    found = divergence(teacher, student, tokenizer, PerplexityRecipe(text, 3, 12, batch_size=2))
    pieces, seen = [], 0
    for window in ids_of(text, tokenizer)[:30].view(3, 10):
        positions = [at for at in range(10) if (seen + at) % 7 == 3]
        hidden = window.clone()
        hidden[positions] = tokenizer.mask_token_id
        framed = torch.cat([torch.tensor([46]), hidden, torch.tensor([47])])
        pieces.append((framed, [at + 1 for at in positions]))
        seen += 10
    kl, top1, count = naive(teacher, student, pieces)
    assert found.tokens == count == 4
    assert found.kl == pytest.approx(kl, rel=1e-5)
    assert found.top1 == pytest.approx(top1)
    assert found.recipe["compared"] == "distribution at every 7th token, masked"
    assert found.recipe["special_tokens"] == {"before": ["[CLS]"], "after": ["[SEP]"]}


def test_windows_that_overlap_mask_only_their_new_tokens(text: str) -> None:
    teacher = tiny_bert(BertForMaskedLM)
    recipe = PerplexityRecipe(text, 4, 16, stride=7)
    found = divergence(teacher, disturbed(teacher), encoder_tokenizer(), recipe)
    assert found.tokens == 2 + 3  # of 14 new tokens in the first window, of 7 in each other


def test_a_model_without_a_head_is_compared_by_its_hidden_states(text: str) -> None:
    teacher, tokenizer = tiny_bert(BertModel), encoder_tokenizer()
    student = disturbed(teacher)
    found = divergence(teacher, student, tokenizer, PerplexityRecipe(text, 3, 12))
    cosines = []
    for window in ids_of(text, tokenizer)[:30].view(3, 10):
        framed = torch.cat([torch.tensor([46]), window, torch.tensor([47])])[None]
        with torch.no_grad():
            one, two = (m(input_ids=framed).last_hidden_state[0] for m in (teacher, student))
        cosines += F.cosine_similarity(one.double(), two.double(), dim=-1)[1:-1].tolist()
    assert (found.kl, found.top1, found.tokens) == (None, None, 30)
    assert found.cosine == pytest.approx(sum(cosines) / 30, rel=1e-6)
    assert found.cosine < 0.999


def test_a_decoder_without_a_head_has_hidden_states_too(text: str) -> None:
    torch.manual_seed(0)
    teacher = LlamaModel(llama().config).eval()
    found = divergence(teacher, teacher, word_tokenizer(), PerplexityRecipe(text, 2, 8, bos=True))
    assert found.tokens == 14
    assert found.cosine == pytest.approx(1.0, abs=1e-9)
    assert found.recipe["special_tokens"] == {"before": ["<bos>"], "after": []}


# What is not finite


def test_a_broken_student_gives_no_number_and_no_agreement(text: str) -> None:
    teacher = llama()
    broken = llama()
    broken.lm_head.weight.data[:] = math.nan
    found = divergence(teacher, broken, word_tokenizer(), PerplexityRecipe(text, 2, 16))
    assert not found.finite
    assert found.top1 == 0.0
    encoder = tiny_bert(BertForMaskedLM)
    broken = tiny_bert(BertForMaskedLM)
    broken.bert.embeddings.word_embeddings.weight.data[:] = math.nan
    found = divergence(encoder, broken, encoder_tokenizer(), PerplexityRecipe(text, 2, 16))
    assert not found.finite
    assert found.recipe["compared"].endswith("masked"), "what the teacher is decides"


def test_a_token_that_both_rule_out_adds_nothing(text: str) -> None:
    class Never:
        """A head that gives one token no probability at all."""

        def __call__(self, module: Any, inputs: Any, output: Any) -> Any:
            output.logits[..., 7] = -math.inf
            return output

    teacher = llama()
    student = disturbed(teacher)
    for model in (teacher, student):
        model.register_forward_hook(Never())
    found = divergence(teacher, student, word_tokenizer(), PerplexityRecipe(text, 2, 16))
    assert found.finite and found.kl > 0
    student = disturbed(llama())
    student.register_forward_hook(Never())
    found = divergence(llama(), student, word_tokenizer(), PerplexityRecipe(text, 2, 16))
    assert found.kl == math.inf and not found.finite


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtypes_may_differ_and_are_named(text: str, dtype: torch.dtype) -> None:
    recipe = PerplexityRecipe(text, 2, 16)
    found = divergence(llama(), llama().to(dtype), word_tokenizer(), recipe)
    assert 0 < found.kl < 0.02
    assert found.recipe["teacher_dtype"] == "float32"
    assert found.recipe["dtype"] == str(dtype).removeprefix("torch.")


# What surrounds the number


def test_the_recipe_is_json_and_modes_are_restored(text: str) -> None:
    teacher, student = gpt2().train(), gpt2()
    recipe = PerplexityRecipe(text, 2, 8)
    values = {divergence(teacher, student, word_tokenizer(), recipe).kl for _ in range(2)}
    assert values == {0.0}, "dropout is off"
    assert teacher.training and not student.training
    told = divergence(teacher, student, word_tokenizer(), recipe).recipe
    assert json.loads(json.dumps(told)) == told
    assert told["compared"] == "distribution of the next token"
    assert told["unit"] == "nats per token"


# Refusals

BERT = encoder_tokenizer


def labels() -> Any:
    return tiny_bert(BertForSequenceClassification)


@pytest.mark.parametrize(
    ("teacher", "student", "said"),
    [
        (labels, labels, r"BertForSequenceClassification gives logits of shape \(1, 2\)"),
        (
            lambda: LlamaForTokenClassification(llama().config),
            llama,
            r"LlamaForTokenClassification gives logits of shape \(1, 16, 2\)",
        ),
        (tiny_t5, tiny_t5, "T5ForConditionalGeneration is an encoder with a decoder"),
        (tiny_vit, tiny_vit, "ViTForImageClassification has no vocabulary"),
        (
            llama,
            lambda: tiny_bert(BertForMaskedLM),
            "LlamaForCausalLM gives a next token and BertForMaskedLM gives a masked token",
        ),
        (
            lambda: tiny_bert(BertModel),
            lambda: tiny_bert(BertForMaskedLM),
            "BertModel gives a hidden state and BertForMaskedLM gives a masked token",
        ),
        (llama, lambda: llama(vocab_size=60), "a vocabulary of 52 and LlamaForCausalLM of 60"),
        (
            lambda: tiny_bert(BertModel),
            lambda: tiny_bert(BertModel, hidden_size=8),
            "hidden states of 16 and BertModel of 8",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(teacher: Any, student: Any, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        require_comparable(teacher(), student())


def test_a_decoder_that_is_an_encoder_by_its_config_is_masked() -> None:
    """BertLMHeadModel without is_decoder sees both sides; its class does not say so."""
    assert require_comparable(*[tiny_bert(BertLMHeadModel)] * 2) == "masked token"
    assert require_comparable(*[tiny_bert(BertLMHeadModel, is_decoder=True)] * 2) == "next token"


@pytest.mark.parametrize(
    ("make", "tokenizer", "recipe", "said"),
    [
        (BertForMaskedLM, word_tokenizer, {}, "no tokenizer with a mask token"),
        (BertForMaskedLM, BERT, {"bos": True}, "valid values of bos: auto, False"),
        (BertForMaskedLM, BERT, {"windows": 1, "length": 4}, "too few tokens to compare"),
        (BertForMaskedLM, BERT, {"length": 2}, r"valid values: 3\.\.32"),
        (BertForMaskedLM, BERT, {"length": 33}, r"valid values: 3\.\.32"),
        (BertModel, BERT, {"windows": 99}, r"valid values of windows at this length: 1\.\.12"),
    ],
)
def test_windows_that_cannot_be_read_are_refused(
    text: str, make: type, tokenizer: Any, recipe: dict[str, Any], said: str
) -> None:
    model = tiny_bert(make)
    asked = PerplexityRecipe(text, **{"windows": 2, "length": 12, **recipe})
    with pytest.raises(InvalidInputError, match=said):
        divergence(model, model, tokenizer(), asked)


# Vocabularies that are padded differently, and how sure a number is


def padded(model: Any, size: int) -> Any:
    """The same model with more rows in its tables, which are large so that they would count."""
    import copy

    changed = copy.deepcopy(model)
    changed.resize_token_embeddings(size, mean_resizing=False)
    with torch.no_grad():
        changed.get_output_embeddings().weight[VOCABULARY:] = 3.0
    return changed


def test_vocabularies_that_are_padded_differently_are_compared_over_the_tokenizers_ids(
    text: str,
) -> None:
    teacher = llama()
    student, recipe = disturbed(teacher), PerplexityRecipe(text, 4, 16, batch_size=3)
    plain = divergence(teacher, student, word_tokenizer(), recipe)
    for one, two in ((teacher, padded(student, 64)), (padded(teacher, 56), padded(student, 60))):
        found = divergence(one, two, word_tokenizer(), recipe)
        assert found.kl == pytest.approx(plain.kl, rel=1e-9)
        assert found.top1 == plain.top1
        assert found.recipe["vocabulary_compared"].startswith(
            f"the {VOCABULARY} ids of the tokenizer"
        )
    assert "vocabulary_compared" not in plain.recipe
    with pytest.raises(InvalidInputError, match=r"a vocabulary of 52 and .* of 64"):
        require_comparable(teacher, padded(student, 64))


def test_a_tokenizer_with_more_ids_than_one_of_the_models_is_refused(text: str) -> None:
    teacher, student = padded(llama(), 64), llama()
    tokenizer = word_tokenizer()
    tokenizer.add_tokens([f"new{index}" for index in range(4)])
    with pytest.raises(InvalidInputError, match="only at one size"):
        divergence(teacher, student, tokenizer, PerplexityRecipe(text, 2, 16))


def test_each_window_is_kept_and_the_interval_holds_the_mean(text: str) -> None:
    teacher = llama()
    student = disturbed(teacher)
    found = divergence(teacher, student, word_tokenizer(), PerplexityRecipe(text, 7, 16))
    rows = ids_of(text)[:112].view(7, 16)
    each = [naive(teacher, student, [(row, list(range(15)))])[0] * 15 for row in rows]
    assert found.by_window is not None and found.interval is not None
    assert found.by_window["kl"] == pytest.approx(each, rel=1e-6)
    assert found.by_window["counts"] == [15.0] * 7
    assert found.interval["low"] < found.kl < found.interval["high"]
    few = divergence(teacher, student, word_tokenizer(), PerplexityRecipe(text, 2, 16))
    assert few.interval is None
