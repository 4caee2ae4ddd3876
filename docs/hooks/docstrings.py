"""Reads docstrings as they are written here.

One ``Example:`` with prompts is shown as code, several names before one explanation get it each,
and roles of Sphinx are plain code.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

__all__ = ["Docstrings"]

_EXAMPLE = re.compile(r"^( *)Example:$", re.MULTILINE)
_ROLE = re.compile(r":(?:class|func|meth|mod|attr):(`[^`]+`)")
_SEVERAL = re.compile(
    r"^(?P<indent> +)(?P<names>\w+(?:, \w+)+)(?P<info>: .*(?:\n(?P=indent) +\S.*)*)", re.MULTILINE
)


class Docstrings(griffe.Extension):
    """Turns our docstrings into what griffe reads as Google style."""

    def on_instance(self, *, obj: Any, **_: Any) -> None:
        if not obj.is_alias and obj.docstring is not None:
            text = _EXAMPLE.sub(r"\1Examples:", obj.docstring.value)
            text = _SEVERAL.sub(_one_by_one, text)
            obj.docstring.value = _ROLE.sub(r"\1", text)


def _one_by_one(found: re.Match[str]) -> str:
    return "\n".join(
        f"{found['indent']}{name}{found['info']}" for name in found["names"].split(", ")
    )
