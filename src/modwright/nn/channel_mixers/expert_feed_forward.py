"""A feed-forward part whose neurons are grouped into experts, of which each token uses a few.

EMoE (arXiv 2310.10908): an expert is a run of neighboring neurons of an ordinary feed-forward
part. Every chosen expert counts with weight one, so with all of them chosen the part is the
ordinary one. A token's experts are chosen by a mean over each expert's neurons, without parameters
of a router; no gradient flows through the choice.

Axes: b batch, t positions, d hidden_size, I neurons, N experts, k of them for each token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modwright.core.compat.torch import has_forward_hooks
from modwright.nn.channel_mixers.feed_forward import FeedForward
from modwright.nn.component import component
from modwright.nn.routing import STORED, ExpertShape, choose_experts

__all__ = ["ExpertFeedForward", "expert_parts", "mean_keys"]


@torch.no_grad()
def mean_keys(shape: ExpertShape, keys: Tensor, down: Tensor) -> Tensor:
    """(N, d): the mean of each expert's keys (I, d), weighted and scaled as the shape says."""
    n = shape.num_experts
    grouped = keys.detach().unflatten(0, (n, -1))
    if shape.weigh_keys:
        lengths = down.detach().norm(dim=0).view(n, -1, 1)
        means = (grouped * (lengths / lengths.sum(1, keepdim=True))).sum(1)
    else:
        means = grouped.mean(1)
    return F.normalize(means, dim=-1) if shape.normalize_keys else means


