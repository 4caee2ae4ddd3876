"""Digests: the same for the same content, on every machine."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["sha256_of", "sha256_of_file"]


def sha256_of(*parts: str | bytes | Tensor | dict[str, Any] | list[Any]) -> str:
    """The SHA-256 of some parts, one after the other, in hexadecimal.

    Of a tensor its numbers count, as they lie in memory when it is contiguous; nothing is copied
    where it is. Of a dictionary or a list its JSON counts, whatever the order of its keys.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, dict | list):
            part = json.dumps(part, sort_keys=True)
        if isinstance(part, str):
            part = part.encode()
        digest.update(part if isinstance(part, bytes) else _numbers(part))
    return digest.hexdigest()


def sha256_of_file(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal; it is read piece by piece."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _numbers(tensor: Tensor) -> Any:
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy()  # bfloat16 has no form in NumPy, its bytes have
