"""What every measurement needs of a model: its limits, its logits, what it sees, its windows."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from modwright.core.errors import InvalidInputError
from modwright.data.special_tokens import Bos, SpecialTokens, special_tokens
from modwright.data.text import TokenizedText, require_count, tokenize_text
from modwright.data.text_sources import TextSource

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["PerplexityRecipe", "Windows", "call", "cut_windows", "dtype_of", "first_ids"]
__all__ += ["looks_ahead", "position_limit", "require_causal", "require_known_ids"]
__all__ += ["require_vocabulary", "vocabulary_size"]

_PROBE_TOKENS = 16


def position_limit(model: PreTrainedModel) -> int | None:
    """The longest input that the model has positions for; None where its config sets no limit."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def vocabulary_size(model: PreTrainedModel) -> int | None:
    """How many token ids the model knows; None where it reads no text."""
    return getattr(model.config.get_text_config(), "vocab_size", None)


def dtype_of(model: PreTrainedModel) -> str:
    """As recipes name it: "float32"."""
    return str(model.dtype).removeprefix("torch.")


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
    given = {
        name: value.to(model.device) if isinstance(value, Tensor) else value
        for name, value in {"use_cache": False, "return_dict": True, **wanted}.items()
        if name in accepted and value is not None
    }
    return model(input_ids=ids.to(model.device), **given)


def looks_ahead(model: PreTrainedModel, rows: Tensor, needed: str) -> bool | None:
    """Whether the logits of a token depend on the tokens after it; None where they are not finite.

    The class does not tell: an edit can make a decoder look ahead, and encoders have logits too. So
    the later half of a few tokens is changed, and the logits of the earlier half are compared.
    Refused, with a message that begins with ``needed``, is what gives no logits for every token.
    """
    vocabulary = vocabulary_size(model) or 0
    ids = rows[:1, :_PROBE_TOKENS]
    kept = ids.shape[1] // 2
    changed = ids.clone()
    changed[:, kept:] = (changed[:, kept:] + 1) % vocabulary
    found = []
    for tokens in (ids, changed):
        logits = getattr(call(model, tokens), "logits", None)
        if logits is None:
            raise InvalidInputError(f"{needed}; {type(model).__name__} gives no logits")
        if logits.shape[:2] != ids.shape or logits.shape[-1] <= int(rows.max()):
            raise InvalidInputError(
                f"{needed}; {type(model).__name__} gives logits of shape {tuple(logits.shape)} for "
                f"{tuple(ids.shape)} tokens of a vocabulary of {vocabulary}"
            )
        found.append(logits[:, :kept].float())
    before, after = found
    if not (before.isfinite().all() and after.isfinite().all()):
        return None
    tolerance = max(1e-5, 4 * torch.finfo(model.dtype).eps) * float(before.abs().max())
    return float((before - after).abs().max()) > tolerance


def require_causal(model: PreTrainedModel, needed: str, rows: Tensor | None = None) -> None:
    """Refuse a model without next-token logits, and one that looks ahead.

    It is read on token ids (B, T), or on the first of its vocabulary; messages begin with
    ``needed``.
    """
    rows = first_ids(model) if rows is None else rows
    require_known_ids(model, rows)
    if looks_ahead(model, rows, needed):
        raise InvalidInputError(
            f"{needed}; in {type(model).__name__} the logits of a token depend on the tokens after "
            "it"
        )


def first_ids(model: PreTrainedModel) -> Tensor:
    """A few token ids (1, T) that every model of text knows, to see what it does with them."""
    length = min(_PROBE_TOKENS, position_limit(model) or _PROBE_TOKENS)
    return torch.arange(length)[None] % (vocabulary_size(model) or 1)


@dataclass(frozen=True)
class PerplexityRecipe:
    """What is measured, as a whole: two numbers are comparable when their recipes are equal.

    Attributes:
        data: the text; a string is a packaged name or a path, a mapping ``{text: NAME, ...}``.
        windows: how many windows, from the start of the text.
        length: tokens of a window, special tokens included.
        stride: text tokens from one window's start to the next one's. None lets windows not
            overlap; with a smaller one every window but the first counts its last ``stride`` tokens
            only, the others being context.
        bos: special tokens of each window: "auto" for those that the tokenizer adds by itself,
            True for its BOS token, False for none; then its first token is not counted.
        batch_size: windows of a batch; changes speed and memory, not the number.
    """

    data: TextSource
    windows: int = 6
    length: int = 512
    stride: int | None = None
    bos: Bos = "auto"
    batch_size: int = 1


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows (B, T) of token ids, and for each how many of its last text tokens are new.

    ``starts`` are the positions of the windows' first text tokens in ``text``; ``content`` says
    how many text tokens a window holds, which is all of it but the ``special`` tokens; ``recipe``
    is the part of a measurement's recipe that says what these windows are.
    """

    rows: Tensor
    starts: list[int]
    content: int
    new: list[int]
    text: TokenizedText
    special: SpecialTokens
    recipe: dict[str, Any]


def cut_windows(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, recipe: PerplexityRecipe
) -> Windows:
    """The windows of a recipe; numbers outside their range and too little text are refused."""
    require_count("windows", recipe.windows)
    require_count("batch_size", recipe.batch_size)
    text = tokenize_text(tokenizer, recipe.data, offsets=True)
    special = special_tokens(tokenizer, text.text, recipe.bos)
    content = recipe.length - len(special)
    stride = content if recipe.stride is None else recipe.stride
    least = 1 + max(1, len(special))
    require_count("length", recipe.length, least=least, most=position_limit(model))
    require_count("stride", stride, most=content)
    text.require(recipe.windows, content, stride)

    starts = [stride * index for index in range(recipe.windows)]
    rows, facts = text.cut(starts, content, special)
    new = [content, *[min(stride, content)] * (recipe.windows - 1)]
    facts |= {"windows": recipe.windows, "length": recipe.length, "stride": stride}
    facts |= {"batch_size": recipe.batch_size, **special.facts(tokenizer)}
    return Windows(rows, starts, content, new, text, special, facts)
