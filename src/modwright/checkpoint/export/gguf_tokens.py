"""The tokenizer inside a GGUF file: words, merges, special tokens and the chat template."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf

from modwright.checkpoint.export.export_job import ExportJob
from modwright.core.errors import InvalidInputError

__all__ = ["add_tokenizer"]

_PREFIX = "tokenizer."
# llama.cpp's names for ways to split text, by what tokenizers calls them. Longer splits are
# looked up in transformers' table by their pattern; of its synonyms these are written.
_PRE = ("llama-bpe", "qwen2", "qwen35", "tekken", "gpt-4o")


def add_tokenizer(writer: Any, work: ExportJob) -> None:
    """Writes the tokenizer's metadata; a model without one says so.

    Where the model came from a GGUF file, that file's own entries are copied.

    Raises:
        InvalidInputError: of a kind that the format does not have.
    """
    source, tokenizer = work.source, work.tokenizer
    if source is not None and source.is_gguf and source.path is not None:
        _copy(writer, source.path)
        return
    if tokenizer is None:
        writer.add_tokenizer_model("no_vocab")
        return
    spec = _spec(tokenizer)
    _kind(spec)(tokenizer, spec).add_to(writer)
    words, types = _words(tokenizer, work.model.config.vocab_size)
    writer.add_token_list(words)
    writer.add_token_types(types)
    _add_special(writer, tokenizer)


def _copy(writer: Any, file: Path) -> None:
    for name, field in gguf.GGUFReader(file).fields.items():
        if name.startswith(_PREFIX):
            inner = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], inner)


def _spec(tokenizer: Any) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InvalidInputError(
            f"its tokenizer is a {type(tokenizer).__name__}, which is no fast one"
        )
    spec: dict[str, Any] = json.loads(backend.to_str())
    return spec


class _ByteLevel:
    """GPT-2's kind: bytes are spelled with letters, and merged in the order of a list."""

    def __init__(self, tokenizer: Any, spec: dict[str, Any]) -> None:
        self.pre, self.merges = _pre_name(spec), _merges(spec)

    def add_to(self, writer: Any) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_merges(self.merges)


class _SentencePiece:
    """Llama 2's kind: spaces are spelled ▁, what is unknown falls back to bytes.

    The format has a score per word where tokenizers has an order of merges. The later a word's
    merge, the lower its score, so that the same pairs merge first.
    """

    def __init__(self, tokenizer: Any, spec: dict[str, Any]) -> None:
        self.merges = _merges(spec)
        made = {left + right: -rank for rank, (left, right) in enumerate(_pairs(spec), start=1)}
        vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
        last = -float(len(made) + 1)
        self.scores = [float(made.get(word, last)) for word, _ in vocabulary]
        self.prefix = '"▁"' in json.dumps(spec["normalizer"], ensure_ascii=False) or (
            (spec["pre_tokenizer"] or {}).get("prepend_scheme", "never") != "never"
        )

    def add_to(self, writer: Any) -> None:
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_merges(self.merges)
        writer.add_token_scores(self.scores)
        writer.add_add_space_prefix(self.prefix)


def _kind(spec: dict[str, Any]) -> type[_ByteLevel] | type[_SentencePiece]:
    model, decoder = spec["model"], (spec["decoder"] or {}).get("type")
    if model["type"] == "BPE" and model.get("byte_fallback"):
        return _SentencePiece
    if model["type"] == "BPE" and decoder == "ByteLevel":
        return _ByteLevel
    raise InvalidInputError(
        f"its tokenizer is of the kind {model['type']} with decoder {decoder}; GGUF takes "
        "byte-level BPE and SentencePiece-like BPE with byte fallback"
    )


def _pairs(spec: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for merge in spec["model"]["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        yield left, right


def _merges(spec: dict[str, Any]) -> list[str]:
    return [f"{left} {right}" for left, right in _pairs(spec)]


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


def _words(tokenizer: Any, size: int) -> tuple[list[str], list[gguf.TokenType]]:
    """One word and its type for each row of the embedding table."""
    by_id = {index: word for word, index in tokenizer.get_vocab().items()}
    if max(by_id) >= size:
        raise InvalidInputError(f"its tokenizer has {max(by_id) + 1} tokens and the model {size}")
    added = tokenizer.added_tokens_decoder
    words, types = [], []
    for index in range(size):
        words.append(by_id.get(index, f"[PAD{index}]"))
        types.append(_type_of(index, words[-1], index in by_id, added, tokenizer.unk_token_id))
    return words, types


def _type_of(
    index: int, word: str, is_there: bool, added: dict[int, Any], unknown: int | None
) -> gguf.TokenType:
    if not is_there:
        return gguf.TokenType.UNUSED
    if len(word) == 6 and word.startswith("<0x") and word.endswith(">"):
        return gguf.TokenType.BYTE
    if index not in added:
        return gguf.TokenType.NORMAL
    if index == unknown:
        return gguf.TokenType.UNKNOWN
    return gguf.TokenType.CONTROL if added[index].special else gguf.TokenType.USER_DEFINED


def _add_special(writer: Any, tokenizer: Any) -> None:
    ids = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "unk": tokenizer.unk_token_id,
        "sep": tokenizer.sep_token_id,
        "pad": tokenizer.pad_token_id,
    }
    for role, index in ids.items():
        if index is not None:
            getattr(writer, f"add_{role}_token_id")(index)
    plain = tokenizer.encode("a", add_special_tokens=False)
    whole = tokenizer.encode("a")
    writer.add_add_bos_token(len(whole) > len(plain) and whole[0] == ids["bos"])
    writer.add_add_eos_token(len(whole) > len(plain) and whole[-1] == ids["eos"])
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, str):
        writer.add_chat_template(template)
