"""Start values: a component sets its own, whatever the host's rule is and however it is made."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy_recurrent import toys
from transformers import AutoModelForCausalLM

from helpers import edit, snapshot
from modwright.anatomy import Anatomy
from modwright.core.errors import InvalidInputError
from modwright.core.registry import registries_restored
from modwright.edits import Change, Replace, register_part
from modwright.edits.start_values import self_initialized
from modwright.nn.component import component


class Toy(nn.Module):
    """Modules that every host's rule would set, a parameter and buffers of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dt, self.c_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.inner = nn.Sequential(Offset(width), nn.LayerNorm(width))
        self.A_log = nn.Parameter(torch.empty(width))
        self.register_buffer("powers", torch.empty(3))
        self.register_buffer("scratch", torch.empty(3), persistent=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        for value, tensor in wanted(self):
            tensor.fill_(value)  # no function of torch.nn.init

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        mixed: Tensor = self.inner(self.dt(x)) * self.A_log + self.c_proj(x)
        return mixed


class Offset(nn.Module):
    """Would start at 5, which the component around it does not want."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(width))

    def reset_parameters(self) -> None:
        nn.init.constant_(self.bias, 5.0)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


class Bare(nn.Module):
    """Has no ``reset_parameters``; what is in it starts as torch does it."""

    def __init__(self, width: int, own: bool = False) -> None:
        super().__init__()
        self.map = nn.Linear(width, width)
        self.own = nn.Parameter(torch.full((width,), 3.0)) if own else None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        mixed: Tensor = self.map(x)
        return mixed if self.own is None else mixed * self.own


def wanted(toy: Any) -> list[tuple[float, Tensor]]:
    norm = toy.inner[1]
    pairs = [(9.0, toy.dt.weight), (7.0, toy.dt.bias), (0.5, toy.c_proj.weight)]
    pairs += [(-1.0, toy.c_proj.bias), (6.0, toy.inner[0].bias), (2.0, norm.weight)]
    return [*pairs, (1.0, norm.bias), (4.0, toy.A_log), (8.0, toy.powers), (3.0, toy.scratch)]


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    with registries_restored():
        component("toy", kind="token_mixer")(Toy)
        component("bare", kind="channel_mixer")(Bare)
        register_part("toy")(lambda config, **fields: Toy(**fields))
        register_part("bare")(lambda config, **fields: Bare(**fields))
        yield


def placed(model: Any, part: str, address: str, **fields: Any) -> Any:
    """The model with a component at an address, its values as the component makes them."""
    fields = {"width": 48, **fields}
    made = {"toy": Toy, "bare": Bare}[part](**fields)
    values = {f"{address}.{name}": t.clone() for name, t in made.state_dict().items()}
    if part == "toy":
        values[f"{address}.scratch"] = torch.full((3,), 3.0)
    return edit(model, Change((Replace(address, part, fields),), values), check=False).model


def toy_of(model: Any) -> Any:
    part = Anatomy.of(model).blocks[1].at("attention")
    assert part is not None
    return part.module


def ways(kind: Any, config: Any) -> Iterator[tuple[str, Any]]:
    """However a model without a checkpoint is made."""
    yield "constructor", kind(copy.deepcopy(config))
    yield "from_config", kind._from_config(copy.deepcopy(config))
    with torch.device("meta"):
        moved = kind(copy.deepcopy(config))
    with torch.no_grad():
        for tensor in moved.to_empty(device="cpu").state_dict().values():
            tensor.fill_(77)
    moved.init_weights()
    yield "meta device first", moved
    yield "no tensor given", kind.from_pretrained(None, config=config, state_dict={})


@pytest.mark.parametrize("host", ["tiny-llama", "tiny-gpt2", "tiny-bert", "tiny-mixtral"])
def test_a_component_sets_all_that_is_in_it_and_the_host_nothing(tiny: Any, host: str) -> None:
    edited = placed(tiny(host), "toy", "blocks.1.attention")
    config = copy.deepcopy(edited.config)
    config.initializer_range = 0.3
    for way, made in ways(type(edited), config):
        toy = toy_of(made)
        assert self_initialized(made) == [toy]
        for value, tensor in wanted(toy):
            assert tensor.eq(value).all(), way
        stock = Anatomy.of(made).blocks[0].attention
        assert stock is not None and 0.2 < stock.q.weight.std() < 0.4, way


def test_it_holds_again_when_weights_are_initialized_again(tiny: Any) -> None:
    made = placed(tiny("tiny-llama"), "toy", "blocks.1.attention")
    built = type(made)(made.config)
    with torch.no_grad():
        for tensor in built.parameters():
            tensor.fill_(77)
    built.init_weights()
    assert all(tensor.eq(77).all() for tensor in built.parameters())


@pytest.mark.parametrize("lost", ["dt.weight", "A_log", "inner.0.bias", "powers", ""])
def test_what_a_checkpoint_lacks_is_set_and_what_it_has_stays(tiny: Any, lost: str) -> None:
    model = placed(tiny.copy("tiny-llama"), "toy", "blocks.1.attention")
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(torch.randn_like(tensor))
    path = "model.layers.1.self_attn."
    stored = snapshot(model)
    weights = {name: t.clone() for name, t in model.state_dict().items() if name != path + lost}
    loaded = type(model).from_pretrained(None, config=model.config, state_dict=weights)
    found, fresh = snapshot(loaded), dict(Toy(48).state_dict())
    for name, tensor in found.items():
        own = name.removeprefix(path)
        if own == "scratch":
            assert tensor.eq(3.0).all()
        elif own == lost:
            assert tensor.equal(fresh[own])
        else:
            assert tensor.equal(stored[name]), name


def test_without_a_method_modules_start_as_torch_does_it(tiny: Any, tmp_path: Path) -> None:
    edited = placed(tiny("tiny-llama"), "bare", "blocks.1.mlp")
    config = copy.deepcopy(edited.config)
    config.initializer_range = 1.0
    for way, made in ways(type(edited), config):
        linear = made.model.layers[1].mlp.map
        assert 0 < linear.weight.abs().max() <= 48**-0.5, way
        assert 0 < linear.bias.abs().max() <= 48**-0.5, way
        assert made.model.layers[0].mlp.up_proj.weight.std() > 0.5, way
    edited.save_pretrained(tmp_path)
    again = type(edited).from_pretrained(tmp_path)
    assert all(t.equal(snapshot(edited)[name]) for name, t in snapshot(again).items())


def test_a_lost_tensor_that_nothing_sets_is_refused(tiny: Any) -> None:
    model = placed(tiny("tiny-llama"), "bare", "blocks.1.mlp", own=True)
    name = "model.layers.1.mlp.own"
    weights = {key: t for key, t in model.state_dict().items() if key != name}
    with pytest.raises(InvalidInputError, match="nothing sets own of a Bare, which the check"):
        type(model).from_pretrained(None, config=model.config, state_dict=weights)
    weights[name] = model.state_dict()[name]
    whole = type(model).from_pretrained(None, config=model.config, state_dict=weights)
    assert whole.model.layers[1].mlp.own.eq(3).all()
    assert type(model)(model.config).model.layers[1].mlp.own.eq(3).all()


def test_what_stands_for_a_stock_module_starts_by_the_rule_of_the_host(tiny: Any) -> None:
    class Twin(Bare):
        host_initialized = True

    component("twin", kind="channel_mixer")(Twin)
    component("gelu_like", kind="activation")(nn.GELU)
    component("plain_linear", kind="projection")(nn.Linear)
    register_part("twin")(lambda config, **fields: Twin(**fields))
    values = {f"blocks.1.mlp.{n}": t.clone() for n, t in Twin(48).state_dict().items()}
    change = Change((Replace("blocks.1.mlp", "twin", {"width": 48}),), values)
    edited = edit(tiny("tiny-llama"), change, check=False).model
    assert self_initialized(edited) == []
    config = copy.deepcopy(edited.config)
    config.initializer_range = 1.0
    made: Any = type(edited)(config)
    assert made.model.layers[1].mlp.map.weight.std() > 0.5
    assert made.model.layers[1].mlp.map.bias.eq(0).all()


def test_only_the_outermost_component_answers(tiny: Any) -> None:
    component("offset", kind="norm")(Offset)
    model = placed(tiny("tiny-llama"), "toy", "blocks.1.attention")
    made = type(model)(model.config)
    assert self_initialized(made) == [toy_of(made)]
    assert toy_of(made).inner[0].bias.eq(6).all()
    alone = nn.ModuleList([Offset(2), nn.Sequential(Toy(2))])
    assert self_initialized(alone) == [alone[0], alone[1][0]]


@pytest.mark.parametrize("host", ["tiny-llama", "tiny-gpt2"])
def test_what_stands_by_its_name_starts_by_its_own_rule(tiny: Any, host: str) -> None:
    """Linear layers in it, too, for which the host's class has a rule."""
    source = tiny(host)
    config = edit(source, toys(Anatomy.of(source), (1,)), check=False).model.config
    config.initializer_range = 1.0
    made = toy_of(AutoModelForCausalLM.from_config(config))
    assert torch.equal(made.decay, torch.ones(4))
    assert torch.equal(made.inner["qk"].bias, torch.full((8,), 7.0))
    for layer in (made.out, made.inner["qk"]):
        assert 0 < layer.weight.abs().max() <= 48**-0.5
    assert 0.5 < made.window.std() < 1.5
