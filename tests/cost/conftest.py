"""Every registered preset, as it is and edited in all the ways that change what it costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from modwright.anatomy import Anatomy, Attention, Mlp
from modwright.anatomy.families import families
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

PRESETS = {
    name: (model_type, kwargs)
    for model_type, family in families().items()
    if "mlp" in family.block
    for name, kwargs in family.presets.items()
}


def build(name: str, **changes: Any) -> Any:
    model_type, kwargs = PRESETS[name]
    config = AutoConfig.for_model(model_type, **{**kwargs, **changes})
    causal = families()[model_type](config).is_causal()
    if hasattr(config, "_experts_implementation"):
        config._experts_implementation = "eager"  # whose products torch's counter sees one by one
    torch.manual_seed(0)
    return (AutoModelForCausalLM if causal else AutoModel).from_config(config).eval()


def _narrow(attention: Attention) -> Change:
    """Fewer channels for values, and for queries and keys where nothing ties them."""
    shape = attention.shape
    values = range(shape.v_head_dim - 3)
    queries = list(range(shape.qk_head_dim))
    if attention.q_norm is None:
        half = (shape.rotary_dim or shape.qk_head_dim) // 2
        queries = [*range(half - 1), *range(half, 2 * half - 1)]
    index = attention.rotary_index()

    def bias(role: str, heads: int, kept: Any) -> Tensor | None:
        found = attention.projections()[role].bias
        return None if found is None else found.view(heads, -1)[:, list(kept)]

    return replace_attention(
        attention,
        q=attention.read_q()[:, queries],
        k=attention.read_k()[:, queries],
        v=attention.read_v()[:, list(values)],
        o=attention.read_o()[:, list(values)],
        biases={
            "q": bias("q", shape.num_heads, queries),
            "k": bias("k", shape.num_kv_heads, queries),
            "v": bias("v", shape.num_kv_heads, values),
        },
        rotary_index=None if index is None else index[:, queries],
    )


def _factors(anatomy: Anatomy) -> Change:
    change = Change()
    blocks: Any = anatomy.blocks
    dense = isinstance(blocks[1].mlp, Mlp)
    for projection in (blocks[1].mlp.up if dense else blocks[3].attention.o, blocks[2].attention.o):
        outer = torch.ones(projection.out_features, 5)
        change += factorize(projection, outer, torch.ones(5, projection.in_features))
    return change


def _several(anatomy: Anatomy) -> Change:
    blocks: Any = anatomy.blocks
    mlp = blocks[3].mlp
    return (remove(blocks[0]) + remove(blocks[2].attention) + remove(blocks[1].mlp)) + keep_neurons(
        mlp, range(mlp.intermediate_size // 2)
    )


EDITS: dict[str, Callable[[Any], Change]] = {
    "dense": lambda a: Change(),
    "first attention removed": lambda a: remove(a.blocks[0].attention),
    "all attentions removed": lambda a: sum((remove(b.attention) for b in a.blocks), Change()),
    "heads kept": lambda a: keep_heads(
        a.blocks[1].attention, range(a.blocks[1].attention.num_heads // 2)
    ),
    "uneven heads": lambda a: keep_heads(a.blocks[1].attention, [1, 2, 3]),
    "narrow heads": lambda a: _narrow(a.blocks[1].attention),
    "narrow mlp": lambda a: keep_neurons(a.blocks[1].mlp, range(41)),
    "factor pairs": _factors,
    "several": _several,
}


def edited(model: Any, edit: str) -> Any:
    anatomy = Anatomy.of(model)
    return apply(model, Plan.of(anatomy, "test", EDITS[edit](anatomy)), check=False).model


@pytest.fixture(scope="session")
def make() -> Callable[..., Any]:
    """Builds a preset by name, with changes to its config."""
    return build


@pytest.fixture(scope="session")
def edit() -> Callable[[Any, str], Any]:
    """Edits a model by the name of an edit."""
    return edited


@pytest.fixture(scope="session", params=PRESETS)
def dense(request: pytest.FixtureRequest) -> Any:
    """Every preset."""
    return build(request.param)


@pytest.fixture(scope="session", params=EDITS)
def model(request: pytest.FixtureRequest, dense: Any) -> Any:
    """Every preset with every edit."""
    return edited(dense, request.param)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
