"""Targets are found by registering; their options are checked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import modwright
from modwright.checkpoint.export import (
    ParityReport,
    Target,
    make_target,
    register_target,
    target_names,
)
from modwright.checkpoint.export.comparing import compare
from modwright.checkpoint.export.target import TARGETS
from modwright.core.errors import InvalidInputError

from .edited import short


@pytest.mark.parametrize(
    ("name", "options", "note"),
    [
        ("onxx", {}, "unknown target 'onxx'; valid values: gguf, onnx, plain, pt2, standalone"),
        ("gguf", {"typ": "f16"}, "unknown option of gguf 'typ'; valid values: type"),
        ("gguf", {"type": "q3"}, "type: must be 'auto', 'f32', 'f16', 'bf16' or 'q8_0'"),
        ("onnx", {"form": 3}, "form: must be 'outputs' or 'generation', not 3"),
        ("plain", {"type": "f16"}, "unknown option of plain 'type'; valid values: none"),
    ],
)
def test_names_and_options_are_refused_with_the_valid_ones(
    name: str, options: dict[str, Any], note: str
) -> None:
    with pytest.raises(InvalidInputError) as refused:
        make_target(name, options)
    assert note in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.fixture
def registered() -> Iterator[None]:
    with TARGETS.restored():
        yield


def test_one_class_adds_a_target(tiny: Any, tmp_path: Path, registered: None) -> None:
    assert "pickle" not in target_names()

    @register_target("names")
    @dataclass(frozen=True)
    class Names(Target):
        """The names of the parameters."""

        upper: bool = False

        def refusal(self, model: Any) -> str | None:
            return None

        def write(self, work: Any, folder: Path, progress: Any) -> None:
            names = "\n".join(name for name, _ in work.model.named_parameters())
            (folder / "names.txt").write_text(names.upper() if self.upper else names)

        def compare(self, work: Any, folder: Path) -> ParityReport:
            return compare(
                work, lambda batch: work.model(**batch)[0], opened_with="itself", tolerance=0.0
            )

        def opening(self, work: Any) -> str:
            return 'open("names.txt")'

    assert "names" in target_names()
    model = short(tiny, "tiny-gpt2")
    done = modwright.export(model, tmp_path / "out", "names", upper="yes")
    assert (done.output / "names.txt").read_text().startswith("TRANSFORMER.WTE.WEIGHT")
    assert done.made == ("names.txt",)
    with pytest.raises(InvalidInputError, match="'gguf' is registered already"):
        register_target("gguf")(Names)
    with pytest.raises(TypeError, match="must be a dataclass"):
        register_target("other")(Target)
