"""What passes a point of a model is read as it is there, and nothing is left behind."""

from __future__ import annotations

import gc
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers import batch_of, edit, number_of_hooks, outputs, snapshot, unchanged
from modwright.anatomy import Anatomy
from modwright.core.capture import (
    Call,
    HookPoint,
    StopForward,
    capture,
    capture_attention,
    channels_last,
    eager_attention,
    first_tensor,
    intervene,
    on_forward,
    on_tensors,
    token_positions,
)
from modwright.core.errors import InvalidInputError
from modwright.edits import keep_heads


class Named(nn.Module):
    """Takes its stream by keyword and gives several things."""

    def forward(self, hidden_states: Tensor, scale: float = 2.0) -> tuple[Tensor, str]:
        return hidden_states * scale, "beside"


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.act = nn.ReLU(inplace=True)
        self.named = Named()

    def forward(self, x: Tensor) -> Tensor:
        return self.named(hidden_states=self.act(self.conv(x)))[0]


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model()


PICTURES = torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(1))


def points(model: Model, axis: int = 1) -> dict[str, HookPoint]:
    return {
        "in": HookPoint(model.conv, "input", axis),
        "conv": HookPoint(model.conv, "output", axis),
        "keyword": HookPoint(model.named, "input", axis),
        "tuple": HookPoint(model.named, "output", axis),
    }


def test_channels_come_last_wherever_they_lie(model: Model) -> None:
    with capture(points(model), copy=True) as seen:
        answer = model(PICTURES)
    truth = model.conv(PICTURES)
    assert torch.equal(seen["in"], PICTURES.permute(0, 2, 3, 1))
    assert torch.equal(seen["conv"], truth.permute(0, 2, 3, 1))
    assert torch.equal(seen["keyword"], truth.relu().permute(0, 2, 3, 1))
    assert torch.equal(seen["tuple"], answer.permute(0, 2, 3, 1))


def test_a_copy_is_safe_from_steps_in_place(model: Model) -> None:
    with capture(points(model, -1)) as views, capture(points(model, -1), copy=True) as copies:
        model(PICTURES)
    truth = model.conv(PICTURES)
    assert torch.equal(copies["conv"], truth)
    assert torch.equal(views["conv"], truth.relu())  # the very memory of the model
    assert copies["conv"].data_ptr() != views["conv"].data_ptr()


def test_gradients_are_kept_on_request_alone(model: Model) -> None:
    with capture(points(model)) as seen:
        model(PICTURES)
    assert not any(value.requires_grad for value in seen.values())
    with capture(points(model), gradients=True) as seen:
        model(PICTURES)
    seen["tuple"].square().sum().backward()
    assert model.conv.weight.grad is not None and float(model.conv.weight.grad.norm()) > 0


def test_tensors_go_to_the_device_that_is_asked_for(model: Model) -> None:
    with capture(points(model), device="meta") as seen:
        answer = model(PICTURES)
    assert {value.device.type for value in seen.values()} == {"meta"}
    assert answer.device.type == "cpu"


def test_every_pass_is_seen_in_order() -> None:
    step = nn.Linear(2, 2)
    model = nn.Sequential(step, step)  # one module twice
    passed: list[tuple[str, Tensor]] = []
    hook_points = {"in": HookPoint(step, "input"), "out": HookPoint(step, "output")}
    with on_tensors(hook_points, lambda name, value: passed.append((name, value))):
        model(torch.ones(1, 2))
    assert [name for name, _ in passed] == ["in", "out", "in", "out"]
    assert torch.equal(passed[1][1], passed[2][1])


def test_calls_are_seen_with_all_that_was_given(model: Model) -> None:
    calls: dict[str, Call] = {}
    with (
        on_forward({"before": model.named}, calls.__setitem__, "input"),
        on_forward({"after": model.named}, calls.__setitem__),
    ):
        model.named(PICTURES, scale=3.0)
    assert calls["before"].output is None and calls["after"].output[1] == "beside"
    assert all(
        call.args == (PICTURES,) and call.kwargs == {"scale": 3.0} for call in calls.values()
    )


def test_a_module_that_gives_no_tensor_is_passed_over() -> None:
    class Words(nn.Module):
        def forward(self, x: Tensor) -> str:
            return "no tensor"

    part = Words()
    with capture({"out": HookPoint(part, "output"), "in": HookPoint(part, "input")}) as seen:
        part(torch.ones(1))
    assert seen.keys() == {"in"}


@pytest.mark.parametrize(
    "output", [torch.ones(1), (torch.ones(1), None), [torch.ones(1)], "of transformers"]
)
def test_the_first_tensor_of_an_output_is_what_a_module_gives(output: Any) -> None:
    if isinstance(output, str):
        from transformers.modeling_outputs import BaseModelOutput

        output = BaseModelOutput(last_hidden_state=torch.ones(1))
    found = first_tensor(Call((), {}, output), "output")
    assert found is not None and torch.equal(found, torch.ones(1))


