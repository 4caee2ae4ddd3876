"""One of several processes that share a batch: gradients of modules with their own backward."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import modwright.nn.activations  # noqa: F401  (registers them)
from modwright.nn.component import COMPONENTS

__all__ = ["MODULES", "gradients"]

WIDTH = 8
MODULES = {
    "mamba1": {"d_model": WIDTH, "d_state": 4},
    "mamba2": {"d_model": WIDTH, "d_state": 4, "head_dim": 4},
    "poly_norm": {},
    "poly_relu": {},
}
"""Component -> its arguments: what holds each autograd function of the package, and their kin."""


class Layers(nn.Module):
    """A component between two linear layers."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.inner = COMPONENTS[name].make(**MODULES[name])

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.inner(self.first(x))
        out: Tensor = self.last(mixed[0] if isinstance(mixed, tuple) else mixed)
        return out


def gradients(name: str, rank: int = 0, size: int = 1) -> dict[str, Tensor]:
    """Of the mean over a batch of four sequences, of which each process has its share."""
    torch.manual_seed(0)
    model = Layers(name)
    x = torch.randn(4, 9, WIDTH).chunk(size)[rank]
    run = DistributedDataParallel(model) if size > 1 else model
    run(x).square().mean().backward()
    return {key: p.grad for key, p in model.named_parameters() if p.grad is not None}


def main(folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    for name in MODULES:
        save_file(gradients(name, rank, size), Path(folder) / f"{name}-{rank}.safetensors")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
