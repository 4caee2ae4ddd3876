"""Trains the packaged model lab-lm anew from its own recipe, and records it on the way.

    python examples/lab_lm.py

Beside the weights, in float16, stands what its residual stream held at steps 0, 1, 2, 4, ..., 128
and every 50: of 10 windows of the text ``lee``, which it never learns from, the three largest
absolute values behind each block, their median, and the loss.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modwright import checkpoint
from modwright.checkpoint import ALIASES
from modwright.core.files import write_file
from modwright.data import make_data
from modwright.recipes.composed import open_model
from modwright.recipes.load import load_recipe
from modwright.recipes.runner import torch_settings
from modwright.training import train
from modwright.training.recorder import Recorder, at_points

CARD, RECIPE, RECORDED = "README.md", "training/recipe.yaml", "training/trajectory.safetensors"


def held_out(tokenizer: Any) -> Tensor:
    """(B, T) token ids that are looked at, and never learned."""
    data = make_data({"text": "lee", "length": 128, "windows": 10}, tokenizer)
    return torch.stack([row["input_ids"] for row in data.train])


def largest(stream: Tensor) -> Tensor:
    """(B, 4): of every sequence the three largest absolute values and the lower median."""
    values = stream.float().abs().flatten(1)
    return torch.cat([values.topk(3).values, values.median(1, keepdim=True).values], 1)


def quantities(rows: Tensor) -> Any:
    """What is recorded: ``blocks.N`` (B, 4), and ``loss`` (B,) in nats for a token."""
    streams = at_points(
        [{"input_ids": rows}],
        lambda anatomy: {block.address: block.resid_post for block in anatomy.blocks},
        largest,
    )

    def read(model: Any) -> dict[str, Tensor]:
        logits = model(input_ids=rows).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.mT, rows[:, 1:], reduction="none")
        return {**streams(model), "loss": loss.mean(1)}

    return read


def main() -> None:
    packaged = ALIASES["lab-lm"].path()
    parser = argparse.ArgumentParser(description="Trains the packaged model lab-lm anew.")
    parser.add_argument("-o", "--output", type=Path, default=packaged)
    parser.add_argument("--steps", type=int, help="fewer than the recipe has, to try it")
    asked = parser.parse_args()
    fewer = [] if asked.steps is None else [f"steps.0.train.max_steps={asked.steps}"]
    # The old files are read before new ones take their place.
    files = {name: (packaged / name).read_bytes() for name in (CARD, RECIPE)}
    recipe = load_recipe(packaged / RECIPE, fewer)
    with tempfile.TemporaryDirectory() as scratch, torch_settings(recipe):
        opened, step = open_model(recipe), recipe.steps[0].built
        read = quantities(held_out(opened.tokenizer))
        recorder = Recorder(Path(scratch, "trajectory.safetensors"), read)
        arguments = {"seed": recipe.seed, "use_cpu": True, **step.training.arguments}
        training = replace(step.training, arguments=arguments)
        data = make_data(step.data, opened.tokenizer)
        done = train(opened.model, data, training, callbacks=[recorder])
        recorded = recorder.file.read_bytes()
    print(f"{done.steps} steps in {done.seconds:.0f} s, loss {done.losses[-1][1]:.3f}")
    out = checkpoint.save(
        opened.model.half(), asked.output, tokenizer=opened.tokenizer, files=files, force=True
    )
    write_file(out / RECORDED, recorded)
    for file in (*out.glob("*.json"), *out.glob("*.jinja")):  # as all files of a repository end
        write_file(file, file.read_text(encoding="utf-8").rstrip("\n") + "\n")
    print(out)


if __name__ == "__main__":
    main()
