"""What a model reads: one place knows, and refuses what it cannot read."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from helpers import batch_of
from modwright.anatomy import Anatomy, Images, Tokens
from modwright.core.errors import InvalidInputError


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_every_family_reads_what_it_says(tiny: Any, preset: str) -> None:
    model = tiny(preset)
    reads = Anatomy.of(model).family.inputs()
    given = reads.random(3, 7, generator())
    reads.check(given)
    assert list(given) == [model.main_input_name]
    with torch.no_grad():
        hidden = model(**given, output_hidden_states=True).hidden_states[0]
    assert hidden.shape[:2] == (3, reads.positions(7))
    again = reads.random(3, 7, generator())
    assert all(torch.equal(given[name], again[name]) for name in given)
    assert (reads.describe() == "") == reads.is_text


def test_probes_are_two_padded_rows_or_two_images(tiny: Any, preset: str) -> None:
    model = tiny(preset, dtype=torch.bfloat16)
    batch = batch_of(model)
    assert all(len(tensor) == 2 for tensor in batch.values())
    if Anatomy.of(model).family.inputs().is_text:
        assert batch["attention_mask"][1].tolist() == [0] * 4 + [1] * 8
        assert batch["attention_mask"][0].all()
    else:
        assert list(batch) == ["pixel_values"]
        assert batch["pixel_values"].dtype == torch.bfloat16


def test_images_and_patches_may_be_oblong() -> None:
    images = Images(1, (32, 16), (8, 4), extra=2)
    assert images.patches == 16 and images.positions(5) == 18
    assert images.random(2, 5, generator())["pixel_values"].shape == (2, 1, 32, 16)
    assert images.describe().endswith("1 channels is 16 patches and 2 tokens beside them")
    assert Images(3, (8, 8), (4, 4)).describe().endswith("is 4 patches")


def test_what_cannot_be_read_is_refused_with_what_can() -> None:
    tokens, images = Tokens(9), Images(3, (8, 8), (4, 4), 1)
    ids, grey = torch.tensor([[3, 8]]), torch.zeros(2, 1, 8, 8)
    tokens.check({"input_ids": ids})
    tokens.check({"inputs_embeds": torch.zeros(1, 2, 4)})
    with pytest.raises(
        InvalidInputError, match="the model reads input_ids; the data gives pixel_values"
    ):
        tokens.check({"pixel_values": grey})
    with pytest.raises(InvalidInputError, match="token id 9 and the model a vocabulary of 9"):
        tokens.check({"input_ids": ids + 1})
    with pytest.raises(
        InvalidInputError, match="the model reads pixel_values; the data gives input_ids"
    ):
        images.check({"input_ids": ids})
    with pytest.raises(
        InvalidInputError, match=r"shape \(3, 8, 8\) .*; the data gives \(1, 8, 8\)"
    ):
        images.check({"pixel_values": grey})
