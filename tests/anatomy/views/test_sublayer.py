"""What a component says of itself is asked by costs and trees, in every host."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import modwright
from modwright.anatomy import Anatomy, OpaqueMixer
from modwright.anatomy.forward_pass import Pass
from modwright.anatomy.views import Scores, Sublayer, component_module
from modwright.core.errors import UnsupportedArchitecture
from modwright.core.registry import registries_restored
from modwright.cost import count, inspect, kv_cache_bytes, part_macs, state_bytes
from modwright.edits import Change, Replace
from modwright.models import create_model
from modwright.nn.component import component
from modwright.nn.placeholders import as_opaque


class Decay(nn.Module):
    """A toy recurrence: its scan is no matrix product, so it says itself what it costs."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.width, self.rate = width, nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        return x * self.rate

    def macs(self, batch: int, length: int, cached: int = 0) -> int:
        return batch * (length * 1000 + cached)

    def state_bytes(self, dtype: torch.dtype) -> int:
        return self.width * dtype.itemsize

    def describe(self) -> str:
        return f"a decay, {self.width} wide"


class Kept(Decay):
    """Keeps keys, too."""

    def kv_bytes(self, positions: int, dtype: torch.dtype) -> int:
        return 3 * positions * dtype.itemsize


class Wrapping(nn.Module):
    """A host that holds the component."""

    def __init__(self, component: nn.Module) -> None:
        super().__init__()
        self.component = component

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.component(hidden_states), None


HOSTS = {
    "mixed in": lambda part: as_opaque(part, paired=True),
    "around it": lambda part: as_opaque(Wrapping(part)),
}


def with_mixer(host: str, part: nn.Module) -> Anatomy:
    model = modwright.open("preset:tiny-llama").model
    model.model.layers[1].self_attn = HOSTS[host](part)
    return Anatomy.of(model)


@pytest.mark.parametrize("host", HOSTS)
def test_a_component_answers_for_itself_wherever_it_stands(host: str) -> None:
    anatomy = with_mixer(host, Decay())
    mixer = anatomy.blocks[1].at("attention")
    assert isinstance(mixer, OpaqueMixer) and isinstance(component_module(mixer.module), Decay)
    assert mixer.macs(Pass(2, 5)) == part_macs(mixer, Pass(2, 5)) == 2 * 5000
    assert mixer.macs(Pass(2, 5, cached={mixer.address: 7})) == 2 * 5007
    assert mixer.macs(Pass(2, 5, counted={mixer.address: 11})) == 22, "what ran was counted"
    assert mixer.state_bytes() == mixer.state_bytes(torch.float32) == 48 * 4
    assert mixer.state_bytes(torch.bfloat16) == 48 * 2
    assert mixer.kv_bytes(100) == 0 and mixer.scores(Pass(1, 1)) is None
    assert mixer.describe() == "a decay, 48 wide"
    told = inspect(anatomy).find(mixer.address).description
    assert told == "a decay, 48 wide, state of 192 B, constant in length"


def test_states_are_counted_beside_keys_and_values() -> None:
    plain, anatomy = (with_mixer("mixed in", part) for part in (nn.Identity(), Decay()))
    assert state_bytes(anatomy, batch=3) == 3 * 48 * 4
    assert state_bytes(anatomy, dtype="float16") == 48 * 2
    assert kv_cache_bytes(anatomy, 10) == kv_cache_bytes(plain, 10)
    short, long = (count(anatomy, length=n) for n in (10, 500))
    assert short.state_bytes == long.state_bytes == 48 * 4
    assert short.to_dict()["state_bytes"] == 48 * 4
    assert "states 192 B per sequence, constant in length" in short.table().caption
    assert "constant in length" in short.growth()["state_bytes"]
    without = count(plain)
    assert "state_bytes" not in without.to_dict() and "state_bytes" not in without.growth()
    assert "states" not in without.table().caption


