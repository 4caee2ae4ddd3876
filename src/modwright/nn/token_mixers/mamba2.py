"""Mamba-2: heads with one decay each, scanned by matrix products (arXiv 2405.21060)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modwright.nn.component import component
from modwright.nn.gated_norm import GatedRMSNorm
from modwright.nn.precision import at_least_float32, full_precision
from modwright.nn.ssd import ssd_scan
from modwright.nn.token_mixers.scan_matrices import ssd_matrix
from modwright.nn.token_mixers.state_space import (
    ConstantProjection,
    State,
    StateSpaceMixer,
    StateSpaceOptions,
    at_least_one,
    causal_conv,
    without_padding,
)
from modwright.nn.token_mixers.stock_mamba import is_stock_mamba2

__all__ = ["Mamba2"]


def _has_stock_tensors(config: Any, **arguments: Any) -> bool:
    return is_stock_mamba2(Mamba2, config, arguments)


@component(
    "mamba2",
    kind="token_mixer",
    state="recurrent",
    causal=True,
    stock_tensors=_has_stock_tensors,
)
class Mamba2(StateSpaceMixer):
    """Convolution, scan, gated norm: (B, L, C) -> (B, L, C), and the state after it.

    Its parameters have the names and shapes of transformers' ``Mamba2Mixer``.

    Args:
        d_model: C.
        d_state: states N of each channel.
        n_heads: heads H; "auto" makes as many as fill 2 C channels.
        head_dim: channels P of a head; H P channels are scanned.
        n_groups: G: H / G heads share how the input enters their states and how these are read.
        chunk: tokens whose products are one matrix; changes nothing but speed and memory.
        d_conv: width K of the convolution.
        out_proj_scale: the start values of ``out_proj`` are multiplied by it: 1 / sqrt(blocks) in a
            language model.
        options: of :class:`StateSpaceOptions`: bias, conv_bias, selective, dt_limit, norm_eps, ...

    Raises:
        ValueError: a size below 1, heads that do not fill the width, groups that do not fill the
            heads, unknown options.

    Example:
        >>> mixer, x = Mamba2(16, d_state=4, head_dim=8), torch.randn(2, 7, 16)
        >>> y, state = mixer(x)
        >>> first, kept = mixer(x[:, :6])
        >>> last, _ = mixer(x[:, 6:], kept)
        >>> y.shape, mixer.n_heads, torch.allclose(last, y[:, 6:], atol=1e-5)
        (torch.Size([2, 7, 16]), 4, True)
    """

    no_weight_decay = ("A_log", "D", "dt_bias")
    keep_in_fp32 = ("A_log", "D", "dt_bias")

    def __init__(
        self,
        d_model: int,
        d_state: int = 128,
        n_heads: int | str = "auto",
        head_dim: int = 64,
        n_groups: int = 1,
        chunk: int = 64,
        *,
        d_conv: int = 4,
        out_proj_scale: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__()
        self.options = StateSpaceOptions(**options)
        at_least_one(d_model=d_model, d_state=d_state, head_dim=head_dim, n_groups=n_groups)
        self.n_heads = _heads(d_model, n_heads, head_dim, n_groups)
        at_least_one(chunk=chunk)
        self.d_model, self.d_state, self.head_dim = d_model, d_state, head_dim
        self.n_groups, self.chunk, self.out_proj_scale = n_groups, chunk, out_proj_scale
        self.d_inner = width = self.n_heads * head_dim
        # What is convolved: the input of the scan and, where tokens choose them, B and C.
        selective, both = self.options.selective, 2 * n_groups * d_state
        convolved = width + both if selective else width
        steps = self.n_heads if selective else 0
        self.in_proj = nn.Linear(d_model, width + convolved + steps, bias=self.options.bias)
        self.conv1d = causal_conv(convolved, d_conv, self.options.conv_bias)
        self.bc_proj = None if selective else ConstantProjection(both)
        self.dt_bias = nn.Parameter(torch.empty(self.n_heads))
        self.A_log = nn.Parameter(torch.empty(self.n_heads))
        self.D = nn.Parameter(torch.empty(self.n_heads))
        self.norm = GatedRMSNorm(width, n_groups, self.options.norm_eps)
        self.out_proj = nn.Linear(width, d_model, bias=self.options.bias)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start values: A is -1 to -H, steps are log-uniform between dt_min and dt_max."""
        self.in_proj.reset_parameters()
        if self.in_proj.bias is not None:
            nn.init.zeros_(self.in_proj.bias)
        if self.bc_proj is not None:  # B = 1, C random
            inputs, outputs = self.bc_proj.bias.chunk(2)
            inputs.fill_(1.0)
            outputs.normal_()
        nn.init.ones_(self.D)
        self.norm.reset_parameters()
        heads = torch.arange(1, self.n_heads + 1, dtype=torch.float32, device=self.A_log.device)
        self.A_log.copy_(heads.log())
        self.reset_shared(self.dt_bias, self.out_proj_scale)

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
        y, ssm = ssd_scan(x, dt, self.decay(), B, C, self.chunk, h0=h0, D=self.D)
        y = self.norm(y.flatten(2), gate)
        return self.out_proj(y), {"conv": window, "ssm": ssm}

    def _read(
        self, x: Tensor, state: State | None = None, padding_mask: Tensor | None = None
    ) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], Tensor, Tensor]:
        """What is scanned: values (B, L, H, P), steps, B and C; the gate; the window."""
        read = self.in_proj(without_padding(x, padding_mask))
        steps = self.n_heads if self.bc_proj is None else 0
        gate, x, dt = read.split([self.d_inner, self.conv1d.in_channels, steps], -1)
        if self.options.bias:
            x = without_padding(x, padding_mask)
        x, window = self.convolve(x, state)
        x = without_padding(x, padding_mask)
        if self.bc_proj is not None:
            dt = x.new_zeros(*x.shape[:2], self.n_heads)
            x = torch.cat([x, self.bc_proj(x).to(x.dtype)], -1)
        both = self.n_groups * self.d_state
        x, B, C = x.split([self.d_inner, both, both], -1)
        B, C = (part.unflatten(2, (self.n_groups, -1)) for part in (B, C))
        return (x.unflatten(2, (self.n_heads, -1)), self._steps(dt), B, C), gate, window

    def mixing_matrix(self, x: Tensor) -> Tensor:
        """(B, L, C) -> (B, H, L, L): each head's outputs of the scan are its matrix times its
        values, which are what the convolution gives; the gated norm comes afterwards.

        Raises:
            ValueError: an input that does not fit.

        Example:
            >>> mixer = Mamba2(16, d_state=4, head_dim=8)
            >>> M = mixer.mixing_matrix(torch.randn(2, 5, 16))
            >>> M.shape, float(M.detach().triu(1).abs().max())
            (torch.Size([2, 4, 5, 5]), 0.0)
        """
        self.check(x, None, None)
        (_, dt, B, C), _, _ = self._read(x)
        return ssd_matrix(dt, self.decay(), B, C, self.D)

    def _steps(self, dt: Tensor) -> Tensor:
        """softplus, between the bounds; the bias is added in float32, whose digits it needs."""
        wide = at_least_float32(dt, self.dt_bias)
        low, high = self.options.dt_limit
        with full_precision(dt):
            steps = F.softplus(dt.to(wide) + self.dt_bias.to(wide))
            return steps if not low and high is None else steps.clamp(low, high)

    def ssm_size(self) -> tuple[int, ...]:
        return self.n_heads, self.head_dim, self.d_state

    def projections(self) -> dict[str, nn.Module]:
        """Linear layers that may be factored or scored."""
        return {"in_proj": self.in_proj, "out_proj": self.out_proj}

    def macs(self, batch: int, length: int, cached: int = 0) -> int:
        """Multiply-accumulates: of a token with those of its chunk, and with the states.

        Example:
            >>> Mamba2(16, d_state=4, head_dim=8, chunk=5).macs(1, 10)  # see the comment below
            23240
        """
        # Above, of one token: in_proj 16 x 76, out_proj 32 x 16, convolution 40 x 4,
        # chunk 5 x (4 + 32), states 2 x 32 x 4.
        chunk = min(self.chunk, length)
        linear = self.linear_macs()
        convolution = self.conv1d.in_channels * self.conv1d.kernel_size[0]
        inside = chunk * (self.n_groups * self.d_state + self.d_inner)
        return batch * length * (linear + convolution + inside + 2 * self.d_inner * self.d_state)

    def describe(self) -> str:
        kind = "" if self.options.selective else ", not selective"
        groups = "" if self.n_groups == 1 else f"{self.n_groups} groups, "
        return (
            f"{self.n_heads} heads of {self.head_dim} channels x {self.d_state} states, "
            f"{groups}convolution of {self.conv1d.kernel_size[0]}{kind}"
        )


def _heads(d_model: int, n_heads: int | str, head_dim: int, n_groups: int) -> int:
    """The number of heads; refuses what heads or groups do not fill."""
    if isinstance(n_heads, str):
        if n_heads != "auto":
            raise ValueError(f"n_heads must be a number or 'auto', not {n_heads!r}")
        if 2 * d_model % head_dim:
            raise ValueError(f"heads of {head_dim} channels do not fill {2 * d_model}")
        n_heads = 2 * d_model // head_dim
    at_least_one(n_heads=n_heads)
    if n_heads % n_groups:
        raise ValueError(f"{n_groups} groups do not fill {n_heads} heads")
    return n_heads
