"""Training by `fit` against a plain loop in PyTorch: same model, images, optimizer and schedule.

Both train fresh copies of one model in turns in one process; a ratio is the median over
neighboring runs, below 1 where `fit` is slower. The time of a step is what more epochs take; what
`fit` takes once, however long the training is, stands beside it (most of it is one collection of
garbage by accelerate). On a machine with other work `--clock cpu` counts
the time of this process alone.

    python benchmarks/training_speed.py --repeats 5 --threads 1
    python benchmarks/training_speed.py --repeats 5 --threads 1 --profile
"""

from __future__ import annotations

import argparse
import copy
import cProfile
import pstats
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader
from turns import CLOCKS, in_turns

from modwright.core.paired import PairedRatio
from modwright.data import TensorRows, make_data, stack_rows
from modwright.models import create_model
from modwright.training import Settings, fit

EPOCHS, BATCH, PICTURES = 5, 32, 640
MODELS: dict[str, dict[str, Any]] = {
    "16 thousand parameters": {"depths": [1, 1], "hidden_sizes": [16, 32]},
    "251 thousand parameters": {"depths": [2, 2, 2], "hidden_sizes": [24, 48, 96]},
}


def plain_loop(model: Any, train: Any, settings: Settings) -> list[float]:
    """What one would write by hand; the losses, as means of ten steps."""
    torch.manual_seed(settings.seed)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    spared = [p for p in model.parameters() if p.dim() <= 1]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, settings.learning_rate)
    loader = DataLoader(train, settings.batch_size, shuffle=True)
    epochs = int(settings.epochs)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=epochs * len(loader)
    )
    model.train()
    losses, since = [], torch.zeros(())
    for epoch in range(epochs):
        for step, batch in enumerate(loader, start=epoch * len(loader) + 1):
            loss = F.cross_entropy(
                model(pixel_values=batch["pixel_values"]).logits, batch["labels"]
            )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            since += loss.detach()
            if step % 10 == 0:
                losses.append(float(since) / 10)
                since.zero_()
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--profile", action="store_true", help="say where fit spends its time")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = CLOCKS[options.clock]
    decoded, per_epoch = make_data({"images": "digits"}).train, PICTURES // BATCH
    train = TensorRows(stack_rows([decoded[index] for index in range(PICTURES)]))
    print("| model | step by hand, ms | step of fit, ms | times as fast | begin of fit, ms |")
    print("|---|---|---|---|---|")
    for name, fields in MODELS.items():
        first = create_model("poolformer_s12", num_classes=10, stem=[3, 2, 1], **fields)

        def seconds(learn: Callable[..., Any], epochs: int, first: Any = first) -> float:
            model = copy.deepcopy(first)
            began = clock()
            learn(model, train, settings=Settings(epochs=epochs, batch_size=BATCH))
            return clock() - began

        def step_and_begin(learn: Callable[..., Any]) -> tuple[float, float]:
            short, long = seconds(learn, 1), seconds(learn, 1 + EPOCHS)
            step = (long - short) / (EPOCHS * per_epoch)
            return 1e3 * step, 1e3 * (short - per_epoch * step)

        seconds(plain_loop, 1), seconds(fit, 1)
        both = (partial(step_and_begin, learn) for learn in (plain_loop, fit))
        pairs = in_turns(*both, options.repeats)
        by_hand, ours = (median(step for step, _ in one) for one in zip(*pairs))
        ratio = PairedRatio.of([hand / own for (hand, _), (own, _) in pairs])
        begin = median(begin for _, (_, begin) in pairs)
        print(f"| {name} | {by_hand:.1f} | {ours:.1f} | {ratio:.3f} | {begin:.0f} |", flush=True)
    print(
        f"\n{EPOCHS * per_epoch} steps of {BATCH} images of 32 x 32, {options.threads} threads, "
        f"{options.clock} time, torch {torch.__version__}, {options.repeats} repeats"
    )
    if options.profile:
        profile = cProfile.Profile()
        profile.runcall(fit, first, train, None, Settings(epochs=EPOCHS, batch_size=BATCH))
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
