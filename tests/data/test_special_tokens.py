"""The special tokens that a tokenizer adds by itself stand around every window of a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from modwright.core.errors import InvalidInputError
from modwright.data.special_tokens import SpecialTokens, special_tokens
from modwright.data.text import token_windows
from modwright.metrics.divergence import divergence
from modwright.metrics.generation import generate_sample
from modwright.metrics.perplexity import PerplexityRecipe, perplexity

WORDS = 40
IDS = {"<s>": 40, "</s>": 41, "<unk>": 42, "[CLS]": 43, "[SEP]": 44, "[MASK]": 45}


def tokenizer(template: str | None = None, **special: str) -> PreTrainedTokenizerFast:
    """Word ``w7`` has id 7; ``template`` is the post-processor's."""
    vocabulary = {f"w{index}": index for index in range(WORDS)} | IDS
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if template is not None:
        used = [(name, at) for name, at in IDS.items() if name in template]
        made.post_processor = processors.TemplateProcessing(single=template, special_tokens=used)
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", **special)


def bos_tokenizer() -> PreTrainedTokenizerFast:
    """As those of Llama 3, Gemma and Mistral."""
    return tokenizer("<s> $A", bos_token="<s>")


def bos_eos_tokenizer() -> PreTrainedTokenizerFast:
    return tokenizer("<s> $A </s>", bos_token="<s>", eos_token="</s>")


def bert_tokenizer() -> PreTrainedTokenizerFast:
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    return tokenizer("[CLS] $A [SEP]", **names)


SIZES: dict[str, Any] = {
    "vocab_size": 46,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "initializer_range": 0.5,
}


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=1)).eval()


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "counting.txt"
    path.write_text("\n\n " + " ".join(f"w{index}" for index in range(WORDS)))
    return str(path)


@pytest.mark.parametrize(
    ("made", "bos", "expected"),
    [
        (tokenizer(), "auto", SpecialTokens()),
        (tokenizer(bos_token="<s>"), "auto", SpecialTokens()),
        (tokenizer(bos_token="<s>"), True, SpecialTokens((40,))),
        (bos_tokenizer(), "auto", SpecialTokens((40,))),
        (bos_tokenizer(), False, SpecialTokens()),
        (bos_tokenizer(), True, SpecialTokens((40,))),
        (bos_eos_tokenizer(), "auto", SpecialTokens((40,))),
        (tokenizer("$A </s>", eos_token="</s>"), "auto", SpecialTokens()),
        (bert_tokenizer(), "auto", SpecialTokens((43,), (44,))),
    ],
)
def test_fault_A28_auto_is_what_the_tokenizer_adds(
    made: PreTrainedTokenizerFast, bos: Any, expected: SpecialTokens
) -> None:
    assert special_tokens(made, "w1 w2 w3", bos) == expected
    # A text that begins with the written token itself keeps its own.
    if made.bos_token is not None:
        assert special_tokens(made, "<s> w1", bos) == expected


@pytest.mark.parametrize(
    ("made", "window", "said"),
    [
        (tokenizer, [0, 1, 2, 3], "in order, batch 1"),
        (bos_tokenizer, [40, 0, 1, 2], ", <s> first in each, batch 1"),
        (bos_eos_tokenizer, [40, 0, 1, 2], ", <s> first in each, batch 1"),
        (bert_tokenizer, [43, 0, 1, 44], ", [CLS] first and [SEP] last in each, batch 1"),
    ],
)
def test_fault_A28_calibration_windows_carry_them(
    text: str, made: Any, window: list[int], said: str
) -> None:
    windows = token_windows(made(), text, windows=2, length=4)
    assert windows.batches[0].input_ids.tolist() == [window]
    content = len([at for at in window if at < WORDS])
    assert windows.batches[1].input_ids[0].tolist()[len(window) - content :][0] >= content
    assert windows.describe().endswith(said)
    assert windows.recipe["bos"] is (window[0] >= WORDS)


def test_fault_A28_perplexity_and_agreement_read_the_windows_that_bos_true_gives(text: str) -> None:
    model, other = llama(), llama()
    with torch.no_grad():
        other.lm_head.weight.mul_(1.1)
    found = {}
    for name, made in (("bos", bos_tokenizer()), ("both", bos_eos_tokenizer())):
        for bos in ("auto", True, False):
            asked = PerplexityRecipe(text, windows=3, length=8, bos=bos)
            measured = perplexity(model, made, asked)
            near = divergence(model, other, made, asked)
            assert measured.recipe["sha256"] == near.recipe["sha256"]
            assert measured.recipe["bos"] is (bos is not False)
            found[name, bos] = (measured.value, measured.tokens, near.kl, near.tokens)
    assert found["bos", "auto"] == found["bos", True] == found["both", "auto"]
    assert found["bos", "auto"][1] == found["bos", "auto"][3] == 3 * 7
    assert found["bos", False] != found["bos", "auto"]


def test_fault_A28_a_separator_after_the_text_is_not_counted(text: str) -> None:
    """A causal model over a tokenizer of BERT's kind."""
    model, made = llama(), bert_tokenizer()
    asked = PerplexityRecipe(text, windows=2, length=8, stride=4)
    found = perplexity(model, made, asked)
    total = 0.0
    for start, new in ((0, 6), (4, 4)):
        ids = torch.tensor([43, *range(start, start + 6), 44])
        with torch.no_grad():
            scores = model(input_ids=ids[None]).logits[0].float().log_softmax(-1)
        places = range(7 - new, 7)
        total -= sum(float(scores[at - 1, ids[at]]) for at in places)
    assert found.tokens == 10
    assert found.nll_per_token == pytest.approx(total / 10, rel=1e-5)
    assert found.recipe["special_tokens"] == {"before": ["[CLS]"], "after": ["[SEP]"]}


def test_fault_A28_encoders_are_compared_between_their_special_tokens(text: str) -> None:
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(**SIZES)).eval()
    framed = divergence(model, model, bert_tokenizer(), PerplexityRecipe(text, 2, 12))
    assert framed.recipe["special_tokens"] == {"before": ["[CLS]"], "after": ["[SEP]"]}
    bare = divergence(model, model, bert_tokenizer(), PerplexityRecipe(text, 2, 12, bos=False))
    assert bare.recipe["special_tokens"] == {"before": [], "after": []}
    with pytest.raises(InvalidInputError, match="valid values of bos: auto, False"):
        divergence(model, model, bert_tokenizer(), PerplexityRecipe(text, 2, 12, bos=True))


def test_fault_A28_a_sample_begins_with_them_and_never_after_an_end_token() -> None:
    activations = []
    model = llama()
    model.register_forward_pre_hook(
        lambda module, args, given: activations.append(given["input_ids"].tolist()),
        with_kwargs=True,
    )
    for made in (bos_tokenizer(), bos_eos_tokenizer(), tokenizer(bos_token="<s>")):
        generate_sample(model, made, "w1 w2", max_new_tokens=1)
    assert activations == [[[40, 1, 2]], [[40, 1, 2]], [[1, 2]]]


def test_values_of_bos_are_named() -> None:
    with pytest.raises(InvalidInputError, match="no BOS token; valid values of bos: auto, False"):
        special_tokens(tokenizer(), "w1", True)
    with pytest.raises(InvalidInputError, match="bos is 'yes'; valid values: auto, True, False"):
        special_tokens(tokenizer(), "w1", "yes")  # type: ignore[arg-type]
