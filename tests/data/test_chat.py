"""Conversations: the model's template, targets at answers alone, packing that keeps them apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import modwright
from modwright.core.errors import InvalidInputError
from modwright.data import make_data
from modwright.data.chat import Conversation, chat_rows, encode_chat, pack
from modwright.data.dataset import IGNORED
from modwright.data.tokenizers import CHAT_TEMPLATE, byte_tokenizer

BYTES = byte_tokenizer()
UNMARKED = CHAT_TEMPLATE.replace("{% generation %}", "").replace("{% endgeneration %}", "")


def chat(*said: str, system: str | None = None) -> list[dict[str, str]]:
    """Turns of a user and an assistant."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": one} for i, one in enumerate(said)]
    return [{"role": "system", "content": system}, *turns] if system else turns


CHATS = [
    chat("1 + 1?", "2"),
    chat("Where is é?", "Here: é – and there.", "Thanks", "  You are\nwelcome. "),
    chat("a", "", "b", "c", system="Be brief."),
]


def tokenizer(template: str) -> Any:
    made = byte_tokenizer()
    made.chat_template = template
    return made


def answers(messages: list[dict[str, str]]) -> list[int]:
    """Byte by byte: what the model would have to write, each answer with the end of its message."""
    end = BYTES.convert_tokens_to_ids("<|im_end|>")
    said = [one["content"] for one in messages if one["role"] == "assistant"]
    return [token for text in said for token in (*text.encode(), end)]


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, UNMARKED], ids=["marked", "by prefix"])
@pytest.mark.parametrize("messages", CHATS, ids=["one turn", "two turns", "with a system prompt"])
def test_targets_are_the_tokens_of_the_answers(
    messages: list[dict[str, str]], template: str
) -> None:
    row = encode_chat(tokenizer(template), Conversation(tuple(messages)))
    whole = BYTES.apply_chat_template(messages, tokenize=False)
    assert row["input_ids"].tolist() == BYTES(whole)["input_ids"]
    targets = row["labels"][row["labels"] != IGNORED]
    assert targets.tolist() == answers(messages)
    assert len(targets) == sum(
        len(a["content"].encode()) + 1 for a in messages if a["role"] == "assistant"
    )
    assert row["labels"].eq(row["input_ids"]).logical_or(row["labels"] == IGNORED).all()


def test_answers_are_found_where_tokens_are_words(tmp_path: Path) -> None:
    from modwright.data.tokenizers import trained_tokenizer

    (tmp_path / "cats.txt").write_text("the cat sat on the mat; the cat saw the rat.\n" * 20)
    words = trained_tokenizer(str(tmp_path / "cats.txt"), 268)
    messages = chat("the cat", "the rat", "the mat", " sat on")
    rows = []
    for template in (CHAT_TEMPLATE, UNMARKED):
        words.chat_template = template
        rows.append(encode_chat(words, Conversation(tuple(messages))))
    assert torch.equal(rows[0]["labels"], rows[1]["labels"])
    said = words.decode(rows[0]["labels"][rows[0]["labels"] != IGNORED])
    assert said == "the rat<|im_end|> sat on<|im_end|>"


def test_padding_is_no_target_and_is_masked() -> None:
    data = chat_rows(CHATS, BYTES)
    batch = data.collate([data.train[i] for i in range(3)])
    lengths = [len(BYTES.apply_chat_template(one)["input_ids"]) for one in CHATS]
    assert batch["attention_mask"].sum(1).tolist() == lengths
    assert (batch["labels"] != IGNORED).sum().item() == sum(len(answers(one)) for one in CHATS)
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORED).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=30))
def test_packing_is_best_fit_decreasing(lengths: list[int]) -> None:
    bins: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        free = [(20 - sum(lengths[i] for i in one), at) for at, one in enumerate(bins)]
        fits = [entry for entry in free if entry[0] >= lengths[row]]
        if fits:
            bins[min(fits)[1]].append(row)
        else:
            bins.append([row])
    assert pack(lengths, 20) == sorted(sorted(one) for one in bins)


