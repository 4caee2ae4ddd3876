"""Models from scratch: stock values for stock parts, components' own, the same bits again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import modwright
from helpers import batch_of, outputs
from modwright.anatomy import Anatomy, OpaqueMixer
from modwright.core.errors import ModwrightError
from modwright.core.registry import registries_restored
from modwright.edits import verify
from modwright.edits.compose import base_config, compose
from modwright.edits.remodeled import is_plain
from modwright.nn.component import component
from warm_processes import run_python

RELU = ("feed_forward", {"activation": "relu", "gated": False})


class Cumulative(nn.Module):
    """The mean of the tokens so far, between two linear layers."""

    def __init__(self, hidden_size: int, rank: int = 4, out_proj_scale: float = 1.0) -> None:
        super().__init__()
        self.inside = nn.Linear(hidden_size, rank, bias=False)
        self.out_proj = nn.Linear(rank, hidden_size, bias=False)
        self.out_proj_scale = out_proj_scale
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.inside.weight)
        nn.init.constant_(self.out_proj.weight, self.out_proj_scale)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out_proj(self.inside(x).tanh())
        return out


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    with registries_restored():
        component("cumulative_toy", kind="token_mixer", causal=True)(Cumulative)
        yield


def same(one: Any, other: Any) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)


def test_without_parts_it_is_the_stock_model_of_the_seed() -> None:
    torch.manual_seed(3)
    expected = type(compose("tiny-gpt2"))(base_config("tiny-gpt2", {}))
    before = torch.random.get_rng_state()
    found = compose("tiny-gpt2", seed=3)
    assert torch.random.get_rng_state().equal(before)
    assert is_plain(found) and not found.training and same(found, expected)
    assert not same(found, compose("tiny-gpt2", seed=4))


@pytest.mark.parametrize("base", ["tiny-llama", "tiny-gpt2", "tiny-bert"])
def test_stock_modules_start_the_same_whatever_stands_beside_them(base: str) -> None:
    parts: Any = {"attention[1]": ("cumulative_toy", {"rank": 3}), "mlp[2:]": RELU}
    model, stock = compose(base, parts, seed=5), compose(base, seed=5)
    assert same(model, compose(base, parts, seed=5)) and not is_plain(model)
    assert not same(model, compose(base, parts, seed=6))
    anatomy, plain = Anatomy.of(model), Anatomy.of(stock)
    toy = anatomy.blocks[1].at("attention")
    assert isinstance(toy, OpaqueMixer) and toy.module.inside.weight.shape[0] == 3
    writers = 2 * len(anatomy.blocks)
    assert toy.module.out_proj.weight.detach().unique().tolist() == [pytest.approx(writers**-0.5)]
    assert [block.mlp.activation for block in anatomy.blocks[2:]] == ["relu"] * 2  # type: ignore[union-attr]
    own, kept = plain.model.state_dict(), 0
    for name, tensor in model.state_dict().items():
        place = name.split(".")
        index = next((int(word) for word in place if word.isdecimal()), None)
        if index in (None, 0) and "intermediate" not in name:
            assert tensor.equal(own[name]), name
            kept += 1
    assert kept > 8 and anatomy.is_tied == plain.is_tied
    if base != "tiny-bert":
        assert verify(model).ok


def test_what_the_config_can_say_is_said_there() -> None:
    model = compose("tiny-llama", {"mlp[*]": ("feed_forward", {"intermediate_size": 40})})
    assert is_plain(model) and model.config.intermediate_size == 40
    assert same(model, compose("tiny-llama", intermediate_size=40))


@pytest.mark.parametrize("mixer", ["mamba1", "mamba2"])
def test_mixers_with_options_beside_their_arguments_are_filled_too(mixer: str) -> None:
    given = {"d_state": 4, "selective": False} | ({"head_dim": 8} if mixer == "mamba2" else {})
    model = compose("tiny-llama", {"attention[*]": (mixer, given), "mlp[*]": None})
    mixers = [block.at("attention").module for block in Anatomy.of(model).blocks]
    assert {m.d_model for m in mixers} == {48} and not any(m.options.selective for m in mixers)
    reach = len(mixers) ** -0.5 * mixers[0].d_inner ** -0.5
    for each in mixers:
        assert 0.9 * reach < float(each.out_proj.weight.detach().abs().max()) <= reach
    with pytest.raises(ModwrightError, match="selectiv"):
        compose("tiny-llama", {"attention[*]": (mixer, {"selectiv": False})})


def test_parts_may_be_left_out_and_fields_replaced() -> None:
    model = compose(
        "preset:tiny-llama", {"mlp[*]": None}, num_hidden_layers=2, hidden_size=36, vocab_size=64
    )
    anatomy = Anatomy.of(model)
    assert len(anatomy.blocks) == 2 and all(block.mlp is None for block in anatomy.blocks)
    assert model.get_input_embeddings().weight.shape == (64, 36)
    small = {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 16, "vocab_size": 9}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "rope_theta": 77.0}
    plain = compose("llama", **small, **heads)
    assert plain.config.vocab_size == 9 and type(plain).__name__ == "LlamaForCausalLM"
    assert type(compose(plain.config, head="base")).__name__ == "LlamaModel"
    assert compose("tiny-llama", dtype="bfloat16").dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("base", "parts", "fields", "says"),
    [
        ("lama", {}, {}, "unknown base 'lama'.*did you mean 'llama'"),
        ("tiny-llama", {}, {"hiden_size": 3}, "no field 'hiden_size'.*'hidden_size'"),
        ("tiny-llama", {}, {"hidden_size": "wide"}, "tiny-llama: "),
        ("tiny-llama", {}, {"num_hidden_layers": 10**7}, "1 to 1024 layers, not 10,000,000"),
        ("tiny-llama", {"mpl[*]": RELU}, {}, "unknown kind of part 'mpl'"),
        ("tiny-llama", {"block[0]": RELU}, {}, "names whole blocks"),
        (
            "tiny-llama",
            {"mlp[0]": "feed_foward"},
            {},
            "unknown component 'feed_foward'.*'feed_forw",
        ),
        ("tiny-llama", {"mlp[0]": "cumulative_toy"}, {}, "of the kind token_mixer; at mlp"),
        ("tiny-llama", {"attention[0]": ("cumulative_toy", {"rnk": 2})}, {}, "'rnk'.*'rank'"),
        ("tiny-llama", {"mlp[0]": ("mixture", {})}, {}, "needs num_experts, top_k"),
        ("tiny-llama", {"mlp[0]": ("feed_forward", {"activation": object()})}, {}, "as a config"),
        ("tiny-llama", {"mlp[*]": RELU, "mlp[1]": RELU}, {}, "edited twice"),
        ("tiny-llama", {"attention[0]": ("attention", {"num_heads": 5})}, {}, "do not divide"),
    ],
)
def test_what_means_nothing_is_refused_in_one_line(
    base: str, parts: Any, fields: dict[str, Any], says: str
) -> None:
    with pytest.raises(ModwrightError, match=says) as failure:
        compose(base, parts, **fields)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("seed", [-1, True, 0.5])
def test_a_seed_is_a_number(seed: Any) -> None:
    with pytest.raises(ModwrightError, match="seed is a whole number"):
        compose("tiny-llama", seed=seed)


def test_it_learns_is_saved_and_reopened_in_a_new_process(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    parts: Any = {"mlp[1:]": RELU, "attention[0]": None}
    model: Any = compose("tiny-llama", parts, seed=1)
    before = outputs(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    ids = torch.randint(3, 128, (4, 12))
    for _ in range(5):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    assert not outputs(model).equal(before)
    model.save_pretrained(tmp_path / "model")
    save_file(batch_of(model), tmp_path / "batch")
    code = (
        "import sys, torch, modwright, transformers as t\n"
        "from safetensors.torch import load_file, save_file\n"
        "torch.set_num_threads(1)\n"
        "m = t.AutoModelForCausalLM.from_pretrained('model').eval()\n"
        "with torch.no_grad(): out = m(**load_file('batch'))[0]\n"
        "save_file({'out': out.contiguous()}, 'out')\n"
    )
    run_python(["-c", code], cwd=tmp_path, library=True).check_returncode()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        live = model(**batch_of(model))[0]
    torch.set_num_threads(threads)
    assert load_file(tmp_path / "out")["out"].equal(live)


@pytest.mark.parametrize("base", ["tiny-mamba", "tiny-mamba2", "tiny-llama"])
def test_a_preset_is_composed_as_the_model_that_it_opens_as(base: str) -> None:
    opened = modwright.open(f"preset:{base}").model
    assert type(compose(base, check=False)) is type(opened)
    assert type(compose(f"preset:{base}", check=False)) is type(opened)


@pytest.mark.parametrize(
    "part",
    [("feed_forward", {}, 3), {"part": "feed_forward"}, ("feed_forward", None), 3, (None, {}), ()],
    ids=str,
)
def test_a_part_that_is_no_name_with_arguments_is_refused(part: Any) -> None:
    with pytest.raises(ModwrightError, match=r"'mlp\[0\]': a component is given by its name, by"):
        compose("tiny-llama", {"mlp[0]": part})


def test_parts_that_are_no_mapping_are_refused() -> None:
    parts: Any = ["mlp[0]"]
    with pytest.raises(ModwrightError, match="parts is a mapping of selectors to components, not"):
        compose("tiny-llama", parts)
