"""FMViT: no reference exists; the related Next-ViT's attention and block, before and after fusion.

The files hold weights of parts, under the names of that code.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from golden_checks import GoldenCase
from golden_checks.images import tokens
from modwright.models.architectures.fmvit import FmvitConfig, hidden_width
from modwright.nn.block import Block, EmbeddedBlock
from modwright.nn.channel_mixers.mlp import Mlp
from modwright.nn.multi_group_conv import MultiGroupConv
from modwright.nn.reparameterize import reparameterize_
from modwright.nn.token_mixers.pooling import MultiHeadConvAttention
from modwright.nn.token_mixers.reduced_attention import ReducedAttention

ALLOWED = 1e-5


def check(case: GoldenCase) -> None:
    with torch.no_grad():
        (_attention if "sr_ratio" in case.config else _conv_block)(case)


def _load(part: nn.Module, case: GoldenCase, names: dict[str, str]) -> None:
    """Fills modules of a part: path here -> path in the file."""
    own = part.state_dict()
    left = {name for name in own if not name.endswith("num_batches_tracked")}
    for ours, theirs in names.items():
        for name in case.names(f"weight.{theirs}."):
            target = own[f"{ours}.{name.rpartition('.')[2]}"]
            target.copy_(case[name].view_as(target))
            left.discard(f"{ours}.{name.rpartition('.')[2]}")
    assert not left, f"nothing fills {sorted(left)}"


def _same_weights(case: GoldenCase, part: nn.Module, names: dict[str, str]) -> None:
    own = part.state_dict()
    for ours, theirs in names.items():
        for name in case.names(f"fused.{theirs}."):
            found = own[f"{ours}.{name.rpartition('.')[2]}"]
            case.close(name, found.view_as(case[name]), atol=ALLOWED)


def _attention(case: GoldenCase) -> None:
    c = case.config
    dim = c["dim"]
    mixer = ReducedAttention(dim, c["head_dim"], reduction=c["sr_ratio"], pool="flat")
    block = Block(dim, mixer, None, lambda: nn.BatchNorm2d(dim), layout="map").eval()
    maps = {f"mixer.{name}": f"attention.{name}" for name in ("q", "k", "v", "proj")}
    _load(block, case, {"norm1": "pre_norm", "mixer.norm": "attention.norm", **maps})
    x = case["input.x"]

    def attended() -> Tensor:
        assert block.norm1 is not None and block.mixer is not None
        return tokens(block.mixer(block.norm1(x)))

    case.close("output.attention", attended(), atol=ALLOWED)
    whole = nn.ModuleList([block])
    reparameterize_(whole)
    assert isinstance(block.norm1, nn.Identity) and mixer.norm is None
    case.close("output.attention_fused", attended(), atol=ALLOWED)
    _same_weights(case, block, maps)


def _conv_block(case: GoldenCase) -> None:
    c = case.config
    dim = c["dim"]
    conv = MultiGroupConv(dim, dim, [(3, dim // c["head_dim"])], identity=False)
    hidden = hidden_width(dim * c["mlp_ratio"], FmvitConfig().mlp_multiple)
    mlp = Mlp(dim, hidden, act="relu", layout="map")
    halves = [
        Block(dim, MultiHeadConvAttention(dim, conv), None, nn.Identity, layout="map"),
        Block(dim, None, mlp, lambda: nn.BatchNorm2d(dim), layout="map"),
    ]
    block = EmbeddedBlock(None, halves).eval()
    maps = {"blocks.1.mlp.fc1": "mlp.conv1", "blocks.1.mlp.fc2": "mlp.conv2"}
    names = {
        "blocks.0.mixer.conv.convs.0": "mhca.group_conv3x3",
        "blocks.0.mixer.conv.norms.0": "mhca.norm",
        "blocks.0.mixer.proj": "mhca.projection",
        "blocks.1.norm2": "norm",
        **maps,
    }
    _load(block, case, names)
    x = case["input.x"]
    spatial_shape = (x.shape[2], x.shape[3])
    case.close("output.block", block(x, spatial_shape), atol=ALLOWED)
    reparameterize_(block)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in block.modules())
    case.close("output.block_fused", block(x, spatial_shape), atol=ALLOWED)
    _same_weights(case, block, maps)
