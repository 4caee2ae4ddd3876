"""Conversations to learn from: the model's own template, targets at the answers alone, packing.

Axes: T tokens of a row.
"""

from __future__ import annotations

import re
from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modwright.core.errors import InvalidInputError, ModwrightError, first_line, unknown_name
from modwright.data.dataset import IGNORED, Data, Rows, pad_rows
from modwright.data.registry import data_kind
from modwright.data.row_files import read_rows
from modwright.data.text import require_count, tokenizer_of
from modwright.data.text_rows import held_out_rows

__all__ = ["Conversation", "chat_file", "chat_rows", "encode_chat", "pack"]

_MARKS_ANSWERS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_ANSWER = "assistant"


@dataclass(frozen=True)
class Conversation:
    """Messages in turn, each with its ``role`` and ``content``, and the tools they may use.

    Attributes:
        messages: as templates of transformers take them.
        tools: their descriptions; None where there are none.
        where: what messages of refusals call it.
    """

    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Any, ...] | None = None
    where: str = "a conversation"


def chat_file(path: str, *, field: str = "messages", encoding: str = "utf-8") -> list[Conversation]:
    """The conversations of a file of rows, such as ``.jsonl``.

    Args:
        path: of the file.
        field: the column of messages; a column ``tools`` beside it is handed to the template.
        encoding: of the file.

    Raises:
        InvalidInputError: a row without messages, or one that is none; names it.
    """
    found = []
    for number, row in enumerate(read_rows(Path(path).expanduser(), encoding)):
        if field not in row:
            raise unknown_name(f"column of {path}", field, row)
        where = f"row {number} of {path}"
        tools = row.get("tools") or None
        found.append(Conversation(_messages(row[field], where), tools and tuple(tools), where))
    return found


def _messages(given: Any, where: str) -> tuple[Mapping[str, Any], ...]:
    if isinstance(given, str) or not isinstance(given, Sequence) or not given:
        raise InvalidInputError(f"{where} has no list of messages")
    for at, message in enumerate(given):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise InvalidInputError(f"{where}: message {at} has no role, as user or {_ANSWER}")
    return tuple(given)


@data_kind(
    "chat",
    path=chat_file,
    paths="the path of a file of rows with a column of messages (.jsonl, .parquet)",
    measured_by="perplexity",
)
def chat_rows(
    made: Sequence[Any],
    tokenizer: Any,
    name: str = "chat",
    *,
    length: int = 1024,
    packing: bool = False,
    held_out: float = 0.0,
) -> Data:
    """Conversations as rows of ``input_ids`` (T,) and ``labels`` (T,), targets at answers alone.

    Args:
        made: conversations: :class:`Conversation`, or lists of messages.
        tokenizer: of the model; its chat template writes them.
        name: of the data, for messages.
        length: most tokens of a row; what is longer is cut at its end.
        packing: rows hold as many conversations as fit, each with ``position_ids`` from 0 on, by
            which attention keeps them apart; what has a state and no positions does not.
        held_out: share of the conversations, the last ones, that is to measure on.

    Raises:
        InvalidInputError: no template, a conversation that it refuses, answers that cannot be told
            from the rest, or no answer at all.

    Example:
        >>> from modwright.data.tokenizers import byte_tokenizer
        >>> chat = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]
        >>> labels = chat_rows([chat], byte_tokenizer()).train[0]["labels"]
        >>> labels[labels != -100].tolist()  # "2" and the end of the message
        [50, 259]
    """
    tokenizer = tokenizer_of(tokenizer)
    require_count("length", length, least=2)
    if not tokenizer.chat_template:
        raise InvalidInputError(
            f"{name}: the tokenizer has no chat template; give a model that has one"
        )
    encoded = [
        encode_chat(tokenizer, one if isinstance(one, Conversation) else _conversation(one, at))
        for at, one in enumerate(made)
    ]
    kept = [
        row for row in ({k: t[:length] for k, t in row.items()} for row in encoded) if _asks(row)
    ]
    notes = []
    if cut := sum(len(row["labels"]) > length for row in encoded):
        notes.append(f"{name}: {cut:,} conversations are longer than {length} tokens and are cut")
    if left := len(encoded) - len(kept):
        notes.append(f"{name}: {left:,} conversations without an answer are left out")
    if not kept:
        raise InvalidInputError(f"{name} holds no answer within {length} tokens")
    train, test = held_out_rows(len(kept), held_out, name)
    splits: list[list[Rows]] = [[*kept[:train]], [*kept[train:]]]
    if packing:
        splits = [_packed(rows, length) for rows in splits]
    pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
    fill = {"input_ids": pad, "labels": IGNORED}
    collate = partial(_collate_packed if packing else pad_rows, fill=fill)
    return Data(splits[0], splits[1] if test else None, collate, notes=tuple(notes))


def _conversation(given: Any, at: int) -> Conversation:
    where = f"conversation {at}"
    return Conversation(_messages(given, where), where=where)


