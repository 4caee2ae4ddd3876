"""Classifiers of images as graphs of other programs, for any number of images."""

from __future__ import annotations

import pkgutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

import modwright
from models.tiny import tiny
from modwright.cli.entry import run_command
from modwright.models import architectures
from modwright.models.classifier import ImageClassifier
from modwright.models.registry import model_class

pytestmark = pytest.mark.slow

TYPES = sorted(found.name for found in pkgutil.iter_modules(architectures.__path__))
CLASSIFIERS = [
    name for name in TYPES if issubclass(model_class(AutoConfig.for_model(name)), ImageClassifier)
]

FULL = pytest.mark.full  # a graph for ONNX is a program of torch first


def shaken(name: str) -> Any:
    torch.manual_seed(0)
    model = tiny(name)
    with torch.no_grad():  # so that no branch is near nothing, as fresh scales would make it
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2)
    return model


def differs(found: torch.Tensor, model: Any, images: torch.Tensor) -> float:
    """Largest difference of logits, in units of their spread."""
    with torch.no_grad():
        expected = model(images).logits
    return float((found.detach() - expected).abs().max() / expected.std())


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_onnx_runtime_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    import onnxruntime

    model = shaken(name)
    done = modwright.export(model, tmp_path / "out", "onnx")
    assert done.compared.inputs == ((3, 0), (1, 0), (2, 0))
    session = onnxruntime.InferenceSession(str(done.output / "model.onnx"))
    given, logits = session.get_inputs()[0], session.get_outputs()[0]
    channels, (height, width) = model.config.num_channels, model.config.size
    assert (given.name, given.type, logits.name) == ("pixel_values", "tensor(float)", "logits")
    assert given.shape[1:] == [channels, height, width] and isinstance(given.shape[0], str)
    images = torch.randn(5, channels, height, width)
    found = session.run(None, {"pixel_values": images.numpy()})[0]
    assert differs(torch.from_numpy(found), model, images) <= 1e-4


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if i % 3 == 0 else FULL) for i, name in enumerate(CLASSIFIERS)],
)
def test_a_program_of_torch_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    model = shaken(name)
    done = modwright.export(model, tmp_path / "out", "pt2")
    program = torch.export.load(done.output / "model.pt2").module()
    images = torch.randn(5, model.config.num_channels, *model.config.size)
    assert differs(program(pixel_values=images)["logits"], model, images) <= 1e-5


def test_images_keep_the_size_that_the_graph_was_made_for(tmp_path: Path) -> None:
    done = modwright.export(shaken("residual_network"), tmp_path / "out", "pt2")
    program = torch.export.load(done.output / "model.pt2").module()
    with pytest.raises(AssertionError, match=r"pixel_values.*size\(\)\[2\] == 32"):
        program(pixel_values=torch.randn(2, 3, 64, 64))


@pytest.mark.parametrize("target", ["onnx", "pt2"])
def test_the_command_exports_a_saved_classifier(
    target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shaken("residual_network").save_pretrained(tmp_path / "saved")
    out = tmp_path / "out"
    code = run_command(["export", str(tmp_path / "saved"), "-o", str(out), "--to", target])
    told = capsys.readouterr()
    assert code == 0, told.err
    assert "batches of 3 images, 1 images, 2 images" in told.err
    assert (out / f"model.{target}").is_file()
    assert "pixel_values" in (out / "README.md").read_text()
