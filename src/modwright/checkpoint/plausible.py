"""Whether a config can be that of the weights beside it, asked before anything is built."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from modwright.core.errors import CheckpointError

__all__ = ["require_counts", "require_fit"]

_COUNTED = re.compile(
    r"layer|block|depth|expert|stage|label|class|group|loop|repeat|stack|iteration|level|branch"
)
_NO_COUNT = re.compile(r"size|norm|_id|token|freq|interval|length|width|dim|index|start|end")
_FEW = 1024
_SLACK = 2**24


def require_counts(
    stored: Mapping[str, Any], shapes: Iterable[tuple[int, ...]], where: str
) -> None:
    """Refuse fields of a config whose counts of parts are beyond what the weights can hold.

    Raises:
        CheckpointError: names the field.

    Example:
        >>> require_counts({"num_hidden_layers": 10**9}, [(8, 8)] * 20, "m")
        Traceback (most recent call last):
        modwright.core.errors.CheckpointError: m: num_hidden_layers is 1,000,000,000, more than \
the weights can hold; at most 1,024
    """
    known = list(shapes)
    most = max(_FEW, len(known), *(max(shape, default=0) for shape in known), 0)
    for name, value in _numbers(stored, ""):
        last = name.rpartition(".")[2]
        if not _COUNTED.search(last) or _NO_COUNT.search(last):
            continue
        if value < -1:
            raise CheckpointError(f"{where}: {name} is {value}, no number of parts")
        if value > most:
            raise CheckpointError(
                f"{where}: {name} is {value:,}, more than the weights can hold; at most {most:,}"
            )


def _numbers(value: Any, name: str) -> Iterator[tuple[str, int]]:
    if isinstance(value, int) and not isinstance(value, bool):
        yield name, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _numbers(part, f"{name}.{key}".lstrip("."))
    elif isinstance(value, list):
        for part in value:
            yield from _numbers(part, name)


def require_fit(cls: Any, config: Any, values: int, where: str) -> Any:
    """Refuse a config whose model is far larger than the values of the files, on the meta device.

    What is merely wrong by a row or a layer is left to the load, which names it. Gives the model
    without values, or None where it cannot be built.

    Raises:
        CheckpointError: names the largest tensor.
    """
    try:
        with torch.device("meta"):
            model = cls(copy.deepcopy(config))
    except Exception:
        return None  # what is wrong with it, the load says
    sizes = dict(model.named_parameters())
    wanted = sum(tensor.numel() for tensor in sizes.values())
    if wanted > 2 * values + _SLACK:
        name, largest = max(sizes.items(), key=lambda item: item[1].numel())
        raise CheckpointError(
            f"{where}: by the config {cls.__name__} has {wanted:,} parameters ({name} alone is "
            f"{tuple(largest.shape)}), and the weights hold {values:,}"
        )
    return model