def test_a_registered_component_answers_where_an_edit_puts_it() -> None:
    with registries_restored():

        @component("remembering", kind="token_mixer", state="recurrent", causal=True)
        class Remembering(Decay):
            def forward(self, x: Tensor, state: Any = None) -> Any:  # type: ignore[override]
                state = x.new_zeros(len(x), self.width) if state is None else state
                return x * self.rate, state

        model = modwright.open("preset:tiny-llama").model
        put = Replace("blocks.2.attention", "remembering", {})
        change = Change((put,), {"blocks.2.attention.rate": torch.ones(48)})
        edited = modwright.apply(model, change, check=False).model
        counted = count(edited, length=10, batch=2)
        row = {row.address: row for row in counted.rows}["blocks.2.attention"]
        assert (row.kind, row.parameters) == ("opaquemixer", 48)
        assert (row.prefill_macs, row.decode_macs) == (2 * 10 * 1000, 2 * 1000)
        assert counted.state_bytes == state_bytes(Anatomy.of(edited)) == 48 * 4
        assert counted.kv_bytes == count(model, length=10).kv_bytes * 3 // 4
        description = inspect(edited).find("blocks.2.attention").description
        assert description == "a decay, 48 wide, state of 192 B, constant in length"


def test_keys_of_a_component_are_counted_with_those_of_attentions() -> None:
    plain, anatomy = (with_mixer("mixed in", part) for part in (Decay(), Kept()))
    assert kv_cache_bytes(anatomy, 10, 2) == kv_cache_bytes(plain, 10, 2) + 2 * 3 * 10 * 4
    address = "blocks.1.attention"
    assert {row.address: row for row in count(anatomy, context=9).rows}[address].decode_macs == 1009


def test_what_a_component_says_stands_for_what_was_counted_while_it_ran() -> None:
    model = create_model("poolformer_s12", depths=[1, 1], hidden_sizes=[8, 16], image_size=64)
    before = count(model)
    model.stages[1].blocks[0].mixer = as_opaque(Decay(1))
    after = {row.address: row for row in count(model, batch=2).rows}
    assert after["blocks.1.attention"].prefill_macs == 2 * 64 * 1000
    total = sum(row.prefill_macs for row in after.values())
    assert total == 2 * (before.prefill_macs + 64 * 1000), "nothing is taken off the rest"


def test_a_component_that_does_not_run_by_itself_says_what_it_lacks() -> None:
    class Needy(nn.Module):
        hidden_size = 48

        def forward(self, x: Tensor, more: Tensor) -> Tensor:
            return x + more

    mixer: Any = with_mixer("mixed in", Needy()).blocks[1].at("attention")
    with pytest.raises(UnsupportedArchitecture, match=r"give it a method `macs\(batch, length, c"):
        mixer.macs(Pass(1, 1))


def test_a_view_of_another_kind_is_counted_by_its_own_methods() -> None:
    anatomy = modwright.open("preset:tiny-llama").anatomy
    attention: Any = anatomy.blocks[2].attention

    class Twice(type(attention)):  # type: ignore[misc]
        """An attention whose scores cost twice as much."""

        def scores(self, run: Pass) -> Scores:
            told, macs = super().scores(run)
            return Scores(f"twice {told}", 2 * macs)

        def describe(self) -> str:
            return "another attention"

    before = count(anatomy, length=10).prefill_macs
    attention.__class__ = Twice
    assert count(anatomy, length=10).prefill_macs == before + 6 * 10 * 10 * (12 + 12)
    tree = inspect(anatomy, length=10)
    assert tree.find("blocks.2.attention.scores").description == "twice 6 heads x 10 x 10"
    assert tree.find("blocks.2.attention").kind == "twice"
    assert tree.find("blocks.2.attention").description == "another attention"


def test_sublayers_without_keys_or_states_keep_nothing() -> None:
    block = modwright.open("preset:tiny-bert").anatomy.blocks[0]
    parts: list[Sublayer] = [part for _, part in block.sublayers()]
    assert len(parts) == 2
    assert all(part.kv_bytes(9) == part.state_bytes() == 0 for part in parts)
