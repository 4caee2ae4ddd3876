"""TNT computes what timm's does, from weights that go either way, in both forms of the model."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.models.tnt import TNT

from modwright.models import create_model, import_weights, to_checkpoint_format

OURS = {"image_size": 32, "patch_size": 8, "inner_stride": 2, "inner_dim": 4, "depth": 2}
OURS |= {"outer_dim": 16, "inner_heads": 2, "outer_heads": 2}
THEIRS = {"img_size": 32, "patch_size": 8, "first_stride": 2, "inner_dim": 4, "depth": 2}
THEIRS |= {"embed_dim": 16, "num_heads_inner": 2, "num_heads_outer": 2}


def scatter(model: torch.nn.Module) -> None:
    """Weights that no part could be left out of unseen."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)


@pytest.mark.parametrize("legacy", [False, True])
def test_logits_are_those_of_timm(legacy: bool) -> None:
    torch.manual_seed(0)
    ours = create_model("tnt_s_patch16_224", num_classes=5, legacy=legacy, **OURS).eval()
    theirs = TNT(num_classes=5, legacy=legacy, **THEIRS).eval()
    x = torch.randn(2, 3, 32, 32)
    scatter(ours)
    theirs.load_state_dict(to_checkpoint_format(ours, "timm"))
    with torch.no_grad():
        assert torch.allclose(theirs(x), ours(x).logits, atol=1e-5)
        scatter(theirs)
        import_weights(ours, theirs.state_dict(), "timm")
        assert torch.allclose(theirs(x), ours(x).logits, atol=1e-5)


@pytest.mark.parametrize("legacy", [False, True])
def test_names_and_shapes_of_the_small_model_are_those_of_timm(legacy: bool) -> None:
    name = f"tnt_s{'_legacy' if legacy else ''}_patch16_224"
    with torch.device("meta"):
        theirs, ours = timm.create_model(name), create_model(name)
    wanted = {key: tensor.shape for key, tensor in theirs.state_dict().items()}
    assert {
        key: tensor.shape for key, tensor in to_checkpoint_format(ours, "timm").items()
    } == wanted
