"""Tokenizers without a download: they write every text, and come back with the model."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from modwright.core.errors import InvalidInputError
from modwright.data.tokenizers import (
    BYTE_VOCABULARY,
    SPECIAL,
    byte_tokenizer,
    make_tokenizer,
    trained_tokenizer,
)

BYTES = byte_tokenizer()
TEXT = "the cat sat on the mat; the cat saw the rat and the rat sat.\n" * 20


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_bytes_are_those_of_utf8_and_come_back(text: str) -> None:
    ids = BYTES(text)["input_ids"]
    if not any(word in text for word in SPECIAL):
        assert ids == list(text.encode("utf-8", "surrogatepass"))
    assert BYTES.decode(ids) == text


def test_special_tokens_follow_the_bytes() -> None:
    assert len(BYTES) == BYTE_VOCABULARY == 260
    assert [BYTES.convert_tokens_to_ids(word) for word in SPECIAL] == [256, 257, 258, 259]
    assert (BYTES.bos_token_id, BYTES.eos_token_id, BYTES.pad_token_id) == (256, 256, 257)
    assert BYTES("a<|im_end|>")["input_ids"] == [97, 259]
    assert BYTES.decode([97, 259], skip_special_tokens=True) == "a"


def test_a_tokenizer_is_learned_from_a_text_and_writes_any_other(tmp_path: Path) -> None:
    file = tmp_path / "cats.txt"
    file.write_text(TEXT)
    made = trained_tokenizer(str(file), 270)
    assert len(made) == 270 and made.tokenize("the cat") == ["the", "Ġcat"]
    assert len(made(TEXT)["input_ids"]) < len(TEXT) / 2
    for text in ("the cat", "  Ω ñ\r\n\t🎈", "unseen"):
        assert made.decode(made(text)["input_ids"]) == text
    again = trained_tokenizer(str(file), 270)
    assert again.get_vocab() == made.get_vocab() and again(TEXT) == made(TEXT)


@pytest.mark.parametrize("kind", ["bytes", "trained"])
def test_tokenizers_come_back_from_their_files(tmp_path: Path, kind: str) -> None:
    (tmp_path / "cats.txt").write_text(TEXT)
    made = BYTES if kind == "bytes" else trained_tokenizer(str(tmp_path / "cats.txt"), 270)
    made.save_pretrained(tmp_path / "saved")
    read = AutoTokenizer.from_pretrained(tmp_path / "saved")
    chat = [{"role": "user", "content": "Hé?"}, {"role": "assistant", "content": " yes "}]
    for text in ("the cat", "  Ω\n", "a<|im_end|>b"):
        assert read(text)["input_ids"] == made(text)["input_ids"]
        assert read.decode(read(text)["input_ids"]) == text
    assert read.chat_template == made.chat_template and len(read) == len(made)
    said = read.apply_chat_template(chat, tokenize=False)
    assert said == "<|im_start|>user\nHé?<|im_end|>\n<|im_start|>assistant\n yes <|im_end|>\n"


def test_a_short_text_gives_fewer_tokens_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("ab ab")
    with pytest.warns(UserWarning, match="too short for 300 tokens; the tokenizer has 26"):
        made = trained_tokenizer(str(tmp_path / "short.txt"), 300)
    assert made.decode(made("ab c")["input_ids"]) == "ab c"


def test_what_makes_no_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"body": "the cat"}\n')
    with pytest.raises(InvalidInputError, match="at least 260 tokens"):
        trained_tokenizer("lee", 259)
    with pytest.raises(InvalidInputError, match="unknown tokenizer 'byte'; valid values: bytes"):
        make_tokenizer("byte")
    with pytest.raises(InvalidInputError, match="unknown key of a tokenizer 'sizes'"):
        make_tokenizer({"train": "lee", "sizes": 300})
    for wrong in ({"train": "lee"}, {"size": 300}, {"train": "lee", "size": True}):
        with pytest.raises(InvalidInputError, match=r"\{train: TEXT, size: NUMBER\}"):
            make_tokenizer(wrong)
    with pytest.warns(UserWarning, match="too short"):
        field = {"text": str(tmp_path / "rows.jsonl"), "field": "body"}
        assert len(make_tokenizer({"train": field, "size": 400})) < 300
