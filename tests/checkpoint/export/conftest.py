"""Models to export, and tokenizers of the kinds that GGUF has."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .edited import edited, short

TEXTS = [
    "The capital of France is Paris, isn't it?",
    "In 1984 there were 12345 llamas;\n\n\tthey'd eaten 3.14 apples each.",
    "def f(x):\n    return x ** 2  # Grüße, 日本語",
]


@pytest.fixture(scope="session")
def edited_model(tiny: Any) -> Callable[[str], Any]:
    """The edited tiny model of a preset; shared, so leave it as it is."""
    made: dict[str, Any] = {}

    def model(preset: str) -> Any:
        if preset not in made:
            made[preset] = edited(short(tiny, preset))
        return made[preset]

    return model


@pytest.fixture
def edited_dir(edited_model: Callable[[str], Any], llama_dir: Path, tmp_path: Path) -> Path:
    """A checkpoint of an edited Llama, with the companions of ``llama_dir``."""
    import modwright

    source = modwright.open(llama_dir).source
    return modwright.save(edited_model("tiny-llama"), tmp_path / "edited", source=source)


def byte_level_tokenizer(place: Path, split: Any = None) -> Any:
    """A byte-level BPE with special tokens inside its vocabulary and behind it, and a template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = split or pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(TEXTS, trainer)
    trained.add_tokens([AddedToken("<think>", normalized=False)])
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=trained, **names)
    fast.chat_template = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    fast.save_pretrained(place)
    return fast


def sentencepiece_tokenizer(place: Path) -> Any:
    """Llama 2's kind: spaces as ▁, unknown characters as bytes, <s> before every text."""
    from tokenizers import AddedToken
    from transformers import LlamaTokenizer

    letters = ["▁", *"abcdehilnorst"]
    pairs = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("l", "l"), ("a", "r"), ("ll", "a"), ("▁", "a")]
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    words += [left + right for left, right in pairs]
    made = LlamaTokenizer(
        vocab={word: index for index, word in enumerate(words)}, merges=pairs, add_bos_token=True
    )
    made.add_tokens([AddedToken("<user>", special=False)])
    made.save_pretrained(place)
    return made


def write_settings(place: Path, **fields: Any) -> None:
    (place / "generation_config.json").write_text(json.dumps(fields))