def test_the_last_axis_is_not_moved() -> None:
    x = torch.ones(2, 3)
    assert channels_last(x, -1) is x and channels_last(x, 1) is x
    assert channels_last(torch.ones(2, 3, 4), 1).shape == (2, 4, 3)


def test_a_pass_ends_where_it_is_stopped(model: Model) -> None:
    ran: list[str] = []

    def stop(name: str, call: Call) -> None:
        ran.append(name)
        if name == "conv":
            raise StopForward

    modules = {"conv": model.conv, "act": model.act}
    with on_forward(modules, stop), suppress(StopForward):
        model(PICTURES)
    assert ran == ["conv"] and number_of_hooks(model) == 0


@pytest.mark.parametrize("place", ["the model", "the listener", "the caller", "a point"])
def test_no_hook_is_left_whatever_fails(model: Model, place: str) -> None:
    def see(name: str, value: Tensor) -> None:
        if place == "the listener":
            raise ValueError(place)

    there = points(model)
    if place == "a point":
        there["wrong"] = HookPoint("no module", "output")  # type: ignore[arg-type]
    with (
        pytest.raises((ValueError, RuntimeError, AttributeError)),
        on_tensors(there, see),
        capture(there),
    ):
        model(PICTURES[:, :2] if place == "the model" else PICTURES)
        raise ValueError(place)
    assert number_of_hooks(model) == 0


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gpt2", "tiny-bert", "tiny-opt", "tiny-vit"])
def test_attention_weights_are_those_of_eager_attention(name: str, tiny: Any) -> None:
    model = tiny.copy(name)
    model.set_attn_implementation("sdpa")
    batch = batch_of(model)
    points = {block.index: block.attention.weights for block in Anatomy.of(model).blocks}
    expected = model(**batch)[0]
    with torch.no_grad(), capture_attention(model, points) as seen:
        assert model.config._attn_implementation == "eager"
        found = model(**batch)[0]
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(model(**batch)[0], expected)
    real = batch.get("attention_mask", torch.ones(found.shape[:2])).bool()
    if found.shape[:2] == real.shape:
        assert torch.allclose(found[real], expected[real], atol=1e-4)
    model.set_attn_implementation("eager")
    maps = model(**batch, output_attentions=True).attentions
    assert len(maps) == len(seen)
    assert all(torch.equal(seen[index], weights) for index, weights in enumerate(maps))


def test_weights_are_read_of_parts_that_were_replaced_too(tiny: Any) -> None:
    source = tiny.copy("tiny-llama")
    blocks = Anatomy.of(source).blocks
    model = edit(source, keep_heads(blocks[1].attention, [0, 1, 2]), check=False).model
    points = {block.index: block.attention.weights for block in Anatomy.of(model).blocks}
    with capture_attention(model, points, gradients=True) as seen:
        model(**batch_of(model))
    assert seen[1].shape[1] == 3 and seen[0].shape[1] == 6
    assert all(weights.requires_grad for weights in seen.values())


def test_each_config_gets_its_own_setting_back_whatever_happens() -> None:
    class Part(nn.Module):
        def __init__(self, setting: str) -> None:
            super().__init__()
            from transformers import PreTrainedConfig

            self.config = PreTrainedConfig()
            self.config._attn_implementation_internal = setting

    model = nn.ModuleList([Part("sdpa"), Part("flex_attention")])
    with suppress(StopForward), eager_attention(model):
        assert [p.config._attn_implementation for p in model] == ["eager", "eager"]
        raise StopForward
    assert [p.config._attn_implementation for p in model] == ["sdpa", "flex_attention"]


def test_an_item_that_a_module_does_not_give_is_passed_over() -> None:
    named = Named()
    with capture({"beside": HookPoint(named, "output", item=1)}) as seen:
        named(hidden_states=torch.ones(1, 2))
    assert not seen


# Writing


def test_what_is_written_takes_the_place_of_what_passes(model: Model) -> None:
    there = points(model)
    for name, given in (("in", PICTURES * 0), ("conv", None), ("keyword", None), ("tuple", None)):
        with intervene(there[name], lambda x: x * 0), capture(there, copy=True) as seen:
            answer = model(PICTURES)
        if given is not None:
            assert torch.equal(answer, model(given))
        else:
            assert not answer.any()
        assert seen["in"].shape == (2, 5, 6, 3)
    assert number_of_hooks(model) == 0 and model(PICTURES).any()


