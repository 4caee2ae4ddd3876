"""What the docstring of a method says of each of its options."""

from __future__ import annotations

import inspect
import re
from typing import Any

__all__ = ["option_help", "summary"]


def option_help(method: type[Any]) -> dict[str, str]:
    """Option -> its sentence in the ``Attributes:`` section of the docstring.

    Example:
        >>> from modwright.surgery import method_type
        >>> option_help(method_type("llm_drop"))["n"]
        'How many parts go.'
    """
    text = inspect.cleandoc(method.__doc__ or "")
    section = text.partition("Attributes:\n")[2].partition("\n\n")[0]
    found = re.split(r"^ {4}(\w+): ", section, flags=re.MULTILINE)
    said = {name: " ".join(words.split()) for name, words in zip(found[1::2], found[2::2])}
    return {name: words[:1].upper() + words[1:] for name, words in said.items()}


def summary(method: type[Any]) -> str:
    """The first sentence of a method's docstring."""
    return inspect.cleandoc(method.__doc__ or "").split("\n\n")[0].replace("\n", " ")
