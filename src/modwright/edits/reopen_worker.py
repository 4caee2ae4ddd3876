"""Opens a checkpoint as a user would, in a process of its own, and writes down what it computes.

Run as a script: ``reopen_worker.py PROBE OUTPUT plain|edited DIRECTORY``. For a plain checkpoint
modwright is not imported, so that what opens it is stock transformers.
"""

from __future__ import annotations

import sys


def main(probe: str, output: str, kind: str, directory: str) -> None:
    if kind == "edited":
        import modwright  # noqa: F401 (registers the edited architectures)
    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    config = transformers.AutoConfig.from_pretrained(directory)
    wanted = (config.architectures or [""])[0]
    mappings = transformers.models.auto.modeling_auto
    candidates = [transformers.AutoModelForCausalLM, transformers.AutoModel]
    candidates += [
        auto
        for auto in vars(mappings).values()
        if isinstance(auto, type) and getattr(auto, "_model_mapping", None) is not None
    ]
    opener = next(
        (
            auto
            for auto in candidates
            if type(config) in auto._model_mapping.keys()  # noqa: SIM118 (a lazy mapping)
            and auto._model_mapping[type(config)].__name__ == wanted
        ),
        transformers.AutoModel,
    )
    model = opener.from_pretrained(directory).eval()
    inputs = load_file(probe)
    with torch.no_grad():
        result = model(**inputs)[0]
    names = sorted(name for name, _ in model.named_parameters())
    save_file(
        {"output": result.contiguous()},
        output,
        metadata={
            "class": type(model).__name__,
            "opener": opener.__name__,
            "names": "\n".join(names),
        },
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
