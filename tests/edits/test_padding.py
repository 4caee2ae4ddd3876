"""The padding is read from masks of every form that hosts make."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask

from modwright.core.errors import InvalidInputError
from modwright.edits.padding import padding_in

from .masks import LENGTH, REAL, visible


def additive(mask: Tensor, lowest: float) -> Tensor:
    return torch.zeros(mask.shape).masked_fill(~mask, lowest)


MASKS: dict[str, tuple[Any, int, bool]] = {
    "rows": (REAL.long(), 0, False),
    "rows of truth values": (REAL, 0, False),
    "rows with tokens before": (nn.functional.pad(REAL.long(), (3, 0), value=1), 3, False),
    "rows of a static cache": (nn.functional.pad(REAL.long(), (3, 4), value=1), 3, True),
    "scores": (visible(), 0, False),
    "scores with tokens before": (visible(seen=3), 3, False),
    "scores of a static cache": (visible(seen=3, total=12), 3, True),
    "scores of an empty static cache": (visible(total=12), 0, True),
    "scores for several heads": (visible().expand(-1, 3, -1, -1), 0, False),
    "one row of scores": (REAL.view(2, 1, 1, LENGTH), 0, False),
    "added to scores": (additive(visible(seen=3), torch.finfo(torch.float32).min), 3, False),
    "added to scores, infinite": (additive(visible(), -torch.inf), 0, False),
    "added to scores, as older models do": (additive(visible(), -1e4) - 3.0, 0, False),
    "a window of 2": (visible() & torch.ones(LENGTH, LENGTH).triu(-1).bool(), 0, False),
    "sees later tokens": (REAL.view(2, 1, 1, LENGTH).expand(2, 1, LENGTH, LENGTH), 0, False),
}


@pytest.mark.parametrize("name", MASKS)
def test_the_padding_is_read_from_a_mask_of_any_form(name: str) -> None:
    mask, seen, static = MASKS[name]
    found = padding_in(mask, 2, LENGTH, seen, static=static)
    assert found is not None and found.dtype == torch.bool and torch.equal(found, REAL)


def test_one_new_token_is_read_from_its_column() -> None:
    new = torch.tensor([[True], [False]])
    for mask, static in ((visible(new, seen=4), False), (visible(new, seen=4, total=9), True)):
        assert torch.equal(padding_in(mask, 2, 1, 4, static=static), new)


def test_a_block_mask_is_asked_for_each_token() -> None:
    def see(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q) & REAL[b, k]

    mask = create_block_mask(see, 2, None, LENGTH, LENGTH, device="cpu")
    assert torch.equal(padding_in(mask, 2, LENGTH), REAL)


def test_without_a_mask_all_tokens_are_real() -> None:
    assert padding_in(None, 2, LENGTH) is None


def test_a_mask_of_one_row_stands_for_the_batch() -> None:
    assert padding_in(visible()[:1], 2, LENGTH).tolist() == [[True] * LENGTH] * 2


@pytest.mark.parametrize("shape", [(2, 4), (2, 5, 5), (5,), (2, 1, 5, 4)])
def test_a_mask_that_tells_no_padding_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInputError, match="does not tell which of 5 tokens are real"):
        padding_in(torch.ones(shape, dtype=torch.bool), 2, LENGTH)


def test_packed_sequences_are_refused() -> None:
    apart = torch.tensor([0, 0, 1, 1, 1])
    mask = visible(torch.ones_like(REAL)) & (apart == apart.unsqueeze(1))
    with pytest.raises(InvalidInputError, match="several packed sequences"):
        padding_in(mask, 2, LENGTH)
