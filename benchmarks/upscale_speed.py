"""CRAFT beside bicubic interpolation and a plain residual network of as many parameters.

    python benchmarks/upscale_speed.py --threads 1
    python benchmarks/upscale_speed.py --memory

The first prints seconds per megapixel of the small image, each taken in turns in one process; a
ratio is the median over neighboring runs. The second prints how much memory the model needs beyond
its weights for an image as a whole and in tiles, each in a process of its own.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from modwright.core.paired import PairedRatio
from modwright.data.super_resolution import bicubic
from modwright.models import create_model
from modwright.models.upscaling import tile_report, upscale_image

WAYS = ("whole", "tiled")


class PlainResidual(nn.Module):
    """Residual blocks of two 3 x 3 convolutions without norms, then one step to the large image.

    In the manner of EDSR (arXiv 1707.02921).
    """

    def __init__(self, width: int, blocks: int, scale: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(width, width, 3, padding=1),
            )
            for _ in range(blocks)
        )
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.up = nn.Sequential(
            nn.Conv2d(width, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale)
        )

    def forward(self, x: Tensor) -> Tensor:
        shallow = x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        out: Tensor = self.up(self.conv(x) + shallow)
        return out


def size(model: nn.Module) -> int:
    """Parameters."""
    return sum(p.numel() for p in model.parameters())


@torch.no_grad()
def seconds(run: Any, image: Tensor) -> float:
    """One pass."""
    began = time.perf_counter()
    run(image)
    return time.perf_counter() - began


def speed(side: int, repeats: int) -> None:
    """All three in turns on one image."""
    craft = create_model("craft_x2").eval()
    plain = PlainResidual(65, 9).eval()
    runs = {
        f"`craft_x2`, {size(craft):,} parameters": craft,
        f"plain residual network, {size(plain):,} parameters": plain,
        "bicubic": lambda x: bicubic(x, 2),
    }
    image = torch.rand(1, 3, side, side)
    for run in runs.values():
        seconds(run, image)
    rounds = [[seconds(run, image) for run in runs.values()] for _ in range(repeats)]
    megapixels = side**2 / 1e6
    print("| | s per small megapixel | CRAFT takes, times |")
    print("|---|---|---|")
    for i, name in enumerate(runs):
        taken = median(row[i] for row in rounds) / megapixels
        print(
            f"| {name} | {taken:.3g} | {PairedRatio.of([row[0] / row[i] for row in rounds]):.3g} |"
        )
    print(f"\n{side} x {side} pixels, {repeats} rounds, {torch.get_num_threads()} threads, float32")


def peak() -> float:
    """Most memory that this process has held, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def one_peak(side: int, tile: int, way: str) -> None:
    """Prints what the peak grew by beyond what a small image needs."""
    model, image = create_model("craft_x2").eval(), torch.rand(3, side, side)
    upscale_image(model, image[:, :16, :16])
    before = peak()
    upscale_image(model, image, tile if way == "tiled" else None, overlap=tile // 8)
    print(peak() - before)


def memory(side: int, tile: int) -> None:
    """Both ways, each in a process of its own; and how far apart the images are."""
    found = {}
    for way in WAYS:
        sizes = ["--side", str(side), "--tile", str(tile)]
        command = [sys.executable, __file__, *sizes, "--one-peak", way]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[way] = float(done.stdout)
    print(
        f"{side} x {side} pixels: {found['whole']:.0f} MiB as a whole, {found['tiled']:.0f} MiB "
        f"in tiles of {tile}: {found['whole'] / found['tiled']:.2f} times as much"
    )
    torch.manual_seed(0)
    report = tile_report(
        create_model("craft_x2").eval(), torch.rand(3, side, side), tile, tile // 8
    )
    print(f"tiles of random weights on noise are off by {report.largest:.2g} at most, "
          f"{report.mean:.2g} in the mean")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, help="of the small image; 128, for memory 512")
    parser.add_argument("--tile", type=int, default=256, help="they overlap by an eighth")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--one-peak", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.one_peak:
        one_peak(options.side, options.tile, options.one_peak)
    elif options.memory:
        memory(options.side or 512, options.tile)
    else:
        speed(options.side or 128, options.repeats)


if __name__ == "__main__":
    main()
