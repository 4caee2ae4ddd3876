"""``modwright edit MODEL --drop "attention[3,7]"``: the short way to say ``edit drop``."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["spelled_out"]


def spelled_out(arguments: Sequence[str]) -> list[str]:
    """The arguments, with ``edit MODEL --drop X`` written as ``edit drop MODEL --parts X``.

    Example:
        >>> spelled_out(["edit", "smollm2", "--drop", "mlp[2]", "-o", "out"])
        ['edit', 'drop', 'smollm2', '--parts', 'mlp[2]', '-o', 'out']
    """
    words = list(arguments)
    if not words or words[0] != "edit":
        return words
    short = [i for i, word in enumerate(words) if word == "--drop" or word.startswith("--drop=")]
    if not short:
        return words
    for i in short:
        words[i] = words[i].replace("--drop", "--parts", 1)
    return ["edit", "drop", *words[1:]]
