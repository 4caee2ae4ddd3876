"""Imports modwright and transformers in the order that it is told, then opens a checkpoint.

One process for many orders: each runs in a fork that has torch and the like, which take long to
import, but neither transformers nor modwright. Prints one line of JSON: order -> what came of it.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import threading
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from typing import Any

AWAITED = "transformers.models.auto.configuration_auto"
ORDERS: dict[str, Callable[[str], str]] = {}


def order(run: Callable[[str], str]) -> Callable[[str], str]:
    ORDERS[run.__name__] = run
    return run


def model_class(place: str) -> str:
    from transformers import AutoModelForCausalLM

    return type(AutoModelForCausalLM.from_pretrained(place)).__name__


def config_class(place: str) -> str:
    from transformers import AutoConfig

    return type(AutoConfig.from_pretrained(place)).__name__


def load_modwright() -> None:
    importlib.import_module("modwright")


@order
def modwright_first(place: str) -> str:
    load_modwright()
    return model_class(place)


@order
def transformers_first(place: str) -> str:
    from transformers import AutoModelForCausalLM, LlamaForCausalLM  # noqa: F401

    load_modwright()
    return model_class(place)


@order
def modeling_utils_first(place: str) -> str:
    importlib.import_module("transformers.modeling_utils")
    load_modwright()
    return model_class(place)


@order
def configs_alone_after_modwright(place: str) -> str:
    load_modwright()
    from transformers import AutoConfig

    found = config_class(place)
    other = type(AutoConfig.for_model("modwright_gpt2")).__name__
    assert other == "ModwrightGPT2Config"
    try:
        AutoConfig.for_model("modwright_nonesuch")
    except ValueError as error:
        assert "modwright_nonesuch" in str(error)
    else:
        raise AssertionError("modwright_nonesuch is no family")
    return found


@order
def configs_alone_before_modwright(place: str) -> str:
    from transformers import AutoConfig  # noqa: F401

    load_modwright()
    return config_class(place)


class Meddler(MetaPathFinder):
    """Runs something while transformers' table of configs is half imported."""

    def __init__(self, run: Callable[[], Any]) -> None:
        self.run = run
        self.saw_half = False

    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        half = sys.modules.get(AWAITED)
        if half is None or self.saw_half:
            return
        self.saw_half = True
        assert not hasattr(half, "CONFIG_MAPPING")
        self.run()


@order
def configs_half_imported(place: str) -> str:
    meddler = Meddler(load_modwright)
    sys.meta_path.insert(0, meddler)
    importlib.import_module(AWAITED)
    assert meddler.saw_half
    return model_class(place)


@order
def configs_half_imported_and_configs_alone(place: str) -> str:
    meddler = Meddler(load_modwright)
    sys.meta_path.insert(0, meddler)
    found = config_class(place)
    assert meddler.saw_half
    return found


@order
def another_thread_is_importing(place: str) -> str:
    """modwright waits for the thread that imports the table, and does not deadlock."""
    thread = threading.Thread(target=load_modwright)
    meddler = Meddler(thread.start)
    sys.meta_path.insert(0, meddler)
    importlib.import_module(AWAITED)
    thread.join(timeout=60)
    assert meddler.saw_half
    assert not thread.is_alive()
    return model_class(place)


@order
def modwright_twice(place: str) -> str:
    load_modwright()
    first = model_class(place)
    for name in [name for name in sys.modules if name.partition(".")[0] == "modwright"]:
        del sys.modules[name]
    load_modwright()
    importlib.reload(sys.modules["modwright"])
    assert first == model_class(place)
    return config_class(place)


@order
def never(place: str) -> str:
    return model_class(place)


def in_fork(run: Callable[[str], str], place: str) -> str:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        try:
            told = run(place)
        except BaseException as error:
            told = f"{type(error).__name__}: {error}"
        os.write(writing, told.encode()[:4000])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        told = stream.read()
    os.waitpid(child, 0)
    return told


# What transformers imports of others, and what takes longest.
OTHERS = (
    "torch",
    "torch._dynamo",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "accelerate",
    "huggingface_hub",
    "jinja2",
    "PIL.Image",
    "safetensors.torch",
    "scipy.optimize",
    "scipy.stats",
    "tokenizers",
)


def main(place: str) -> None:
    for name in OTHERS:
        if importlib.util.find_spec(name.partition(".")[0]) is not None:
            importlib.import_module(name)
    sys.modules["torch"].set_num_threads(1)
    assert "transformers" not in sys.modules
    assert "modwright" not in sys.modules
    print(json.dumps({name: in_fork(run, place) for name, run in ORDERS.items()}))


if __name__ == "__main__":
    main(sys.argv[1])
