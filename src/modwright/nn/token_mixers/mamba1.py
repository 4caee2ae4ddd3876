"""Mamba: a token mixer with a state of constant size that it fills by choice (arXiv 2312.00752)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modwright.nn.component import component
from modwright.nn.precision import at_least_float32, full_precision
from modwright.nn.selective_scan import selective_scan
from modwright.nn.token_mixers.scan_matrices import scan_matrix
from modwright.nn.token_mixers.state_space import (
    ConstantProjection,
    State,
    StateSpaceMixer,
    StateSpaceOptions,
    at_least_one,
    causal_conv,
    without_padding,
)
from modwright.nn.token_mixers.stock_mamba import is_stock_mamba

__all__ = ["Mamba1"]


def _has_stock_tensors(config: Any, **arguments: Any) -> bool:
    return is_stock_mamba(Mamba1, config, arguments)


@component(
    "mamba1",
    kind="token_mixer",
    state="recurrent",
    causal=True,
    stock_tensors=_has_stock_tensors,
)
class Mamba1(StateSpaceMixer):
    """Gate, causal convolution, selective scan: (B, L, C) -> (B, L, C), and the state after it.

    Its parameters have the names and shapes of transformers' ``MambaMixer``.

    Args:
        d_model: C.
        d_state: states N of each channel.
        d_conv: width K of the convolution.
        expand: E / C, where E channels are scanned.
        dt_rank: inputs of the projection to the steps; "auto" is C / 16, rounded up.
        out_proj_scale: the start values of ``out_proj`` are multiplied by it: 1 / sqrt(blocks) in a
            language model.
        options: of :class:`StateSpaceOptions`: bias, conv_bias, selective, dt_min, ...

    Raises:
        ValueError: a size below 1, unknown options.

    Example:
        >>> mixer, x = Mamba1(16, d_state=4), torch.randn(2, 7, 16)
        >>> y, state = mixer(x)
        >>> first, kept = mixer(x[:, :6])
        >>> last, _ = mixer(x[:, 6:], kept)
        >>> y.shape, torch.allclose(last, y[:, 6:], atol=1e-6)
        (torch.Size([2, 7, 16]), True)
    """

    no_weight_decay = ("A_log", "D", "dt_proj.bias")
    keep_in_fp32 = ("A_log", "D", "dt_proj.bias")

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2,
        dt_rank: int | str = "auto",
        *,
        out_proj_scale: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__()
        if isinstance(dt_rank, str) and dt_rank != "auto":
            raise ValueError(f"dt_rank must be a number or 'auto', not {dt_rank!r}")
        self.options = StateSpaceOptions(**options)
        self.d_model, self.d_state, self.d_inner = d_model, d_state, int(expand * d_model)
        self.dt_rank = math.ceil(d_model / 16) if isinstance(dt_rank, str) else dt_rank
        at_least_one(d_model=d_model, d_state=d_state, dt_rank=self.dt_rank)
        at_least_one(**{"expand * d_model": self.d_inner})
        self.out_proj_scale = out_proj_scale
        width, read = self.d_inner, self.dt_rank + 2 * d_state
        self.in_proj = nn.Linear(d_model, 2 * width, bias=self.options.bias)
        self.conv1d = causal_conv(width, d_conv, self.options.conv_bias)
        self.x_proj: nn.Module = ConstantProjection(read)
        if self.options.selective:
            self.x_proj = nn.Linear(width, read, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, width)
        self.A_log = nn.Parameter(torch.empty(width, d_state))
        self.D = nn.Parameter(torch.empty(width))
        self.out_proj = nn.Linear(width, d_model, bias=self.options.bias)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start values of the paper: A is -1 to -N in each channel."""
        self.in_proj.reset_parameters()
        if self.in_proj.bias is not None:
            nn.init.zeros_(self.in_proj.bias)
        if isinstance(self.x_proj, ConstantProjection):  # no step of the input's, B = 1, C random
            steps, inputs, outputs = self._split(self.x_proj.bias)
            steps.zero_()
            inputs.fill_(1.0)
            outputs.normal_()
        elif isinstance(self.x_proj, nn.Linear):
            self.x_proj.reset_parameters()
        nn.init.ones_(self.D)
        states = torch.arange(1, self.d_state + 1, dtype=torch.float32, device=self.A_log.device)
        self.A_log.copy_(states.log())
        reach = self.dt_rank**-0.5 * self.options.dt_scale
        if self.options.dt_init == "constant":
            nn.init.constant_(self.dt_proj.weight, reach)
        else:
            nn.init.uniform_(self.dt_proj.weight, -reach, reach)
        self.reset_shared(self.dt_proj.bias, self.out_proj_scale)

    def forward(
        self, x: Tensor, state: State | None = None, padding_mask: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, L, C) -> (B, L, C) and the state after the last token.

        Args:
            state: what was returned for the tokens before.
            padding_mask: (B, L), True where a token is real. Padding before the first real token
                changes nothing.

        Raises:
            ValueError: an input, a mask or a state that does not fit.
        """
        self.check(x, state, padding_mask)
        (x, dt, B, C), gate, window = self._read(x, state, padding_mask)
        h0 = None if state is None else state["ssm"]
        y, ssm = selective_scan(x, dt, self.decay(), B, C, D=self.D, z=gate, h0=h0)
        return self.out_proj(y), {"conv": window, "ssm": ssm}

    def _read(
        self, x: Tensor, state: State | None = None, padding_mask: Tensor | None = None
    ) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], Tensor, Tensor]:
        """What is scanned: values (B, L, E), steps, B and C; the gate; the convolution's window."""
        x, gate = self.in_proj(without_padding(x, padding_mask)).chunk(2, 2)
        if self.options.bias:
            x = without_padding(x, padding_mask)
        x, window = self.convolve(x, state)
        x = without_padding(x, padding_mask)
        steps, B, C = self._split(self.x_proj(x))
        if (eps := self.options.read_norm_eps) is not None:
            steps, B, C = (_normed(part, eps) for part in (steps, B, C))
        return (x, self._steps(steps), B, C), gate, window

    def mixing_matrix(self, x: Tensor) -> Tensor:
        """(B, L, C) -> (B, E, L, L): each channel's outputs of the scan are its matrix times its
        values, which are what the convolution gives; the gate comes afterwards.

        Memory grows with E L^2: it is for looking at short sequences.

        Raises:
            ValueError: an input that does not fit.

        Example:
            >>> mixer = Mamba1(16, d_state=4)
            >>> M = mixer.mixing_matrix(torch.randn(2, 5, 16))
            >>> M.shape, float(M.detach().triu(1).abs().max())
            (torch.Size([2, 32, 5, 5]), 0.0)
        """
        self.check(x, None, None)
        (_, dt, B, C), _, _ = self._read(x)
        return scan_matrix(dt, self.decay(), B, C, self.D)

    def _split(self, read: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        low, B, C = read.split([self.dt_rank, self.d_state, self.d_state], -1)
        return low, B, C

    def _steps(self, low: Tensor) -> Tensor:
        """softplus of the projection; the bias is added in float32, whose digits it needs."""
        steps = F.linear(low, self.dt_proj.weight)
        wide = at_least_float32(steps, self.dt_proj.bias)
        with full_precision(steps):
            return F.softplus(steps.to(wide) + self.dt_proj.bias.to(wide))

    def ssm_size(self) -> tuple[int, ...]:
        return self.d_inner, self.d_state

    def projections(self) -> dict[str, nn.Module]:
        """Linear layers that may be factored or scored."""
        found: dict[str, nn.Module] = {"in_proj": self.in_proj, "out_proj": self.out_proj}
        return {**found, "x_proj": self.x_proj} if self.options.selective else found

    def macs(self, batch: int, length: int, cached: int = 0) -> int:
        """Multiply-accumulates; a token has three for each state: decay, what enters, what is read.

        Example:
            >>> Mamba1(16, d_state=4).macs(1, 10)  # (16 x 96 + 32 x 10 + 32 x 4 + 3 x 32 x 4) x 10
            23680
        """
        width, states = self.d_inner, self.d_state
        linear = self.linear_macs() + self.dt_rank * width
        token = linear + width * self.conv1d.kernel_size[0] + 3 * width * states
        return batch * length * token

    def describe(self) -> str:
        kind = "" if self.options.selective else ", not selective"
        return (
            f"{self.d_inner} channels x {self.d_state} states, "
            f"convolution of {self.conv1d.kernel_size[0]}{kind}"
        )


def _normed(x: Tensor, eps: float) -> Tensor:
    """Divided by the root mean square of its last axis, in float32 or more."""
    with full_precision(x):
        wide = x.to(at_least_float32(x))
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)
