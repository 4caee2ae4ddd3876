"""EMoE (arXiv 2310.10908): experts that a dense model has in it already, and the way back.

The neurons of an MLP are grouped by clustering their keys, the rows of its gate map (of its up map,
where there is no gate). Each token then uses the k groups whose keys answer it most on average. No
weight is new and none changes, so the model is fine-tuned in this form and merged back afterwards.

Axes: d hidden_size, I neurons, N experts, k of them for each token.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.nn import functional as F

from modwright.anatomy import Anatomy, Mlp, pick_layers
from modwright.anatomy.views import Sublayer
from modwright.core.errors import InvalidInputError
from modwright.core.progress import Progress
from modwright.edits import Change, Replace, expert_shape, merge_experts, split_mlp
from modwright.edits.canonical import target_of
from modwright.edits.registry import activation
from modwright.nn import ExpertShape
from modwright.surgery.clustering import inertia, split_evenly
from modwright.surgery.method import Decision, Requirements, WithoutData, register_method

__all__ = ["Emoe", "EmoeMerge"]

Score = Literal["gate", "avg_key", "up", "up_abs", "inter", "inter_abs"]
Selection = Literal["top", "bottom", "not_top"]
Mode = Literal["mask", "dispatch"]
Cluster = Literal["kmeans", "contiguous", "random"]


@register_method(
    "emoe",
    paper="emoe",
    requires=Requirements(parts=("mlp",)),
    examples=(
        {"num_experts": 8, "top_k": 2},
        {"num_experts": 12, "top_k": 3, "layers": "all", "score": "avg_key", "weigh_keys": True},
        {"num_experts": 6, "top_k": 2, "layers": [0, -1], "score": "inter_abs", "seed": 1},
    ),
)
@dataclass(frozen=True)
class Emoe(WithoutData):
    """Splits MLPs into experts by clustering their neurons; a token uses the best k of them.

    Attributes:
        num_experts: N groups of equal size; divides the neurons.
        top_k: k experts that a token uses, with weight one each.
        layers: "last_even", the paper's last two even layers, is the default; "all"; or layers as
            in "16::4" or a list.
        score: what is averaged over an expert's neurons to rank it: pre-activations of the "gate"
            or the "up" map, their size "up_abs", what the down map reads, "inter", its size
            "inter_abs". In an MLP without a gate, "gate" means "up". "avg_key" ranks as "gate"
            does, with the mean keys stored beside the weights.
        selection: "top"; "bottom" or "not_top" (all but the best k) for comparison.
        mode: "mask" computes all neurons and silences the others, for training; "dispatch" computes
            only the chosen ones, for running.
        cluster: "kmeans"; "contiguous" or "random" groups for comparison.
        seed: of the clustering.
        normalize_keys: with avg_key: mean keys have length one.
        weigh_keys: with avg_key: a key counts in the mean as much as its neuron's down column is
            long.
        capacity: in training, an expert serves at most k int(capacity ceil(T / N)) of T tokens.

    Example:
        >>> import modwright
        >>> split = modwright.apply(modwright.open("preset:tiny-llama"), Emoe(8, top_k=2))
        >>> modwright.Anatomy.of(split).blocks[2].mlp
        Mlp(blocks.2.mlp: gated, 96 wide, silu, 8 experts of 12, top 2 by gate)
        >>> modwright.apply(split, EmoeMerge()).plain
        True
    """

    num_experts: int = 64
    top_k: int = 16
    layers: str | tuple[int, ...] | None = None
    score: Score = "gate"
    selection: Selection = "top"
    mode: Mode = "mask"
    cluster: Cluster = "kmeans"
    seed: int = 0
    normalize_keys: bool = False
    weigh_keys: bool = False
    capacity: float | None = None

    def __post_init__(self) -> None:
        self._check_choices()
        if self.num_experts < 1:
            raise InvalidInputError(f"num_experts must be at least 1, not {self.num_experts}")
        most = self.num_experts - (self.selection == "not_top")
        if not 1 <= self.top_k <= most:
            raise InvalidInputError(f"top_k {self.top_k} must lie between 1 and {most}")
        if self.layers is not None and not self.layers:
            raise InvalidInputError("layers names no layer; leave it out for the last even ones")

    def title(self) -> str:
        chosen = f"{self.selection.replace('_', ' ')} {self.top_k}"
        return f"split MLPs into {self.num_experts} experts, {chosen} by {self.score}"

    def parameter_bounds(self, anatomy: Anatomy) -> tuple[int, int]:
        """No parameter goes and none is new."""
        self._targets(anatomy)
        return 0, 0

    def memory_estimate(self, anatomy: Anatomy) -> tuple[int, int]:
        """Products of all pairs of an MLP's keys, and the weights in their new order."""
        mlps = [mlp for mlp, _ in self._targets(anatomy)]
        values = [t.numel() * t.element_size() for mlp in mlps for t in mlp.parameters().values()]
        return max(12 * mlp.intermediate_size**2 for mlp in mlps), sum(values)

    def decide(self, anatomy: Anatomy, progress: Progress) -> Decision:
        """Clusters the keys of every chosen MLP and puts its neurons in the order of the groups."""
        targets = self._targets(anatomy)
        change, told = Change(), {}
        with progress.phase("cluster neurons", len(targets)) as task:
            for mlp, shape in targets:
                keys = (mlp.up if mlp.gate is None else mlp.gate).weight  # (I, d)
                labels = split_evenly(keys, self.num_experts, self.cluster, self.seed)
                change += split_mlp(mlp, labels, shape)
                rows = F.normalize(keys.float(), dim=1)
                in_order = split_evenly(rows, self.num_experts, "contiguous")
                told[mlp.address] = {
                    "inertia": round(inertia(rows, labels.to(rows.device)), 4),
                    "in_order": round(inertia(rows, in_order.to(rows.device)), 4),
                }
                task.advance()
        reasons = {
            "layers": told,
            "meaning": (
                "inertia is the sum of squared distances of the keys, scaled to length one, to the "
                "mean of their expert; in_order is that of neighboring neurons"
            ),
        }
        return change, reasons, tuple(self._notes())

    def _targets(self, anatomy: Anatomy) -> list[tuple[Mlp, ExpertShape]]:
        """The MLPs that are split, with the shapes they get; refuses what stands in the way."""
        names = ("score", "selection", "mode", "normalize_keys", "weigh_keys", "capacity")
        routing = {name: getattr(self, name) for name in names}
        found = []
        for index in self._layers(anatomy):
            mlp: Any = anatomy.block(index).mlp
            if mlp is None:
                gone = ", it was removed before" if "mlp" in anatomy.family.block else ""
                raise InvalidInputError(f"emoe: block {index} has no MLP{gone}")
            if mlp.neurons.num_experts is not None:
                raise _has_experts(mlp)
            activation(mlp.activation)
            found.append((mlp, expert_shape(mlp, self.num_experts, self.top_k, **routing)))
            for name, value in mlp.parameters().items():
                if not value.is_meta and not bool(torch.isfinite(value).all()):
                    raise InvalidInputError(
                        f"emoe: {mlp.address}.{name} holds NaN or infinite values"
                    )
        edits = [Replace(m.address, "expert_feed_forward", s.to_dict()) for m, s in found]
        target_of(anatomy, edits)  # what cannot be built is refused here
        return found

    def _layers(self, anatomy: Anatomy) -> list[int]:
        mlps = {b.index: b.mlp.neurons for b in anatomy.blocks if b.mlp is not None}
        there = [index for index, neurons in mlps.items() if neurons.num_experts is None]
        named = {"last_even": [i for i in there if i % 2 == 0][-2:], "all": there}
        if self.layers is None or self.layers in named:
            layers = named[str(self.layers or "last_even")]
            mixture = next((b.mlp for b in anatomy.blocks if b.mlp and b.index not in there), None)
            if not layers and mixture is not None:
                raise _has_experts(mixture)
            if not layers:
                raise InvalidInputError(f"emoe: no MLP stands in {self.layers or 'an even layer'}")
            return layers
        text = self.layers if isinstance(self.layers, str) else ", ".join(map(str, self.layers))
        layers = pick_layers(text, len(anatomy.blocks))
        if len(set(layers)) < len(layers):
            raise InvalidInputError(f"emoe: layers {text!r} names a layer twice")
        return sorted(layers)

    def _notes(self) -> Iterator[str]:
        if self.top_k < self.num_experts:
            yield (
                "A token uses a part of the neurons, so the function changes: the paper fine-tunes "
                "in this form and merges the experts back (emoe_merge)."
            )
        if self.score == "avg_key":
            yield (
                "The mean keys are stored and do not follow the weights: call tie_keys after every "
                "optimizer step (under a Trainer, the callback TieKeys does)."
            )
        if self.mode == "dispatch" and self.score in ("up_abs", "inter", "inter_abs"):
            yield (
                f"The score {self.score} needs every neuron, so dispatch computes them all to "
                "choose; avg_key, gate and up do not."
            )


