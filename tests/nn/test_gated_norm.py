"""The gated norm beside transformers' own, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from transformers.models.mamba2.modeling_mamba2 import MambaRMSNormGated

from modwright.nn.gated_norm import GatedRMSNorm


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_norm_of_transformers_with_its_gradients(groups: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    ours, theirs = GatedRMSNorm(12, groups, 1e-3), MambaRMSNormGated(12, 12 // groups, 1e-3)
    with torch.no_grad():
        theirs.weight.uniform_(0.5, 2.0)
    ours.load_state_dict(theirs.state_dict())
    results = []
    for norm in (theirs, ours):
        x, gate = (torch.linspace(a, 2, 60).view(5, 12).sin().to(dtype) for a in (0, 50))
        x.requires_grad_(), gate.requires_grad_()
        norm.zero_grad()
        out = norm(x, gate)
        (out * torch.arange(12)).sum().backward()
        results.append((out, x.grad, gate.grad, norm.weight.grad))
    assert results[1][0].dtype == dtype
    allowed = 1e-5 if dtype == torch.float32 else 0.02
    for expected, found in zip(*results):
        assert float((expected - found).abs().max() / expected.abs().max()) < allowed


def test_groups_that_do_not_fill_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match="5 groups do not fill 12 channels"):
        GatedRMSNorm(12, 5)
    with pytest.raises(ValueError, match="0 groups"):
        GatedRMSNorm(12, 0)
