"""Swin and residual networks compute what timm's do, from weights that go either way."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

from modwright.models import create_model, import_weights, to_checkpoint_format

CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "swin_tiny_patch4_window7_224": (
        "timm",
        {"image_size": 64, "embed_dim": 8, "depths": [2, 2], "num_heads": [1, 2], "window_size": 4},
        {"img_size": 64, "embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2), "window_size": 4},
    ),
    "resnet18": ("torchvision", {}, {}),
    "resnet50": ("torchvision", {"depths": [1, 1, 2, 1]}, {"layers": (1, 1, 2, 1)}),
}


def scatter(model: torch.nn.Module) -> None:
    """Weights and statistics that no part could be left out of unseen."""
    with torch.no_grad():
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.uniform_(0.5, 1.5)


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_timm(name: str) -> None:
    layout, fields, more = CASES[name]
    torch.manual_seed(0)
    ours = create_model(name, num_classes=5, **fields).eval()
    theirs = timm.create_model(name, num_classes=5, **more).eval()
    x = torch.randn(2, 3, 64, 64)
    scatter(theirs)
    import_weights(ours, theirs.state_dict(), layout)
    with torch.no_grad():
        expected = theirs(x)
        allowed = 1e-5 * max(1.0, float(expected.abs().max()))
        assert (ours(x).logits - expected).abs().max() <= allowed
    back = to_checkpoint_format(ours, layout)
    wanted = theirs.state_dict()
    assert back.keys() == wanted.keys()
    assert all(back[key].equal(tensor) for key, tensor in wanted.items())


@pytest.mark.parametrize("name", ["swin_base_patch4_window12_384", "resnet34", "resnet101"])
def test_names_and_shapes_are_those_of_timm(name: str) -> None:
    layout = "timm" if name.startswith("swin") else "torchvision"
    with torch.device("meta"):
        theirs, ours = timm.create_model(name), create_model(name)
    wanted = {key: tensor.shape for key, tensor in theirs.state_dict().items()}
    assert {
        key: tensor.shape for key, tensor in to_checkpoint_format(ours, layout).items()
    } == wanted


def test_typed_weights_of_a_swin_are_the_tensors_that_timm_multiplies_by() -> None:
    """28,199,424 numbers of Swin-T: every linear layer and the cutting into patches."""
    from modwright.anatomy import Anatomy, Linear, PatchEmbedding
    from modwright.anatomy.views import Sublayer

    name = "swin_tiny_patch4_window7_224"
    with torch.device("meta"):
        theirs, ours = timm.create_model(name), create_model(name)
    stored = [
        tensor.numel()
        for key, tensor in theirs.named_parameters()
        if key.endswith("weight") and tensor.ndim > 1
    ]
    typed: dict[str, int] = {}
    for _, part in Anatomy.of(ours).parts():
        if isinstance(part, Sublayer):
            typed |= {p.address: p.weight.numel() for p in part.projections().values()}
        elif isinstance(part, Linear | PatchEmbedding):
            typed[part.address] = part.parameters()["weight"].numel()
    assert sum(stored) == sum(typed.values()) == 28_199_424
    fused = [a for a in typed if a.endswith((".attention.k", ".attention.v"))]
    assert len(stored) == len(typed) - len(fused)
