"""Small edited models of every family, with every kind of part in two blocks."""

from __future__ import annotations

from typing import Any

import torch

from modwright.anatomy import Anatomy, Mlp
from modwright.data.text import from_sequences
from modwright.edits import (
    Change,
    Plan,
    apply,
    factorize,
    keep_heads,
    keep_neurons,
    remove,
    replace_attention,
)
from modwright.surgery import apply as apply_method
from modwright.surgery import make_method

__all__ = ["by_method", "edited", "short", "with_change"]

# How configs call the number of layers.
_LAYERS = ("num_hidden_layers", "n_layer")


def short(tiny: Any, preset: str) -> Any:
    """The tiny model of a preset with three layers, in the class that tests open it with."""
    config = tiny.config(preset)
    name = next(name for name in _LAYERS if hasattr(config, name))
    kinds = getattr(config, "layer_types", None)
    more = {} if kinds is None else {"layer_types": kinds[:3]}
    return tiny(preset, **{name: 3}, **more)


def with_change(model: Any, change: Change) -> Any:
    return apply(model, Plan.of(Anatomy.of(model), "test", change), check=False).model


def _paired(kept: torch.Tensor, shape: Any) -> torch.Tensor:
    """Kept channels in an order in which j and j + D / 2 turn together: pairs, then the rest."""
    turned = [int(j) for j in kept if j < shape.rotary_dim]
    still = [int(j) for j in kept if j >= shape.rotary_dim]
    first = turned[: len(turned) // 2] + still[: len(still) // 2]
    second = turned[len(turned) // 2 :] + still[len(still) // 2 :]
    return torch.tensor(first + second)


def edited(model: Any) -> Any:
    """Block 0 without attention, with factors; another shape in 1; fewer heads and no MLP in 2."""
    first, second, third = Anatomy.of(model).blocks
    change = (
        remove(first.attention)
        + _other_shape(second.attention)
        + keep_heads(third.attention, range(1, third.attention.num_heads))
        + remove(third.mlp)
    )
    if isinstance(first.mlp, Mlp):  # a mixture of experts has no one width
        u, s, v = torch.linalg.svd(first.mlp.down.weight.double(), full_matrices=False)
        change += factorize(first.mlp.down, (u[:, :8] * s[:8]).float(), v[:8].float())
        change += keep_neurons(second.mlp, range(3, 30))
    return with_change(model, change)


def _other_shape(attention: Any) -> Change:
    shape = attention.shape
    order = torch.arange(shape.qk_head_dim)
    if attention.q_norm is None:
        turned = shape.rotary_dim // 2
        gone = {0, turned} if turned else {0, 1}
        order = _paired(torch.tensor([j for j in order.tolist() if j not in gone]), shape)
    index = attention.rotary_index()

    def rows(role: str, heads: int, channels: Any) -> Any:
        bias = attention.projections()[role].bias
        return None if bias is None else bias.view(heads, -1)[:, channels]

    fewer = slice(0, shape.v_head_dim - 1)
    return replace_attention(
        attention,
        q=attention.read_q()[:, order],
        k=attention.read_k()[:, order],
        v=attention.read_v()[:, fewer],
        o=attention.read_o()[:, fewer],
        biases={
            "q": rows("q", shape.num_heads, order),
            "k": rows("k", shape.num_kv_heads, order),
            "v": rows("v", shape.num_kv_heads, fewer),
        },
        rotary_index=None if index is None else index[:, order],
    )


def by_method(model: Any, method: str, **options: Any) -> Any:
    """The result of a method, calibrated on random tokens."""
    generator = torch.Generator().manual_seed(0)
    sequences = [torch.randint(3, 128, (24,), generator=generator) for _ in range(8)]
    data = from_sequences(sequences, 0, batch_size=4)
    return apply_method(model, make_method(method, options), data).model
