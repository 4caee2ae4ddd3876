"""The matrices that the scans of Mamba and Mamba-2 apply, written out (arXiv 2405.21060).

Row t and column s hold what token t receives of the value of token s: C_t decay(t, s) dt_s B_s, and
what goes past the states on the diagonal. They grow with the square of the length.
"""

from __future__ import annotations

import torch
from torch import Tensor

from modwright.nn.associative_scan import segment_sums
from modwright.nn.precision import at_least_float32, full_precision
from modwright.nn.selective_scan import naive_selective_scan
from modwright.nn.ssd import naive_ssd_scan

__all__ = ["naive_scan_matrix", "naive_ssd_matrix", "scan_matrix", "ssd_matrix"]


def scan_matrix(dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None) -> Tensor:
    """(B, E, L, L): outputs of :func:`modwright.nn.selective_scan.selective_scan` are the matrix of
    each channel times its values.

    Args:
        dt: (B, L, E). A: (E, N). B, C: (B, L, N). D: (E,).

    Example:
        >>> dt, A, u = torch.rand(2, 5, 3), -torch.rand(3, 4), torch.randn(2, 5, 3)
        >>> B, C = torch.randn(2, 2, 5, 4)
        >>> y, _ = naive_selective_scan(u, dt, A, B, C)
        >>> M = scan_matrix(dt, A, B, C)
        >>> torch.allclose(torch.einsum("bets,bse->bte", M, u), y, atol=1e-5)
        True
    """
    wide = at_least_float32(dt, A, B, C)
    with full_precision(dt):
        dt, A, B, C = (tensor.to(wide) for tensor in (dt, A, B, C))
        between = segment_sums(dt, 1)  # (B, t, s, E)
        found = torch.zeros_like(between)
        for n in range(A.shape[1]):  # so that no tensor is N times as large
            scores = C[:, :, None, n] * B[:, None, :, n]
            found = found + scores.unsqueeze(3) * (between * A[:, n]).exp()
        return _causal((found * dt.unsqueeze(1)).permute(0, 3, 1, 2), D)


def naive_scan_matrix(
    dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None
) -> Tensor:
    """What :func:`scan_matrix` must give: the scans of a one at each token in turn."""
    columns = [
        naive_selective_scan(one.expand_as(dt), dt, A, B, C, D)[0]
        for one in _ones(dt).unsqueeze(-1)
    ]
    return torch.stack(columns, -1).transpose(1, 2)


def ssd_matrix(dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None) -> Tensor:
    """(B, H, L, L): outputs of :func:`modwright.nn.ssd.ssd_scan` are the matrix of each head times
    its values.

    Args:
        dt: (B, L, H). A: (H,). B, C: (B, L, G, N), one for H / G heads. D: (H,).

    Example:
        >>> dt, A, x = torch.rand(2, 5, 4), -torch.rand(4), torch.randn(2, 5, 4, 3)
        >>> B, C = torch.randn(2, 2, 5, 2, 6)
        >>> y, _ = naive_ssd_scan(x, dt, A, B, C)
        >>> M = ssd_matrix(dt, A, B, C)
        >>> torch.allclose(torch.einsum("bhts,bshp->bthp", M, x), y, atol=1e-5)
        True
    """
    wide = at_least_float32(dt, A, B, C)
    with full_precision(dt):
        dt, A, B, C = (tensor.to(wide) for tensor in (dt, A, B, C))
        decays = segment_sums(dt * A, 1).exp() * dt.unsqueeze(1)  # (B, t, s, H)
        scores = torch.einsum("btgn,bsgn->bgts", C, B)
        scores = scores.repeat_interleave(dt.shape[2] // B.shape[2], 1)
        return _causal(scores * decays.permute(0, 3, 1, 2), D)


def naive_ssd_matrix(
    dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None
) -> Tensor:
    """What :func:`ssd_matrix` must give: the scans of a one at each token in turn."""
    x = dt.unsqueeze(-1)
    columns = [
        naive_ssd_scan(one.expand_as(x), dt, A, B, C, D=D)[0].squeeze(-1)
        for one in _ones(dt).view(-1, dt.shape[1], 1, 1)
    ]
    return torch.stack(columns, -1).transpose(1, 2)


def _ones(dt: Tensor) -> Tensor:
    """(L, L): a one at token s in row s."""
    return torch.eye(dt.shape[1], dtype=dt.dtype, device=dt.device)


def _causal(matrix: Tensor, D: Tensor | None) -> Tensor:
    """(B, H, L, L) without what is behind a token, with D (H,) on the diagonal."""
    matrix = matrix.tril()
    if D is None:
        return matrix
    own = torch.eye(matrix.shape[2], dtype=matrix.dtype, device=matrix.device)
    return matrix + D.to(matrix.dtype).view(-1, 1, 1) * own
