"""What the docstring of a method, or of a function, says of each of its options."""

from __future__ import annotations

import inspect
import re
from typing import Any

__all__ = ["option_help", "summary"]


def option_help(method: Any) -> dict[str, str]:
    """Option -> its sentence in the section ``Attributes:`` of the docstring, or ``Args:``.

    Example:
        >>> from modwright.surgery import method_type
        >>> option_help(method_type("modegpt"))["sparsity"]
        'Average share of the inner widths that goes, in [0, 1).'
    """
    text = inspect.cleandoc(method.__doc__ or "")
    start = "Attributes:\n" if "Attributes:\n" in text else "Args:\n"
    section = text.partition(start)[2].partition("\n\n")[0]
    found = re.split(r"^ {4}(\w+): ", section, flags=re.MULTILINE)
    said = {name: " ".join(words.split()) for name, words in zip(found[1::2], found[2::2])}
    return {name: words[:1].upper() + words[1:] for name, words in said.items()}


def summary(method: Any) -> str:
    """The first sentence of a docstring."""
    return inspect.cleandoc(method.__doc__ or "").split("\n\n")[0].replace("\n", " ")
