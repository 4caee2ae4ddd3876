"""A process of its own: opens saved models through the Auto class, gives their logits.

    python reload_worker.py FOLDER

In every folder of FOLDER lies a checkpoint with ``pictures.pt`` beside its files; ``logits.pt`` is
written there.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import modwright  # noqa: F401


def main(folder: str) -> None:
    from transformers import AutoModelForImageClassification

    torch.set_num_threads(1)
    for place in sorted(Path(folder).iterdir()):
        model = AutoModelForImageClassification.from_pretrained(place).eval()
        with torch.no_grad():
            torch.save(model(torch.load(place / "pictures.pt")).logits, place / "logits.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
