"""A small recurrent mixer that only tests know: a window, and a matrix that decays.

Another process learns it by importing this file.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from modwright.anatomy import Anatomy
from modwright.edits import Change, Replace
from modwright.nn.component import component

__all__ = ["ToyRecurrent", "toys"]


@component("toy_recurrent", kind="token_mixer", state="recurrent", causal=True)
class ToyRecurrent(nn.Module):
    """y_t = q_t M_t with M_t = sigmoid(decay) M_(t-1) + k_t v_t; k and v are of a window's sums.

    Args:
        hidden_size: C.
        size: rows of the matrix.
        fault: "step" forgets the window from call to call; "padding" takes all tokens for real.
    """

    keep_in_fp32 = ("decay",)

    def __init__(self, hidden_size: int, size: int = 4, fault: str = "") -> None:
        super().__init__()
        self.hidden_size, self.size, self.fault = hidden_size, size, fault
        self.window = nn.Parameter(torch.zeros(3, hidden_size))
        self.decay = nn.Parameter(torch.zeros(size))
        self.inner = nn.ModuleDict({"qk": nn.Linear(hidden_size, 2 * size, bias=True)})
        self.out = nn.Linear(hidden_size, hidden_size, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.window)
        nn.init.constant_(self.decay, 1.0)
        nn.init.constant_(self.inner["qk"].bias, 7.0)

    def state_bytes(self, dtype: torch.dtype) -> int:
        return (2 + self.size) * self.hidden_size * dtype.itemsize

    def macs(self, batch: int, length: int, cached: int = 0) -> int:
        each = 2 * self.size * self.hidden_size + self.hidden_size**2 + 3 * self.hidden_size
        return batch * length * (each + 2 * self.size * self.hidden_size)

    def describe(self) -> str:
        return f"a toy with {self.size} rows"

    def forward(
        self, x: Tensor, state: Any = None, padding_mask: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        sequences, length, width = x.shape
        if padding_mask is None or self.fault == "padding":
            padding_mask = torch.ones(sequences, length, dtype=torch.bool, device=x.device)
        real = padding_mask.unsqueeze(-1).to(x.dtype)
        x = x * real
        if state is None:
            matrix = x.new_zeros(sequences, self.size, width)
            state = {"before": x.new_zeros(sequences, 2, width), "memory": (matrix,)}
        before, (matrix,) = state["before"], state["memory"]
        if self.fault == "step" and length < 3:
            before = torch.zeros_like(before)
        read = torch.cat((before, x), dim=1)
        value = sum(read[:, i : i + length] * self.window[i] for i in range(3))
        query, key = self.inner["qk"](value).chunk(2, dim=-1)
        if torch.compiler.is_exporting():  # a loop would fix the length in the graph
            mixed, matrix = self._at_once(query, key, value, matrix, padding_mask)
            return self.out(mixed / 49), {"before": read[:, length:], "memory": (matrix,)}
        decay = torch.sigmoid(self.decay).unsqueeze(-1).to(x.dtype)
        rows = []
        for t in range(length):
            outer = key[:, t].unsqueeze(-1) * value[:, t].unsqueeze(1)
            matrix = torch.where(padding_mask[:, t, None, None], matrix * decay + outer, matrix)
            rows.append(torch.einsum("bs,bsd->bd", query[:, t], matrix) / 49)
        y = self.out(torch.stack(rows, dim=1))
        return y, {"before": read[:, length:], "memory": (matrix,)}

    def _at_once(
        self, query: Tensor, key: Tensor, value: Tensor, matrix: Tensor, real: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the loop computes, from all pairs of tokens."""
        log = nn.functional.logsigmoid(self.decay)
        steps = real.cumsum(1).unsqueeze(-1)  # (B, L, 1)
        apart = (steps.unsqueeze(2) - steps.unsqueeze(1)).clamp(min=0)  # (B, L, L, 1)
        key = key * real.unsqueeze(-1)
        pairs = torch.einsum("bti,bsi,btsi->bts", query, key, torch.exp(apart * log)).tril()
        mixed = pairs @ value + (query * torch.exp(steps * log)) @ matrix
        left = torch.exp((steps[:, -1:] - steps) * log)
        new = torch.einsum("bsi,bsd->bid", key * left, value)
        return mixed, new + torch.exp(steps[:, -1] * log).unsqueeze(-1) * matrix


def toys(anatomy: Anatomy, blocks: Any, **arguments: Any) -> Change:
    """The change that puts a toy at the attentions of some blocks, each with values of its own."""
    change = Change()
    for index in blocks:
        address = f"blocks.{index}.attention"
        torch.manual_seed(10 + index)
        toy = ToyRecurrent(anatomy.hidden_size, **arguments)
        values = {f"{address}.{name}": value * 0.3 for name, value in toy.state_dict().items()}
        kwargs = {"hidden_size": anatomy.hidden_size, **arguments}
        change += Change((Replace(address, "toy_recurrent", kwargs),), values)
    return change
