"""Whatever no model can be built of is refused in one line, on every road to a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import modwright
from modwright.anatomy.families import family_of
from modwright.core.errors import InvalidInputError, ModwrightError, UnsupportedArchitecture
from modwright.models import create_model
from modwright.models.registry import model_class

from .tiny import TINY, tiny


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"pool_size": 2}, "metaformer: pool_size must be odd, not 2"),
        ({"act": "foo"}, "metaformer: unknown activation 'foo'; valid values: gelu, "),
        ({"norm": "foo"}, "metaformer: unknown norm 'foo'; valid values: "),
        ({"global_pool": "foo"}, "metaformer: unknown pool 'foo'; valid values: "),
        ({"num_channels": -1}, "in_chans"),
        ({"stem": [0, 0, 0]}, "metaformer, whose stem [0, 0, 0] is below 1: "),
    ],
)
def test_fault_B4_what_parts_refuse_is_refused_by_create_model(
    fields: dict[str, Any], told: str
) -> None:
    with torch.device("meta"), pytest.raises(InvalidInputError) as refused:
        create_model("poolformer_s12", **fields)
    assert told in str(refused.value) and "\n" not in str(refused.value)
    assert refused.value.exit_code == 2


def _wrong(value: Any) -> list[Any]:
    if isinstance(value, bool):
        return []
    if isinstance(value, int):
        return [0, -1, 7]
    if isinstance(value, str):
        return ["foo"]
    if isinstance(value, list | tuple) and value and isinstance(value[0], int):
        return [[number] * len(value) for number in (0, -1, 7)] + [[]]
    if isinstance(value, list | tuple) and value and isinstance(value[0], str):
        return [["foo"] * len(value)]
    return []


@pytest.mark.parametrize("model_type", TINY)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_fault_B4_every_field_is_taken_or_refused(model_type: str) -> None:
    """Nothing that torch or arithmetic says of a wrong size comes through."""
    from transformers import AutoConfig

    usual = AutoConfig.for_model(model_type, **TINY[model_type])
    refused = 0
    for name in type(usual).field_names():
        for value in _wrong(getattr(usual, name, None)):
            given = {**TINY[model_type], name: value}
            try:
                with torch.device("meta"):
                    config = type(usual)(**given)
                    model_class(config)(config)
            except ModwrightError as error:
                refused += 1
                assert "\n" not in str(error)
    assert refused


def test_fault_B4_a_config_file_with_a_wrong_field_is_refused_in_one_line(tmp_path: Path) -> None:
    model = tiny("metaformer")
    model.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"gelu"', '"foo"').replace('"relu"', '"foo"'))
    with pytest.raises(ModwrightError, match="unknown activation 'foo'") as refused:
        modwright.open(str(tmp_path))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("model_type", TINY)
def test_fault_B4_every_architecture_says_its_width_without_a_sublayer(model_type: str) -> None:
    model = tiny(model_type)
    try:
        family = family_of(model.config, model)
    except UnsupportedArchitecture:
        pytest.skip("a network of convolutions has no anatomy")
    last = modwright.Anatomy.of(model).widths
    assert family.get("hidden_size") in last
