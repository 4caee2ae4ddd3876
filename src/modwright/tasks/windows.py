"""The windows of a text that a model is measured on: what they hold and which tokens count.

Axes: B windows, T tokens of a window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from modwright.calibration.special_tokens import Bos, SpecialTokens, special_tokens
from modwright.calibration.text import (
    TextData,
    TokenizedText,
    require_count,
    tokenize_text,
)
from modwright.tasks.forward import position_limit

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["PerplexityRecipe", "Windows", "cut_windows"]


@dataclass(frozen=True)
class PerplexityRecipe:
    """What is measured, as a whole: two numbers are comparable when their recipes are equal.

    Attributes:
        data: the text; a string is a packaged name or a path.
        windows: how many windows, from the start of the text.
        length: tokens of a window, special tokens included.
        stride: text tokens from one window's start to the next one's. None is the text tokens of a
            window, so that windows do not overlap; with a smaller one every window but the first
            counts its last ``stride`` tokens only, the others being context.
        bos: special tokens of each window: "auto" for those that the tokenizer adds by itself,
            True for its BOS token, False for none. Without a token before it the first token of a
            window has nothing to be predicted from and is not counted.
        batch_size: windows of a batch; changes speed and memory, not the number.
    """

    data: TextData | str
    windows: int = 6
    length: int = 512
    stride: int | None = None
    bos: Bos = "auto"
    batch_size: int = 1


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows (B, T) of token ids, and for each how many of its last text tokens are new.

    ``starts`` are the places of the windows' first text tokens in ``text``; ``content`` is how many
    text tokens a window holds, which is all of it but the ``special`` tokens; ``recipe`` is the
    part of a measurement's recipe that says what these windows are.
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
    """The windows of a recipe for a model.

    Args:
        model: its positions limit the length.
        tokenizer: the model's own.
        recipe: which text, how many windows of what length.

    Raises:
        InvalidInputError: too little text, or a number outside its range; names the valid ones.
    """
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
