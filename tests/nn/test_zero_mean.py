"""Modules that recentre as they run: their results, gradients and copies, and narrower ones."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modwright.nn import ZeroMean, ZeroMeanEmbedding, ZeroMeanLinear, narrow_, zero_mean_
from modwright.nn.zero_mean import recentered


class Shifted(nn.Embedding):
    """A table with a forward of its own, as OPT's positions have."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids + 1)


class Pair(nn.Linear):
    """A map that returns a tuple."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x), "weights"


def gradients(out: Tensor, module: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad((out * torch.arange(out.shape[-1])).sum(), module.parameters()))


@pytest.mark.parametrize("bias", [False, True])
def test_a_linear_map_is_one_with_recentered_weights(bias: bool) -> None:
    torch.manual_seed(0)
    made, x = ZeroMeanLinear(6, 9, bias=bias).double(), torch.randn(2, 3, 6).double()
    centre = torch.eye(9).double() - 1 / 9
    by_hand = F.linear(x, centre @ made.weight, centre @ made.bias if bias else None)
    out = made(x)
    assert (out - by_hand).abs().max() < 1e-15
    assert out.mean(-1).abs().max() < 1e-15
    for mine, truth in zip(gradients(out, made), gradients(by_hand, made)):
        assert (mine - truth).abs().max() < 1e-13
        assert mine.mean(0).abs().max() < 1e-13  # the gradient has zero mean over the outputs


def test_a_table_is_recentered_as_it_is_looked_up() -> None:
    torch.manual_seed(0)
    table, ids = ZeroMeanEmbedding(7, 5, padding_idx=0).double(), torch.tensor([[3, 0, 3]])
    before = table.weight.detach().clone()
    out = table(ids)
    assert torch.equal(out, recentered(table.weight, 1)[ids])
    assert torch.equal(table.weight, before) and table.weight.mean(1).abs().max() > 0.1
    (found,) = gradients(out, table)
    assert not found[0].any(), "the row of the padding is not trained"


@pytest.mark.parametrize(
    ("module", "inputs"),
    [
        (nn.Linear(6, 9), torch.randn(2, 6)),
        (nn.Embedding(7, 5), torch.tensor([1, 2])),
        (Shifted(7, 5), torch.tensor([1, 2])),
        (nn.Conv1d(4, 6, 1), torch.randn(4, 8)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_any_module_recentres_in_place(module: nn.Module, inputs: Tensor) -> None:
    plain, name = module(inputs).detach(), type(module).__name__
    stored = dict(module.named_parameters())
    made = zero_mean_(module)
    assert made is module and isinstance(made, ZeroMean) and isinstance(made, type(module))
    assert type(made).__name__ == f"ZeroMean{name}"
    assert {n: id(p) for n, p in made.named_parameters()} == {n: id(p) for n, p in stored.items()}
    assert (made(inputs) - recentered(plain)).abs().max() < 1e-6
    kind = type(made)
    assert type(zero_mean_(made)) is kind, "twice is once"
    for twin in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert type(twin) is kind
        assert torch.equal(twin(inputs), made(inputs))
        assert list(twin.state_dict()) == list(made.state_dict())


def test_of_a_tuple_the_first_is_recentered() -> None:
    made = zero_mean_(Pair(3, 4))
    out, rest = made(torch.ones(2, 3))
    assert rest == "weights"
    assert out.mean(-1).abs().max() < 1e-6


# Narrower results


def test_a_narrowed_module_keeps_its_class_and_runs() -> None:
    for module, axes, inputs in (
        (nn.Linear(6, 9), {"weight": 0, "bias": 0}, torch.randn(2, 6)),
        (nn.Linear(6, 9, bias=False), {"weight": 0}, torch.randn(2, 6)),
        (nn.Embedding(7, 9, padding_idx=0), {"weight": -1}, torch.tensor([[0, 2]])),
        (Shifted(7, 9), {"weight": -1}, torch.tensor([[0, 2]])),
        (nn.Conv2d(3, 9, 4), {"weight": 0, "bias": 0}, torch.randn(1, 3, 4, 4)),
    ):
        kind = type(module)
        made = narrow_(module, axes, 8)
        assert made is module and type(made) is kind
        for parameter in made.parameters():
            nn.init.ones_(parameter)
        out = made(inputs)
        assert 8 in (out.shape[-1], out.shape[1])
        assert "9" not in repr(made).replace("Conv2d(3", ""), repr(made)


def test_narrowing_says_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="Linear has no parameter 'bias'"):
        narrow_(nn.Linear(2, 3, bias=False), {"weight": 0, "bias": 0}, 2)
    with pytest.raises(ValueError, match=r"parameter 'weight' \(3, 2\) has no axis 2"):
        narrow_(nn.Linear(2, 3), {"weight": 2}, 2)
    with pytest.raises(ValueError, match=r"are \[2, 3\] wide, not of one width"):
        narrow_(nn.Linear(2, 3), {"weight": 1, "bias": 0}, 2)
    with pytest.raises(ValueError, match="size must be at least 1, not 0"):
        narrow_(nn.Linear(2, 3), {"weight": 0}, 0)
