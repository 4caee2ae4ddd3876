"""One of several processes that train together; the tests start it as a launcher would."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import TrainerCallback

sys.path.insert(0, str(Path(__file__).parents[1]))

from labeled_images import digits, first
from models.tiny import tiny
from modwright.core import distributed
from modwright.models import create_model
from modwright.training import Settings, fit
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
            self.found = {name: p.grad.clone() for name, p in named if p.grad is not None}


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


def main() -> None:
    asked = json.loads(os.environ["TRAIN_WORKER"])
    with distributed.init_distributed():
        folder = Path(asked["folder"])
        if asked["work"] == "train":
            torch.save(trained(), folder / f"{distributed.rank()}.pt")
            return
        for model_type in asked["models"]:
            found = gradients(model_type, distributed.rank(), distributed.size())
            torch.save(found, folder / f"{model_type}-{distributed.rank()}.pt")


if __name__ == "__main__":
    main()
