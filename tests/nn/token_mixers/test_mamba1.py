"""Mamba beside transformers' mixer, in chunks and with padding, and what it says of itself."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mamba_hosts import mixer_like, random_model, with_our_mixers
from modwright.nn.component import COMPONENTS, component_of
from modwright.nn.selective_scan import selective_scan
from modwright.nn.token_mixers.mamba1 import Mamba1
from nn.scans import relative

IDS = torch.randint(3, 31, (2, 13), generator=torch.Generator().manual_seed(0))


def mixer(**options: Any) -> Mamba1:
    """A small one with random numbers in all of its tensors."""
    torch.manual_seed(0)
    made = Mamba1(6, d_state=3, dt_rank=2, **options)
    with torch.no_grad():
        for tensor in made.parameters():
            tensor.add_(0.3 * torch.randn_like(tensor))
    return made.double()


def test_it_is_a_component_with_a_state_that_takes_a_mask() -> None:
    found = component_of(mixer())
    assert found is not None and found is COMPONENTS["mamba1"]
    assert (found.kind, found.state, found.causal) == ("token_mixer", "recurrent", True)
    assert set(found.needs) == {"state", "padding_mask"}


@pytest.mark.parametrize("fields", [{}, {"use_bias": True}, {"use_conv_bias": False}])
def test_weights_of_transformers_load_and_give_the_same_with_gradients(
    fields: dict[str, Any],
) -> None:
    theirs = random_model("mamba", **fields).backbone.layers[0].mixer
    ours = mixer_like(theirs.config)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 37, 24)
    results = []
    for module in (theirs, ours):
        given = x.clone().requires_grad_()
        out = module(given)
        out = out[0] if isinstance(out, tuple) else out
        (out * torch.arange(24)).sum().backward()
        named = {name: p.grad for name, p in module.named_parameters()}
        results.append({"out": out.detach(), "input": given.grad, **named})
    theirs_found, found = results
    assert found.keys() == theirs_found.keys()
    worst = {name: relative(found[name], value) for name, value in theirs_found.items()}
    assert max(worst.values()) < 1e-5, worst


def test_a_model_with_it_writes_the_same_tokens_with_its_cache() -> None:
    settings: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    model = random_model("mamba")
    settings["pad_token_id"] = 0
    expected = model.generate(IDS, **settings)
    assert torch.equal(with_our_mixers(model).generate(IDS, **settings), expected)
    assert torch.equal(model.generate(IDS, **settings, use_cache=False), expected)


@pytest.mark.parametrize("bias", [False, True])
def test_padding_on_the_left_changes_nothing(bias: bool) -> None:
    made, x = mixer(bias=bias), torch.randn(2, 7, 6, dtype=torch.float64)
    mask = torch.tensor([[True] * 7, [False] * 3 + [True] * 4])
    y, state = made(x, padding_mask=mask)
    alone, kept = made(x[1:, 3:])
    assert relative(y[1:, 3:], alone) < 1e-12
    assert all(relative(state[name][1:], value) < 1e-12 for name, value in kept.items())
    whole, _ = made(x)
    assert relative(y[:1], whole[:1]) < 1e-12, "a row without padding is as it was"
    assert relative(whole[1:, 3:], alone) > 1e-3, "without the mask it does change"


def test_padding_is_treated_as_transformers_does() -> None:
    model = random_model("mamba")
    mask = torch.ones_like(IDS)
    mask[1, :5] = 0
    mask[0, 10:] = 0
    with torch.no_grad():
        expected = model(IDS, attention_mask=mask, use_cache=False).logits
        found = with_our_mixers(model)(IDS, attention_mask=mask, use_cache=False).logits
    assert relative(found, expected) < 1e-5


@pytest.mark.parametrize("selective", [True, False])
@pytest.mark.parametrize("cuts", [(1,), (12,), (1, 2, 3), (4, 5, 9), tuple(range(1, 13))])
def test_any_chunking_is_the_whole(cuts: tuple[int, ...], selective: bool) -> None:
    made, x = mixer(selective=selective), torch.randn(2, 13, 6, dtype=torch.float64)
    whole, last = made(x)
    parts, state = [], None
    for part in torch.tensor_split(x, cuts, 1):
        y, state = made(part, state)
        parts.append(y)
    assert state is not None
    assert relative(torch.cat(parts, 1), whole) < 1e-12
    assert all(relative(state[name], value) < 1e-12 for name, value in last.items())


def test_a_call_leaves_the_state_that_it_was_given_as_it_was() -> None:
    made, x = mixer(), torch.randn(2, 5, 6, dtype=torch.float64)
    _, state = made(x)
    before = {name: value.clone() for name, value in state.items()}
    made(x, state), made(x[:, :1], state)
    assert all(torch.equal(state[name], value) for name, value in before.items())


def test_no_output_depends_on_a_later_token() -> None:
    made, x = mixer(), torch.randn(1, 9, 6, dtype=torch.float64)
    other = x.clone()
    other[:, 5:] += 1
    assert torch.equal(made(x)[0][:, :5], made(other)[0][:, :5])
    assert not torch.allclose(made(x)[0][:, 5], made(other)[0][:, 5])


def test_gradients_flow_through_the_state() -> None:
    made, x = mixer(), torch.randn(1, 6, 6, dtype=torch.float64, requires_grad=True)
    _, state = made(x[:, :3])
    y, _ = made(x[:, 3:], state)
    (found,) = torch.autograd.grad(y.sum(), x)
    (expected,) = torch.autograd.grad(made(x)[0][:, 3:].sum(), x)
    assert relative(found, expected) < 1e-12 and found[:, :3].abs().max() > 0


def test_start_values_are_those_of_the_paper() -> None:
    torch.manual_seed(0)
    made = Mamba1(64, d_state=5, out_proj_scale=0.25)
    assert torch.allclose(made.A_log.exp(), torch.arange(1.0, 6.0).expand(128, 5))
    assert (made.D == 1).all()
    steps = nn.functional.softplus(made.dt_proj.bias)
    assert steps.min() >= 1e-3 - 1e-6 and steps.max() <= 0.1 + 1e-6
    logs = steps.log()
    middle = (math.log(1e-3) + math.log(0.1)) / 2
    assert abs(float(logs.mean()) - middle) < 0.4, "uniform in the logarithm"
    reach = 4**-0.5
    assert reach * 0.9 < float(made.dt_proj.weight.abs().max()) <= reach
    bound = 128**-0.5
    assert 0.2 * bound < float(made.out_proj.weight.abs().max()) <= 0.25 * bound
    constant = Mamba1(64, dt_init="constant", dt_scale=3.0, bias=True, dt_init_floor=0.05)
    assert (constant.dt_proj.weight == 1.5).all()
    assert not constant.in_proj.bias.any() and not constant.out_proj.bias.any()
    assert nn.functional.softplus(constant.dt_proj.bias).min() >= 0.05 - 1e-6


def test_start_values_can_be_set_again_from_nothing() -> None:
    with torch.device("meta"):
        made = Mamba1(16, selective=False)
    made = made.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in made.parameters():
            tensor.fill_(math.nan)
    torch.manual_seed(3)
    made.reset_parameters()
    torch.manual_seed(3)
    other = Mamba1(16, selective=False)
    other.reset_parameters()
    for name, tensor in made.named_parameters():
        assert tensor.isfinite().all(), name
    torch.manual_seed(3)
    made.reset_parameters()
    first = {n: p.clone() for n, p in made.named_parameters()}
    torch.manual_seed(3)
    other.reset_parameters()
    assert all(torch.equal(first[n], p) for n, p in other.named_parameters())


def test_what_must_not_decay_and_must_stay_float32_is_there() -> None:
    made = mixer()
    names = dict(made.named_parameters())
    assert set(made.no_weight_decay) == {"A_log", "D", "dt_proj.bias"} <= names.keys()
    assert set(made.keep_in_fp32) <= names.keys()
    assert made.projections().keys() == {"in_proj", "x_proj", "out_proj"}
    assert all(isinstance(part, nn.Linear) for part in made.projections().values())


def test_weights_in_bfloat16_give_finite_numbers_near_those_in_float32() -> None:
    made = mixer().float()
    x = torch.randn(2, 40, 6)
    expected, _ = made(x)
    low = mixer().bfloat16()
    for name in made.keep_in_fp32:  # as a host keeps them
        low.get_parameter(name).data = made.get_parameter(name).data
    y, state = low(x.bfloat16())
    assert y.dtype == state["conv"].dtype == torch.bfloat16 and state["ssm"].dtype == torch.float32
    assert relative(y.float(), expected) < 0.05
    again, _ = low(x.bfloat16()[:, :1], state)
    assert again.isfinite().all()
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = made(x)
    assert y.dtype == torch.bfloat16 and relative(y.float(), expected) < 0.05


def test_what_is_stored_in_half_precision_is_loaded_as_float32_and_said() -> None:
    made = mixer().float()
    stored = {name: tensor.bfloat16() for name, tensor in made.state_dict().items()}
    with pytest.warns(UserWarning, match="A_log is stored in torch.bfloat16"):
        made.load_state_dict(stored, assign=True)
    kept = {n: made.get_parameter(n).dtype for n in ("A_log", "D", "dt_proj.bias")}
    assert set(kept.values()) == {torch.float32} and made.in_proj.weight.dtype == torch.bfloat16
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made.load_state_dict({name: tensor.float() for name, tensor in stored.items()})


def test_without_selection_the_system_is_linear_and_the_same_at_all_times() -> None:
    """Doubled input, doubled scan; a later input, the same output later."""
    made = mixer(selective=False)
    assert "x_proj.weight" not in dict(made.named_parameters())

    def scan(z: Tensor) -> Tensor:
        low, B, C = made._split(made.x_proj(z))
        return selective_scan(z, made._steps(low), made.decay(), B, C)[0]

    z = torch.zeros(1, 10, 12, dtype=torch.float64)
    z[:, 2] = torch.randn(12)
    seen = [scan(z), scan(2 * z), scan(z.roll(3, 1))]
    assert relative(seen[1], 2 * seen[0]) < 1e-12
    assert relative(seen[2][:, 3:], seen[0][:, :-3]) < 1e-12
    assert made.projections().keys() == {"in_proj", "out_proj"}
    assert "not selective" in made.describe()


def test_a_decay_that_went_to_nothing_is_held_where_that_is_asked_for() -> None:
    free, held = mixer(), mixer(clamp_decay=True)
    for made in (free, held):
        with torch.no_grad():
            made.A_log.fill_(-30)
    assert float(free.decay().max()) > -1e-9
    assert float(held.decay().max()) == -1e-4
    assert torch.equal(mixer().decay(), mixer(clamp_decay=True).decay()), "else nothing changes"


def test_costs_are_those_of_its_parts() -> None:
    made = mixer(selective=True)
    linear = sum(p.weight.numel() for p in made.projections().values())
    token = linear + made.dt_proj.weight.numel() + made.conv1d.weight.numel() + 3 * 12 * 3
    assert made.macs(2, 5) == made.macs(2, 5, cached=100) == 10 * token
    _, state = made.float()(torch.randn(1, 3, 6))
    held = sum(value.numel() * value.element_size() for value in state.values())
    assert made.state_bytes(torch.float32) == held
    _, state = made.float()(torch.randn(1, 300, 6))
    assert held == sum(value.numel() * value.element_size() for value in state.values())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"d_model": 0}, "d_model must be at least 1, not 0"),
        ({"d_state": 0}, "d_state must be at least 1"),
        ({"d_conv": 0}, "d_conv must be at least 1"),
        ({"dt_rank": 0}, "dt_rank must be at least 1"),
        ({"dt_rank": "many"}, "dt_rank must be a number or 'auto', not 'many'"),
        ({"expand": 0}, r"expand \* d_model must be at least 1"),
        ({"dt_min": 0.0}, "dt_min, dt_max and dt_init_floor must be positive and in order"),
        ({"dt_min": 1.0}, "dt_min, dt_max and dt_init_floor must be positive and in order"),
        ({"dt_init": "zeros"}, "unknown dt_init 'zeros'; valid values: random, constant"),
    ],
)
def test_sizes_that_make_no_mixer_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Mamba1(**{"d_model": 6, **given})


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(TypeError, match="dt_maximum"):
        Mamba1(6, dt_maximum=1.0)


def test_inputs_masks_and_states_that_do_not_fit_are_refused() -> None:
    made, x = mixer(), torch.randn(2, 4, 6, dtype=torch.float64)
    _, state = made(x)
    for given, words in [
        ((torch.zeros(2, 4, 6, dtype=torch.long),), "must be embeddings, not numbers of type"),
        ((x[..., :5],), r"must be \(B, L, 6\), not \(2, 4, 5\)"),
        ((x[0],), r"must be \(B, L, 6\), not \(4, 6\)"),
        ((x, None, torch.ones(2, 3, dtype=torch.bool)), r"padding mask must be \(2, 4\)"),
        ((x[:1], state), r"conv of the state must be \(1, 12, 4\), not \(2, 12, 4\)"),
        ((x, {**state, "ssm": state["ssm"][:1]}), r"ssm of the state must be \(2, 12, 3\)"),
        ((x, {"conv": state["conv"]}), "the state must have conv and ssm, not conv"),
    ]:
        with pytest.raises(ValueError, match=words):
            made(*given)


@pytest.mark.slow
def test_an_exported_mixer_runs_at_any_length() -> None:
    made = mixer().float()
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    program = torch.export.export(made, (torch.randn(2, 12, 6),), dynamic_shapes=(free,))
    for batch, length in ((1, 1), (2, 12), (3, 70)):
        x = torch.randn(batch, length, 6)
        assert relative(program.module()(x)[0], made(x)[0]) < 1e-5