@pytest.mark.parametrize("length", [64, 1000])
def test_packing_loses_no_target_and_no_conversation_sees_another(length: int) -> None:
    chats = [chat(f"{i}?" * i, f"{i}!" * 3) for i in range(1, 6)]
    apart, packed = (chat_rows(chats, BYTES, length=length, packing=p) for p in (False, True))
    assert len(packed.train) < len(apart.train)
    model = modwright.open("preset:byte-llama").model
    rows = [packed.train[i] for i in range(len(packed.train))]
    assert all(len(row["labels"]) <= length for row in rows)
    batch = packed.collate(rows)
    assert "attention_mask" not in batch
    with torch.no_grad():
        logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
    alone = [apart.train[i] for i in range(len(apart.train))]
    found = 0
    for at, row in enumerate(rows):
        starts = (row["position_ids"] == 0).nonzero().flatten().tolist()
        for begin, end in zip(starts, [*starts[1:], len(row["labels"])]):
            ids = row["input_ids"][begin:end]
            one = next(other for other in alone if torch.equal(other["input_ids"], ids))
            assert torch.equal(one["labels"], row["labels"][begin:end])
            with torch.no_grad():
                expected = model(input_ids=ids[None]).logits[0]
            assert (logits[at, begin:end] - expected).abs().max() < 1e-4
            found += 1
    assert found == len(alone) == 5
    total = sum(len(answers(one)) for one in chats)
    assert (batch["labels"] != IGNORED).sum().item() == total


def test_what_is_cut_or_has_no_answer_is_said() -> None:
    chats = [chat("a", "b"), chat("no answer"), chat("a" * 90, "too late"), chat("c", "d" * 200)]
    data = chat_rows(chats, BYTES, length=64)
    assert len(data.train) == 2 and all(len(data.train[i]["labels"]) <= 64 for i in range(2))
    assert data.notes == (
        "chat: 2 conversations are longer than 64 tokens and are cut",
        "chat: 2 conversations without an answer are left out",
    )
    assert chat_rows(chats, BYTES, held_out=0.5).test is not None
    with pytest.raises(InvalidInputError, match="holds no answer within 64 tokens"):
        chat_rows(chats[1:3], BYTES, length=64)


def test_conversations_are_read_from_files_of_rows(tmp_path: Path) -> None:
    file = tmp_path / "talk.jsonl"
    file.write_text("".join(json.dumps({"messages": one}) + "\n" for one in CHATS))
    data = make_data({"chat": str(file), "length": 256}, BYTES)
    assert data.kind == "chat" and len(data.train) == 3
    assert data.digest == make_data({"chat": str(file), "length": 256}, BYTES).digest
    (tmp_path / "other.jsonl").write_text(json.dumps({"talk": CHATS[0]}))
    assert (
        len(make_data({"chat": str(tmp_path / "other.jsonl"), "field": "talk"}, BYTES).train) == 1
    )
    with pytest.raises(InvalidInputError, match="'messages'; valid values: talk"):
        make_data({"chat": str(tmp_path / "other.jsonl")}, BYTES)


def test_tools_are_handed_to_the_template(tmp_path: Path) -> None:
    file = tmp_path / "tools.jsonl"
    row = {"messages": chat("1?", "2"), "tools": [{"name": "add"}]}
    file.write_text(json.dumps(row))
    made = tokenizer("{% for tool in tools %}{{ tool['name'] }}{% endfor %}" + CHAT_TEMPLATE)
    assert made.decode(make_data({"chat": str(file)}, made).train[0]["input_ids"]).startswith(
        "add<"
    )


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": []}, "row 0 of .* has no list of messages"),
        ({"messages": "hello"}, "row 0 of .* has no list of messages"),
        ({"messages": [{"content": "x"}]}, "message 0 has no role"),
        ({"messages": [{"role": "user"}]}, "row 0 of .*the chat template refuses it"),
    ],
)
def test_rows_that_are_no_conversations_are_refused(
    tmp_path: Path, row: dict[str, Any], said: str
) -> None:
    file = tmp_path / "talk.jsonl"
    file.write_text(json.dumps(row))
    strict = tokenizer(
        CHAT_TEMPLATE.replace(
            "{% for message in messages %}",
            "{% for message in messages %}{% if message['content'] is not defined %}"
            "{{ raise_exception('no content') }}{% endif %}",
            1,
        )
    )
    with pytest.raises(InvalidInputError, match=said) as refusal:
        make_data({"chat": str(file)}, strict)
    assert "\n" not in str(refusal.value)


def test_answers_that_cannot_be_told_are_refused() -> None:
    last_alone = (
        "{% for m in messages %}{% if m['role'] == 'user' or loop.last %}{{ m['content'] }}|"
        "{% endif %}{% endfor %}"
    )
    with pytest.raises(InvalidInputError, match=r"conversation 1: .* writes message 1 differently"):
        chat_rows([chat("a", "b"), chat("a", "b", "c", "d")], tokenizer(last_alone))
    with pytest.raises(InvalidInputError, match="conversation 0 begins with an answer"):
        chat_rows([chat("a", "b")[1:]], tokenizer(UNMARKED))
    with pytest.raises(InvalidInputError, match="the tokenizer has no chat template"):
        chat_rows(CHATS, tokenizer(""))
