"""A classification of pairs of passages in two domains, and fine-tuning on one of them.

Do two passages come from one article? Training pairs are of news (the Lee corpus); pairs of other
news are in-domain, pairs from Python's own manual, whose sections count as articles, are not.
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

from modwright.calibration.text import load_text
from modwright.surgery import apply, make_method
from modwright.surgery.routing import TieKeys

__all__ = ["Arm", "Task", "fine_tune"]

WORDS = 14
Row = dict[str, Tensor]


@dataclass(frozen=True)
class Arm:
    """How the model is fine-tuned: dense (no options), or split into experts."""

    name: str
    options: dict[str, Any] | None = None


class Task:
    """Token ids of training pairs, and of pairs in and out of their domain.

    Args:
        tokenizer: of the model.
        train, test: how many pairs; half of them are from one article.
    """

    def __init__(self, tokenizer: Any, train: int, test: int) -> None:
        news = [line for line in load_text("lee-background").splitlines() if line.strip()]
        manual = [text for _, text in sorted(topics.items())]
        self.train = _encode(tokenizer, _pairs(news[:200], train, seed=0))
        self.tests = {
            "in domain": _encode(tokenizer, _pairs(news[200:], test, seed=1)),
            "out of domain": _encode(tokenizer, _pairs(manual, test, seed=2)),
        }


def _pairs(articles: Sequence[str], count: int, seed: int) -> list[tuple[str, str, int]]:
    drawn = random.Random(seed)
    cut = [list(_passages(text)) for text in articles]
    cut = [passages for passages in cut if len(passages) > 1]
    found = []
    for i in range(count):
        here = drawn.randrange(len(cut))
        one, other = drawn.sample(cut[here], 2)
        if i % 2:
            there = drawn.choice([j for j in range(len(cut)) if j != here])
            other = drawn.choice(cut[there])
        found.append((one, other, 1 - i % 2))
    return found


def _passages(text: str) -> Iterator[str]:
    words = text.split()
    for start in range(0, len(words) - WORDS + 1, WORDS):
        yield " ".join(words[start : start + WORDS])


def _encode(tokenizer: Any, pairs: list[tuple[str, str, int]]) -> list[Row]:
    ones, others, labels = zip(*pairs)
    encoded = tokenizer(
        list(ones), list(others), truncation=True, max_length=48, padding=True, return_tensors="pt"
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
    """Accuracy in and out of the domain after ``steps`` of 16 pairs.

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
