"""Any registered token mixer is put in place by its name, or refused with what is right."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import modwright
from helpers import edit
from modwright.anatomy import Anatomy
from modwright.core.errors import InvalidInputError
from modwright.core.registry import registries_restored
from modwright.edits import Change, Replace, apply
from modwright.nn.component import component
from modwright.surgery import make_method


class OfConfig(nn.Module):
    """Is built with the model's config and what stood there, and alters the latter."""

    def __init__(self, hidden_size: int, config: Any, current: nn.Module) -> None:
        super().__init__()
        self.map = nn.Linear(hidden_size, config.hidden_size)
        self.held = len(list(current.parameters()))
        for parameter in current.parameters():
            if not parameter.is_meta:
                parameter.data.zero_()

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.map(x)
        return mixed


class SetLater(nn.Module):
    """Its numbers are what ``reset_parameters`` says."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((hidden_size,), float("nan")))

    def reset_parameters(self) -> None:
        nn.init.constant_(self.gain, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


class MeanOfAll(nn.Module):
    """The mean of all real tokens, for every one."""

    def forward(self, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        real = x.new_ones(x.shape[:2]) if padding_mask is None else padding_mask.to(x.dtype)
        mean = (x * real[..., None]).sum(1) / real.sum(1, keepdim=True).clamp(min=1)
        return mean[:, None].expand_as(x)


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    with registries_restored():
        component("of_config", kind="token_mixer", causal=True)(OfConfig)
        component("set_later", kind="token_mixer", causal=True)(SetLater)
        component("acme.mean", kind="token_mixer", causal=False)(MeanOfAll)
        yield


def replaced(preset: str, mixer: str, **options: Any) -> Any:
    model = modwright.open(f"preset:{preset}").model
    planned = make_method("replace_token_mixer", {"mixer": mixer, "blocks": "1", **options})
    return apply(model, planned.plan(Anatomy.of(model))).model


def mixer_of(model: Any) -> Any:
    part: Any = Anatomy.of(model).blocks[1].at("attention")
    return part.module


def test_a_component_has_what_registered_ones_are_told_and_the_source_stays() -> None:
    source = modwright.open("preset:tiny-llama").model
    before = [p.clone() for p in source.parameters()]
    planned = make_method("replace_token_mixer", {"mixer": "of_config", "blocks": "1"})
    result = apply(source, planned.plan(Anatomy.of(source))).model
    assert mixer_of(result).held == 4
    assert all(torch.equal(p, q) for p, q in zip(source.parameters(), before))


def test_start_values_are_those_that_the_component_says() -> None:
    assert mixer_of(replaced("tiny-llama", "set_later")).gain.eq(0.5).all()


def test_an_encoder_takes_what_is_not_causal_and_a_decoder_says_why_not() -> None:
    assert isinstance(mixer_of(replaced("tiny-bert", "acme.mean")), MeanOfAll)
    with pytest.raises(
        InvalidInputError, match=r"'acme\.mean' is not registered as causal"
    ) as told:
        replaced("tiny-llama", "acme.mean")
    assert "'identity'" in str(told.value) and "'acme.mean'," not in str(told.value)
    with pytest.raises(InvalidInputError, match="'pool' is for images, and bert reads text"):
        replaced("tiny-bert", "pool")


def test_names_may_have_dots() -> None:
    model = modwright.open("preset:tiny-bert").model
    changed = edit(model, Change((Replace("blocks.0.attention", "acme.mean", {}),))).model
    part: Any = Anatomy.of(changed).blocks[0].at("attention")
    assert isinstance(part.module, MeanOfAll)
