"""A process of its own: opens a saved model through the Auto class, gives its logits."""

from __future__ import annotations

import sys

import torch

import modwright  # noqa: F401


def main(directory: str, pictures: str, out: str) -> None:
    from transformers import AutoModelForImageClassification

    torch.set_num_threads(1)
    model = AutoModelForImageClassification.from_pretrained(directory).eval()
    with torch.no_grad():
        torch.save(model(torch.load(pictures)).logits, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
