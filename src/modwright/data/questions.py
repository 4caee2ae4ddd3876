"""Questions of multiple choice as text to learn from, targets at the answers alone.

Axes: T tokens of a row.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import torch
from torch import Tensor

from modwright.core.errors import InvalidInputError, unknown_name
from modwright.data.dataset import IGNORED, Data, Rows, pad_rows
from modwright.data.registry import data_kind, dataset
from modwright.data.row_files import read_rows
from modwright.data.special_tokens import special_tokens
from modwright.data.text import require_count, tokenizer_of
from modwright.data.text_rows import held_out_rows
from modwright.data.texts import inside_package

__all__ = ["Question", "question_file", "question_rows", "word_analogies"]

_PLACE = "{question}"
_TEMPLATE = f"Question: {_PLACE}\nAnswer:"


@dataclass(frozen=True)
class Question:
    """A question, what may be answered, and which of it is right.

    Attributes:
        question: as it is asked.
        choices: at least two, all different.
        answer: number of the right one, from 0.
        category: of the question; splits are made within it.
        where: what messages of refusals call it.

    Raises:
        InvalidInputError: an empty question, choices that are not that, or an answer that is none.
    """

    question: str
    choices: tuple[str, ...]
    answer: int
    category: str = ""
    where: str = "a question"

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise InvalidInputError(f"{self.where} is empty")
        if len(self.choices) < 2 or len(set(self.choices)) < len(self.choices):
            raise InvalidInputError(
                f"{self.where} has not two or more different choices, but {list(self.choices)}"
            )
        if not all(map(str.strip, self.choices)):
            raise InvalidInputError(f"{self.where}: a choice is empty")
        if not 0 <= self.answer < len(self.choices):
            raise _no_choice(self.where, self.answer, self.choices)


def _no_choice(where: str, answer: Any, choices: Sequence[str]) -> InvalidInputError:
    return InvalidInputError(
        f"{where}: the answer {answer!r} is no choice; choices: {', '.join(choices)}"
    )


def question_file(
    path: str,
    *,
    question: str = "question",
    choices: str | tuple[str, ...] = "choices",
    answer: str = "answer",
    category: str | None = None,
    encoding: str = "utf-8",
) -> list[Question]:
    """The questions of a file of rows, such as ``.jsonl`` or ``.csv``.

    Args:
        path: of the file.
        question: its column.
        choices: the column of them, each a list, or a mapping of lists ``text`` and ``label``; or
            the names of several columns of one each, of which empty ones are passed over.
        answer: the column of the right one: its text, its label (its column's name; A, B, ... in a
            list without labels) or its number from 0.
        category: the column of what a question is about; None where there is none.
        encoding: of the file.

    Raises:
        InvalidInputError: no such column, a row that is no question, an answer that is no choice,
            or no row at all; says which.
    """
    needed = [question, *([choices] if isinstance(choices, str) else choices), answer]
    needed += [] if category is None else [category]
    found = []
    for number, row in enumerate(read_rows(Path(path).expanduser(), encoding)):
        for column in needed:
            if column not in row:
                raise unknown_name(f"column of {path}", column, row)
        where = f"row {number} of {path}"
        if not isinstance(row[question], str):
            raise InvalidInputError(
                f"{where}: column {question!r} is {type(row[question]).__name__}; it must be text"
            )
        texts, labels = _choices(row, choices, where)
        about = "" if category is None else str(row[category])
        right = _answer(row[answer], texts, labels, where)
        found.append(Question(row[question], texts, right, about, where))
    if not found:
        raise InvalidInputError(f"{path} holds no question")
    return found


def _choices(
    row: Mapping[str, Any], columns: str | Sequence[str], where: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The choices of a row, and the label of each."""
    if not isinstance(columns, str):
        given = [(row[name], name) for name in columns if row[name] not in (None, "")]
        texts: Any = [text for text, _ in given]
        labels: Any = [name for _, name in given]
    else:
        texts, labels = row[columns], None
        if isinstance(texts, Mapping):
            texts, labels = texts.get("text"), texts.get("label")
        if not isinstance(texts, Sequence) or isinstance(texts, str):
            raise InvalidInputError(
                f"{where}: column {columns!r} is no list of choices; where each has a column of "
                "its own, name these: choices: [A, B, C]"
            )
        labels = ascii_uppercase[: len(texts)] if labels is None else labels
    if not all(isinstance(text, str) for text in texts):
        raise InvalidInputError(f"{where}: a choice is no text: {list(texts)}")
    if len(labels) != len(texts):
        raise InvalidInputError(f"{where} has {len(texts)} choices and {len(labels)} labels")
    return tuple(texts), tuple(map(str, labels))


