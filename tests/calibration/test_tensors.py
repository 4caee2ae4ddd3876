"""Calibration on any batches of keyword tensors: images, or text with more than token ids."""

from __future__ import annotations

import json
from collections import UserDict
from pathlib import Path
from typing import Any

import pytest
import torch
from layerwise_cases import Everything, equal_statistics, rows, walk

from helpers import random_data
from modwright.anatomy import Anatomy
from modwright.calibration import SecondMoments, Similarity, from_tensors
from modwright.core.errors import InvalidInputError
from modwright.data.text import from_sequences


def images(count: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def test_images_are_batched_as_given_and_say_what_they_are() -> None:
    data = from_tensors([{"pixel_values": part} for part in images().split(2)], name="noise")
    assert [len(batch.tensors()["pixel_values"]) for batch in data] == [2, 2, 1]
    assert all(batch.attention_mask is None for batch in data)
    assert data.describe() == "noise: 5 rows in 3 batches of pixel_values 3 x 16 x 16"
    told = json.loads(json.dumps(data.recipe))
    assert (told["data"], told["rows"], told["batches"]) == ("noise", 5, 3)


def test_the_digest_tells_data_apart_and_nothing_else() -> None:
    def digest(tensor: torch.Tensor, **more: torch.Tensor) -> str:
        found: str = from_tensors([{"pixel_values": tensor, **more}], name="x").recipe["sha256"]
        return found

    same = from_tensors([{"pixel_values": images()}], name="y").recipe["sha256"]
    assert digest(images()) == same, "the name is not data"
    assert digest(images(seed=1)) != same
    assert digest(images().bfloat16()) != digest(images().half()) != same
    assert digest(images(), mask=torch.ones(5, dtype=torch.bool)) != same
    strided = images().transpose(2, 3).contiguous().transpose(2, 3)
    assert digest(strided) == same


def test_what_an_image_processor_returns_is_taken() -> None:
    """It gives a mapping that is no dict."""
    given = UserDict(pixel_values=images())
    assert next(iter(from_tensors([given]))).tensors().keys() == {"pixel_values"}


def test_token_batches_give_what_windows_give(tiny: Any) -> None:
    """The mask leaves padding out, and positions count from the first real token."""
    windows = from_sequences(rows((9, 4, 12)), 0, side="left", batch_size=3)
    batch = windows.batches[0]
    given = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    model = tiny("tiny-gpt2")
    found = walk(model, Similarity(), Everything(), data=from_tensors([given]))
    assert equal_statistics(found, walk(model, Similarity(), Everything(), data=windows))


def test_every_keyword_reaches_the_model(tiny: Any) -> None:
    ids = torch.stack(rows((8, 8)))
    segments = (torch.arange(8) >= 4).long().expand(2, -1)
    model = tiny("tiny-bert")
    plain = walk(model, Everything(), data=from_tensors([{"input_ids": ids}]))
    given = {"input_ids": ids, "token_type_ids": segments}
    segmented = walk(model, Everything(), data=from_tensors([given]))
    assert not torch.equal(plain[0]["resid_pre"], segmented[0]["resid_pre"])


def test_a_vit_walks_over_images(tiny: Any) -> None:
    model = tiny("tiny-vit")
    data = from_tensors([{"pixel_values": part} for part in images().split(2)])
    statistics = walk(model, SecondMoments(), data=data)
    assert len(statistics) == 4 and int(statistics[3]["tokens"]) == 5 * 17
    at_once = walk(model, SecondMoments(), data=from_tensors([{"pixel_values": images()}]))
    for one, many in zip(statistics, at_once):
        assert all(torch.allclose(value, many[name], atol=1e-5) for name, value in one.items())


def test_statistics_of_other_images_are_not_mixed_in(tiny: Any, tmp_path: Path) -> None:
    model = tiny("tiny-vit")
    walk(model, Similarity(), data=from_tensors([{"pixel_values": images()}]), directory=tmp_path)
    other = from_tensors([{"pixel_values": images(seed=1)}])
    with pytest.raises(InvalidInputError, match="another model, data or method"):
        walk(model, Similarity(), data=other, directory=tmp_path)


@pytest.mark.parametrize(
    ("batches", "said"),
    [
        ([], "x: no batches; give at least one mapping"),
        ([{}], "batch 0 must hold tensors by name; it is empty"),
        ([{"pixel_values": [[1.0]]}], "batch 0 must hold tensors by name; pixel_values is list"),
        ([{"a": torch.zeros(2, 3), "b": torch.zeros(3)}], r"batch 0 have \{'a': 2, 'b': 3\} rows"),
        ([{"a": torch.zeros(())}], r"batch 0 have \{'a': 0\} rows"),
        ([{"a": torch.zeros(1)}, {"a": torch.zeros(0, 4)}], r"batch 1 have \{'a': 0\} rows"),
    ],
)
def test_what_is_no_batch_is_refused(batches: Any, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said) as refusal:
        from_tensors(batches, name="x")
    assert "\n" not in str(refusal.value)


def test_data_that_a_model_cannot_read_is_refused_before_it_runs(tiny: Any, preset: str) -> None:
    model = tiny(preset)
    reads = Anatomy.of(model).family.inputs()
    other = tiny("tiny-vit") if reads.is_text else tiny("tiny-llama")
    with pytest.raises(
        InvalidInputError, match=f"the model reads {model.main_input_name}; the data gives"
    ):
        walk(model, Similarity(), data=random_data(other))
    if reads.is_text:
        beyond = from_tensors([{"input_ids": torch.tensor([[3, 128]])}])
        with pytest.raises(
            InvalidInputError, match="token id 128 and the model a vocabulary of 128"
        ):
            walk(model, Similarity(), data=beyond)
    else:
        small = from_tensors([{"pixel_values": torch.zeros(2, 3, 8, 8)}])
        with pytest.raises(InvalidInputError, match=r"shape \(3, 16, 16\) .* gives \(3, 8, 8\)"):
            walk(model, Similarity(), data=small)
