"""Run by `fresh`, as text, in a process where importing modwright fails."""

from __future__ import annotations

import json
import sys
from typing import Any

__all__ = ["write_greedily"]


def write_greedily(model: Any, batch: dict[str, Any], new_tokens: int = 6) -> Any:
    """Tokens that a model writes after the first row of a batch, with its cache in use."""
    return model.generate(
        input_ids=batch["input_ids"][:1],
        attention_mask=batch["attention_mask"][:1],
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        num_beams=1,
        pad_token_id=0,
    )


def main(folder: str, auto: str, trust: bool, asked: str, answered: str) -> None:
    sys.modules["modwright"] = None  # type: ignore[assignment]
    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=trust).eval()
    batches: dict[str, dict[str, Any]] = {}
    for name, tensor in load_file(asked).items():
        index, _, leaf = name.partition(".")
        batches.setdefault(index, {})[leaf] = tensor
    with torch.no_grad():
        found = {index: model(**batch)[0].contiguous() for index, batch in batches.items()}
        if model.can_generate():
            found["written"] = write_greedily(model, batches["1"])
    save_file(found, answered)
    print(type(model).__name__)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
