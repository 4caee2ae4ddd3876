"""Run by `subprocesses`, as text, in a process that knows nothing of this one.

Where modwright is not to be imported, what opens the checkpoint is stock transformers.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
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


def _opener(folder: str, trust: bool) -> Any:
    """The Auto class that builds the class which the config names."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=trust)
    kind, wanted = type(config), (config.architectures or [""])[0]
    autos = [transformers.AutoModelForCausalLM, transformers.AutoModel]
    named = vars(transformers.models.auto.modeling_auto).values()
    autos += [auto for auto in named if isinstance(auto, type)]
    for auto in autos:
        # Asked for its keys or its length, a lazy mapping imports the configs of all families.
        found = getattr(auto, "_model_mapping", None)
        built = None if found is None else found.get(kind, None)
        several = built if isinstance(built, list | tuple) else (built,)
        if wanted in [getattr(one, "__name__", "") for one in several if one is not None]:
            return auto
    return transformers.AutoModel


def main(
    folder: str,
    library: str,
    auto: str | None,
    trust: bool,
    write: int | None,
    asked: str,
    answered: str,
    search: Sequence[str] = (),
) -> None:
    sys.path += [place for place in search if place not in sys.path]
    if library == "imported":
        importlib.import_module("modwright")  # makes its architectures known
        importlib.import_module("modwright.core.plugins").load_plugins()
    elif library == "forbidden":
        sys.modules["modwright"] = None  # type: ignore[assignment]
    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    opener = getattr(transformers, auto) if auto is not None else _opener(folder, trust)
    model = opener.from_pretrained(folder, trust_remote_code=trust).eval()
    batches: dict[str, dict[str, Any]] = {}
    for name, tensor in load_file(asked).items():
        index, _, leaf = name.partition(".")
        batches.setdefault(index, {})[leaf] = tensor
    with torch.no_grad():
        found = {index: model(**batch)[0].contiguous() for index, batch in batches.items()}
        if write is not None and model.can_generate():
            found["written"] = write_greedily(model, batches[str(write)])
    names = sorted(name for name, _ in model.named_parameters())
    told = {"class": type(model).__name__, "opener": opener.__name__, "names": "\n".join(names)}
    save_file(found, answered, metadata=told)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
