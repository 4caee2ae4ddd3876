"""Opens a checkpoint in a process of its own, as a user would, and returns what it computes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from modwright.core.errors import InvalidInputError, VerificationError
from modwright.core.handover import Handover, handover
from modwright.core.plugins import GUARD, plugin_being_loaded

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Opened", "open_in_new_process"]

_WORKER = Path(__file__).with_name("subprocess_worker.py")

_REFUSAL = "modwright.core.errors.InvalidInputError: "

Library = Literal["imported", "left out", "forbidden"]


@dataclass(frozen=True)
class Opened:
    """What another process found in a checkpoint: what it opened, by which Auto class.

    Beside the sorted names of the parameters there is the first output for each batch, and what was
    written, greedily and with a cache; None where it was not asked to, or does not write.
    """

    model_class: str
    opener: str
    names: tuple[str, ...]
    outputs: tuple[Tensor, ...]
    written: Tensor | None = None


def open_in_new_process(
    folder: Path,
    batches: Sequence[dict[str, Tensor]],
    *,
    library: Library,
    what: str,
    auto: str | None = None,
    trust: bool = False,
    write: int | None = None,
    used: Collection[str] | None = None,
) -> Opened:
    """Opens ``folder`` with an Auto class in a new process, and runs the model there.

    Threads are as many as here, so that sums are taken in the same order. Where modwright is
    imported, plugins are, too, and the code that registered something outside of the package.

    Args:
        folder: with the checkpoint.
        batches: keyword arguments of a forward pass each.
        library: modwright is imported there first, is left out, or cannot be imported at all.
        what: the checkpoint in a word or two, for the message.
        auto: name of the Auto class; the one that builds the class of the config by default.
        trust: code in the folder may run.
        write: index of the batch after whose first row the model writes a few tokens.
        used: names of entries of registries that the checkpoint uses; all by default.

    Raises:
        VerificationError: it does not open, or does not run; says what that process said last.
        InvalidInputError: a file that is imported for what it registers does its work then.
    """
    if (plugin := plugin_being_loaded()) is not None:
        raise InvalidInputError(
            f"{plugin} does its work when it is imported for what it registers; put the work "
            f"below `{GUARD}`"
        )
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory(prefix="modwright-") as place:
        asked, answered = Path(place, "asked.safetensors"), Path(place, "answered.safetensors")
        flat = {
            f"{i}.{name}": t.contiguous() for i, b in enumerate(batches) for name, t in b.items()
        }
        save_file(flat, asked)
        request: dict[str, Any] = {"library": library, "auto": auto, "trust": trust, "write": write}
        request |= {"folder": str(folder.resolve()), "asked": str(asked), "answered": str(answered)}
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": place}
        env |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(torch.get_num_threads()))
        told = handover(used) if library == "imported" else Handover()
        request["search"] = told.folders
        if library == "imported":  # from the place where this package was found
            here = str(Path(__file__).resolve().parents[2])
            paths = filter(None, (here, os.environ.get("PYTHONPATH", "")))
            env |= {"PYTHONPATH": os.pathsep.join(paths), **told.environment()}
        # As text, in a directory of its own: it imports from nowhere else than a user would.
        code = [sys.executable, "-c", _WORKER.read_text(encoding="utf-8"), json.dumps(request)]
        done = subprocess.run(code, capture_output=True, text=True, cwd=place, env=env, check=False)
        if done.returncode or not answered.exists():
            last = done.stderr.strip().split("\n")[-1]
            beside = " without modwright" if library == "forbidden" else ""
            last = "; ".join([last.removeprefix(_REFUSAL), *told.unknown])
            raise VerificationError(f"{what} does not open in a new process{beside}: {last}")
        with safe_open(answered, "pt") as stored:
            noted = stored.metadata()
            outputs = tuple(stored.get_tensor(str(i)) for i in range(len(batches)))
            written = stored.get_tensor("written") if "written" in stored.keys() else None  # noqa: SIM118
    names = tuple(noted["names"].split("\n"))
    return Opened(noted["class"], noted["opener"], names, outputs, written)
