"""Says what a conversion of the residual stream did, and which outputs are others now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from modwright.surgery.stream_conversion import Conversion

__all__ = ["notes", "reasons"]


def reasons(conversion: Conversion) -> dict[str, Any]:
    """Addresses of all that was converted, as JSON values."""
    stream = conversion.stream
    width = [conversion.width, conversion.width - conversion.narrows]
    told: dict[str, Any] = {
        "hidden_size": width,
        "norms": [norm.address for norm in stream.norms],
        "writers": [writer.address for writer in stream.writers],
        "recentered as they run": [w.address for w in stream.writers if conversion.runs(w)],
        "readers": [reader.part.address for reader in stream.readers],
        "folded": [norm.address for norm in stream.norms if conversion.folds(norm)],
        "untied": ["head.weight"] if conversion.unties else [],
        "not preserved": _not_preserved(conversion),
        "meaning": (
            "writers add to the residual stream and are recentered; readers see it through the "
            "norms; what is folded has its gain and shift in the maps that read it"
        ),
    }
    if conversion.narrows:
        told["dropped coordinate"] = conversion.index
    return told


def notes(conversion: Conversion) -> tuple[str, ...]:
    """Sentences for the user."""
    told = [f"Not preserved: {'; '.join(_not_preserved(conversion))}."]
    told += _untied(conversion)
    told += _kept(conversion)
    told += _precision(conversion)
    told += _training(conversion)
    return tuple(told)


def _not_preserved(conversion: Conversion) -> list[str]:
    width = f", {conversion.width - 1} wide" if conversion.narrows else ""
    found = [f"hidden_states, the stream between blocks, comes without its mean{width}"]
    if conversion.folds(conversion.last_norm):
        found.append(f"the backbone's last_hidden_state comes without gain and shift{width}")
    given = f"zero mean and {conversion.width - 1} channels" if conversion.narrows else "zero mean"
    return [*found, f"inputs_embeds from outside must have {given}"]


def _untied(conversion: Conversion) -> list[str]:
    if not conversion.unties:
        return []
    weight = conversion.anatomy.outer["head"].parameters()["weight"]
    entries, width = weight.shape
    narrow = conversion.narrows and conversion.stream.last_reader is not None
    size = entries * (width - narrow) * weight.element_size()
    return [
        f"The head was tied to the token table and has a table of its own now: {size:,} bytes more."
    ]


def _kept(conversion: Conversion) -> list[str]:
    norm = conversion.last_norm
    if conversion.stream.last_reader is not None or not (
        conversion.narrows or conversion.wants_fold
    ):
        return []
    back = "gives back the dropped coordinate and " if conversion.narrows else ""
    return [
        f"{norm.address} {back}keeps its gain and shift: not all that reads it is a known part, "
        "so its output stays as it was."
    ]


def _precision(conversion: Conversion) -> list[str]:
    changed = [writer for writer in conversion.stream.writers if not conversion.runs(writer)]
    dtypes = {t.dtype for writer in changed for t in writer.parameters().values()}
    narrow = sorted(str(d).removeprefix("torch.") for d in dtypes if torch.finfo(d).bits < 32)
    if not narrow:
        return []
    return [
        f"Weights are {', '.join(narrow)}: what was recentered in float64 is rounded to that "
        "again, so outputs move about as much as that rounding does. Open the model in float32 "
        "for less."
    ]


def _training(conversion: Conversion) -> list[str]:
    if not conversion.training:
        return []
    config = conversion.anatomy.config.to_dict()
    rates = {
        name: value
        for name, value in config.items()
        if "drop" in name and isinstance(value, int | float) and value > 0
        if not any(word in name for word in ("att", "classifier", "summary", "layerdrop", "path"))
    }
    if not rates:
        return []
    named = ", ".join(f"{name} {value:g}" for name, value in rates.items())
    return [
        f"Dropout on the stream ({named}) gives it a mean in training: training goes on exactly as "
        "before with a rate of 0 alone."
    ]
