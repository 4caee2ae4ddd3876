"""Residual networks: counts and logits of transformers' ResNet, folding, a backbone elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoModelForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
)

from models.counting import check_counts
from modwright.core.errors import InvalidInputError
from modwright.models import create_model, import_weights, list_models, to_checkpoint_format
from modwright.models.architectures.residual_network import (
    ResidualNetworkConfig,
    ResidualNetworkForImageClassification,
)
from modwright.models.reparameterize import reparameterize
from modwright.nn.conv_backbone import BRANCHES, ResNetBlock, ResNetStages
from modwright.nn.stems.conv_stem import Conv

# name -> parameters, billions of multiply-accumulates
COUNTS = {
    "resnet18": (11_689_512, 1.8141),
    "resnet34": (21_797_672, 3.6638),
    "resnet50": (25_557_032, 4.0892),
    "resnet101": (44_549_160, 7.8014),
    "resnet152": (60_192_808, 11.5136),
}
SMALL: dict[str, dict[str, Any]] = {
    "basic": {"hidden_sizes": [8, 16, 24], "depths": [2, 1, 2]},
    "bottleneck": {"hidden_sizes": [16, 32, 48], "depths": [2, 1, 2]},
}


def small(branch: str = "bottleneck", **fields: Any) -> ResidualNetworkForImageClassification:
    torch.manual_seed(0)
    chosen = {"branch": branch, "stem_width": 8, "num_labels": 5, **SMALL[branch], **fields}
    return ResidualNetworkForImageClassification(ResidualNetworkConfig(**chosen)).eval()


def peer_config(branch: str, **fields: Any) -> ResNetConfig:
    shape = SMALL[branch] | fields
    return ResNetConfig(
        layer_type=branch,
        hidden_sizes=shape["hidden_sizes"],
        depths=shape["depths"],
        embedding_size=shape.get("stem_width", 8),
        num_labels=shape.get("num_labels", 5),
    )


def shaken(model: Any) -> Any:
    """Weights and statistics that nothing could be left out of unseen."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.3)
                module.running_var.uniform_(0.5, 1.5)
    return model.eval()


@pytest.mark.parametrize("name", COUNTS)
def test_counts(name: str) -> None:
    parameters, macs = COUNTS[name]
    check_counts(name, parameters, macs)
    with torch.device("meta"):
        config = create_model(name).config
        shape = {
            field: getattr(config, field) for field in ("hidden_sizes", "depths", "stem_width")
        }
        peer = ResNetForImageClassification(
            peer_config(config.branch, **shape, num_labels=1000),
        )
    assert sum(p.numel() for p in peer.parameters()) == parameters


def test_names() -> None:
    assert list_models("resnet*") == sorted(COUNTS)


@pytest.mark.parametrize("branch", BRANCHES)
def test_logits_are_those_of_transformers_both_ways(branch: str) -> None:
    peer, ours = shaken(ResNetForImageClassification(peer_config(branch))), small(branch)
    assert import_weights(ours, peer.state_dict()).checkpoint_format == "transformers"
    images = torch.randn(2, 3, 64, 90)
    with torch.no_grad():
        expected = peer(images, output_hidden_states=True)
        assert (ours(images).logits - expected.logits).abs().max() <= 1e-5
        maps = ours.forward_intermediates(images)
        for found, wanted in zip(maps, expected.hidden_states[1:], strict=True):
            assert (found - wanted).abs().max() <= 1e-5
    back = to_checkpoint_format(ours, "transformers")
    assert back.keys() == peer.state_dict().keys()
    assert all(back[name].equal(tensor) for name, tensor in peer.state_dict().items())


