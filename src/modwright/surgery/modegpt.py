"""MoDeGPT (arXiv 2408.09632): narrows three pairs of matrices in every block, without training.

Each pair gets the classical decomposition that its non-linearity allows, from second moments of the
activations: the MLP a Nyström approximation, queries and keys a selection of columns, values and
outputs a singular value decomposition. The width of the residual stream stays.

Axes (torch layout, weights [out, in]): d hidden_size, I neurons, H query heads, K key/value heads,
G = H / K, D channels of a head, k kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor

from modwright.anatomy import Anatomy, Attention, Block, Projection
from modwright.anatomy.views import Sublayer
from modwright.calibration import Collector, SecondMoments, Statistics
from modwright.core.errors import InvalidInputError, unknown_name
from modwright.core.progress import SILENT, Progress
from modwright.edits import Change, Plan, replace_attention
from modwright.surgery.decompositions import (
    allocate_sparsity,
    folded_bias,
    moment_roots,
    narrow_experts,
    narrow_mlp,
    narrow_values,
    nystrom_mlp,
    pick_channels,
    select_query_key,
    select_rotary_pairs,
    spread,
    take_channels,
    value_output,
)
from modwright.surgery.method import Data, Decision, Folder, Method, Requirements, register_method

__all__ = ["MoDeGpt", "allocate_sparsity", "moment_roots", "nystrom_mlp", "select_query_key"]
__all__ += ["select_rotary_pairs", "value_output"]

Pair = Literal["mlp", "query_key", "value_output"]
Allocation = Literal["global", "uniform"]
Sharing = Literal["joint", "two_step"]
ExpertTokens = Literal["routed", "all"]
PAIRS: tuple[Pair, ...] = get_args(Pair)


@register_method(
    "modegpt",
    paper="modegpt",
    requires=Requirements(calibration=True, parts=("attention", "mlp")),
    examples=(
        {"sparsity": 0.3, "round_to": 1},
        {"sparsity": 0.3, "allocation": "uniform"},  # all layers alike, qk and v of one width
        {"sparsity": 0.3, "pairs": ["mlp", "value_output"]},
        {"sparsity": 0.4, "pairs": ["query_key", "value_output"], "shared_values": "two_step"},
    ),
)
@dataclass(frozen=True)
class MoDeGpt(Method):
    """Narrows MLPs and attention heads inside, keeping what the activations use; no training.

    Attributes:
        sparsity: average share of the inner widths that goes, in [0, 1).
        pairs: which of "mlp", "query_key", "value_output".
        allocation: "global" gives layers that change the stream little more sparsity; "uniform"
            treats all alike.
        epsilon: of the global allocation; large is even.
        max_sparsity: the most that a layer loses.
        shared_values: where query heads share a value, "joint" is the optimum over all of them;
            "two_step" is the paper's.
        ridge_mlp: in the leverage scores of the neurons.
        ridge_vo: on the eigenvalues of the attention input's moments.
        min_head_dim: heads keep at least this many channels.
        round_to: MLP widths are multiples of this; odd widths are slow on most machines.
        expert_tokens: in a mixture of experts, an expert learns from the tokens that are "routed"
            to it, or from "all".
    """

    sparsity: float = 0.2
    pairs: tuple[Pair, ...] = PAIRS
    allocation: Allocation = "global"
    epsilon: float = 0.1
    max_sparsity: float = 0.8
    shared_values: Sharing = "joint"
    ridge_mlp: float = 1e-2
    ridge_vo: float = 1e-4
    min_head_dim: int = 2
    round_to: int = 8
    expert_tokens: ExpertTokens = "routed"

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise InvalidInputError(f"sparsity {self.sparsity} must lie in [0, 1)")
        self._check_choices()
        for pair in self.pairs:
            if pair not in PAIRS:
                raise unknown_name("pair", pair, PAIRS)
        if not self.pairs or len(set(self.pairs)) != len(self.pairs):
            raise InvalidInputError(
                f"pairs must name each of {', '.join(PAIRS)} at most once, and at least one"
            )
        if self.min_head_dim < 1 or self.round_to < 1:
            raise InvalidInputError("min_head_dim and round_to must be at least 1")
        if self.ridge_mlp <= 0 or self.ridge_vo <= 0:
            raise InvalidInputError("ridges must be positive")
        allocate_sparsity([0.0], self.sparsity, self.epsilon, self.max_sparsity)

    def title(self) -> str:
        names = {"mlp": "MLP", "query_key": "query/key", "value_output": "value/output"}
        return f"MoDeGPT {self.sparsity:.0%} of {', '.join(names[pair] for pair in self.pairs)}"

    def wants_data(self) -> bool:
        """A sparsity of zero changes nothing."""
        return self.sparsity > 0

    def collectors(self) -> list[Collector]:
        """Second moments of what the narrowed maps read."""
        every, mlp = self.expert_tokens == "all", "mlp" in self.pairs
        return [SecondMoments(attention=self._narrows_heads(), mlp=mlp, all_tokens=every)]

    def _narrows_heads(self) -> bool:
        return "query_key" in self.pairs or "value_output" in self.pairs

    def parameter_bounds(self, anatomy: Anatomy) -> tuple[int, int]:
        """The sparsity's share of the narrowed maps, wherever it goes, give or take rounding."""
        self._refuse(anatomy)
        if not self.wants_data():
            return 0, 0
        layers = [list(self._narrowed(block)) for block in anatomy.blocks]
        cap = self.sparsity if self.allocation == "uniform" else self.max_sparsity
        sizes = sorted(sum(size for size, _, _ in layer) for layer in layers)
        budget = self.sparsity * len(sizes)
        fewest = spread(sizes, budget, cap) - sum(less for layer in layers for _, less, _ in layer)
        most = spread(sizes[::-1], budget, cap) + sum(m for layer in layers for _, _, m in layer)
        return max(0, math.floor(fewest)), min(sum(sizes), math.ceil(most))

    def _narrowed(self, block: Block) -> Iterator[tuple[int, float, float]]:
        """Parameters of each pair of maps; how many less or more than its share may go."""
        mlp, attention = block.mlp, block.attention
        if mlp is not None and "mlp" in self.pairs:
            size = sum(p.num_parameters for p in mlp.projections().values())
            neuron = size / mlp.intermediate_size
            yield size, neuron * self.round_to, neuron * (self.round_to / 2 + 1)
        if attention is not None and "query_key" in self.pairs:
            size = attention.q.num_parameters + attention.k.num_parameters
            channel = size / attention.shape.qk_head_dim
            yield size, channel * (self.min_head_dim + 1), channel * 2
        if attention is not None and "value_output" in self.pairs:
            size = attention.v.num_parameters + attention.o.num_parameters
            channel = size / attention.shape.v_head_dim
            yield size, channel * self.min_head_dim, channel
            if attention.v.bias is not None:  # it moves into the output's bias
                yield 0, attention.o.out_features, attention.v.bias.numel()

    def memory_estimate(self, anatomy: Anatomy) -> tuple[int, int]:
        """Memory of the solve in the largest block, and of all new values; beside the weights.

        A block's moments are loaded, and beside them stand up to 4 matrices of the MLP's size in
        the Nyström approximation or 4.5 of the stream's in the roots. Solved factors are float64.
        """
        if not self.wants_data():
            return 0, 0
        (collector,) = self.collectors()
        solve = values = 0
        for block in anatomy.blocks:
            mlp, attention = block.mlp, block.attention
            square = 0.0
            if mlp is not None and "mlp" in self.pairs:
                square = 4.0 * mlp.intermediate_size**2
                values += sum(
                    _value_bytes(p, exact=role in mlp.writes_residual)
                    for role, p in mlp.projections().items()
                )
            if attention is not None and self._narrows_heads():
                square = max(square, 4.5 * attention.shape.hidden_size**2)
                exact = "value_output" in self.pairs
                values += sum(_value_bytes(p, exact) for p in (attention.v, attention.o))
                values += sum(_value_bytes(p) for p in (attention.q, attention.k))
            solve = max(solve, collector.bytes(block) + int(8 * square))
        return solve, values

    def _found(self, anatomy: Anatomy, data: Data, folder: Folder, progress: Progress) -> Decision:
        """Collects second moments, spreads the sparsity, and solves every block."""
        self._refuse(anatomy)
        if not self.wants_data():
            return Change(), {"sparsity": []}, ()
        statistics = self._measured(anatomy, data, folder, progress, "second moments")
        return self._from(anatomy, statistics, progress)

    def plan_from(
        self, anatomy: Anatomy, statistics: Statistics, *, progress: Progress = SILENT
    ) -> Plan:
        """Decides from second moments that are there already (of these pairs, or of more)."""
        self._refuse(anatomy)
        return self._planned(anatomy, self._from(anatomy, statistics, progress))

    def _from(self, anatomy: Anatomy, statistics: Statistics, progress: Progress) -> Decision:
        influence = statistics.column("grams/influence")
        sparsity = (
            [self.sparsity] * len(influence)
            if self.allocation == "uniform"
            else allocate_sparsity(influence, self.sparsity, self.epsilon, self.max_sparsity)
        )
        change = Change()
        told: list[dict[str, Any]] = []
        with progress.phase("decompose", len(anatomy.blocks)) as task:
            for block, share in zip(anatomy.blocks, sparsity):
                part, reasons = self._solve(block, statistics[block.index], share)
                change += part
                told.append(reasons)
                task.advance()
        reasons = {
            "influence": influence,
            "sparsity": sparsity,
            "blocks": told,
            "calibration": statistics.recipe["data"],
            "meaning": "influence is one minus the mean cosine between a block's input and output",
        }
        notes = tuple(self._notes(anatomy, statistics)) if "mlp" in self.pairs else ()
        return change, reasons, notes

    def _refuse(self, anatomy: Anatomy) -> None:
        known = [block.attention or block.mlp for block in anatomy.blocks]
        if anatomy.blocks and not any(known):
            raise InvalidInputError(
                f"modegpt: no block of this {anatomy.config.model_type} has an attention or an MLP "
                "whose maps are known"
            )
        whole = self._kept_whole(anatomy)
        if whole and "mlp" not in self.pairs and not any(b.attention for b in anatomy.blocks):
            raise InvalidInputError(
                f"modegpt: {whole.address}: heads cannot be narrowed: {whole.blocker}"
            )
        for block in anatomy.blocks:
            attention, mlp = block.attention, block.mlp
            if "mlp" in self.pairs and mlp is not None and mlp.routed is not None:
                raise InvalidInputError(
                    f"modegpt: {mlp.address} is split into {mlp.num_experts} experts; merge them "
                    "first, or leave mlp out of pairs"
                )
            if "mlp" in self.pairs and mlp is not None and not mlp.separable:
                raise InvalidInputError(
                    f"modegpt: {mlp.address} normalizes over its neurons ({mlp.activation}), so "
                    "taking some away changes all others; leave mlp out of pairs"
                )
            if attention is None or "query_key" not in self.pairs:
                continue
            if attention.q_norm is not None:
                raise InvalidInputError(
                    f"modegpt: {attention.address} normalizes its queries, so taking channels away "
                    "changes all others; leave query_key out of pairs"
                )
            if attention.shape.rotary_dim and attention.shape.qk_head_dim % 2:
                raise InvalidInputError(
                    f"modegpt: {attention.address} has an odd number of rotary channels"
                )

    def _kept_whole(self, anatomy: Anatomy) -> Sublayer | None:
        """The first attention that it would narrow and that cannot be."""
        mixers = (block.at("attention") for block in anatomy.blocks if self._narrows_heads())
        return next((m for m in mixers if m is not None and m.blocker), None)

    def _notes(self, anatomy: Anatomy, statistics: Statistics) -> Iterator[str]:
        if (whole := self._kept_whole(anatomy)) is not None:
            yield f"Heads of {whole.address} and its like stay as they are: {whole.blocker}."
        tokens = int(statistics[0]["grams/tokens"])
        widest = max((b.mlp.intermediate_size for b in anatomy.blocks if b.mlp), default=0)
        if tokens < widest:
            yield (
                f"{tokens} calibration tokens are fewer than the {widest} neurons of an MLP: their "
                "second moments do not have full rank. Use more text."
            )
        told = [
            f"{block.mlp.address} expert {i} ({count})"
            for block in anatomy.blocks
            if block.mlp is not None and block.mlp.neurons.num_experts is not None
            for i, count in enumerate(statistics[block.index]["grams/expert_tokens"].tolist())
            if count < block.mlp.intermediate_size
        ]
        if told:
            more = f" and {len(told) - 8} more" if len(told) > 8 else ""
            yield (
                f"Experts that saw fewer tokens than they have neurons: {', '.join(told[:8])}{more}"
                ". Use more text, or expert_tokens='all'."
            )

    def _solve(
        self, block: Block, moments: Mapping[str, Tensor], share: float
    ) -> tuple[Change, dict[str, Any]]:
        change, reasons = Change(), {"sparsity": share}
        if block.mlp is not None and "mlp" in self.pairs:
            part, told = self._inner(block.mlp, moments, share)
            change += part
            reasons |= told
        if block.attention is not None and self._narrows_heads():
            part, told = self._attention(
                block.attention, moments["grams/attention"], moments["grams/attention_mean"], share
            )
            change += part
            reasons |= told
        return change, reasons

    def _inner(
        self, part: Any, moments: Mapping[str, Tensor], share: float
    ) -> tuple[Change, dict[str, Any]]:
        size = part.neurons.size
        keep = int(size * (1 - share))
        keep = min(size, max(self.round_to, round(keep / self.round_to) * self.round_to))
        if keep == size:
            return Change(), {"intermediate_size": size}
        if part.neurons.num_experts is None:
            return narrow_mlp(part, moments["grams/mlp"], keep, self.ridge_mlp)
        tokens = moments["grams/expert_tokens"]
        return narrow_experts(part, moments["grams/mlp"], tokens, keep, self.ridge_mlp)

    def _head_dim(self, size: int, share: float, even: bool) -> int:
        keep = int(size * (1 - share))
        if even:
            keep -= keep % 2
        return min(size, max(keep, self.min_head_dim + (even and self.min_head_dim % 2)))

    def _attention(
        self, attention: Attention, moments: Tensor, mean: Tensor, share: float
    ) -> tuple[Change, dict[str, Any]]:
        shape = attention.shape
        new: dict[str, Any] = {}
        biases: dict[str, Tensor | None] = {}
        told: dict[str, Any] = {}
        if "query_key" in self.pairs:
            keep = self._head_dim(shape.qk_head_dim, share, even=shape.rotary_dim > 0)
            told["qk_head_dim"] = keep
            if keep < shape.qk_head_dim:
                index = pick_channels(attention, moments, mean, keep)
                new |= take_channels(attention, index)
                rows = {"q": index[attention.kv_of_head()], "k": index}
                for role, bias in (("q", attention.q.bias), ("k", attention.k.bias)):
                    if bias is not None:
                        heads = bias.view(-1, shape.qk_head_dim)
                        biases[role] = heads.gather(1, rows[role].to(bias.device))
        if "value_output" in self.pairs:
            keep = self._head_dim(shape.v_head_dim, share, even=False)
            told["v_head_dim"] = keep
            if keep < shape.v_head_dim:
                joint = self.shared_values == "joint"
                value, output, error = narrow_values(attention, moments, keep, self.ridge_vo, joint)
                new |= {"v": value, "o": output}
                told["value_output_error"] = error
                biases |= folded_bias(attention)
        if not new:
            return Change(), told
        return replace_attention(attention, **new, biases=biases), told


def _value_bytes(projection: Projection, exact: bool = False) -> int:
    """Of a map's new values: ``exact`` ones are float64, others only picked from the old."""
    item = 8 if exact else next(projection.module.parameters()).element_size()
    return item * projection.num_parameters
