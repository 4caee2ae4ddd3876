"""All families of classifiers on Fashion-MNIST: one small model each, trained alike from scratch.

    python benchmarks/fashion.py --table out/fashion.md --image docs/images/fashion.png

Images of 28 x 28 are made 32 x 32. Every model has at most a million parameters and is trained
once, with AdamW and a one-cycle schedule, with ``--augment`` on images that are drawn anew; it is
measured on the 10,000 test images. What was measured is appended to ``--results``, and a family
that stands there with the same settings is not trained again, so a run that was stopped goes on.
Table and image are made of that file. Each figure is of one training.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch.utils.data import Subset

from modwright.cost import forward_macs
from modwright.data import make_data
from modwright.models import create_model
from modwright.training import Settings, fit

DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist
SIDE = 32

AUGMENT: list[Any] = [
    {"random_resized_crop": {"scale": [0.7, 1.0]}},
    "hflip",
    {"random_erasing": {"probability": 0.25, "mode": "pixel"}},
]

# family -> a variant, and what differs from it
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "metaformer": (
        "poolformer_s12",
        {
            "stem": [3, 2, 1],
            "layer_scale_init": 0.1,
            "depths": [1, 1, 2, 1],
            "hidden_sizes": [24, 48, 96, 128],
        },
    ),
    "tnt": (
        "tnt_s_patch16_224",
        {
            "patch_size": 8,
            "inner_stride": 2,
            "inner_dim": 8,
            "inner_heads": 2,
            "hidden_size": 96,
            "num_heads": 3,
            "depths": 4,
        },
    ),
    "t2t_vit": (
        "t2t_vit_7",
        {"token_dim": 48, "hidden_size": 128, "depths": 6, "num_heads": 4},
    ),
    "vision_transformer": (
        "deit_tiny_patch16_224",
        {"patch_size": 4, "hidden_size": 96, "depths": 3, "num_heads": 3},
    ),
    "smt": (
        "smt_tiny",
        {
            "depths": [2, 2, 2, 1],
            "hidden_sizes": [24, 48, 96, 128],
            "mlp_ratios": 2,
            "num_heads": [2, 2, 3, 4],
        },
    ),
    "sret": (
        "sret_t",
        {
            "head_dim": 24,
            "num_heads": [3, 6],
            "blocks": [1, 2],
            "depths": [2, 4],
            "groups_first": [4, 1],
            "groups_later": [2, 1],
        },
    ),
    "fmvit": (
        "fmvit_nano",
        {
            "depths": [1, 1, 2],
            "stem_widths": [16, 16, 16, 32],
            "hidden_sizes": [32, 32, 64],
            "out_widths": [32, 64, 96],
            "reductions": [4, 2, 1],
        },
    ),
    "duoformer": (
        "duoformer_resnet18_scales3_224",
        {
            "backbone": "pyramid",
            "backbone_fields": {"widths": [24, 32, 48, 64], "first_stride": 2},
            "scales": 3,
            "hidden_size": 96,
            "depths": 2,
            "num_heads": 3,
            "init_std": 0.057,  # the released 0.02, for as many fewer channels
        },
    ),
}


def build(family: str, classes: int = 10) -> Any:
    """The small model of a family."""
    variant, fields = MODELS[family]
    return create_model(variant, num_classes=classes, drop_path_rate=0.0, image_size=SIDE, **fields)


def measure(family: str, data: Any, settings: Settings) -> dict[str, Any]:
    """Trains one model."""
    torch.manual_seed(settings.seed)
    model = build(family)
    fitted = fit(model, data, None, settings)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "macs": forward_macs(model, 1, 3, SIDE, SIDE),
        "seconds": fitted.seconds,
        "accuracy": fitted.accuracy,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, the best first."""
    lines = [
        "| family | from | parameters | MACs | accuracy | training, s |",
        "|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: -row["accuracy"]):
        lines.append(
            f"| {row['family']} | `{MODELS[row['family']][0]}` | {row['parameters']:,} "
            f"| {row['macs'] / 1e6:.2f} M | {100 * row['accuracy']:.1f} | {row['seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Accuracy against multiply-accumulates, each point with its family's name."""
    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for row in rows:
        x, y = row["macs"] / 1e6, 100 * row["accuracy"]
        axes.scatter(x, y, s=row["parameters"] / 4000, color="#0072b2", alpha=0.6)
        beside = (4 + math.sqrt(row["parameters"] / 4000) / 2, 0)
        axes.annotate(row["family"], (x, y), xytext=beside, textcoords="offset points", va="center")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.2, y=0.12)
    left, right = axes.get_xlim()
    axes.set_xlim(left, 1.4 * right)  # room for the last name
    axes.set_xlabel("multiply-accumulates of one image, millions (areas: parameters)")
    axes.set_ylabel("test accuracy, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spatial_shape(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=DEBIAN)
    parser.add_argument("--families", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--train", type=int, default=60_000, help="images to train on")
    parser.add_argument("--augment", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=Path("out/fashion.jsonl"))
    parser.add_argument("--table", type=Path)
    parser.add_argument("--image", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    chosen = {name: getattr(options, name) for name in ("epochs", "train", "seed", "threads")}
    augment = AUGMENT if options.augment else []
    data = make_data({"images": str(options.folder), "image_size": SIDE, "augment": augment})
    if options.train < len(data.train):
        data = replace(data, train=Subset(data.train, range(options.train)))
    settings = Settings(epochs=options.epochs, batch_size=128, seed=options.seed)
    rows = []
    options.results.parent.mkdir(parents=True, exist_ok=True)
    options.results.touch()
    done = [json.loads(line) for line in options.results.read_text().splitlines()]
    for family in options.families:
        key = {"family": family, "fields": MODELS[family][1], "augment": augment, **chosen}
        known = [row for row in done if key.items() <= row.items()]
        row = known[-1] if known else key | measure(family, data, settings)
        if not known:
            with options.results.open("a") as out:
                out.write(json.dumps(row) + "\n")
        rows.append(row)
        print(f"{family}: {100 * row['accuracy']:.1f}%, {row['seconds']:.0f} s", flush=True)
    print("\n" + table(rows))
    print(f"{options.threads} threads, torch {torch.__version__}, {chosen}")
    if options.table:
        options.table.parent.mkdir(parents=True, exist_ok=True)
        options.table.write_text(table(rows))
    if options.image:
        draw(rows, options.image)


if __name__ == "__main__":
    main()