@pytest.mark.parametrize("branch", BRANCHES)
def test_a_training_step_is_that_of_transformers(branch: str) -> None:
    peer, ours = shaken(ResNetForImageClassification(peer_config(branch))), small(branch)
    import_weights(ours, peer.state_dict())
    images, labels = torch.randn(4, 3, 64, 64), torch.tensor([1, 3, 0, 2])
    for model in (peer, ours):
        F.cross_entropy(model.train()(images).logits, labels).backward()
    grads = {name: p.grad for name, p in ours.named_parameters()}
    keys = ResidualNetworkForImageClassification.state_dict_converters(ours.config)["transformers"]
    converted = keys.to_theirs(grads).tensors
    for name, parameter in peer.named_parameters():
        assert torch.allclose(converted[name], parameter.grad, atol=1e-5), name
    back = to_checkpoint_format(ours, "transformers")
    for name, buffer in peer.named_buffers():
        assert torch.allclose(back[name], buffer, atol=1e-6), name


def test_names_of_torchvision() -> None:
    names = to_checkpoint_format(small(), "torchvision")
    wanted = ["conv1.weight", "bn1.running_var", "fc.bias"]
    wanted += [f"layer1.0.{part}" for part in ("conv3.weight", "bn3.bias", "downsample.0.weight")]
    wanted += ["layer3.1.conv2.weight", "layer2.0.downsample.1.num_batches_tracked"]
    assert all(name in names for name in wanted)
    assert names["layer2.0.conv2.weight"].shape == (8, 8, 3, 3)
    assert import_weights(small(), names).checkpoint_format == "torchvision"


def test_weights_start_as_those_of_transformers_do() -> None:
    model = create_model("resnet18", num_classes=50)
    conv = model.stages[3].blocks[1].branch.conv0
    assert float(conv.weight.detach().std()) == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.02)
    assert float(model.stem.conv0.weight.detach().std()) == pytest.approx(
        (2 / (64 * 49)) ** 0.5, rel=0.05
    )
    assert model.head.fc.weight.abs().max() <= 512**-0.5 and model.head.fc.bias.abs().max() > 0


@pytest.mark.parametrize("branch", BRANCHES)
def test_norms_are_folded(branch: str, tmp_path: Path) -> None:
    model = shaken(small(branch))
    twin = reparameterize(model)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in twin.modules())
    twin.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(images).logits
        assert (again(images).logits - expected).abs().max() <= 1e-5 * expected.abs().max()


# Parts


def test_a_shortcut_is_there_where_the_shape_changes() -> None:
    rows = BRANCHES["basic"](8, 1)
    assert ResNetBlock(8, rows).shortcut is None
    assert ResNetBlock(4, rows).shortcut is not None
    strided = ResNetBlock(8, BRANCHES["bottleneck"](8, 2)).eval()
    assert strided.shortcut is not None
    x = torch.randn(2, 8, 6, 7)
    with torch.no_grad():
        expected = F.relu(strided.branch(x) + strided.shortcut(x))
        assert strided(x).equal(expected) and expected.shape == (2, 8, 3, 4)


def test_stochastic_depth_leaves_the_shortcut() -> None:
    block = ResNetBlock(8, [Conv(8, 3, 1, 1)], drop_path=1.0).train()
    x = torch.randn(2, 8, 4, 4)
    assert block(x).equal(F.relu(x))


def test_duoformer_stands_on_the_same_parts() -> None:
    with torch.device("meta"):
        backbone = create_model("duoformer_resnet50_scales2_224").backbone
        alone = create_model("resnet50")
    assert isinstance(backbone, ResNetStages)
    shapes = {name: tensor.shape for name, tensor in backbone.state_dict().items()}
    own = {name: tensor.shape for name, tensor in alone.state_dict().items()}
    assert shapes == {name: own[name] for name in own if not name.startswith("head.")}


def test_impossible_structures_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="unknown branch 'wide'"):
        ResidualNetworkConfig(branch="wide")
    with pytest.raises(InvalidInputError, match="multiples of 4"):
        ResidualNetworkConfig(hidden_sizes=[16, 30, 64, 128])
    with pytest.raises(InvalidInputError, match="hidden_sizes has 2 entries for 4 stages"):
        ResidualNetworkConfig(hidden_sizes=[16, 32])
    with pytest.raises(ValueError, match="unknown branch 'wide'"):
        ResNetStages(3, [8], [1], "wide")
    with pytest.raises(ValueError, match="2 depths for 1 widths"):
        ResNetStages(3, [8], [1, 1])
