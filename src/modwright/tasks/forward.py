"""What every measurement needs of a model: its limits, its logits, what it can see.

Axes: B windows of a batch, T tokens of a window, V vocabulary.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from modwright.core.errors import InvalidInputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["call", "first_ids", "looks_ahead", "position_limit", "require_causal"]
__all__ += ["require_known_ids", "require_vocabulary", "vocabulary_size"]

_PROBE_TOKENS = 16


def position_limit(model: PreTrainedModel) -> int | None:
    """The longest input that the model has positions for; None where its config sets no limit."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def vocabulary_size(model: PreTrainedModel) -> int | None:
    """How many token ids the model knows; None where it reads no text."""
    return getattr(model.config.get_text_config(), "vocab_size", None)


def require_vocabulary(model: PreTrainedModel, needed: str) -> None:
    """Refuse what is not one model over one vocabulary; ``needed`` says what would be."""
    name = type(model).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        raise InvalidInputError(f"{needed}; {name} is an encoder with a decoder")
    if vocabulary_size(model) is None:
        raise InvalidInputError(f"{needed}; {name} has no vocabulary")


def require_known_ids(model: PreTrainedModel, ids: Tensor) -> None:
    """Refuse token ids that the model has no embedding for."""
    largest, vocabulary = int(ids.max()), vocabulary_size(model)
    if vocabulary is not None and largest >= vocabulary:
        raise InvalidInputError(
            f"the text has token id {largest} and {type(model).__name__} a vocabulary of "
            f"{vocabulary}; give the model's own tokenizer"
        )


def call(model: PreTrainedModel, ids: Tensor, **wanted: Any) -> Any:
    """The model's output for ``ids`` (B, T), with those of the arguments that it takes.

    No cache is kept; arguments that are None are left out.
    """
    accepted = inspect.signature(model.forward).parameters
    wanted = {"use_cache": False, "return_dict": True, **wanted}
    given = {
        name: value.to(model.device) if isinstance(value, Tensor) else value
        for name, value in wanted.items()
        if name in accepted and value is not None
    }
    return model(input_ids=ids.to(model.device), **given)


def looks_ahead(model: PreTrainedModel, rows: Tensor, needed: str) -> bool | None:
    """Whether the logits of a token depend on the tokens after it; None where they are not finite.

    The class does not tell: an edit can make a decoder look ahead, and encoders have logits too. So
    the later half of a few tokens is changed, and the logits of the earlier half are compared.

    Raises:
        InvalidInputError: no logits over the vocabulary for every token; the message begins with
            ``needed``.
    """
    name, vocabulary = type(model).__name__, vocabulary_size(model)
    assert vocabulary is not None
    ids = rows[:1, :_PROBE_TOKENS]
    kept = ids.shape[1] // 2
    changed = ids.clone()
    changed[:, kept:] = (changed[:, kept:] + 1) % vocabulary
    before, after = (_probed(model, tokens, needed) for tokens in (ids, changed))
    if before.shape[:2] != ids.shape or before.shape[-1] <= int(rows.max()):
        raise InvalidInputError(
            f"{needed}; {name} gives logits of shape {tuple(before.shape)} for "
            f"{tuple(ids.shape)} tokens of a vocabulary of {vocabulary}"
        )
    before, after = before[:, :kept], after[:, :kept]
    if not (before.isfinite().all() and after.isfinite().all()):
        return None
    tolerance = max(1e-5, 4 * torch.finfo(model.dtype).eps) * float(before.abs().max())
    return float((before - after).abs().max()) > tolerance


def require_causal(model: PreTrainedModel, needed: str, rows: Tensor | None = None) -> None:
    """Refuse a model without next-token logits, and one that looks ahead.

    Args:
        model: read on ``rows``, or on the first ids of its vocabulary.
        needed: what messages begin with.
        rows: token ids (B, T).
    """
    rows = first_ids(model) if rows is None else rows
    require_known_ids(model, rows)
    if looks_ahead(model, rows, needed):
        name = type(model).__name__
        raise InvalidInputError(
            f"{needed}; in {name} the logits of a token depend on the tokens after it"
        )


def first_ids(model: PreTrainedModel) -> Tensor:
    """A few token ids (1, T) that every model of text knows, to see what it does with them."""
    vocabulary = vocabulary_size(model)
    assert vocabulary is not None
    return (
        torch.arange(min(_PROBE_TOKENS, position_limit(model) or _PROBE_TOKENS))[None] % vocabulary
    )


def _probed(model: PreTrainedModel, ids: Tensor, needed: str) -> Tensor:
    logits = getattr(call(model, ids), "logits", None)
    if logits is None:
        raise InvalidInputError(f"{needed}; {type(model).__name__} gives no logits")
    found: Tensor = logits.float()
    return found
