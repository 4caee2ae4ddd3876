"""Which runtime takes a model is data; nothing is claimed that was not run."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modwright.checkpoint.export import RuntimeSupport, runtime_support, target_names
from modwright.report import Stage


def table(model: Any) -> dict[str, RuntimeSupport]:
    return {entry.runtime: entry for entry in runtime_support(model)}


def test_a_plain_model(tiny: Any) -> None:
    found = table(tiny("tiny-llama"))
    assert found["transformers"].answer == "yes"
    assert found["transformers without modwright"].answer == "yes"
    assert found["ONNX Runtime"].answer == "after export"
    assert found["llama.cpp"].answer == "after export"
    assert "not on this one" in found["llama.cpp"].why
    assert "--to gguf" in found["llama.cpp"].command


def test_an_architecture_of_our_own_needs_modwright_though_nothing_is_edited() -> None:
    from modwright.models import create_model

    found = table(create_model("poolformer_s12", depths=[1], hidden_sizes=[8], num_classes=2))
    assert found["transformers"].why == "after `import modwright`"
    assert found["transformers without modwright"].answer != "yes"


@pytest.mark.contract("E1")
def test_an_edited_model_says_what_differs(edited_model: Callable[[str], Any]) -> None:
    found = table(edited_model("tiny-llama"))
    assert (found["transformers"].answer, found["transformers"].command) == ("yes", "")
    assert found["transformers"].why == "after `import modwright`"
    alone = found["transformers without modwright"]
    assert (alone.answer, alone.command) == (
        "after export",
        "modwright export DIR -o OUT --to standalone",
    )
    assert found["llama.cpp"].answer == "no"
    for runtime in ("llama.cpp", "vLLM, transformers backend"):
        assert "no attention in block 0" in found[runtime].why


def test_every_family_has_all_rows_and_vllm_is_never_claimed(
    preset: str, edited_model: Callable[[str], Any], tiny: Any
) -> None:
    for model in (tiny(preset), edited_model(preset)):
        found = table(model)
        assert len(found) == 5
        assert found["vLLM, transformers backend"].answer == "not tested"
        for entry in found.values():
            assert entry.why
            words = shlex.split(entry.command)
            assert not words or words[-1] in target_names()


def test_a_family_that_gguf_does_not_have_is_a_no(tiny: Any) -> None:
    found = table(tiny("tiny-gpt2"))["llama.cpp"]
    assert found.answer == "no" and "'gpt2' is not written as GGUF here" in found.why


def test_reports_take_the_table(edited_model: Callable[[str], Any], tmp_path: Path) -> None:
    note = {e.runtime: e.to_dict() for e in runtime_support(edited_model("tiny-gpt2"))}
    assert Stage("before", servable=note).servable == note
