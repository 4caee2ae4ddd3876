"""How exact the forms of Pre-RMSNorm are in each precision, on a model of GPT-2's small size.

The weights are random, with gains and shifts that are not trivial. Errors are those of logits,
against the same model in float64, in units of the logits' spread; the first row of each precision
is the model as it is, which nothing can better by more than luck.

    python benchmarks/norm_error.py
"""

from __future__ import annotations

import argparse
import copy
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from modwright.anatomy import Anatomy
from modwright.surgery import apply, make_method

FORMS: dict[str, dict[str, Any]] = {
    "rms": {"form": "rms"},
    "rms, folded": {"form": "rms", "fold_affine": True},
    "rms, training form": {"form": "rms", "training": True},
    "crms": {"form": "crms"},
}
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}


def build(layers: int, massive: float) -> Any:
    """A model in float64; one channel of its stream may be as large as those of real models."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=layers)).double().eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            centre = 1.0 if "ln_" in name and name.endswith("weight") else 0.0
            torch.nn.init.normal_(parameter, mean=centre, std=0.2)
    if massive:
        table = Anatomy.of(model).outer["positions"].parameters()["weight"]
        table = table.clone()
        table[:, -1] += massive
        Anatomy.of(model).write("positions.weight", table)
    return model


@torch.no_grad()
def logits(model: Any, ids: Tensor) -> Tensor:
    found: Tensor = model(input_ids=ids).logits.double()
    return found


def row(name: str, found: Tensor, truth: Tensor) -> list[str]:
    """Largest and root mean square error."""
    off = (found - truth) / truth.std()
    return [name, f"{float(off.abs().max()):.1e}", f"{float(off.square().mean().sqrt()):.1e}"]


def convert(model: Any, options: dict[str, Any], dtype: torch.dtype) -> Any:
    """The converted model in a precision."""
    result = apply(model, make_method("pre_rmsnorm", options), check=False).model
    return copy.deepcopy(result).to(dtype)


def table(model: Any, ids: Tensor, title: str) -> Table:
    truth = logits(model, ids)
    made = Table("precision", "form", "largest", "root mean square")
    made.title = title
    for word, dtype in DTYPES.items():
        cast = copy.deepcopy(model).to(dtype)
        if dtype is not torch.float64:
            made.add_row(word, *row("as it is", logits(cast, ids), truth))
        for name, options in FORMS.items():
            for at, from_cast in (("", True), (", converted in float64", False)):
                if not from_cast and dtype is not torch.bfloat16:
                    continue
                result = convert(cast if from_cast else model, options, dtype)
                made.add_row(word, *row(name + at, logits(result, ids), truth))
    return made


def massive_table(model: Any, ids: Tensor, title: str) -> Table:
    """What it matters which coordinate goes, if one of them is far larger than the others."""
    truth = logits(model, ids)
    made = Table("precision", "dropped", "largest", "root mean square")
    made.title = title
    for word, dtype in DTYPES.items():
        if dtype is not torch.float64:
            cast = copy.deepcopy(model).to(dtype)
            made.add_row(word, *row("nothing", logits(cast, ids), truth))
        for name, index in (("the large one", -1), ("another", 0)):
            result = convert(model, {"form": "crms", "drop_index": index}, dtype)
            made.add_row(word, *row(name, logits(result, ids), truth))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--massive", type=float, default=300.0, help="size of the large channel")
    given = parser.parse_args()
    ids = torch.randint(0, 50257, (2, given.tokens), generator=torch.Generator().manual_seed(1))
    size = f"GPT-2 small, {given.layers} layers, random weights, 2 x {given.tokens} tokens"
    console = Console(width=130)
    console.print(table(build(given.layers, 0.0), ids, f"Error of logits: {size}"))
    big = build(given.layers, given.massive)
    title = f"Form crms with a channel of {given.massive:g}, converted in float64: {size}"
    console.print(massive_table(big, ids, title))


if __name__ == "__main__":
    main()
