"""What Mamba and Mamba-2 share: a causal convolution with a window, steps, decays, and the state.

The state of a sequence is a dict: ``conv`` (B, channels, K), the last K inputs of the convolution,
and ``ssm``, the states of the recurrence, in float32 whatever the precision of the model. Both have
the layout of transformers' cache.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modwright.nn.precision import at_least_float32

__all__ = ["ConstantProjection", "State", "StateSpaceMixer", "StateSpaceOptions"]
__all__ += ["at_least_one", "causal_conv", "without_padding"]

State = Mapping[str, Tensor]

SLOWEST = -1e-4
"""The decay that an A is held at where it is clamped: a state that forgets nothing may overflow."""


@dataclass(frozen=True)
class StateSpaceOptions:
    """What rarely differs from the paper.

    Args:
        bias: in ``in_proj`` and ``out_proj``.
        conv_bias: in the convolution.
        selective: False freezes steps, B and C to parameters, the same for all tokens: a linear
            system that does not change with time, which cannot choose what to keep.
        clamp_decay: keep A at -1e-4 or below; off, so that published weights give their output.
        dt_min, dt_max, dt_init_floor: steps begin log-uniform between the first two, above the
            third.
        dt_init: "random", ``dt_proj.weight`` uniform, or "constant" (Mamba alone).
        dt_scale: of that weight's start values (Mamba alone).
        dt_limit: steps are clamped between two numbers, None for no bound (Mamba-2 alone).
        norm_eps: of the gated norm (Mamba-2 alone).
        read_norm_eps: what the input of the steps, B and C are divided by their root mean squares
            with, as in Falcon-Mamba; None for no such norms (Mamba alone).
    """

    bias: bool = False
    conv_bias: bool = True
    selective: bool = True
    clamp_decay: bool = False
    dt_min: float = 1e-3
    dt_max: float = 0.1
    dt_init_floor: float = 1e-4
    dt_init: str = "random"
    dt_scale: float = 1.0
    dt_limit: Sequence[float | None] = (0.0, None)
    norm_eps: float = 1e-5
    read_norm_eps: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.dt_min <= self.dt_max or self.dt_init_floor <= 0:
            found = f"{self.dt_min}, {self.dt_max} and {self.dt_init_floor}"
            raise ValueError(
                f"dt_min, dt_max and dt_init_floor must be positive and in order, not {found}"
            )
        if self.dt_init not in ("random", "constant"):
            raise ValueError(f"unknown dt_init {self.dt_init!r}; valid values: random, constant")
        if len(self.dt_limit) != 2:
            raise ValueError(f"dt_limit must be a lower and an upper bound, not {self.dt_limit!r}")
        low, high = self.dt_limit
        if high is not None and high < (low or 0.0):
            raise ValueError(f"dt_limit must be in order, not {low} and {high}")


class ConstantProjection(nn.Module):
    """Gives its bias for every token: (B, L, anything) -> (B, L, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.bias.expand(*x.shape[:-1], -1)


class StateSpaceMixer(nn.Module):
    """What a mixer with a causal convolution before a recurrence has.

    Subclasses set ``d_model``, ``options``, ``conv1d`` and ``out_proj``, say the size of one
    sequence's ``ssm`` state, and name in ``keep_in_fp32`` the parameters whose precision matters.
    """

    no_weight_decay: tuple[str, ...] = ()
    keep_in_fp32: tuple[str, ...] = ()
    reads_residual = ("in_proj",)
    writes_residual = ("out_proj",)
    narrowing_blocker = "the channels of a state space are coupled by its projections and its norm"
    d_model: int
    options: StateSpaceOptions
    conv1d: nn.Conv1d
    out_proj: nn.Linear
    A_log: nn.Parameter

    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_pre_hook(_upcast)

    def ssm_size(self) -> tuple[int, ...]:
        """Numbers of the recurrent state of one sequence, as a shape."""
        raise NotImplementedError

    def state_bytes(self, dtype: torch.dtype) -> int:
        """What is kept of one sequence: the window in dtype, the rest in float32.

        Example:
            >>> from modwright.nn.token_mixers.mamba1 import Mamba1
            >>> Mamba1(8, d_state=4).state_bytes(torch.bfloat16)  # 16 channels: 16 x 4 of each
            384
        """
        window = self.conv1d.in_channels * self.conv1d.kernel_size[0]
        recurrent = torch.promote_types(dtype, torch.float32).itemsize
        return window * dtype.itemsize + math.prod(self.ssm_size()) * recurrent

    def decay(self) -> Tensor:
        """A = -exp(A_log), in float32 or more."""
        A = -self.A_log.to(at_least_float32(self.A_log)).exp()
        return A.clamp(max=SLOWEST) if self.options.clamp_decay else A

    def convolve(self, x: Tensor, state: State | None) -> tuple[Tensor, Tensor]:
        """SiLU of the causal convolution (B, L, channels), and the window after the last token."""
        x = x.transpose(1, 2)
        kernel = self.conv1d.kernel_size[0]
        if state is None:
            window = x.new_zeros(*x.shape[:2], kernel)
        else:
            window = state["conv"].to(x.dtype)
        x = torch.cat([window, x], 2)
        one = x.shape[2] == kernel + 1 and not torch.compiler.is_exporting()
        seen = self._convolve_one(x[:, :, 1:]) if one else self.conv1d(x[:, :, 1:])
        return F.silu(seen).transpose(1, 2), x[:, :, -kernel:].clone()

    def _convolve_one(self, window: Tensor) -> Tensor:
        """(B, channels, K) -> (B, channels, 1): the convolution of one token, by its products."""
        wide = at_least_float32(window, self.conv1d.weight)
        seen = (window.to(wide) * self.conv1d.weight.squeeze(1).to(wide)).sum(2, keepdim=True)
        if self.conv1d.bias is not None:
            seen = seen + self.conv1d.bias.unsqueeze(1).to(wide)
        return seen.to(window.dtype)

    def check(self, x: Tensor, state: State | None, padding_mask: Tensor | None) -> None:
        """Refuses what does not fit.

        Raises:
            ValueError: says what was given and what is wanted.
        """
        if not x.is_floating_point():
            raise ValueError(f"the input must be embeddings, not numbers of type {x.dtype}")
        if x.ndim != 3 or x.shape[2] != self.d_model:
            raise ValueError(f"the input must be (B, L, {self.d_model}), not {tuple(x.shape)}")
        if padding_mask is not None and padding_mask.shape != x.shape[:2]:
            found = tuple(padding_mask.shape)
            raise ValueError(f"the padding mask must be {tuple(x.shape[:2])}, not {found}")
        if state is None:
            return
        if set(state) != {"conv", "ssm"}:
            raise ValueError(f"the state must have conv and ssm, not {', '.join(sorted(state))}")
        wanted: dict[str, tuple[int, ...]] = {
            "conv": (x.shape[0], self.conv1d.in_channels, self.conv1d.kernel_size[0]),
            "ssm": (x.shape[0], *self.ssm_size()),
        }
        for name, size in wanted.items():
            if tuple(state[name].shape) != size:
                found = tuple(state[name].shape)
                raise ValueError(f"{name} of the state must be {size}, not {found}")

    @torch.no_grad()
    def reset_shared(self, dt_bias: Tensor, out_proj_scale: float) -> None:
        """Start values of the convolution, the last projection and the bias of the steps."""
        self.conv1d.reset_parameters()
        self.out_proj.reset_parameters()
        self.out_proj.weight.mul_(out_proj_scale)
        if self.out_proj.bias is not None:
            nn.init.zeros_(self.out_proj.bias)
        low, high = math.log(self.options.dt_min), math.log(self.options.dt_max)
        dt = torch.empty_like(dt_bias).uniform_(low, high).exp_()
        dt.clamp_(min=self.options.dt_init_floor)
        dt_bias.copy_(dt + (-(-dt).expm1()).log())  # the inverse of softplus

    def projections(self) -> dict[str, nn.Module]:
        """Linear layers that may be factored or scored."""
        raise NotImplementedError

    def linear_macs(self) -> int:
        """Multiply-accumulates of the projections for one token, in factors or not."""
        layers = self.projections().values()
        return sum(p.numel() for layer in layers for p in layer.parameters() if p.ndim == 2)

    def describe(self) -> str:
        """A few words for reports."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"d_model={self.d_model}, {self.describe()}"


def causal_conv(width: int, kernel: int, bias: bool) -> nn.Conv1d:
    """A convolution of each channel over time; what is before the first token is put there first.

    Raises:
        ValueError: the kernel has no width.
    """
    at_least_one(d_conv=kernel)
    return nn.Conv1d(width, width, kernel, groups=width, bias=bias)


def at_least_one(**sizes: int) -> None:
    """Refuses a named size below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, not {size}")


def without_padding(x: Tensor, padding_mask: Tensor | None) -> Tensor:
    """(B, L, C) with zeros where the mask (B, L) is False."""
    return x if padding_mask is None else x * padding_mask.unsqueeze(2).to(x.dtype)


def _upcast(module: Any, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
    """What must have the precision of float32 and is stored with less comes in as float32."""
    for name in module.keep_in_fp32:
        stored = state_dict.get(prefix + name)
        if isinstance(stored, Tensor) and stored.dtype in (torch.float16, torch.bfloat16):
            warnings.warn(
                f"{prefix}{name} is stored in {stored.dtype}; it is kept in float32", stacklevel=2
            )
            state_dict[prefix + name] = stored.float()
