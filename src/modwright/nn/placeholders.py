"""What stands where a part was removed: modules without parameters that keep a block's call valid.

A pre-norm block adds the output of its sublayer to the residual stream, so "nothing" is a zero. One
number is enough: it broadcasts, and no tensor of the stream's size is written.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

__all__ = ["Identity", "SkippedAttention", "ZeroModule"]


class ZeroModule(nn.Module):
    """Adds nothing to the residual stream: returns one zero in the input's dtype and device.

    Example:
        >>> float(torch.ones(2, 3).add(ZeroModule()(torch.ones(2, 3))).sum())
        6.0
    """

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden_states.new_zeros(1)


class SkippedAttention(nn.Module):
    """Adds nothing to the residual stream, in the calling convention of an attention part.

    It reads and writes no key/value cache, so it owns no cache slot.
    """

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        return hidden_states.new_zeros(1), None


class Identity(nn.Module):
    """Returns its first argument, whatever else it is called with.

    ``as_tuple`` returns ``(x, None)``, the convention of attention parts.
    """

    def __init__(self, as_tuple: bool = False) -> None:
        super().__init__()
        self.as_tuple = as_tuple

    def forward(
        self, hidden_states: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor | tuple[Tensor, None]:
        return (hidden_states, None) if self.as_tuple else hidden_states

    def extra_repr(self) -> str:
        return f"as_tuple={self.as_tuple}"
