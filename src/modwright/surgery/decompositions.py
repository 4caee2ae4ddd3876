"""Decompositions of the matrix pairs of a block from second moments, and how much of each goes.

Axes (torch layout, weights [out, in]): d hidden_size, I neurons, N experts, H query heads, K
key/value heads, G query heads that share a key and a value, D channels of a head, k kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from modwright.anatomy import Attention, MixtureOfExperts, Mlp
from modwright.core.errors import InvalidInputError
from modwright.edits import Change, replace_mixture, replace_mlp

__all__ = ["allocate_sparsity", "folded_bias", "moment_roots", "narrow_experts", "narrow_mlp"]
__all__ += ["narrow_values", "nystrom_mlp", "pick_channels", "select_query_key"]
__all__ += ["select_rotary_pairs", "spread", "take_channels", "value_output"]


def allocate_sparsity(
    scores: Sequence[float], target: float, epsilon: float = 0.1, max_sparsity: float = 0.8
) -> list[float]:
    """Spreads an average sparsity over layers: much where a layer matters little.

    Maximizes the kept importance plus ``epsilon`` times the entropy of the spread, under a cap:
    layers over it are set to it, and their excess goes to the others in proportion to their weight.

    ``scores`` are the importance of each layer: 1 - mean cosine of its input and output.

    Example:
        >>> [round(s, 3) for s in allocate_sparsity([0.5, 0.1, 0.1], 0.2)]
        [0.005, 0.297, 0.297]
    """
    if not 0 <= target < 1:
        raise InvalidInputError(f"sparsity {target} must lie in [0, 1)")
    if not 0 < max_sparsity < 1:
        raise InvalidInputError(f"max_sparsity {max_sparsity} must lie between 0 and 1")
    if target > max_sparsity:
        raise InvalidInputError(
            f"sparsity {target} cannot be reached with at most {max_sparsity} a layer"
        )
    if epsilon <= 0:
        raise InvalidInputError(f"epsilon {epsilon} must be positive")
    weights = (-torch.tensor(scores, dtype=torch.float64) / epsilon).softmax(0)
    total = len(scores) * target
    capped = torch.zeros(len(scores), dtype=torch.bool)
    sparsity = torch.zeros(len(scores), dtype=torch.float64)
    # Every pass caps at least one more layer, so this ends.
    for _ in range(len(scores) + 1):
        free = ~capped
        left = total - max_sparsity * int(capped.sum())
        sparsity[capped] = max_sparsity
        share = weights[free].sum()
        if not bool(free.any()) or left <= 0:
            sparsity[free] = 0.0
            break
        even = torch.full_like(weights[free], 1 / int(free.sum()))
        sparsity[free] = left * (weights[free] / share if float(share) > 0 else even)
        over = sparsity > max_sparsity
        if not bool((over & free).any()):
            break
        capped |= over
    return [float(s) for s in sparsity]


def spread(sizes: Sequence[int], budget: float, cap: float) -> float:
    """What goes when the first sizes take as much of the budget as the cap allows."""
    gone = 0.0
    for size in sizes:
        share = min(cap, budget)
        gone += share * size
        budget -= share
    return gone


def nystrom_mlp(
    down: Tensor, moments: Tensor, keep: int, ridge: float = 1e-2, jitter: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """Chooses neurons by ridge leverage and lets the kept ones stand in for the rest.

    ``moments`` (I, I) are those of the input of ``down`` (d, I), float64; ``jitter`` on the
    diagonal of the kept ones is multiplied by 10 until they factorize. Returns the kept neurons in
    order (k,), and the new down weights (d, k).
    """
    inverse = torch.cholesky_inverse(_cholesky(moments, 0.0, ridge))
    # Leverage is 1 - ridge * diag(inverse): the largest leverages are the smallest entries.
    index = inverse.diagonal().argsort(stable=True)[:keep].sort().values
    del inverse  # of the size of the moments, which are the largest thing in memory
    factor = _cholesky(moments[index][:, index], jitter)
    mixing = torch.cholesky_solve(moments[index], factor)  # (k, I)
    return index, down.to(moments) @ mixing.T


def _cholesky(matrix: Tensor, jitter: float, ridge: float = 0.0) -> Tensor:
    """The Cholesky factor with ``ridge`` on the diagonal, and as much more as makes one exist."""
    for _ in range(12):
        raised = matrix.clone()
        raised.diagonal().add_(ridge).add_(jitter)
        factor, failed = torch.linalg.cholesky_ex(raised)
        if not int(failed):
            return factor
        jitter = max(jitter * 10, 1e-12)
    raise InvalidInputError(
        "the activations' second moments are not positive; is the calibration text empty?"
    )


def select_query_key(q_moments: Tensor, k_moments: Tensor, keep: int) -> Tensor:
    """Channels that carry the scores, for heads without rotary positions; the best come first.

    ``q_moments`` (G, D) and ``k_moments`` (D,) are second moments of a key and of the queries that
    share it.
    """
    scores = (q_moments * k_moments).sum(0).sqrt()
    return scores.argsort(descending=True, stable=True)[:keep]


def select_rotary_pairs(q_moments: Tensor, k_moments: Tensor, keep: int, pairs: Tensor) -> Tensor:
    """The first channels of the best rotary pairs, best first, then their partners: (keep,).

    A pair turns together. ``keep`` is even; ``pairs`` (D/2, 2) says which channels belong together.
    """
    each = (q_moments * k_moments).sum(0)  # (D,)
    scores = each[pairs].sum(1).sqrt()
    best = pairs[scores.argsort(descending=True, stable=True)[: keep // 2]]
    return torch.cat((best[:, 0], best[:, 1]))


def value_output(
    value: Tensor,
    output: Tensor,
    root: Tensor,
    inverse_root: Tensor,
    keep: int,
    joint: bool = True,
) -> tuple[Tensor, Tensor, float]:
    """The best value and output maps of a lower rank, for one key/value head.

    Args:
        value: (D, d). output: (G, D, d) of the query heads that share it.
        root, inverse_root: (d, d) from :func:`moment_roots` of what the values read.
        joint: one decomposition of the value and all outputs, which is optimal. False: of the value
            alone, as the paper has it for shared values.

    Returns:
        New value (keep, d), new outputs (G, keep, d), and the squared error.
    """
    groups, _, width = output.shape
    u, s, vh = torch.linalg.svd(root @ value.T, full_matrices=False)  # (d, D), (D,), (D, D)
    inner = s[:, None] * vh  # (D, D)
    if joint:
        mixed = inner @ output.transpose(0, 1).reshape(value.shape[0], -1)  # (D, G d)
        u2, s2, vh2 = torch.linalg.svd(mixed, full_matrices=False)
        new_value = (inverse_root @ u @ u2[:, :keep]).T
        new_output = (s2[:keep, None] * vh2[:keep]).view(keep, groups, width).transpose(0, 1)
        error = s2[keep:].square().sum()
    else:
        new_value = (inverse_root @ u[:, :keep]).T
        new_output = inner[:keep] @ output
        error = (inner[keep:] @ output).square().sum()
    return new_value, new_output, float(error)


def moment_roots(moments: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Square root and inverse square root of second moments (d, d), ``ridge`` on eigenvalues."""
    values, vectors = torch.linalg.eigh(moments)
    root = (values.clamp(min=0) + ridge).sqrt()
    return (vectors * root) @ vectors.T, (vectors / root) @ vectors.T


