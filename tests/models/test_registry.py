"""What create_model is asked for: accepted as it was meant, or refused in one line."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from modwright.core.errors import InvalidInputError
from modwright.models import create_model

SMALL: dict[str, Any] = {"depths": [1, 1], "hidden_sizes": [8, 16]}


def test_fault_B4_words_of_the_config_are_accepted() -> None:
    model = create_model("poolformer_s12", **SMALL, num_channels=1, num_labels=4)
    assert model(torch.zeros(1, 1, 32, 32)).logits.shape == (1, 4)
    assert create_model("craft_x2", hidden_size=32, depths=[1], num_heads=[4], num_channels=1)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"num_classes": "10"}, "num_classes is a whole number of at least 0, not '10'"),
        ({"num_classes": -1}, "num_classes is a whole number of at least 0, not -1"),
        ({"num_classes": 2.5}, "num_classes is a whole number of at least 0, not 2.5"),
        ({"num_classes": True}, "num_classes is a whole number"),
        ({"in_chans": "3"}, "in_chans is a whole number of at least 1, not '3'"),
        ({"in_chans": 0}, "in_chans is a whole number of at least 1, not 0"),
        ({"drop_path_rate": "0.1"}, "drop_path_rate lies between 0 and 1, not '0.1'"),
        ({"drop_rate": [0.1]}, r"drop_rate lies between 0 and 1, not \[0\.1\]"),
        ({"depths": "1,1"}, r"depths is list\[int\] \| tuple\[int, \.\.\.\], not '1,1'"),
        ({"depths": 2}, r"depths is list\[int\]"),
        ({"hidden_sizes": [8, "16"]}, r"hidden_sizes is list\[int\]"),
        ({"pool_size": "3"}, "pool_size is int, not '3'"),
        ({"global_pool": 1}, "global_pool is str, not 1"),
    ],
)
def test_fault_B4_values_of_another_type_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInputError, match=said) as refusal:
        create_model("poolformer_s12", **{**SMALL, **fields})
    assert "\n" not in str(refusal.value)
