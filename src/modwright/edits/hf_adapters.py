"""Plain-torch parts at home in a transformers model: its config, its functions."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from modwright.core.compat.transformers import attention_implementation
from modwright.core.errors import InvalidInputError, unknown_name
from modwright.nn import (
    AttentionShape,
    ExpertFeedForward,
    ExpertShape,
    FeedForward,
    FeedForwardShape,
    GroupedAttention,
    Mixture,
    MixtureShape,
)
from modwright.nn.token_mixers.attention import naive_attention

__all__ = ["attend_as_configured", "build_attention", "build_experts", "build_feed_forward"]
__all__ += ["activation", "build_mixture", "check_router_scores"]


def attend_as_configured(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Runs the attention function that the model's config names: eager, sdpa, flash, flex."""
    chosen = attention_implementation(module.config)
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(chosen, naive_attention)
    result: tuple[Tensor, Tensor | None] = attend(module, query, key, value, mask, **kwargs)
    return result


def build_attention(
    config: Any, kwargs: dict[str, Any], kind: type[GroupedAttention] = GroupedAttention
) -> GroupedAttention:
    """A grouped attention that holds the model's own config object.

    The object matters: the model builds its masks for the implementation that its config names. An
    attention that asked another config could run a function that the mask was not made for, and
    would see the future without an error.
    """
    part = kind(AttentionShape(**kwargs), attend=attend_as_configured)
    part.config = config
    return part


def build_feed_forward(kwargs: dict[str, Any]) -> FeedForward:
    """A feed-forward part with the activation that transformers has under the shape's name."""
    shape = FeedForwardShape(**kwargs)
    return FeedForward(shape, activation(shape.activation))


def build_experts(kwargs: dict[str, Any]) -> ExpertFeedForward:
    """A feed-forward part in experts, with the activation that transformers has by that name."""
    shape = ExpertShape(**kwargs)
    return ExpertFeedForward(shape, activation(shape.activation))


def activation(name: str) -> Any:
    """The function that transformers has under a name; another name is refused."""
    if name not in ACT2FN:
        raise unknown_name("activation", name, sorted(ACT2FN))
    return ACT2FN[name]


def build_mixture(config: Any, kwargs: dict[str, Any]) -> Mixture:
    """A mixture of experts with the activation that transformers has by that name.

    Raises:
        InvalidInputError: the model returns router scores, whose loss stacks those of all layers as
            equals.
    """
    if getattr(config, "output_router_logits", False):
        raise _no_router_scores()
    shape = MixtureShape(**kwargs)
    return Mixture(shape, activation(shape.activation))


def check_router_scores(model: nn.Module) -> None:
    """Refuses to return router scores where a mixture stands that keeps none.

    Raises:
        InvalidInputError: transformers would leave those layers out, or find no scores at all.
    """
    if any(isinstance(module, Mixture) for module in model.modules()):
        raise _no_router_scores()


def _no_router_scores() -> InvalidInputError:
    return InvalidInputError(
        "output_router_logits is on, and its loss needs the family's own routers in every layer; "
        "set it to False, in the config or in the call"
    )
