"""A classification of passages in two domains, and fine-tuning on one of them.

Do the words of a passage stand in the order in which they were written? Training passages are of
news (the Lee corpus); passages of other news are in-domain, those of Python's own manual are not.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pydoc_data.topics import topics
from typing import Any

import torch
from torch import Tensor

from modwright.data.text import load_text
from modwright.surgery import apply, make_method
from modwright.surgery.routing import TieKeys

__all__ = ["Arm", "Task", "fine_tune"]

WORDS = 20
Row = dict[str, Tensor]


@dataclass(frozen=True)
class Arm:
    """How the model is fine-tuned: dense (no options), or split into experts."""

    name: str
    options: dict[str, Any] | None = None


class Task:
    """Token ids of training passages, and of passages in and out of their domain.

    Args:
        tokenizer: of the model.
        train, test: how many passages; the words of every second one are shuffled.
    """

    def __init__(self, tokenizer: Any, train: int, test: int) -> None:
        news = [line for line in load_text("lee-background").splitlines() if line.strip()]
        manual = [text for _, text in sorted(topics.items())]
        self.train = _encode(tokenizer, _examples(news[:200], train, seed=0))
        self.tests = {
            "in domain": _encode(tokenizer, _examples(news[200:], test, seed=1)),
            "out of domain": _encode(tokenizer, _examples(manual, test, seed=2)),
        }


def _examples(articles: Sequence[str], count: int, seed: int) -> list[tuple[str, int]]:
    """Passages drawn without repetition, with labels: 1 where the order is the author's."""
    drawn = random.Random(seed)
    passages = [words for text in articles for words in _passages(text)]
    found = []
    for i, words in enumerate(drawn.sample(passages, count)):
        if i % 2:
            drawn.shuffle(words)
        found.append((" ".join(words), 1 - i % 2))
    return found


def _passages(text: str) -> Iterator[list[str]]:
    words = text.split()
    for start in range(0, len(words) - WORDS + 1, WORDS):
        yield words[start : start + WORDS]


def _encode(tokenizer: Any, examples: list[tuple[str, int]]) -> list[Row]:
    texts, labels = zip(*examples)
    encoded = tokenizer(
        list(texts), truncation=True, max_length=48, padding=True, return_tensors="pt"
    )
    return [
        {**{name: value[i] for name, value in encoded.items()}, "labels": torch.tensor(label)}
        for i, label in enumerate(labels)
    ]


def classifier(encoder: Any, seed: int) -> Any:
    """A BERT for two labels over a copy of an encoder; the last two layers are trained."""
    from transformers import BertForSequenceClassification

    config = copy.deepcopy(encoder.config)
    config.num_labels = 2
    torch.manual_seed(seed)
    model = BertForSequenceClassification(config)
    missing = model.bert.load_state_dict(encoder.state_dict(), strict=False)
    assert not missing.unexpected_keys
    return model


def fine_tune(
    encoder: Any, task: Task, arm: Arm, seed: int, steps: int, place: str
) -> dict[str, float]:
    """Accuracy in and out of the domain after ``steps`` of 16 passages.

    Experts are evaluated as they were trained, and once merged back ("..., merged").
    """
    from transformers import Trainer, TrainingArguments

    model = classifier(encoder, seed)
    if arm.options is not None:
        model = apply(model, make_method("emoe", arm.options), check=False).model
    trained = tuple(f"layer.{i}." for i in range(config_layers(model) - 2, config_layers(model)))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in name for part in (*trained, "pooler", "classifier")))
    arguments = TrainingArguments(
        output_dir=place,
        max_steps=steps,
        per_device_train_batch_size=16,
        learning_rate=3e-4,
        warmup_steps=steps // 10,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        logging_strategy="no",
        use_cpu=True,
        seed=seed,
    )
    Trainer(model=model, args=arguments, train_dataset=task.train, callbacks=[TieKeys()]).train()
    found = {name: accuracy(model, rows) for name, rows in task.tests.items()}
    if arm.options is not None:
        merged = apply(model, make_method("emoe_merge"), check=False).model
        found |= {f"{name}, merged": accuracy(merged, rows) for name, rows in task.tests.items()}
    return found


def config_layers(model: Any) -> int:
    return int(model.config.num_hidden_layers)


@torch.no_grad()
def accuracy(model: Any, rows: list[Row]) -> float:
    model.eval()
    hits = 0
    for start in range(0, len(rows), 50):
        some = rows[start : start + 50]
        batch = {name: torch.stack([row[name] for row in some]) for name in some[0]}
        labels = batch.pop("labels")
        hits += int((model(**batch).logits.argmax(-1) == labels).sum())
    return hits / len(rows)
