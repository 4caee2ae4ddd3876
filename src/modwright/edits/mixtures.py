"""Structural changes to a mixture of experts: fewer experts, or narrower ones.

Axes: d hidden_size, E experts, I neurons of one expert, k of them kept.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from modwright.anatomy import MixtureOfExperts
from modwright.core.errors import InvalidInputError, refusing
from modwright.edits.change import Change, keep_neurons, require_separable
from modwright.edits.edit import Replace
from modwright.edits.indices import checked_index
from modwright.nn import MixtureShape

__all__ = ["keep_expert_neurons", "keep_experts", "replace_mixture"]


def replace_mixture(
    mixture: MixtureOfExperts,
    gate: Sequence[Tensor],
    up: Sequence[Tensor],
    down: Sequence[Tensor],
    router: Tensor | None = None,
    top_k: int | None = None,
) -> Change:
    """Gives a mixture new experts, all of one width k.

    Args:
        gate, up: one (k, d) per expert.
        down: one (d, k) per expert.
        router: (E, d); None for the one that stands there.
        top_k: experts of a position; None for as many as before.

    Raises:
        InvalidInputError: widths or counts that do not go together, or a loss that counts on equal
            layers.
    """
    scores = mixture.router.weight if router is None else router
    widths = {len(m) for m in (*gate, *up)} | {m.shape[1] for m in down}
    if len(widths) != 1 or not len(gate) == len(up) == len(down) == len(scores):
        raise InvalidInputError(
            f"{mixture.address}: all experts must have one width, and the router a row for each; "
            f"widths {sorted(widths)}, {len(down)} experts, {len(scores)} rows"
        )
    if widths != {mixture.intermediate_size}:
        require_separable(mixture)
    with refusing(mixture.address):
        shape = MixtureShape(
            mixture.hidden_size,
            widths.pop(),
            len(scores),
            mixture.top_k if top_k is None else top_k,
            mixture.activation,
        )
    tensors = {f"{mixture.address}.router.weight": scores}
    for index, maps in enumerate(zip(gate, up, down)):
        for role, weight in zip(("gate", "up", "down"), maps):
            tensors[f"{mixture.address}.experts.{index}.{role}.weight"] = weight
    return Change((Replace(mixture.address, "mixture", shape.to_dict()),), tensors)


def keep_experts(mixture: MixtureOfExperts, index: Sequence[int] | Tensor) -> Change:
    """Keeps the experts ``index``, in that order; positions choose among those that are left.

    Raises:
        InvalidInputError: fewer are left than work on a position.
    """
    kept = checked_index(index, mixture.num_experts, f"{mixture.address}: experts")
    if len(kept) < mixture.top_k:
        raise InvalidInputError(
            f"{mixture.address}: {mixture.top_k} experts work on a position, so at least as many "
            f"must stay; {len(kept)} were asked for"
        )
    chosen = [mixture.experts[i] for i in kept.tolist()]
    return replace_mixture(
        mixture,
        [expert.gate.weight for expert in chosen],
        [expert.up.weight for expert in chosen],
        [expert.down.weight for expert in chosen],
        mixture.router.weight[kept],
    )


def keep_expert_neurons(
    mixture: MixtureOfExperts, index: Sequence[Sequence[int] | Tensor] | Tensor
) -> Change:
    """Narrows every expert to its own neurons ``index`` (E, k); nothing makes up for the rest."""
    count = len(index) if isinstance(index, Sequence) or getattr(index, "ndim", 0) == 2 else 0
    if count != mixture.num_experts:
        raise InvalidInputError(
            f"{mixture.address}: neurons of {count} experts; there are {mixture.num_experts}"
        )
    size = mixture.intermediate_size
    rows = [
        checked_index(one, size, f"{mixture.address}: neurons of expert {i}")
        for i, one in enumerate(index)
    ]
    experts = mixture.experts
    return replace_mixture(
        mixture,
        [expert.gate.weight[row] for expert, row in zip(experts, rows)],
        [expert.up.weight[row] for expert, row in zip(experts, rows)],
        [expert.down.weight[:, row] for expert, row in zip(experts, rows)],
    )


@keep_neurons.register
def _(mixture: MixtureOfExperts, index: Sequence[int] | Tensor) -> Change:
    return keep_expert_neurons(mixture, [index] * mixture.num_experts)
