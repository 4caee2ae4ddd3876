"""Loads the tokenizer that belongs to a source, if it has one."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from modwright.checkpoint.source import Source
from modwright.core.errors import CheckpointError, first_line

__all__ = ["has_tokenizer", "load_tokenizer"]

_SIGNS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)


def has_tokenizer(files: Collection[str]) -> bool:
    """Whether the files of a checkpoint directory hold a tokenizer.

    Example:
        >>> has_tokenizer(["generation_config.json", "tokenizer.json"])
        True
    """
    return any(sign in files for sign in _SIGNS)


def load_tokenizer(source: Source, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a source, or None when it has none (a preset, a vision model).

    Raises:
        CheckpointError: there are tokenizer files, but they cannot be loaded.
    """
    arguments = _arguments(source)
    if arguments is None:
        return None
    import transformers

    from modwright.checkpoint.silence import silence_transformers

    try:
        with silence_transformers():
            return transformers.AutoTokenizer.from_pretrained(
                **arguments, trust_remote_code=trust_remote_code
            )
    except Exception as error:
        raise CheckpointError(
            f"the tokenizer of {source.name!r} cannot be loaded: {first_line(error)}"
        ) from error


def _arguments(source: Source) -> dict[str, Any] | None:
    if source.path is None:
        return None
    if source.is_gguf:
        folder, name = source.path.parent, source.path.name
        return {"pretrained_model_name_or_path": str(folder), "gguf_file": name}
    if not has_tokenizer(source.files):
        return None
    return {"pretrained_model_name_or_path": str(source.path)}
