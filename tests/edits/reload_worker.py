"""Loads checkpoints in a process of its own.

It reads one JSON request a line and answers with one JSON line. A request names a ``directory``, an
``auto`` class, a ``batch`` (safetensors file of inputs) and ``out`` (safetensors file for the
outputs); it may name an ``again`` directory to save the loaded model into, and ``modules``: Python
files to import first.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import modwright  # noqa: F401  (registers remodeled checkpoints with the Auto classes)


def import_file(path: str) -> None:
    name = Path(path).stem
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


def load(request: dict[str, Any]) -> dict[str, Any]:
    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    torch.set_num_threads(1)
    for path in request.get("modules", ()):
        import_file(path)
    model = getattr(transformers, request["auto"]).from_pretrained(request["directory"])
    with torch.no_grad():
        out = model(**load_file(request["batch"]), return_dict=True)[0]
    save_file({"out": out.contiguous()}, request["out"])
    if "again" in request:
        model.save_pretrained(request["again"])
    eos = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return {
        "class": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
        "dtype": str(model.dtype),
        "tied": head is not None and head.weight is model.get_input_embeddings().weight,
        "eos": eos,
    }


def main() -> None:
    for line in sys.stdin:
        try:
            answer = load(json.loads(line))
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
