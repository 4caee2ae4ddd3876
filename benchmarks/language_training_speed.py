"""Training a language model by `train` against what one would write by hand.

Two comparisons, each in turns in one process; a ratio is the median over neighboring runs, below 1
where `train` is slower:

- next token, against a plain loop in PyTorch: the same model, rows, optimizer and clipping;
- divergence from a teacher, as `heal` learns, against transformers' Trainer with the same loss.

The estimate that `train` makes before it starts is left out of its time.

    python benchmarks/language_training_speed.py --repeats 5 --threads 2
    python benchmarks/language_training_speed.py --model smollm2-135m --steps 4 --repeats 3
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainingArguments
from turns import CLOCKS, in_turns

import modwright
from modwright.core.paired import PairedRatio
from modwright.training import Distillation, NextToken, Training
from modwright.training.objectives.distillation import divergence_of
from modwright.training.trainer import ObjectiveTrainer

SMALL = {
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 4096,
}
ROWS, LENGTH = 4, 128


def made(name: str) -> Any:
    if name == "small":
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SMALL))
    return modwright.open(name).model


def rows_of(model: Any, count: int) -> list[dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(0)
    size = model.config.vocab_size
    return [{"input_ids": torch.randint(size, (LENGTH,), generator=draw)} for _ in range(count)]


def by_train(model: Any, rows: Any, objective: Any, steps: int, clock: Any) -> float:
    asked = Training(
        objective,
        arguments={
            "max_steps": steps,
            "per_device_train_batch_size": ROWS,
            "learning_rate": 1e-4,
            "lr_scheduler_type": "constant",
        },
    )
    with tempfile.TemporaryDirectory() as place:
        arguments = asked.training_arguments(place, keep=False)
        trainer = ObjectiveTrainer(
            model, arguments, train_dataset=rows, objective=objective, learns="all"
        )
        began = clock()
        trainer.train()
        return float(clock() - began)


def by_hand(model: Any, rows: Any, steps: int, clock: Any) -> float:
    began = clock()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=0.0)
    model.train()
    for _, batch in zip(range(steps), DataLoader(rows, ROWS, shuffle=True)):
        ids = batch["input_ids"]
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return float(clock() - began)


class Plain(Trainer):
    """transformers' Trainer with the divergence from a teacher."""

    teacher: Any

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        with torch.no_grad():
            wanted = self.teacher(**inputs).logits[:, :-1].flatten(0, 1)
        return divergence_of(model(**inputs).logits[:, :-1].flatten(0, 1), wanted).mean()


def by_trainer(model: Any, teacher: Any, rows: Any, steps: int, clock: Any) -> float:
    with tempfile.TemporaryDirectory() as place:
        arguments = TrainingArguments(
            place,
            max_steps=steps,
            per_device_train_batch_size=ROWS,
            learning_rate=1e-4,
            lr_scheduler_type="constant",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
        )
        trainer = Plain(model, arguments, train_dataset=rows)
        trainer.teacher, trainer.model_accepts_loss_kwargs = teacher, False
        began = clock()
        trainer.train()
        return float(clock() - began)


def compared(name: str, ours: Callable[[], float], theirs: Callable[[], float], n: int) -> None:
    ours(), theirs()
    pairs = in_turns(ours, theirs, n)
    print(f"{name}: train is {PairedRatio.of([other / one for one, other in pairs])} times as fast")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="small", help="small, or what modwright.open takes")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    clock, source = CLOCKS[asked.clock], made(asked.model)
    rows = rows_of(source, ROWS * asked.steps)
    fresh: Callable[[], Any] = partial(copy.deepcopy, source)
    compared(
        "next token",
        lambda: by_train(fresh(), rows, NextToken(), asked.steps, clock),
        lambda: by_hand(fresh(), rows, asked.steps, clock),
        asked.repeats,
    )
    compared(
        "divergence from a teacher",
        lambda: by_train(fresh(), rows, Distillation(source, 1.0), asked.steps, clock),
        lambda: by_trainer(fresh(), source, rows, asked.steps, clock),
        asked.repeats,
    )


if __name__ == "__main__":
    main()
