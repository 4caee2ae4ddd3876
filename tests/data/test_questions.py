"""Questions of multiple choice: targets at the answers alone, files of rows, word analogies."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import modwright
from modwright.core.errors import InvalidInputError
from modwright.data import make_data, resolve_data
from modwright.data.dataset import IGNORED
from modwright.data.questions import Question, question_rows, word_analogies
from modwright.data.registry import dataset_info, make_source
from modwright.data.tokenizers import byte_tokenizer, trained_tokenizer

BYTES = byte_tokenizer()
SUMS = [
    Question("1 + 1?", ("1", "2", "3"), 1, "sums"),
    Question("What is é?", ("a letter", "a number"), 0, "words"),
    Question("2 + 2?", ("4", "44"), 0, "sums"),
]


def asked(row: Any) -> tuple[str, str]:
    """What a row asks, and what it wants for an answer, byte by byte."""
    wanted = row["labels"] != IGNORED
    return tuple(bytes(row["input_ids"][m].tolist()).decode() for m in (~wanted, wanted))  # type: ignore[return-value]


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    """A file of rows, by its suffix."""
    if path.suffix == ".csv":
        with path.open("w", newline="") as stream:
            table = csv.DictWriter(stream, rows[0])
            table.writeheader()
            table.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_targets_are_the_tokens_of_the_answers() -> None:
    data = question_rows(SUMS, BYTES)
    assert [asked(data.train[at]) for at in range(3)] == [
        ("Question: 1 + 1?\nAnswer:", " 2"),
        ("Question: 2 + 2?\nAnswer:", " 4"),
        ("Question: What is é?\nAnswer:", " a letter"),
    ]
    for at in range(3):
        row = data.train[at]
        kept = row["labels"] != IGNORED
        assert row["labels"][kept].equal(row["input_ids"][kept])
        assert kept.int().diff().abs().sum() == 1, "the answer is one piece at the end"


def test_choices_are_lettered_if_it_is_asked_for() -> None:
    data = question_rows(SUMS[:1], BYTES, lettered=True, template="Q: {question}\nA:")
    assert asked(data.train[0]) == ("Q: 1 + 1?\nA. 1\nB. 2\nC. 3\nA:", " B")


def test_tokens_of_several_characters_are_of_the_answer_or_not(tmp_path: Path) -> None:
    (tmp_path / "cats.txt").write_text("Answer: the cat sat on the mat; the cat saw.\n" * 20)
    words = trained_tokenizer(str(tmp_path / "cats.txt"), 300)
    row = question_rows([Question("who?", ("the cat", "the mat"), 0)], words).train[0]
    kept = row["labels"] != IGNORED
    assert words.decode(row["input_ids"]) == "Question: who?\nAnswer: the cat"
    assert words.decode(row["labels"][kept]) == " the cat" and kept.sum() < 8


def test_special_tokens_are_no_targets() -> None:
    opened = modwright.open("preset:byte-llama")
    tokenizer = opened.tokenizer
    row = question_rows(SUMS[:1], tokenizer).train[0]
    text = "Question: 1 + 1?\nAnswer: 2"
    inner = tokenizer(text, add_special_tokens=False)["input_ids"]
    at = row["input_ids"].tolist().index(inner[0])
    assert row["input_ids"].tolist()[at : at + len(inner)] == inner
    assert (row["labels"] != IGNORED).sum() == 2
    assert len(row["labels"]) == len(row["input_ids"])


def test_rows_are_padded_behind_their_ends() -> None:
    data = question_rows(SUMS, BYTES)
    batch = data.collate([data.train[at] for at in range(3)])
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape
    assert (batch["labels"] != IGNORED).sum(1).tolist() == [2, 2, 9]
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORED).all()
    model = modwright.open("preset:byte-llama").model
    with torch.no_grad():
        alone = model(**{k: t[None] for k, t in data.train[0].items()}).loss
        padded = model(**{k: t[:1] for k, t in batch.items()}).loss
    assert torch.allclose(alone, padded, atol=1e-5)


def test_of_each_category_the_last_are_held_out() -> None:
    many = [Question(f"{at}?", ("yes", "no"), 0, "ab"[at % 2]) for at in range(12)]
    data = question_rows(many, BYTES, held_out=0.3)
    said = [[asked(split[at])[0].split()[1] for at in range(len(split))] for split in
            (data.train, data.test or ())]  # fmt: skip
    assert said == [["0?", "2?", "4?", "6?", "1?", "3?", "5?", "7?"], ["8?", "10?", "9?", "11?"]]
    assert data.notes == ("questions: the last questions of each of 2 categories are held out",)
    with pytest.raises(InvalidInputError, match="category 'words' gives 1 rows; none is left"):
        question_rows(SUMS, BYTES, held_out=0.3)


def test_what_is_too_long_is_left_out_and_said() -> None:
    long = Question("x" * 90, ("yes", "no"), 0)
    data = question_rows([*SUMS, long], BYTES, length=60)
    assert len(data.train) == 3
    assert data.notes == ("questions: 1 questions are longer than 60 tokens and left out",)
    with pytest.raises(InvalidInputError, match="holds no question of at most 60 tokens"):
        question_rows([long], BYTES, length=60)


def test_a_limit_spreads_over_all() -> None:
    many = [Question(f"{at}?", ("yes", "no"), 0) for at in range(10)]
    data = question_rows(many, BYTES, limit=3)
    assert [asked(data.train[at])[0].split()[1] for at in range(3)] == ["0?", "3?", "6?"]
    assert question_rows(many, BYTES, limit=99).digest == question_rows(many, BYTES).digest


ROW = {"question": "1 + 1?", "choices": ["1", "2"], "answer": "2"}


@pytest.mark.parametrize(
    ("row", "options"),
    [
        (ROW, {}),
        ({**ROW, "answer": 1}, {}),
        ({**ROW, "answer": "B"}, {}),
        ({**ROW, "choices": ["one", "two"], "answer": "1"}, {}),
        ({**ROW, "choices": {"text": ["one", "two"], "label": ["x", "y"]}, "answer": "y"}, {}),
        (
            {"q": "1 + 1?", "c": ["1", "2"], "a": 1},
            {"question": "q", "choices": "c", "answer": "a"},
        ),
    ],
)
def test_an_answer_is_a_text_a_label_or_a_number(
    row: dict[str, Any], options: dict[str, Any], tmp_path: Path
) -> None:
    file = written(tmp_path / "asked.jsonl", [row])
    name, (found,) = make_source("questions", {"questions": file, **options})
    assert name == file and found.question == "1 + 1?" and found.answer == 1


def test_choices_stand_in_columns_of_their_own(tmp_path: Path) -> None:
    rows = [
        {"asked": "1 + 1?", "A": "1", "B": "2", "C": "3", "right": "B", "of": "sums"},
        {"asked": "up?", "A": "down", "B": "up", "C": "", "right": "up", "of": "ways"},
    ]
    file = written(tmp_path / "asked.csv", rows)
    columns = {"question": "asked", "choices": ["A", "B", "C"], "answer": "right", "category": "of"}
    given = {"questions": file, **columns}
    _, found = make_source("questions", given)
    assert [(one.choices, one.answer, one.category) for one in found] == [
        (("1", "2", "3"), 1, "sums"),
        (("down", "up"), 1, "ways"),
    ]
    data = make_data({**given, "lettered": True}, BYTES)
    assert data.kind == "questions" and len(data.train) == 2
    assert data.digest == make_data({**given, "lettered": True}, BYTES).digest
    assert data.digest != make_data(given, BYTES).digest
    assert data.facts()["options"]["choices"] == ["A", "B", "C"]


@pytest.mark.parametrize(
    ("changed", "options", "said"),
    [
        ({}, {"question": "asked"}, r"unknown column of .* 'asked'; valid values: question"),
        ({}, {"choices": ["A", "B"]}, r"unknown column of .* 'A'"),
        ({}, {"category": "of"}, r"unknown column of .* 'of'"),
        ({"answer": "3"}, {}, r"row 1 of .*: the answer '3' is no choice; choices: 1, 2"),
        ({"answer": 2}, {}, "the answer 2 is no choice"),
        ({"answer": -1}, {}, "the answer -1 is no choice"),
        ({"answer": True}, {}, "the answer True is no choice"),
        ({"answer": None}, {}, "the answer None is no choice"),
        (
            {"choices": "1, 2"},
            {},
            r"column 'choices' is no list of choices; .*choices: \[A, B, C\]",
        ),
        ({"choices": ["2"]}, {}, "has not two or more different choices"),
        ({"choices": ["2", "2"]}, {}, "has not two or more different choices"),
        ({"choices": ["2", " "]}, {}, "a choice is empty"),
        ({"choices": [1, 2]}, {}, "a choice is no text"),
        ({"choices": {"text": ["1", "2"], "label": ["a"]}}, {}, "has 2 choices and 1 labels"),
        ({"question": " "}, {}, "row 1 of .* is empty"),
        ({"question": 3}, {}, "column 'question' is int; it must be text"),
        ({}, {"template": "Answer:"}, r"template has no \{question\} in it"),
        ({}, {"length": 1}, "length"),
        ({}, {"limit": 0}, "limit"),
        ({}, {"held_out": 1.0}, "held_out"),
        ({}, {"chioces": "c"}, "did you mean 'choices'"),
    ],
)
def test_rows_that_are_no_questions_are_refused(
    changed: dict[str, Any], options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    file = written(tmp_path / "asked.jsonl", [ROW, {**ROW, **changed}])
    with pytest.raises(InvalidInputError, match=said) as refusal:
        make_data({"questions": file, **options}, BYTES)
    assert "\n" not in str(refusal.value)


def test_files_without_questions_are_refused(tmp_path: Path) -> None:
    (tmp_path / "asked.jsonl").write_text("")
    with pytest.raises(InvalidInputError, match=r"asked\.jsonl holds no question"):
        make_data({"questions": str(tmp_path / "asked.jsonl")}, BYTES)
    (tmp_path / "asked.txt").write_text("1 + 1?")
    with pytest.raises(InvalidInputError, match="suffix of a file of rows"):
        make_data({"questions": str(tmp_path / "asked.txt")}, BYTES)
    with pytest.raises(
        InvalidInputError, match=r"unknown questions dataset 'gone'.*a file of rows"
    ):
        make_data({"questions": "gone"}, BYTES)
    with pytest.raises(InvalidInputError, match="needs a tokenizer"):
        make_data({"questions": "word-analogies"})


def test_word_analogies_have_a_license_and_are_of_14_categories() -> None:
    info = dataset_info("questions", "word-analogies")
    assert info.license == "LGPL-2.1-only" and "gensim" in info.source
    found = word_analogies()
    counts = Counter(one.category for one in found)
    assert len(counts) == 14 and sum(counts.values()) == 19_544
    assert counts["family"] == 506 and counts["capital-world"] == 4_524
    first = found[0]
    assert first.question == "Athens is to Greece as Baghdad is to what?"
    assert first.choices[first.answer] == "Iraq" and "Greece" not in first.choices
    assert all(len(one.choices) == 4 for one in found)
    family = [one for one in found if one.category == "family"]
    assert family == word_analogies(["family"]) != word_analogies(["family"], seed=1)
    right = Counter(one.answer for one in found)
    assert all(0.2 < right[at] / len(found) < 0.3 for at in range(4)), "no place is preferred"


def test_word_analogies_by_category() -> None:
    given = {"questions": "word-analogies", "categories": ["family", "currency"], "limit": 40}
    data = make_data({**given, "held_out": 0.25, "choices": 3}, BYTES)
    assert (len(data.train), len(data.test or ())) == (30, 10)
    assert data.facts()["license"] == "LGPL-2.1-only" and data.facts()["sha256"] == data.digest
    resolved = resolve_data(given)
    assert resolved["categories"] == ["family", "currency"] and resolved["choices"] == 4
    with pytest.raises(
        InvalidInputError, match=r"unknown category of word-analogies 'famly'.*family"
    ):
        make_data({"questions": "word-analogies", "categories": ["famly"]}, BYTES)
    with pytest.raises(InvalidInputError, match="category family has 22 for a question, not 30"):
        word_analogies(["family"], choices=30)


def test_without_gensim_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modwright.data.texts.importlib.util.find_spec", lambda name: None)
    with pytest.raises(InvalidInputError, match="pip install --no-deps gensim"):
        word_analogies()


def test_a_model_learns_from_questions_in_a_recipe() -> None:
    from modwright.recipes.load import parse_recipe

    data = {"questions": "word-analogies", "categories": ["family"]}
    keys = {"data": data, "max_steps": 1}
    read = parse_recipe({"model": "preset:byte-llama", "steps": [{"train": keys}]})
    assert read.steps[0].built.data["lettered"] is False
