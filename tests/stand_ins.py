"""Small checkpoints that are opened under the names of the packaged models.

They have the architecture, the heads, the tokenizer and the files of the real models, and random
weights: every command of a page runs on them in a fraction of the time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from filelock import FileLock

__all__ = ["SMALLER", "stand_ins"]

SMALLER: dict[str, dict[str, int]] = {
    "smollm2-135m": {"hidden_size": 72, "head_dim": 8, "intermediate_size": 192},
    "minilm": {"hidden_size": 48, "intermediate_size": 192},
}


FEW = 8
"""Blocks of a decoder where a page names none of the late ones."""


def stand_ins(shared: Path, few: bool) -> Path:
    """The folder for ``MODWRIGHT_STAND_INS``, made once by whichever process comes first.

    Args:
        shared: a folder that all processes of the test session see.
        few: the decoder has ``FEW`` blocks, not as many as the real one.
    """
    folders = {True: shared / "stand-ins-few", False: shared / "stand-ins"}
    with FileLock(shared / "stand-ins.lock"):
        for name, fields in SMALLER.items():
            if not (folders[few] / name).exists():
                _write(name, fields, folders)
    return folders[few]


def _write(name: str, fields: dict[str, Any], folders: dict[bool, Path]) -> None:
    """Both sizes: to open the real model takes longer than all else."""
    import torch

    import modwright

    real = modwright.open(name)
    for few, folder in folders.items():
        fewer = {"num_hidden_layers": FEW} if few and name != "minilm" else {}
        config = type(real.model.config)(**{**real.model.config.to_dict(), **fields, **fewer})
        with torch.random.fork_rng():
            torch.manual_seed(0)
            small = type(real.model)(config).eval()
        if hasattr(real.model, "generation_config"):
            small.generation_config = real.model.generation_config
        modwright.save(small, folder / name, source=real.source, tokenizer=real.tokenizer)