def _answer(given: Any, texts: tuple[str, ...], labels: tuple[str, ...], where: str) -> int:
    """The number of the right choice."""
    for known in (texts, labels):
        if isinstance(given, str) and given in known:
            return known.index(given)
    number = int(given) if isinstance(given, str) and given.strip().isdecimal() else given
    if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < len(texts):
        return number
    raise _no_choice(where, given, texts)


@data_kind(
    "questions",
    path=question_file,
    paths="the path of a file of rows with a question, choices and an answer (.jsonl, .csv)",
    measured_by="perplexity",
)
def question_rows(
    made: Sequence[Question],
    tokenizer: Any,
    name: str = "questions",
    *,
    template: str = _TEMPLATE,
    lettered: bool = False,
    length: int = 512,
    limit: int | None = None,
    held_out: float = 0.0,
) -> Data:
    """Questions as rows of ``input_ids`` (T,) and ``labels`` (T,), targets at answers alone.

    The right choice follows the template behind a blank. What is longer than ``length`` is left
    out, never cut: its answer stands at the end.

    Args:
        made: the questions.
        tokenizer: of the model, a fast one.
        name: of the data, for messages.
        template: what is before the answer; ``{question}`` in it stands for the question.
        lettered: choices are written behind the question, a line each, as "A. ...", and the answer
            is the letter.
        length: most tokens of a row.
        limit: how many questions, spread over all; None takes all.
        held_out: share of the questions that is to measure on: of each category the last ones.

    Raises:
        InvalidInputError: no question, a template without one, a number out of its range, more
            choices than letters, or a tokenizer that does not tell where its tokens are.

    Example:
        >>> from modwright.data.tokenizers import byte_tokenizer
        >>> data = question_rows([Question("1 + 1?", ("1", "2"), 1)], byte_tokenizer())
        >>> labels = data.train[0]["labels"]
        >>> bytes(labels[labels != -100].tolist())
        b' 2'
    """
    tokenizer = tokenizer_of(tokenizer)
    require_count("length", length, least=2)
    if _PLACE not in template:
        raise InvalidInputError(f"{name}: template has no {_PLACE} in it: {template!r}")
    if not tokenizer.is_fast:
        raise InvalidInputError(
            f"{name}: answers are found by the places of tokens in the text, which this tokenizer "
            "does not tell; use a fast one"
        )
    if not made:
        raise InvalidInputError(f"{name} holds no question")
    if limit is not None:
        require_count("limit", limit)
        count = min(limit, len(made))
        made = [made[at * len(made) // count] for at in range(count)]
    groups: dict[str, list[Rows]] = {}
    encoded = _encoded(tokenizer, [_written(one, template, lettered) for one in made])
    for question, row in zip(made, encoded):
        if len(row["labels"]) <= length:
            groups.setdefault(question.category, []).append(row)
    kept = sum(map(len, groups.values()))
    if not kept:
        raise InvalidInputError(f"{name} holds no question of at most {length} tokens")
    notes = []
    if left := len(made) - kept:
        notes.append(f"{name}: {left:,} questions are longer than {length} tokens and left out")
    train: list[Rows] = []
    test: list[Rows] = []
    for category, rows in groups.items():
        what = f"{name}: category {category!r}" if category else name
        learned, _ = held_out_rows(len(rows), held_out, what)
        train += rows[:learned]
        test += rows[learned:]
    if test and len(groups) > 1:
        notes.append(f"{name}: the last questions of each of {len(groups)} categories are held out")
    pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
    collate = partial(pad_rows, fill={"input_ids": pad, "labels": IGNORED})
    return Data(train, test or None, collate, notes=tuple(notes))


def _written(question: Question, template: str, lettered: bool) -> tuple[str, str]:
    """What is asked, and the answer to it."""
    asked, answer = question.question, question.choices[question.answer]
    if lettered:
        if len(question.choices) > len(ascii_uppercase):
            raise InvalidInputError(
                f"{question.where} has {len(question.choices)} choices, more than letters"
            )
        listed = zip(ascii_uppercase, question.choices)
        asked = "\n".join([asked, *(f"{letter}. {choice}" for letter, choice in listed)])
        answer = ascii_uppercase[question.answer]
    return template.replace(_PLACE, asked), f" {answer}"


def _encoded(tokenizer: Any, written: Sequence[tuple[str, str]]) -> list[dict[str, Tensor]]:
    """A row of each; a token that reaches into the answer is one of it."""
    texts = [asked + answer for asked, answer in written]
    options = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
    found = tokenizer(texts, **options)
    special = special_tokens(tokenizer, texts[0])
    before, after = (torch.full((len(part),), IGNORED) for part in (special.before, special.after))
    rows = []
    for (asked, _), tokens, places in zip(written, found["input_ids"], found["offset_mapping"]):
        ids = torch.tensor(tokens)
        labels = ids.where(torch.tensor([end > len(asked) for _, end in places]), IGNORED)
        row = {"input_ids": special.around(ids[None])[0]}
        rows.append({**row, "labels": torch.cat([before, labels, after])})
    return rows


@dataset(
    "word-analogies",
    "questions",
    license="LGPL-2.1-only",
    source="word analogies of word2vec (arXiv 1301.3781), in gensim",
)
def word_analogies(
    categories: tuple[str, ...] | None = None, choices: int = 4, seed: int = 0
) -> list[Question]:
    """Which word is to a third what a second is to the first.

    Args:
        categories: names of them, as ``capital-world``; None takes all.
        choices: of each question; wrong ones are other words of the category.
        seed: of the wrong choices and of their order.
    """
    require_count("choices", choices, least=2)
    file = inside_package(
        "questions 'word-analogies'", "gensim", "test/test_data/questions-words.txt"
    )
    by_category: dict[str, list[list[str]]] = {}
    rows: list[list[str]] = []
    for line in file.read_text("utf-8").splitlines():
        if line.startswith(":"):
            rows = by_category.setdefault(line[1:].strip(), [])
        elif line.strip():
            rows.append(line.split())
    wanted = list(by_category) if categories is None else categories
    for name in wanted:
        if name not in by_category:
            raise unknown_name("category of word-analogies", name, by_category)
    found = []
    for name in dict.fromkeys(wanted):
        draw = random.Random(f"{seed} {name}")
        others = sorted({row[3] for row in by_category[name]})
        found += [_analogy(row, name, others, choices, draw) for row in by_category[name]]
    return found


def _analogy(
    row: Sequence[str], category: str, others: Sequence[str], count: int, draw: random.Random
) -> Question:
    first, second, third, right = row
    wrong = [word for word in others if word not in (second, right)]
    if len(wrong) < count - 1:
        raise InvalidInputError(
            f"choices: category {category} has {len(wrong) + 1} for a question, not {count}"
        )
    given = [right, *draw.sample(wrong, count - 1)]
    draw.shuffle(given)
    asked = f"{first} is to {second} as {third} is to what?"
    return Question(asked, tuple(given), given.index(right), category, f"{asked!r}")