@register_method(
    "emoe_merge",
    paper="emoe",
    requires=Requirements(parts=("mlp",)),
    after=("emoe", {"num_experts": 8, "top_k": 2}),
)
@dataclass(frozen=True)
class EmoeMerge(WithoutData):
    """Merges the experts of every split MLP back into an ordinary one that uses all neurons.

    Attributes:
        restore_order: neurons return to their places before the split; a model that was not trained
            since is then the old one, bit for bit.
    """

    restore_order: bool = True

    def title(self) -> str:
        return "merge experts"

    def decide(self, anatomy: Anatomy, progress: Progress) -> Decision:
        """Puts the family's own MLP back, with the weights as they are."""
        mlps: list[Any] = [block.mlp for block in anatomy.blocks if block.mlp is not None]
        split = [mlp for mlp in mlps if mlp.routed is not None]
        if not split:
            raise InvalidInputError(
                "emoe_merge: no MLP is split into experts; split some with emoe first"
            )
        usual = anatomy.family.get("activation")
        own = None if usual is None else str(usual)
        change = sum((merge_experts(mlp, self.restore_order, own) for mlp in split), Change())
        return change, {"merged": [mlp.address for mlp in split]}, ()


def _has_experts(mlp: Sublayer) -> InvalidInputError:
    return InvalidInputError(f"emoe: {mlp.address} holds experts of its own: {mlp}")
