"""The tokenizer inside a GGUF file: words, merges, special tokens and the chat template."""

from __future__ import annotations

import json
from typing import Any

import gguf

from modwright.checkpoint.gguf_header import copy_field
from modwright.checkpoint.opening import Checkpoint
from modwright.core.errors import InvalidInputError, VerificationError

__all__ = ["add_tokenizer", "compare_tokens"]

# llama.cpp's names for ways to split text, by what tokenizers calls them. Longer splits are
# looked up in transformers' table by their pattern; of its synonyms these are written.
_PRE = ("llama-bpe", "qwen2", "qwen35", "tekken", "gpt-4o")
_TEXTS = (
    "The capital of France is Paris, isn't it?",
    "In 1984 there were 12345 llamas;\n\n\tthey'd eaten 3.14 apples each.",
    "def f(x):\n    return x ** 2  # Grüße, 日本語, 🙂",
)


def add_tokenizer(writer: gguf.GGUFWriter, work: Checkpoint) -> None:
    """Writes the tokenizer's metadata; a model without one says so.

    Where the model came from a GGUF file, that file's own entries are copied.

    Raises:
        InvalidInputError: of a kind that the format does not have.
    """
    source, tokenizer = work.source, work.tokenizer
    if source.is_gguf:
        for name, field in gguf.GGUFReader(source.path).fields.items():
            if name.startswith("tokenizer."):
                copy_field(writer, field)
        return
    if tokenizer is None:
        writer.add_tokenizer_model("no_vocab")
        return
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InvalidInputError(
            f"its tokenizer is a {type(tokenizer).__name__}, which is no fast one"
        )
    spec: dict[str, Any] = json.loads(backend.to_str())
    model, decoder = spec["model"], (spec["decoder"] or {}).get("type")
    if model["type"] == "BPE" and model.get("byte_fallback"):
        _add_sentencepiece(writer, tokenizer, spec)
    elif model["type"] == "BPE" and decoder == "ByteLevel":
        # GPT-2's kind: bytes are spelled with letters, and merged in the order of a list.
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_pre_name(spec))
        writer.add_token_merges([f"{left} {right}" for left, right in _pairs(spec)])
    else:
        raise InvalidInputError(
            f"its tokenizer is of the kind {model['type']} with decoder {decoder}; GGUF takes "
            "byte-level BPE and SentencePiece-like BPE with byte fallback"
        )
    _add_words(writer, tokenizer, work.model.config.vocab_size)
    _add_special(writer, tokenizer)


def _add_sentencepiece(writer: gguf.GGUFWriter, tokenizer: Any, spec: dict[str, Any]) -> None:
    """Llama 2's kind: spaces are spelled ▁, what is unknown falls back to bytes.

    The format has a score per word where tokenizers has an order of merges. The later a word's
    merge, the lower its score, so that the same pairs merge first.
    """
    pairs = _pairs(spec)
    made = {left + right: -rank for rank, (left, right) in enumerate(pairs, start=1)}
    vocabulary = tokenizer.get_vocab()
    words, last = sorted(vocabulary, key=vocabulary.__getitem__), -(len(made) + 1)
    prefix = '"▁"' in json.dumps(spec["normalizer"], ensure_ascii=False) or (
        (spec["pre_tokenizer"] or {}).get("prepend_scheme", "never") != "never"
    )
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_merges([f"{left} {right}" for left, right in pairs])
    writer.add_token_scores([float(made.get(word, last)) for word in words])
    writer.add_add_space_prefix(prefix)


def _pairs(spec: dict[str, Any]) -> list[Any]:
    merges = spec["model"]["merges"]
    return [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]


def _pre_name(spec: dict[str, Any]) -> str:
    """llama.cpp's name for the way that text is split before merging."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    found = spec["pre_tokenizer"] or {}
    steps = found.get("pretokenizers", [found])
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"] and steps[0]["use_regex"]:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"]:
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and not steps[1]["use_regex"]:
        pattern = next(iter(steps[0]["pattern"].values()))
        for name in _PRE:
            if GGUF_PRE_TOKENIZER_SPLITS.get(name) == pattern:
                return name
    raise InvalidInputError(
        f"its tokenizer splits text in a way that llama.cpp has no name for here ({kinds}); known: "
        f"gpt-2, smollm, {', '.join(_PRE)}"
    )


def _add_words(writer: gguf.GGUFWriter, tokenizer: Any, size: int) -> None:
    """One word and its type for each row of the embedding table."""
    by_id = {index: word for word, index in tokenizer.get_vocab().items()}
    if max(by_id) >= size:
        raise InvalidInputError(f"its tokenizer has {max(by_id) + 1} tokens and the model {size}")
    added = tokenizer.added_tokens_decoder

    def kind(index: int) -> gguf.TokenType:
        word = by_id.get(index)
        if word is None:
            return gguf.TokenType.UNUSED
        if len(word) == 6 and word.startswith("<0x") and word.endswith(">"):
            return gguf.TokenType.BYTE
        if index not in added:
            return gguf.TokenType.NORMAL
        if index == tokenizer.unk_token_id:
            return gguf.TokenType.UNKNOWN
        return gguf.TokenType.CONTROL if added[index].special else gguf.TokenType.USER_DEFINED

    writer.add_token_list([by_id.get(index, f"[PAD{index}]") for index in range(size)])
    writer.add_token_types([kind(index) for index in range(size)])


def _add_special(writer: gguf.GGUFWriter, tokenizer: Any) -> None:
    for role in ("bos", "eos", "unk", "sep", "pad"):
        index = getattr(tokenizer, f"{role}_token_id")
        if index is not None:
            getattr(writer, f"add_{role}_token_id")(index)
    whole = tokenizer.encode("a")
    adds = len(whole) > len(tokenizer.encode("a", add_special_tokens=False))
    writer.add_add_bos_token(adds and whole[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(adds and whole[-1] == tokenizer.eos_token_id)
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, str):
        writer.add_chat_template(template)


def compare_tokens(own: Any, read: Any) -> str:
    """Holds the vocabularies to each other; says whether texts are split alike.

    Raises:
        VerificationError: a token has another number.
    """
    one, two = own.get_vocab(), read.get_vocab()
    odd = next((word for word, index in one.items() if two.get(word) != index), None)
    if odd is not None:
        raise VerificationError(
            f"the token {odd!r} is {one[odd]} in the tokenizer and {two.get(odd)} in the file"
        )
    ids = [[t.encode(text, add_special_tokens=False) for text in _TEXTS] for t in (own, read)]
    same = sum(one_way == other for one_way, other in zip(*ids))
    return f"{len(one)} tokens keep their numbers, {same} of {len(_TEXTS)} texts split alike"