@component("expert_feed_forward", kind="channel_mixer", shape=ExpertShape)
class ExpertFeedForward(FeedForward):
    """down(act(up x)), or down(act(gate x) * up x), over the neurons of each token's experts.

    All experts share ``act``, which reads the neurons of one expert at a time: one that normalizes
    does so within an expert, and then the part is not the ordinary one even with all experts.

    x (b, t, d) -> (b, t, d). Buffers: ``order`` (I,), the number that each neuron had before
    neurons were grouped, and ``avg_key`` (N, d) for that score. The mask form is the plain truth.
    The dispatch form reads weights by expert, so a map that is not a plain linear one (an adapter,
    a hook that watches it) makes it run as a mask.

    Example:
        >>> shape = ExpertShape(8, 32, "relu", num_experts=4, top_k=2)
        >>> part = ExpertFeedForward(shape, torch.relu)
        >>> part(torch.zeros(1, 5, 8)).shape, part.route(torch.zeros(1, 5, 8)).sum(-1).tolist()
        (torch.Size([1, 5, 8]), [[2, 2, 2, 2, 2]])
    """

    shape: ExpertShape

    def __init__(self, shape: ExpertShape, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__(shape, act)
        self.register_buffer("order", torch.arange(shape.intermediate_size))
        self.avg_key: Tensor | None
        self.register_buffer("avg_key", self.mean_keys() if shape.score == STORED else None)

    def reset_parameters(self) -> None:
        """The buffers alone: the maps are modules of their own, and come first."""
        self.get_buffer("order").copy_(torch.arange(self.shape.intermediate_size))
        if self.avg_key is not None:
            self.avg_key.copy_(self.mean_keys())

    @property
    def keys(self) -> nn.Linear:
        """The map whose rows are the neurons' keys."""
        return self.up_proj if self.gate_proj is None else self.gate_proj

    def forward(self, hidden_states: Tensor, *args: object, **kwargs: object) -> Tensor:
        if self.shape.mode == "dispatch" and self._is_plain():
            flat = hidden_states.reshape(-1, hidden_states.shape[-1])
            return self._dispatch(flat).reshape(hidden_states.shape)
        seen = self._inner(hidden_states)
        chosen = self._choose(self._scores(hidden_states, seen))
        silent = ~chosen.unsqueeze(-1).expand(*chosen.shape, self.shape.expert_size).flatten(-2)
        return self.down_proj(seen[2].masked_fill(silent, 0.0))

    @torch.no_grad()
    def route(self, hidden_states: Tensor) -> Tensor:
        """Which experts each token uses: (b, t, d) -> (b, t, N), true where chosen."""
        return self._choose(self._scores(hidden_states))

    def mean_keys(self) -> Tensor:
        """(N, d): each expert's mean key, from the weights as they are."""
        return mean_keys(self.shape, self.keys.weight, self.down_proj.weight)

    @torch.no_grad()
    def tie_keys(self, momentum: float = 0.0) -> None:
        """Moves ``avg_key`` to the present mean keys; with momentum m, to m old + (1 - m) mean."""
        if self.avg_key is not None:
            self.avg_key.lerp_(self.mean_keys().to(self.avg_key), 1 - momentum)

    @contextmanager
    def every_expert(self) -> Iterator[None]:
        """Lets all experts work on every token."""
        shape = self.shape
        self.reroute(replace(shape, top_k=shape.num_experts, selection="top"))
        try:
            yield
        finally:
            self.reroute(shape)

    def reroute(self, shape: ExpertShape) -> None:
        """Chooses experts in another way from here on; what they are stays."""
        old, self.shape = self.shape, shape
        how = ("score", "normalize_keys", "weigh_keys")
        if any(getattr(old, name) != getattr(shape, name) for name in how):
            self.register_buffer("avg_key", self.mean_keys() if shape.score == STORED else None)

    def _inner(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pre-activations of gate and up (..., I), and what the down map reads."""
        up = self.up_proj(x)
        if self.gate_proj is None:
            return up, up, self._activated(up)
        gate = self.gate_proj(x)
        return gate, up, self._activated(gate) * up

    def _activated(self, values: Tensor) -> Tensor:
        """(..., I) -> (..., I), each expert's neurons by themselves."""
        return self.act(values.unflatten(-1, (self.shape.num_experts, -1))).flatten(-2)

    @torch.no_grad()
    def _scores(self, x: Tensor, seen: tuple[Tensor, Tensor, Tensor] | None = None) -> Tensor:
        """(..., d) -> (..., N), from neurons that are computed already, where they are."""
        score, n = self.shape.score, self.shape.num_experts
        if self.avg_key is not None:
            return _towards(x, self.avg_key)
        linear = self.keys if score == "gate" else self.up_proj
        if seen is None and score in ("gate", "up") and self._is_plain():  # linear in x
            wide = torch.promote_types(x.dtype, torch.float32)
            return _towards(x, linear.weight.unflatten(0, (n, -1)).mean(1, dtype=wide))
        gate, up, product = self._inner(x) if seen is None else seen
        values = gate if score == "gate" else up
        values = values if linear.bias is None else values - linear.bias
        values = product if score.startswith("inter") else values
        values = values.abs() if score.endswith("_abs") else values
        wide = torch.promote_types(values.dtype, torch.float32)  # rounding must not decide
        return values.unflatten(-1, (n, -1)).mean(-1, dtype=wide)

    @torch.no_grad()
    def _choose(self, scores: Tensor) -> Tensor:
        shape = self.shape
        capacity = shape.capacity if self.training else None
        return choose_experts(scores, shape.top_k, shape.selection, capacity)

    def _is_plain(self) -> bool:
        """Every map is a plain linear one, and the graph may depend on the data."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return False
        maps = [m for m in (self.gate_proj, self.up_proj, self.down_proj) if m is not None]
        return not any(
            type(m) is not nn.Linear
            or type(m.weight) not in (Tensor, nn.Parameter)  # quantized, or shared out
            or has_forward_hooks(m)
            # An offloading library hooks in by replacing the method.
            or "forward" in m.__dict__
            for m in maps
        )

    def _dispatch(self, x: Tensor) -> Tensor:
        """(T, d) -> (T, d), each expert over its own tokens."""
        chosen = self.route(x)
        counts = chosen.sum(0).tolist()
        tokens = chosen.T.nonzero()[:, 1].split(counts)
        size, down = self.shape.expert_size, self.down_proj
        key, up = _by_expert(self.keys, size), _by_expert(self.up_proj, size)
        columns = _pieces(down.weight, size, dim=1)
        out = torch.zeros_like(x)
        for expert in (e for e, count in enumerate(counts) if count):
            mine = tokens[expert]
            read = x[mine] if len(x) > 1 else x
            inner = self.act(key(read, expert))
            if self.gate_proj is not None:
                inner = inner * up(read, expert)
            out.index_add_(0, mine, F.linear(inner, columns(expert)).to(out.dtype))
        return out if down.bias is None else out + down.bias

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.shape.describe()}"


def expert_parts(model: nn.Module) -> list[ExpertFeedForward]:
    """The parts of a model that are split into experts, inside of any wrapper too.

    Example:
        >>> part = ExpertFeedForward(ExpertShape(8, 32, "relu", num_experts=4), torch.relu)
        >>> expert_parts(nn.Sequential(nn.Linear(8, 8), nn.Sequential(part))) == [part]
        True
    """
    return [module for module in model.modules() if isinstance(module, ExpertFeedForward)]


def _pieces(tensor: Tensor, size: int, dim: int = 0) -> Callable[[int], Tensor]:
    """Views of ``size`` rows or columns each, by number."""
    if tensor.requires_grad and torch.is_grad_enabled():
        return tensor.split(size, dim).__getitem__  # one gradient goes back, not one per piece
    return lambda i: tensor.narrow(dim, i * size, size)


def _by_expert(linear: nn.Linear, size: int) -> Callable[[Tensor, int], Tensor]:
    """The rows of a map that belong to one expert, applied."""
    weight, bias = _pieces(linear.weight, size), None
    if linear.bias is not None:
        bias = _pieces(linear.bias, size)
    return lambda x, i: F.linear(x, weight(i), None if bias is None else bias(i))


def _towards(x: Tensor, vectors: Tensor) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    place = "cpu" if x.is_meta else x.device.type  # autocast does not know meta
    with torch.autocast(place, enabled=False):
        return F.linear(x.to(wide), vectors.to(wide))