def _asks(row: Rows) -> bool:
    """Whether there is a target: a label at any token but the first, which nothing predicts."""
    return bool((row["labels"][1:] != IGNORED).any())


def encode_chat(tokenizer: Any, conversation: Conversation) -> dict[str, Tensor]:
    """``input_ids`` (T,) of a conversation, and ``labels`` (T,) that are those of its answers.

    An answer is what the model would have to write: what a template marks as its generation, or,
    where it marks none, what it adds for a message of the role "assistant" behind the prompt for
    it, with the token that ends the message.
    """
    if _MARKS_ANSWERS.search(tokenizer.chat_template):
        ids, answers = _marked(tokenizer, conversation)
    else:
        ids, answers = _by_prefix(tokenizer, conversation)
    labels = ids.where(answers, IGNORED)
    labels[:1] = IGNORED
    return {"input_ids": ids, "labels": labels}


def _template(tokenizer: Any, conversation: Conversation, count: int, **options: Any) -> Any:
    """What the template makes of the first messages; its refusals in one line."""
    try:
        return tokenizer.apply_chat_template(
            [dict(message) for message in conversation.messages[:count]],
            tools=None if conversation.tools is None else list(conversation.tools),
            **options,
        )
    except ModwrightError:
        raise
    except Exception as error:  # templates are programs: they raise what they like
        raise InvalidInputError(
            f"{conversation.where}: the chat template refuses it: {first_line(error)}"
        ) from error


def _marked(tokenizer: Any, conversation: Conversation) -> tuple[Tensor, Tensor]:
    found = _template(
        tokenizer,
        conversation,
        len(conversation.messages),
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    ids, answers = (torch.tensor(found[key]) for key in ("input_ids", "assistant_masks"))
    return ids.long(), answers.bool()


def _by_prefix(tokenizer: Any, conversation: Conversation) -> tuple[Tensor, Tensor]:
    """Answers by the text that the template adds for each of them."""
    if not tokenizer.is_fast:
        raise InvalidInputError(
            "answers are found by the places of tokens in the text, which this tokenizer does not "
            "tell; use a fast one, or a template that marks them with {% generation %}"
        )
    messages = conversation.messages
    whole = _template(tokenizer, conversation, len(messages), tokenize=False)
    spans = []
    for at, message in enumerate(messages):
        if message["role"] != _ANSWER:
            continue
        if not at:
            raise InvalidInputError(
                f"{conversation.where} begins with an answer, and nothing before it prompts for "
                "one; use a template that marks answers with {% generation %}"
            )
        prompt = _template(tokenizer, conversation, at, tokenize=False, add_generation_prompt=True)
        upto = _template(tokenizer, conversation, at + 1, tokenize=False)
        if not (whole.startswith(upto) and upto.startswith(prompt)):
            raise InvalidInputError(
                f"{conversation.where}: the template writes message {at} differently within the "
                "conversation, so the answer cannot be told from the rest; use a template that "
                "marks answers with {% generation %}"
            )
        # White space behind the token that ends a message is the template's.
        spans.append((len(prompt), len(prompt) + len(upto[len(prompt) :].rstrip())))
    encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    starts = [start for start, _ in encoded["offset_mapping"]]
    answers = [any(first <= start < last for first, last in spans) for start in starts]
    return torch.tensor(encoded["input_ids"]).long(), torch.tensor(answers).bool()


def pack(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Numbers of rows that go together: the longest first, each to the fullest bin that takes it.

    Bins are in the order of their first rows, and so are the rows in them.

    Example:
        >>> pack([3, 5, 2, 6], most=8)
        [[0, 1], [2, 3]]
    """
    bins: list[list[int]] = []
    left: list[tuple[int, int]] = []  # what fits in, and the number of the bin, in order
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        at = bisect_left(left, (lengths[row], -1))
        free, number = left.pop(at) if at < len(left) else (most, len(bins))
        if number == len(bins):
            bins.append([])
        bins[number].append(row)
        insort(left, (free - lengths[row], number))
    return sorted(sorted(rows) for rows in bins)


def _packed(rows: Sequence[Rows], most: int) -> list[Rows]:
    bins = pack([len(row["labels"]) for row in rows], most)
    positions = [torch.arange(len(row["labels"])) for row in rows]
    return [
        {
            **{key: torch.cat([rows[i][key] for i in group]) for key in rows[group[0]]},
            "position_ids": torch.cat([positions[i] for i in group]),
        }
        for group in bins
    ]


def _collate_packed(rows: Sequence[Rows], fill: Mapping[str, int]) -> dict[str, Any]:
    """A batch without a mask and without a cache: with either, conversations would be joined.

    Padding is one more sequence, whose positions begin at 0.
    """
    batch: dict[str, Any] = pad_rows(rows, fill, mask=None)
    for row, positions in zip(rows, batch["position_ids"]):
        count = len(row["position_ids"])
        positions[count:] = torch.arange(len(positions) - count)
    return {**batch, "use_cache": False}
