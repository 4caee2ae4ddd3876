"""What a user's file registers is exported: as source, and in graphs of any batch and length."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import modwright
from helpers import batch_of, outputs
from models.tiny import TINY
from models.tiny import tiny as tiny_image_model
from modwright.checkpoint.export import make_target
from modwright.core.progress import SILENT
from own_components import TOYS, all_in, placed_in

DECODERS = ("tiny-llama", "tiny-gpt2")
FULL = pytest.mark.full
IMAGE_MODELS = [
    pytest.param(name, marks=[] if name == "metaformer" else FULL)
    for name in sorted(set(TINY) - {"residual_network"})
]
HAS_EXPORTERS = importlib.util.find_spec("transformers.exporters") is not None
needs_exporters = pytest.mark.skipif(not HAS_EXPORTERS, reason="this transformers has no exporters")


@pytest.fixture(scope="module")
def with_all(tiny: Any) -> Callable[[str], Any]:
    """A model with every toy; shared."""

    @cache
    def make(name: str) -> Any:
        torch.manual_seed(0)
        return all_in(tiny_image_model(name) if name in TINY else tiny(name))

    return make


@pytest.mark.families(*DECODERS, "tiny-vit")
@pytest.mark.parametrize("toy", TOYS)
def test_its_source_travels_with_a_standalone_checkpoint(
    tiny: Any, preset: str, toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    model = placed_in(tiny(preset), toy).model
    folder = tmp_path / "out"
    folder.mkdir()
    make_target("standalone").write(modwright.open(model), folder, SILENT)
    auto = getattr(transformers, tiny.auto_class(preset))
    opened = auto.from_pretrained(folder, trust_remote_code=True).eval()
    assert type(opened).__module__.startswith("transformers_modules.")
    batch = batch_of(model)
    assert torch.equal(outputs(opened, batch), outputs(model, batch))


@pytest.mark.slow
def test_all_of_them_run_and_decode_where_there_is_no_modwright(
    with_all: Any, tmp_path: Path
) -> None:
    done = modwright.export(with_all("tiny-llama"), tmp_path / "out", "standalone")
    assert (done.compared.largest, done.compared.same_choice) == (0.0, 1.0)
    assert "wrote the same tokens with its cache" in str(done.compared)


@pytest.mark.slow
@needs_exporters
@pytest.mark.families("tiny-llama", "tiny-vit")
@pytest.mark.parametrize("target", ["pt2", "onnx"])
def test_graphs_of_all_of_them_take_any_batch_and_length(
    with_all: Any, preset: str, target: str, tmp_path: Path
) -> None:
    _graph_computes_the_same(with_all(preset), target, tmp_path)


@pytest.mark.slow
@needs_exporters
@pytest.mark.parametrize("target", ["pt2", "onnx"])
@pytest.mark.parametrize("architecture", IMAGE_MODELS)
def test_graphs_of_image_models_hold_them(
    with_all: Any, architecture: str, target: str, tmp_path: Path
) -> None:
    _graph_computes_the_same(with_all(architecture), target, tmp_path)


def _graph_computes_the_same(model: Any, target: str, folder: Path) -> None:
    done = modwright.export(model, folder / "out", target)
    bound = 1e-5 if target == "pt2" else 1e-4
    assert done.compared.largest < bound * done.compared.spread
    assert len(done.compared.inputs) == 3
