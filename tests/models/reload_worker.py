"""A process of its own: opens saved models through their Auto classes, gives what they compute.

    python reload_worker.py FOLDER

In every folder of FOLDER lies a checkpoint with ``given.pt`` beside its files: the names of Auto
classes, and images. What each gives is written to a file of the class's name.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import modwright  # noqa: F401


def main(folder: str) -> None:
    import transformers

    torch.set_num_threads(1)
    for place in sorted(Path(folder).iterdir()):
        given = torch.load(place / "given.pt")
        for auto in given["autos"]:
            model = getattr(transformers, auto).from_pretrained(place).eval()
            with torch.no_grad():
                torch.save(model(given["images"])[0], place / f"{auto}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
