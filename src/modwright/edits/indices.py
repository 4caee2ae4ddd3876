"""What is kept of a part: indices or a mask, checked before anything is done with them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from modwright.core.errors import InvalidInputError

__all__ = ["checked_index"]


def checked_index(index: Sequence[int] | Sequence[bool] | Tensor, size: int, what: str) -> Tensor:
    """What is kept, as a tensor of indices: at least one, each of them there, none twice.

    Args:
        index: indices, or a mask with one truth value for each of ``size``.
        size: how many there are.
        what: for the message.

    Raises:
        InvalidInputError: anything else, a number alone and fractions among it.

    Example:
        >>> checked_index([2, 0], 3, "heads"), checked_index([True, False, True], 3, "heads")
        (tensor([2, 0]), tensor([0, 2]))
    """
    wanted = f"{what}: a list of indices or a mask of {size} truth values is needed, not"
    mixed = isinstance(index, list | tuple) and len({isinstance(i, bool) for i in index}) > 1
    try:
        given = torch.as_tensor(index)
    except (TypeError, ValueError, RuntimeError):
        raise InvalidInputError(f"{wanted} {index!r}") from None
    if given.dim() != 1 or mixed:
        raise InvalidInputError(f"{wanted} {index!r}")
    if not len(given):
        raise InvalidInputError(f"{what}: nothing would be left; remove the part instead")
    if given.dtype == torch.bool:
        if len(given) != size:
            raise InvalidInputError(
                f"{what}: the mask has {len(given)} truth values, and there are {size}"
            )
        given = given.nonzero().flatten()
        if not len(given):
            raise InvalidInputError(f"{what}: nothing would be left; remove the part instead")
    if given.is_floating_point() or given.is_complex():
        raise InvalidInputError(f"{wanted} {given.dtype} numbers".replace("torch.", ""))
    kept = given.long()
    if int(kept.min()) < 0 or int(kept.max()) >= size:
        raise InvalidInputError(f"{what}: indices must lie between 0 and {size - 1}")
    if len(kept.unique()) != len(kept):
        raise InvalidInputError(f"{what}: an index is repeated")
    return kept
