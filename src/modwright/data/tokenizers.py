"""Tokenizers that need no download: bytes, and byte-level BPE that is learned from a text."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from modwright.core.errors import InvalidInputError, unknown_name
from modwright.data.text_sources import TextSource, load_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["BYTE_VOCABULARY", "CHAT_TEMPLATE", "SPECIAL", "byte_tokenizer", "check_tokenizer"]
__all__ += ["make_tokenizer", "trained_tokenizer"]

SPECIAL = ("<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>")
"""Special tokens: the end of a text, padding, and what stands around a message of a chat."""

BYTE_VOCABULARY = 256 + len(SPECIAL)
"""Tokens of :func:`byte_tokenizer`."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML, which says what answers are."""

_PIECE = 10_000


def _characters() -> list[str]:
    """What stands for each byte: itself where it can be seen, else a letter above the first 256."""
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in seen else next(others)) for byte in range(256)]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each byte of UTF-8, numbered by its value, then the special tokens.

    Nothing is added around a text by itself. ``save_pretrained`` writes it beside a model, and
    ``AutoTokenizer`` reads it again.

    Example:
        >>> tokenizer = byte_tokenizer()
        >>> tokenizer("é!")["input_ids"], tokenizer.decode([195, 169]), len(tokenizer)
        ([195, 169, 33], 'é', 260)
    """
    from tokenizers import Tokenizer, models

    vocabulary = {letter: byte for byte, letter in enumerate(_characters())}
    return _finished(Tokenizer(models.BPE(vocab=vocabulary, merges=[])))


def trained_tokenizer(text: TextSource, size: int) -> PreTrainedTokenizerFast:
    """Byte-level byte pair encoding (arXiv 1508.07909), learned from a text.

    Every text can be written with it, as all bytes are tokens.

    Args:
        text: where the text comes from, as :func:`~modwright.data.text_sources.load_text` takes it.
        size: tokens, special ones included.

    Raises:
        InvalidInputError: fewer tokens than bytes and special tokens, or text that cannot be read.

    Warns:
        UserWarning: the text is too short for so many tokens.

    Example:
        >>> tokenizer = trained_tokenizer("lee", 300)
        >>> len(tokenizer), tokenizer.decode(tokenizer("The president.")["input_ids"])
        (300, 'The president.')
    """
    from tokenizers import Tokenizer, models, trainers

    if size < BYTE_VOCABULARY:
        raise InvalidInputError(
            f"a tokenizer has at least {BYTE_VOCABULARY} tokens, all bytes and {len(SPECIAL)} "
            f"special ones, not {size}"
        )
    read = load_text(text)
    tokenizer = _byte_level(Tokenizer(models.BPE()))
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(SPECIAL), initial_alphabet=_characters(), show_progress=False
    )
    tokenizer.train_from_iterator(_pieces(read), trainer=trainer)
    finished = _finished(tokenizer)
    if len(finished) < size:
        warnings.warn(
            f"the text is too short for {size:,} tokens; the tokenizer has {len(finished):,}",
            stacklevel=2,
        )
    return finished


def make_tokenizer(given: str | Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """A tokenizer as a recipe asks for it, for a model from scratch.

    Args:
        given: ``bytes``, or ``{train: lee-background, size: 2048}``, whose text may also be a
            mapping such as ``{text: FILE, field: body}``.

    Raises:
        InvalidInputError: it is something else.

    Example:
        >>> len(make_tokenizer("bytes"))
        260
    """
    check_tokenizer(given)
    if isinstance(given, Mapping):
        return trained_tokenizer(given["train"], given["size"])
    return byte_tokenizer()


def check_tokenizer(given: Any) -> None:
    """Refuses what :func:`make_tokenizer` does not take; no text is read."""
    if given == "bytes":
        return
    if not isinstance(given, Mapping):
        raise unknown_name("tokenizer", given, ["bytes", "{train: TEXT, size: NUMBER}"])
    for key in given:
        if key not in ("train", "size"):
            raise unknown_name("key of a tokenizer", key, ["train", "size"])
    size = given.get("size")
    if "train" not in given or not isinstance(size, int) or isinstance(size, bool):
        raise InvalidInputError(
            "a tokenizer to train needs a text and a whole number: {train: TEXT, size: NUMBER}"
        )


def _pieces(text: str) -> Iterator[str]:
    """Lines, in pieces that the trainer shares among its threads; no word is cut."""
    lines = text.splitlines(keepends=True)
    piece, length = [], 0
    for line in lines:
        piece.append(line)
        length += len(line)
        if length >= _PIECE:
            yield "".join(piece)
            piece, length = [], 0
    yield "".join(piece)


def _byte_level(tokenizer: Any, *, words: bool = True) -> Any:
    from tokenizers import decoders, pre_tokenizers

    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _finished(tokenizer: Any) -> PreTrainedTokenizerFast:
    """A tokenizer as transformers has it, with special tokens and a template for chats."""
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    if tokenizer.pre_tokenizer is None:
        tokenizer = _byte_level(tokenizer, words=False)
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in SPECIAL])
    end, pad, *_ = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=end,
        eos_token=end,
        pad_token=pad,
        additional_special_tokens=list(SPECIAL[2:]),
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
        model_input_names=["input_ids", "attention_mask"],
    )
