"""Assisted generation is refused before anything runs, however it is asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from toy_recurrent import toys
from transformers import GenerationConfig

from helpers import edit
from modwright.anatomy import Anatomy
from modwright.core.errors import InvalidInputError
from modwright.edits import remove

IDS = torch.full((1, 4), 7)


@pytest.fixture(scope="module")
def model(tiny: Any) -> Any:
    source = tiny("tiny-llama")
    return edit(source, toys(Anatomy.of(source), (1,)), check=False).model


@pytest.mark.parametrize("option", ["prompt_lookup_num_tokens", "assistant_early_exit"])
def test_an_option_that_asks_for_assistance_is_named(model: Any, option: str) -> None:
    told = rf"toy_recurrent keeps a state, .* assisted generation \({option}\)"
    given = GenerationConfig(**{option: 2})
    for arguments in ({option: 2}, {"generation_config": given}):
        with pytest.raises(InvalidInputError, match=told):
            model.generate(IDS, **arguments)
    with pytest.raises(InvalidInputError, match=told):
        model.generate(IDS, given)
    before = model.generation_config
    try:
        model.generation_config = given
        with pytest.raises(InvalidInputError, match=told):
            model.generate(IDS)
        assert model.generate(IDS, max_new_tokens=1, **{option: None}).shape == (1, 5)
    finally:
        model.generation_config = before


def test_models_without_a_state_are_assisted(tiny: Any) -> None:
    source = tiny("tiny-llama")
    edited = edit(source, remove("blocks.0.attention"), check=False).model
    new = {"max_new_tokens": 2, "min_new_tokens": 2, "pad_token_id": 0}
    found = edited.generate(IDS, assistant_model=source, **new)
    assert torch.equal(found, edited.generate(IDS, **new))


def test_steps_with_states_are_not_compiled_by_themselves(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a static cache, generation compiles steps on an accelerator; states are replaced."""
    asked: list[bool] = []
    kind = type(model).__mro__[1]
    monkeypatch.setattr(
        kind, "generate", lambda self, *args, **kwargs: asked.append(kwargs["disable_compile"])
    )
    import modwright.edits.generating as generating

    wrapped = generating.generate_with_states(kind)
    wrapped(model, IDS)
    wrapped(model, IDS, disable_compile=False)
    assert asked == [True, False]
