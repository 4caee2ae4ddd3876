"""Parameters and multiply-accumulates of every variant of a paper, beside what the paper prints.

    python benchmarks/model_counts.py metaformer

Prints a table in Markdown. MACs are products of matrices and convolutions in one pass over one
image; no numbers are computed, so it takes seconds.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import yaml

from modwright.cost import forward_macs
from modwright.models import create_model

FOLDER = Path(__file__).parent / "counts"


def row(name: str, printed: dict[str, Any]) -> list[str]:
    """One line: the paper's figures, ours, the difference."""
    fields = printed.get("fields", {})
    with torch.device("meta"):
        model = create_model(printed.get("variant", name), **fields)
    height, width = model.config.size
    shape = (1, model.config.num_channels, height, width)
    own = {p: p.numel() for p in model.parameters()}
    trained = sum(count for p, count in own.items() if p.requires_grad)
    frozen = sum(own.values()) - trained
    macs = forward_macs(model, *shape, attention=printed.get("attention", True)) / 1e9
    shown = f"{trained:,}" + (f" + {frozen:,} frozen" if frozen else "")
    parameters, paper_macs = printed.get("parameters"), printed.get("macs")
    return [
        f"`{name}`",
        "-" if parameters is None else f"{parameters} M",
        shown,
        "-" if parameters is None else f"{trained / 1e6 / parameters - 1:+.1%}",
        "-" if paper_macs is None else f"{paper_macs} G",
        f"{macs:.3f} G",
        "-" if paper_macs is None else f"{macs / paper_macs - 1:+.1%}",
    ]


def main() -> None:
    slugs = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("slug", choices=slugs)
    slug = parser.parse_args().slug
    print("| variant | paper | parameters here | off by | paper | MACs here | off by |")
    print("|---|---|---|---|---|---|---|")
    for name, printed in yaml.safe_load((FOLDER / f"{slug}.yaml").read_text()).items():
        print(f"| {' | '.join(row(name, printed))} |")


if __name__ == "__main__":
    main()