def narrow_mlp(mlp: Mlp, moments: Tensor, keep: int, ridge: float) -> tuple[Change, dict[str, Any]]:
    """Keeps ``keep`` neurons, and the down map that makes up best for the others."""
    index, down = nystrom_mlp(mlp.down.weight, moments, keep, ridge)
    gate = mlp.gate
    change = replace_mlp(
        mlp,
        up=mlp.up.weight[index],
        down=down,
        gate=None if gate is None else gate.weight[index],
        up_bias=None if mlp.up.bias is None else mlp.up.bias[index],
        gate_bias=None if gate is None or gate.bias is None else gate.bias[index],
    )
    error = nystrom_error(mlp.down.weight.to(moments), moments, index, down)
    return change, {"intermediate_size": keep, "mlp_error": error}


def narrow_experts(
    mixture: MixtureOfExperts, moments: Tensor, tokens: Tensor, keep: int, ridge: float
) -> tuple[Change, dict[str, Any]]:
    """The same for each expert, from moments (N, I, I) of the ``tokens`` (N,) that reach it."""
    unseen = [str(i) for i, count in enumerate(tokens.tolist()) if not count]
    if unseen:
        raise InvalidInputError(
            f"{mixture.address}: no calibration token reached expert {', '.join(unseen)}; use more "
            "text, or expert_tokens='all'"
        )
    gates, ups, downs, errors = [], [], [], []
    for expert, own in zip(mixture.experts, moments):
        index, down = nystrom_mlp(expert.down.weight, own, keep, ridge)
        gates.append(expert.gate.weight[index])
        ups.append(expert.up.weight[index])
        downs.append(down)
        errors.append(nystrom_error(expert.down.weight.to(own), own, index, down))
    told = {"intermediate_size": keep, "mlp_error": sum(errors) / len(errors)}
    each = {"expert_errors": errors, "expert_tokens": tokens.tolist()}
    return replace_mixture(mixture, gates, ups, downs), {**told, **each}


