from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modwright.core.macs import counted_products, forward_macs, to_meta


class Mixer(nn.Module):
    """One head: a product of tokens with tokens, and one with values."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.o = nn.Linear(6, 6), nn.Linear(6, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x)[:, None]
        return self.o(F.scaled_dot_product_attention(q, q, q)[:, 0])


def test_products_are_counted_with_and_without_those_of_tokens() -> None:
    assert forward_macs(nn.Conv2d(3, 8, 3, stride=2, padding=1), 2, 3, 10, 10) == 2 * 25 * 8 * 27
    assert forward_macs(nn.LayerNorm(6), 1, 5, 6) == 0
    maps, scores = 2 * 5 * 6 * 6, 2 * 5 * 5 * 6
    assert forward_macs(Mixer(), 1, 5, 6) == maps + scores
    assert forward_macs(Mixer(), 1, 5, 6, attention=False) == maps


def test_a_model_stays_as_it_is() -> None:
    model = nn.Sequential(nn.Dropout(0.5), Mixer()).train()
    before = [parameter.clone() for parameter in model.parameters()]
    forward_macs(model, 1, 5, 6)
    assert model.training and all(module.training for module in model.modules())
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_a_copy_on_meta_shares_what_was_shared_and_keeps_what_learns() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4))
    model[1].weight = model[0].weight
    model[0].bias.requires_grad_(False)
    bare = to_meta(model)
    assert all(t.is_meta for t in (*bare.parameters(), *bare.buffers()))
    assert bare[1].weight is bare[0].weight and bare[1].bias is not bare[0].bias
    assert [p.requires_grad for p in bare.parameters()] == [
        p.requires_grad for p in model.parameters()
    ]
    assert not any(t.is_meta for t in (*model.parameters(), *model.buffers()))


def test_no_graph_is_kept_while_products_are_counted() -> None:
    with counted_products() as counter:
        y = nn.Linear(3, 5)(torch.ones(2, 3))
    assert not y.requires_grad and counter.get_total_flops() == 2 * 2 * 3 * 5
