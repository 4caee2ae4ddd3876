"""Text to learn from: every token once and in order, special tokens are no targets."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import processors

from modwright.core.errors import InvalidInputError
from modwright.data import make_data
from modwright.data.dataset import IGNORED
from modwright.data.text_rows import held_out_rows, text_rows
from modwright.data.tokenizers import byte_tokenizer

BYTES = byte_tokenizer()
TEXT = "It was the best of times, it was the worst of times."


def test_rows_are_the_text_in_order_and_the_rest_is_said() -> None:
    data = text_rows(TEXT, BYTES, "tale", length=8)
    rows = [data.train[i] for i in range(len(data.train))]
    assert BYTES.decode(torch.cat([row["input_ids"] for row in rows])) == TEXT[:48]
    assert all(torch.equal(row["input_ids"], row["labels"]) for row in rows)
    assert data.notes == ("text 'tale': 4 tokens at its end fill no row and are left out",)
    assert data.test is None and text_rows(TEXT, BYTES, length=4).notes == ()


def test_the_last_rows_are_held_out() -> None:
    data = text_rows(TEXT, BYTES, length=8, held_out=0.3)
    assert (len(data.train), len(data.test or ())) == (4, 2)
    assert data.test is not None
    assert BYTES.decode(data.test[0]["input_ids"]) == TEXT[32:40]
    assert len(text_rows(TEXT, BYTES, length=8, windows=3).train) == 3
    assert held_out_rows(100, 0.001, "text") == (99, 1)


def test_special_tokens_stand_around_every_row_and_are_no_targets() -> None:
    around = byte_tokenizer()
    end = around.eos_token_id
    around.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", end)]
    )
    for tokenizer, bos in ((around, "auto"), (BYTES, True)):
        data = text_rows(TEXT, tokenizer, length=9, bos=bos)  # type: ignore[arg-type]
        row = data.train[1]
        assert row["input_ids"][0] == end and row["labels"][0] == IGNORED
        assert BYTES.decode(row["labels"][1:]) == TEXT[8:16] and len(data.train) == 6
    assert int(text_rows(TEXT, around, length=9, bos=False).train[0]["input_ids"][0]) == ord("I")


def test_documents_are_joined_by_a_blank_line() -> None:
    assert BYTES.decode(text_rows(["a", "b"], BYTES, length=4).train[0]["input_ids"]) == "a\n\nb"


def test_files_are_read_by_their_field(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"body": "one"}\n{"body": "two"}\n')
    (tmp_path / "page.md").write_text("# One\n")
    given = {"text": str(tmp_path / "rows.jsonl"), "field": "body", "length": 8}
    data = make_data(given, BYTES)
    assert BYTES.decode(data.train[0]["input_ids"]) == "one\n\ntwo"
    assert data.options["field"] == "body" and data.digest == make_data(given, BYTES).digest
    page = make_data({"text": str(tmp_path / "page.md"), "length": 6}, BYTES)
    assert BYTES.decode(page.train[0]["input_ids"]) == "# One\n"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"length": 100}, "52 tokens: 0 windows of 100 text tokens"),
        ({"length": 8, "windows": 7}, "valid values of windows at this length: 1..6"),
        ({"length": 1}, "length is 1; valid values: 2 and more"),
        ({"length": 8, "windows": 0}, "windows is 0"),
        ({"length": 8, "held_out": 1.0}, r"held_out lies in \[0, 1\), not 1"),
        ({"length": 50, "held_out": 0.1}, "gives 1 rows; none is left to learn from"),
    ],
)
def test_what_gives_no_rows_is_refused(options: dict[str, float], said: str) -> None:
    with pytest.raises(InvalidInputError, match=said) as refusal:
        text_rows(TEXT, BYTES, **options)  # type: ignore[arg-type]
    assert "\n" not in str(refusal.value)


def test_a_text_is_a_string_or_a_list_of_them() -> None:
    with pytest.raises(InvalidInputError, match="text 'x' gave int; a text is a string or a list"):
        text_rows(3, BYTES, "x")
