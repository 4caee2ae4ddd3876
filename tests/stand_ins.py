"""Small checkpoints that are opened under the names of the packaged models.

They have the architecture, the heads, the tokenizer and the files of the real models, and random
weights: every command of a page runs on them in a fraction of the time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from filelock import FileLock

__all__ = ["stand_ins"]

SMALLER: dict[str, dict[str, int]] = {
    "smollm2-135m": {"hidden_size": 72, "head_dim": 8, "intermediate_size": 192},
    "minilm": {"hidden_size": 48, "intermediate_size": 192},
}


def stand_ins(shared: Path, blocks: int | None = None) -> Path:
    """The folder for ``MODWRIGHT_STAND_INS``, made once by whichever process comes first.

    Args:
        shared: a folder that all processes of the test session see.
        blocks: of the decoder; as many as the real one has by default.
    """
    folder = shared / f"stand-ins-{blocks}"
    with FileLock(f"{folder}.lock"):
        for name, fields in SMALLER.items():
            if not (folder / name).exists():
                fewer = {"num_hidden_layers": blocks} if blocks and name != "minilm" else {}
                _write(name, {**fields, **fewer}, folder / name)
    return folder


def _write(name: str, fields: dict[str, Any], target: Path) -> None:
    import torch

    import modwright

    real = modwright.open(name)
    config = type(real.model.config)(**{**real.model.config.to_dict(), **fields})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        small = type(real.model)(config).eval()
    if hasattr(real.model, "generation_config"):
        small.generation_config = real.model.generation_config
    modwright.save(small, target, source=real.source, tokenizer=real.tokenizer)
