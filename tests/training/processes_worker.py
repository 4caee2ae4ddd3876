"""One of several processes that train together; the tests start it as a launcher would."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import TrainerCallback

sys.path.insert(0, str(Path(__file__).parents[1]))

import modwright
from labeled_images import digits, first
from models.tiny import tiny
from modwright.core import distributed
from modwright.models import create_model
from modwright.training import Settings, TrainingInterrupted, fit, train
from modwright.training.loop import Measured
from modwright.training.parametrization import Standard
from modwright.training.sharding import shard_blocks

torch.set_num_threads(1)


QUARTER = Standard({"mlp[*]": 0.25})


class FirstGradients(TrainerCallback):
    """Keeps what the optimizer sees in the first step, and the learning rates of all steps."""

    def __init__(self) -> None:
        self.found: dict[str, Tensor] = {}
        self.rates: list[list[float]] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self.rates.append([group["lr"] for group in given["optimizer"].param_groups])

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if not self.found:
            named = given["model"].named_parameters()
            self.found = {name: whole(p.grad) for name, p in named if p.grad is not None}


def trained(**more: Any) -> dict[str, Tensor]:
    """The first gradients and the last weights of a training of 8 steps."""
    torch.manual_seed(0)
    fields = {"depths": [1, 1], "hidden_sizes": [8, 16], "stem": [3, 4, 1], "drop_path_rate": 0.0}
    model = create_model("poolformer_s12", num_classes=10, **fields)
    watch = FirstGradients()
    settings = Settings(epochs=2, batch_size=16, average=0.9, more=more)
    train = first(digits(), 64)
    found = fit(model, train, None, settings, callbacks=[watch], parametrization=QUARTER)
    return {
        **{f"grad {name}": gradient for name, gradient in watch.found.items()},
        **{f"weight {name}": tensor for name, tensor in model.state_dict().items()},
        "steps": torch.tensor(found.steps),
        "rates": torch.tensor(watch.rates, dtype=torch.float64),
    }


class Ends(TrainerCallback):
    """Ends a training behind a step; meanwhile it sees whether weights are in parts."""

    def __init__(self, step: int = -1, signal: int = 0) -> None:
        self.step, self.signal, self.in_parts = step, signal, set[bool]()

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        parameters = given["model"].parameters()
        self.in_parts |= {hasattr(parameter, "full_tensor") for parameter in parameters}
        if state.global_step == self.step:
            if self.signal:
                os.kill(os.getpid(), self.signal)
            raise KeyboardInterrupt


def sharded(
    output: Path | None, ends: Ends, resume: bool = False, model: Any = None, **more: Any
) -> dict[str, Any]:
    """A language model and what came of six steps, its best state chosen and weights averaged."""
    model = modwright.open("preset:tiny-llama").model if model is None else model
    kinds = [type(module) for module in model.modules()]
    rows = [{"input_ids": (torch.arange(i, i + 12) * 7) % 90} for i in range(32)]
    keys = {"max_steps": 6, "learning_rate": 3e-3, "logging_steps": 1, "max_grad_norm": 0.5}
    keys |= {"save_strategy": "steps", "save_steps": 2, "gradient_accumulation_steps": 2}
    keys |= {"per_device_train_batch_size": 4 // distributed.size(), "fsdp": True, **more}

    def measure(now: Any, step: int) -> dict[str, float]:
        ids = torch.stack([row["input_ids"] for row in rows[:2]])
        return {"score": float(now(input_ids=ids, labels=ids).loss)}

    said: list[str] = []
    best, calls = Measured(measure, [0, 2, 4, 6]), [ends]
    where = {"best": best, "output": output, "resume": resume, "log": said.append}
    try:
        found = train(model, rows, keys, callbacks=calls, **where)  # type: ignore[arg-type]
        numbers = {"losses": found.losses, "measured": found.measured}
        numbers["norms"] = [entry["grad_norm"] for entry in found.log]
    except TrainingInterrupted as error:
        numbers = {"stopped": str(error)}
    assert kinds == [type(module) for module in model.modules()]
    assert {type(parameter) for parameter in model.parameters()} == {torch.nn.Parameter}
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return {**numbers, "weights": weights, "in_parts": ends.in_parts, "said": said, "model": model}


def killed(folder: Path) -> None:
    sharded(folder / "kept", Ends(5, signal.SIGKILL), ema_decay=0.9)


def resumed(folder: Path) -> dict[str, Any]:
    """What was killed, one that nothing stops, one behind it, and one that is interrupted."""
    found = {"resumed": sharded(folder / "kept", Ends(), resume=True, ema_decay=0.9)}
    found["whole"] = sharded(folder / "whole", Ends(), ema_decay=0.9)
    found["once more"] = sharded(None, Ends(), model=found["whole"]["model"])
    found["interrupted"] = sharded(None, Ends(3))
    return {name: {k: v for k, v in one.items() if k != "model"} for name, one in found.items()}


def batch_of(model: Any, count: int) -> tuple[Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(1)
    shape = (count, model.config.num_channels, *model.config.size)
    pixels = torch.randn(shape, generator=drawn)
    return pixels, torch.randint(5, (count,), generator=drawn)


def gradients(model_type: str, index: int = 0, size: int = 1) -> dict[str, Tensor]:
    """Of the loss on this process's half of a batch, put together over all of them.

    And the weights after a step in which some groups of parameters have a quarter of the rate.
    """
    torch.manual_seed(0)
    model = tiny(model_type)
    pixels, labels = batch_of(model, 4)
    if size > 1:
        shard_blocks(model)
    rows = slice(index * 4 // size, (index + 1) * 4 // size)
    F.cross_entropy(model(pixel_values=pixels[rows]).logits, labels[rows]).backward()
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            found[name] = whole(parameter.grad)
    groups = Standard({"*weight": 0.25}).groups(model, 0.1, 0.05)
    torch.optim.SGD(groups).step()
    return found | {f"after {name}": whole(p.detach()) for name, p in model.named_parameters()}


def whole(tensor: Any) -> Tensor:
    """A tensor, or what the processes share of it put together."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor.clone()


WORKS = {
    "train": lambda folder: trained(),
    "train sharded": lambda folder: trained(fsdp=True),
    "killed": killed,
    "resumed": resumed,
}


def main() -> None:
    asked = json.loads(os.environ["TRAIN_WORKER"])
    with distributed.init_distributed():
        folder = Path(asked["folder"])
        if asked["work"] in WORKS:
            found = WORKS[asked["work"]](folder)
            torch.save(found, folder / f"{distributed.rank()}.pt")
            return
        for model_type in asked["models"]:
            found = gradients(model_type, distributed.rank(), distributed.size())
            torch.save(found, folder / f"{model_type}-{distributed.rank()}.pt")


if __name__ == "__main__":
    main()
