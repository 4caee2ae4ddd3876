"""MoDeGPT's first step on a mixture of experts: each expert keeps neurons of its own.

Axes: d hidden_size, E experts, I neurons of an expert, k kept; all experts of a layer keep as many.
"""

from __future__ import annotations

from torch import Tensor

from modwright.anatomy import MixtureOfExperts
from modwright.core.errors import InvalidInputError
from modwright.edits import Change
from modwright.edits.mixtures import replace_mixture
from modwright.surgery.decompositions import nystrom_mlp

__all__ = ["narrow_experts", "undersampled"]


def narrow_experts(
    mixture: MixtureOfExperts, moments: Tensor, tokens: Tensor, keep: int, ridge: float
) -> tuple[Change, list[Tensor], list[Tensor]]:
    """A Nyström approximation of every expert from the tokens that it works on.

    Args:
        moments: (E, I, I), each expert's over its own tokens.
        tokens: (E,): how many those were.
        keep: neurons that each expert keeps.
        ridge: in the leverage scores.

    Returns:
        The change; the neurons (k,) and the new down projection (d, k) of each expert.

    Raises:
        InvalidInputError: an expert saw no token, so nothing is known of it.
    """
    unseen = [str(i) for i, count in enumerate(tokens.tolist()) if not count]
    if unseen:
        raise InvalidInputError(
            f"{mixture.address}: no calibration token reached expert {', '.join(unseen)}; use more "
            "text, or expert_tokens='all'"
        )
    solved = [
        nystrom_mlp(expert.down.weight, moments[i], keep, ridge)
        for i, expert in enumerate(mixture.experts)
    ]
    pairs = list(zip(mixture.experts, (index for index, _ in solved)))
    change = replace_mixture(
        mixture,
        [expert.gate.weight[index] for expert, index in pairs],
        [expert.up.weight[index] for expert, index in pairs],
        [down for _, down in solved],
    )
    return change, [index for index, _ in solved], [down for _, down in solved]


def undersampled(mixture: MixtureOfExperts, tokens: Tensor) -> list[str]:
    """The experts that saw fewer tokens than they have neurons, with how many they saw."""
    return [
        f"{mixture.address} expert {i} ({count})"
        for i, count in enumerate(tokens.tolist())
        if count < mixture.intermediate_size
    ]