def test_channels_are_last_for_a_function_that_writes(model: Model) -> None:
    def first_to_one(x: Tensor) -> Tensor:
        assert x.shape == (2, 5, 6, 4)
        x[..., 0] = 1  # in place: it has a copy
        return x.double()

    with intervene(points(model)["conv"], first_to_one):
        answer = model(PICTURES)
    expected = 2 * model.conv(PICTURES).relu()
    expected[:, 0] = 2
    assert torch.equal(answer, expected) and answer.dtype == torch.float32


@pytest.mark.parametrize(
    ("given", "told"), [(torch.ones(1), r"gives \(1,\) for"), (None, "NoneType")]
)
def test_another_shape_is_refused(model: Model, given: Any, told: str) -> None:
    with (
        pytest.raises(InvalidInputError, match=told) as refusal,
        intervene(points(model)["conv"], lambda x: given),
    ):
        model(PICTURES)
    assert "\n" not in str(refusal.value) and number_of_hooks(model) == 0
    with (
        pytest.raises(InvalidInputError, match="no tensor passes"),
        intervene(HookPoint(model.named, "output", item=1), torch.zeros_like),
    ):
        model(PICTURES)


def test_outputs_of_transformers_and_named_tuples_keep_their_kind() -> None:
    from transformers.modeling_outputs import BaseModelOutput

    class Part(nn.Module):
        def forward(self, x: Any) -> Any:
            return x

    part = Part()
    for given in (BaseModelOutput(hidden_states=(1,), attentions=None), Call((), {}, 1)):
        assert part(given) is given
    given = BaseModelOutput(last_hidden_state=torch.ones(2), hidden_states=(torch.ones(1),))
    with intervene(HookPoint(part, "output"), lambda x: x + 1):
        found = part(given)
        assert isinstance(part([torch.ones(1), "beside"]), list)
    assert type(found) is BaseModelOutput and found.hidden_states is given.hidden_states
    assert torch.equal(found.last_hidden_state, torch.full((2,), 2.0))
    assert torch.equal(given.last_hidden_state, torch.ones(2))


def silenced(model: Any, where: Any) -> Any:
    """The first tokens lose some channels behind block 1."""
    point = Anatomy.of(model).blocks[1].resid_post

    def f(h: Tensor) -> Tensor:
        h[..., :5] = h[..., :5].masked_fill((where() == 0)[..., None], 0)
        return h

    return intervene(point, f)


def test_an_intervention_holds_while_decoding_with_a_cache(tiny: Any, decoder: str) -> None:
    model = tiny(decoder)
    before, hooks, plain = snapshot(model), number_of_hooks(model), outputs(model)
    ids = torch.randint(6, 100, (2, 6), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    how: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "output_logits": True}
    how |= {"return_dict_in_generate": True, "eos_token_id": None, "pad_token_id": 0}
    found = {}
    with torch.no_grad(), token_positions(model) as where, silenced(model, where):
        for cached in (True, False):
            made = model.generate(ids, attention_mask=mask, use_cache=cached, **how)
            found[cached] = torch.stack(made.logits)
    free = torch.stack(model.generate(ids, attention_mask=mask, **how).logits)
    assert torch.allclose(found[True], found[False], atol=1e-4)
    assert not torch.allclose(found[True], free, atol=1e-3)
    assert torch.equal(outputs(model), plain) and unchanged(model, before)
    assert number_of_hooks(model) == hooks


def test_positions_are_counted_from_the_first_real_token(tiny: Any) -> None:
    model = tiny("tiny-llama")
    ids = torch.ones(1, 3, dtype=torch.long)
    with token_positions(model) as where:
        with pytest.raises(InvalidInputError, match="the model has not run"):
            where()
        cache = model(input_ids=ids, attention_mask=torch.tensor([[0, 1, 1]])).past_key_values
        assert where().tolist() == [[-1, 0, 1]]
        model(input_ids=ids[:, :1], past_key_values=cache)
        assert where().tolist() == [[3]]
        model(input_ids=ids, position_ids=torch.tensor([[4, 5, 6]]))
        assert where().tolist() == [[4, 5, 6]]


def test_many_calls_leave_no_memory_behind(tiny: Any) -> None:
    model = tiny("tiny-llama")
    anatomy, batch = Anatomy.of(model), batch_of(model)
    points = {block.address: block.resid_post for block in anatomy.blocks}

    def call() -> None:
        with torch.no_grad(), capture(points, copy=True), intervene(points["blocks.1"], abs):
            model(**batch)
        with torch.no_grad(), capture_attention(model, {"a": anatomy.blocks[0].attention.weights}):
            model(**batch)

    for _ in range(10):
        call()
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(100):
        call()
    gc.collect()
    assert len(gc.get_objects()) - before < 100  # not one object for each call
