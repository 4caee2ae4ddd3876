"""A tiny checkpoint that can be talked to: a Llama with a tokenizer of words, and text of them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<user>", "<end>")
TEMPLATE = "{% for m in messages %}<user> {{ m.content }} <end> {% endfor %}"
ENDS = [2, 5]


def word_tokenizer(size: int = 128) -> Any:
    """Every word ``w6`` .. ``w127`` is one token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIAL, *(f"w{index}" for index in range(len(SPECIAL), size))]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"pad": "<pad>", "bos": "<s>", "eos": "</s>", "unk": "<unk>"}
    special = {f"{role}_token": word for role, word in names.items()}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=256, **special)
    fast.chat_template = TEMPLATE
    return fast


def write_checkpoint(model: Any, place: Path, tokenizer: bool = True) -> Path:
    """Saves a model with a tokenizer, a chat template and a list of end tokens."""
    model.save_pretrained(place)
    if tokenizer:
        word_tokenizer().save_pretrained(place)
    settings = {"eos_token_id": ENDS, "pad_token_id": 0, "max_new_tokens": 7}
    (place / "generation_config.json").write_text(json.dumps(settings, indent=3))
    return place


def write_text(file: Path, words: int = 1500, seed: int = 0) -> Path:
    """A text of random words, in which some follow others more often than chance has it."""
    draw = random.Random(seed)
    said = [draw.randrange(6, 128)]
    while len(said) < words:
        near = 6 + (said[-1] * 7 + draw.randrange(3)) % 122
        said.append(near if draw.random() < 0.7 else draw.randrange(6, 128))
    file.write_text(" ".join(f"w{index}" for index in said))
    return file