def pick_channels(attention: Attention, moments: Tensor, mean: Tensor, keep: int) -> Tensor:
    """(K, keep) channels for each key/value head."""
    q_moments = _channel_moments(attention.read_q(), attention.q.bias, moments, mean)
    k_moments = _channel_moments(attention.read_k(), attention.k.bias, moments, mean)
    owner = attention.kv_of_head().cpu()
    picked = []
    for head in range(attention.num_kv_heads):
        q_here, k_here = q_moments[owner == head], k_moments[head]
        if attention.shape.rotary_dim:
            pairs = _channel_pairs(attention, (q_here * k_here).sum(0))
            picked.append(select_rotary_pairs(q_here, k_here, keep, pairs))
        else:
            picked.append(select_query_key(q_here, k_here, keep).sort().values)
    return torch.stack(picked)


def narrow_values(
    attention: Attention, moments: Tensor, keep: int, ridge: float, jointly: bool
) -> tuple[Tensor, Tensor, float]:
    """Values (K, keep, d) and outputs (H, keep, d) of fewer channels, and the error they make."""
    root, inverse_root = moment_roots(moments, ridge)
    values, outputs = attention.read_v().to(moments), attention.read_o().to(moments)
    owner = attention.kv_of_head().cpu()
    new_values = []
    new_outputs = torch.empty(len(owner), keep, outputs.shape[-1], dtype=torch.float64)
    error = 0.0
    for head, value in enumerate(values):
        mine = owner == head
        joint = jointly or int(mine.sum()) <= 1
        new_value, new_outputs[mine], lost = value_output(
            value, outputs[mine], root, inverse_root, keep, joint
        )
        new_values.append(new_value)
        error += lost
    return torch.stack(new_values), new_outputs, error


def nystrom_error(down: Tensor, moments: Tensor, index: Tensor, new_down: Tensor) -> float:
    """Mean squared error of the MLP's output, from the moments alone."""
    wide = torch.zeros_like(down)
    wide[:, index] = new_down.to(down.dtype)
    off = down - wide
    return float(((off @ moments) * off).sum())


def _channel_moments(weight: Tensor, bias: Tensor | None, moments: Tensor, mean: Tensor) -> Tensor:
    """(heads, D): mean square of every channel of x W^T + b, from the moments of x."""
    w = weight.to(moments)
    square = ((w @ moments) * w).sum(-1)
    if bias is not None:
        b = bias.to(moments).view(w.shape[:2])
        square = square + 2 * b * (w @ mean) + b.square()
    return square.clamp(min=0)


def _channel_pairs(attention: Attention, scores: Tensor) -> Tensor:
    """(D/2, 2): channels that turn together; the others are paired in the order of their scores."""
    width = attention.shape.qk_head_dim
    turns = width if attention.shape.rotary_gather else attention.shape.rotary_dim
    first = torch.arange(turns // 2)
    turning = torch.stack((first, first + turns // 2), dim=1)
    rest = torch.arange(turns, width)
    by_score = rest[scores[rest].argsort(descending=True, stable=True)]
    return torch.cat((turning, by_score.view(-1, 2)))


def take_channels(attention: Attention, index: Tensor) -> dict[str, Tensor]:
    """Queries and keys with the channels ``index`` (K, keep), and the rotary channel of each."""
    q, k = attention.read_q(), attention.read_k()
    index = index.to(q.device)
    per_query = index[attention.kv_of_head()]
    new = {
        "q": q.gather(1, per_query[..., None].expand(-1, -1, q.shape[-1])),
        "k": k.gather(1, index[..., None].expand(-1, -1, k.shape[-1])),
    }
    rotary = attention.rotary_index()
    if rotary is not None:
        new["rotary_index"] = rotary.gather(1, index)
    return new


def folded_bias(attention: Attention) -> dict[str, Tensor | None]:
    """The value bias moved into the output bias: attention weights sum to one, so that is exact."""
    bias = attention.v.bias
    if bias is None:
        return {}
    shape = attention.shape
    per_head = bias.double().view(shape.num_kv_heads, -1)[attention.kv_of_head()]  # (H, D)
    moved = torch.einsum("hd,hde->e", per_head, attention.read_o().double())
    if attention.o.bias is not None:
        moved = moved + attention.o.bias.double()
    return {"v": None, "o": moved}
