"""What Mamba and Mamba-2 share: as transformers' mixers, in chunks, with padding, from nothing."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F

import modwright
from mamba_hosts import mixer_like, random_model, with_our_mixers
from modwright.checkpoint.export import export
from modwright.edits import Change, Replace
from modwright.nn.component import COMPONENTS, component_of
from modwright.nn.token_mixers import mamba1, mamba2
from modwright.nn.token_mixers.mamba1 import Mamba1
from modwright.nn.token_mixers.mamba2 import Mamba2
from modwright.nn.token_mixers.state_space import StateSpaceOptions
from nn.scans import relative

KINDS = ("mamba", "mamba2")
NAMES = {"mamba": "mamba1", "mamba2": "mamba2"}
DT_BIAS = {"mamba": "dt_proj.bias", "mamba2": "dt_bias"}
IDS = torch.randint(3, 31, (2, 13), generator=torch.Generator().manual_seed(0))
both = pytest.mark.parametrize("kind", KINDS)


def mixer(kind: str, **options: Any) -> Any:
    """A small one with 12 channels and random numbers in all of its tensors."""
    torch.manual_seed(0)
    if kind == "mamba":
        made: Any = Mamba1(6, d_state=3, dt_rank=2, **options)
    else:
        made = Mamba2(6, d_state=3, head_dim=3, n_groups=2, chunk=4, **options)
    with torch.no_grad():
        for tensor in made.parameters():
            tensor.add_(0.3 * torch.randn_like(tensor))
    return made.double()


@both
def test_it_is_a_component_with_a_state_that_takes_a_mask(kind: str) -> None:
    found = component_of(mixer(kind))
    assert found is not None and found is COMPONENTS[NAMES[kind]]
    assert (found.kind, found.state, found.causal) == ("token_mixer", "recurrent", True)
    assert set(found.needs) == {"state", "padding_mask"}


@both
@pytest.mark.parametrize("fields", [{}, {"use_bias": True}, {"use_conv_bias": False}])
def test_weights_of_transformers_load_and_give_the_same_with_gradients(
    kind: str, fields: dict[str, Any]
) -> None:
    model = random_model(kind, **fields)
    theirs, ours = model.backbone.layers[0].mixer, mixer_like(model.config)
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


@both
def test_a_model_with_it_writes_the_same_tokens_with_its_cache(kind: str) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    model = random_model(kind)
    settings["pad_token_id"] = 0
    expected = model.generate(IDS, **settings)
    assert torch.equal(with_our_mixers(model).generate(IDS, **settings), expected)
    assert torch.equal(model.generate(IDS, **settings, use_cache=False), expected)


@both
@pytest.mark.parametrize("bias", [False, True])
def test_padding_on_the_left_changes_nothing(kind: str, bias: bool) -> None:
    made, x = mixer(kind, bias=bias), torch.randn(2, 7, 6, dtype=torch.float64)
    mask = torch.tensor([[True] * 7, [False] * 3 + [True] * 4])
    y, state = made(x, padding_mask=mask)
    alone, kept = made(x[1:, 3:])
    assert relative(y[1:, 3:], alone) < 1e-12
    assert all(relative(state[name][1:], value) < 1e-12 for name, value in kept.items())
    whole, _ = made(x)
    assert relative(y[:1], whole[:1]) < 1e-12, "a row without padding is as it was"
    assert relative(whole[1:, 3:], alone) > 1e-3, "without the mask it does change"


@both
def test_padding_is_treated_as_transformers_does(kind: str) -> None:
    model = random_model(kind)
    mask = torch.ones_like(IDS)
    mask[1, :5] = 0
    mask[0, 10:] = 0
    with torch.no_grad():
        expected = model(IDS, attention_mask=mask, use_cache=False).logits
        found = with_our_mixers(model)(IDS, attention_mask=mask, use_cache=False).logits
    assert relative(found, expected) < 1e-5


@both
@pytest.mark.parametrize("selective", [True, False])
@pytest.mark.parametrize("cuts", [(1,), (12,), (1, 2, 3), (4, 5, 9), tuple(range(1, 13))])
def test_any_chunking_is_the_whole(kind: str, cuts: tuple[int, ...], selective: bool) -> None:
    made, x = mixer(kind, selective=selective), torch.randn(2, 13, 6, dtype=torch.float64)
    whole, last = made(x)
    parts, state = [], None
    for part in torch.tensor_split(x, cuts, 1):
        y, state = made(part, state)
        parts.append(y)
    assert state is not None
    assert relative(torch.cat(parts, 1), whole) < 1e-12
    assert all(relative(state[name], value) < 1e-12 for name, value in last.items())


@both
def test_a_call_leaves_the_state_that_it_was_given_as_it_was(kind: str) -> None:
    made, x = mixer(kind), torch.randn(2, 5, 6, dtype=torch.float64)
    _, state = made(x)
    before = {name: value.clone() for name, value in state.items()}
    made(x, state), made(x[:, :1], state)
    assert all(torch.equal(state[name], value) for name, value in before.items())


@both
def test_no_output_depends_on_a_later_token(kind: str) -> None:
    made, x = mixer(kind), torch.randn(1, 9, 6, dtype=torch.float64)
    other = x.clone()
    other[:, 5:] += 1
    assert torch.equal(made(x)[0][:, :5], made(other)[0][:, :5])
    assert not torch.allclose(made(x)[0][:, 5], made(other)[0][:, 5])


@both
def test_gradients_flow_through_the_state(kind: str) -> None:
    made, x = mixer(kind), torch.randn(1, 6, 6, dtype=torch.float64, requires_grad=True)
    _, state = made(x[:, :3])
    y, _ = made(x[:, 3:], state)
    (found,) = torch.autograd.grad(y.sum(), x)
    (expected,) = torch.autograd.grad(made(x)[0][:, 3:].sum(), x)
    assert relative(found, expected) < 1e-12 and found[:, :3].abs().max() > 0


@both
@pytest.mark.parametrize("selective", [True, False])
def test_start_values_can_be_set_again_from_nothing(kind: str, selective: bool) -> None:
    """As on the meta device: nothing of a module made there is left but its shapes."""
    with torch.device("meta"):
        made = mixer(kind, selective=selective, bias=True)
    made = made.to_empty(device="cpu")
    other = mixer(kind, selective=selective, bias=True)
    for one in (made, other):
        with torch.no_grad():
            for tensor in one.parameters():
                tensor.fill_(math.nan)
        torch.manual_seed(3)
        one.reset_parameters()
    for (name, tensor), value in zip(made.named_parameters(), other.parameters()):
        assert tensor.isfinite().all(), name
        assert torch.equal(tensor, value), name


@both
def test_start_values_are_those_of_the_paper(kind: str) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"d_model": 64, "d_state": 5, "out_proj_scale": 0.25, "bias": True}
    if kind == "mamba":
        made: Any = Mamba1(**options)
        assert torch.allclose(made.A_log.exp(), torch.arange(1.0, 6.0).expand(128, 5))
    else:
        made = Mamba2(**options, head_dim=1)
        assert torch.allclose(made.A_log.exp(), torch.arange(1.0, 129.0))
        assert (made.norm.weight == 1).all()
    assert (made.D == 1).all()
    steps = F.softplus(made.get_parameter(DT_BIAS[kind]).detach())
    assert float(steps.min()) >= 1e-3 - 1e-6 and float(steps.max()) <= 0.1 + 1e-6
    middle = (math.log(1e-3) + math.log(0.1)) / 2
    assert abs(float(steps.log().mean()) - middle) < 0.4, "uniform in the logarithm"
    bound = 0.25 * 128**-0.5
    assert 0.9 * bound < float(made.out_proj.weight.detach().abs().max()) <= bound
    assert not made.in_proj.bias.any() and not made.out_proj.bias.any()
    assert made.conv1d.bias.any()
    with torch.no_grad():
        floor = type(made)(**options, dt_init_floor=0.05)
    assert float(F.softplus(floor.get_parameter(DT_BIAS[kind])).min()) >= 0.05 - 1e-6


@both
@pytest.mark.parametrize("selective", [True, False])
def test_without_selection_steps_and_projections_are_the_same_for_all_tokens(
    monkeypatch: pytest.MonkeyPatch, kind: str, selective: bool
) -> None:
    module, name = {"mamba": (mamba1, "selective_scan"), "mamba2": (mamba2, "ssd_scan")}[kind]
    scan, seen = getattr(module, name), []

    def note(*given: Any, **more: Any) -> Any:
        seen.append(given)
        return scan(*given, **more)

    monkeypatch.setattr(module, name, note)
    made = mixer(kind, selective=selective)
    y, _ = made(torch.randn(2, 5, 6, dtype=torch.float64))
    y.sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in made.parameters())
    (_, dt, _, B, C), *_ = (given[:5] for given in seen)
    for tensor in (dt, B, C):
        assert torch.equal(tensor, tensor[:1, :1].expand_as(tensor)) is not selective
    assert ("not selective" in made.describe()) is not selective


@both
def test_what_must_not_decay_and_must_stay_float32_is_there(kind: str) -> None:
    made = mixer(kind)
    names = dict(made.named_parameters())
    assert set(made.no_weight_decay) == {"A_log", "D", DT_BIAS[kind]} <= names.keys()
    assert set(made.keep_in_fp32) <= names.keys()
    assert made.projections().keys() == {"in_proj", "out_proj"} | (
        {"x_proj"} if kind == "mamba" else set()
    )
    assert all(isinstance(part, nn.Linear) for part in made.projections().values())


@both
def test_weights_in_bfloat16_give_finite_numbers_near_those_in_float32(kind: str) -> None:
    made = mixer(kind).float()
    x = torch.randn(2, 40, 6)
    expected, _ = made(x)
    low = mixer(kind).bfloat16()
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


@both
def test_what_is_stored_in_half_precision_is_loaded_as_float32_and_said(kind: str) -> None:
    made = mixer(kind).float()
    stored = {name: tensor.bfloat16() for name, tensor in made.state_dict().items()}
    with pytest.warns(UserWarning, match="A_log is stored in torch.bfloat16"):
        made.load_state_dict(stored, assign=True)
    kept = {n: made.get_parameter(n).dtype for n in ("A_log", "D", DT_BIAS[kind])}
    assert set(kept.values()) == {torch.float32} and made.in_proj.weight.dtype == torch.bfloat16
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made.load_state_dict({name: tensor.float() for name, tensor in stored.items()})


@both
def test_a_decay_that_went_to_nothing_is_held_where_that_is_asked_for(kind: str) -> None:
    free, held = mixer(kind), mixer(kind, clamp_decay=True)
    for made in (free, held):
        with torch.no_grad():
            made.A_log.fill_(-30)
    assert float(free.decay().max()) > -1e-9
    assert float(held.decay().max()) == -1e-4
    as_before = mixer(kind, clamp_decay=True).decay()
    assert torch.equal(mixer(kind).decay(), as_before), "else nothing changes"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"dt_min": 0.0}, "dt_min, dt_max and dt_init_floor must be positive and in order"),
        ({"dt_min": 1.0}, "dt_min, dt_max and dt_init_floor must be positive and in order"),
        ({"dt_init_floor": 0.0}, "dt_min, dt_max and dt_init_floor must be positive"),
        ({"dt_init": "zeros"}, "unknown dt_init 'zeros'; valid values: random, constant"),
        ({"dt_limit": [0.0]}, "dt_limit must be a lower and an upper bound"),
        ({"dt_limit": [0.5, 0.1]}, "dt_limit must be in order, not 0.5 and 0.1"),
    ],
)
def test_options_that_mean_nothing_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        StateSpaceOptions(**given)


@both
def test_an_unknown_option_is_refused(kind: str) -> None:
    with pytest.raises(TypeError, match="dt_maximum"):
        mixer(kind, dt_maximum=1.0)


@both
def test_inputs_masks_and_states_that_do_not_fit_are_refused(kind: str) -> None:
    made, x = mixer(kind), torch.randn(2, 4, 6, dtype=torch.float64)
    _, state = made(x)
    width = made.conv1d.in_channels
    for given, words in [
        ((torch.zeros(2, 4, 6, dtype=torch.long),), "must be embeddings, not numbers of type"),
        ((x[..., :5],), r"must be \(B, L, 6\), not \(2, 4, 5\)"),
        ((x[0],), r"must be \(B, L, 6\), not \(4, 6\)"),
        ((x, None, torch.ones(2, 3, dtype=torch.bool)), r"padding mask must be \(2, 4\)"),
        ((x[:1], state), rf"conv of the state must be \(1, {width}, 4\), not \(2, {width}, 4\)"),
        ((x, {**state, "ssm": state["ssm"][:1]}), r"ssm of the state must be \(2, "),
        ((x, {"conv": state["conv"]}), "the state must have conv and ssm, not conv"),
    ]:
        with pytest.raises(ValueError, match=words):
            made(*given)


@both
def test_what_it_keeps_does_not_grow(kind: str) -> None:
    made = mixer(kind).float()
    for length in (1, 3, 300):
        _, state = made(torch.randn(1, length, 6))
        held = sum(value.untyped_storage().nbytes() for value in state.values())
        assert held == made.state_bytes(torch.float32)
    half = made.conv1d.in_channels * 4 * 2
    assert made.state_bytes(torch.bfloat16) == made.state_bytes(torch.float32) - half


@pytest.fixture(scope="module")
def llama() -> Any:
    """A llama with Mamba in its second block and Mamba-2 in its third, and what verified it."""
    torch.manual_seed(0)
    sizes: list[dict[str, Any]] = [
        {"d_model": 48, "d_state": 4},
        {"d_model": 48, "d_state": 8, "head_dim": 16, "n_groups": 2, "chunk": 4},
    ]
    edits, values = [], {}
    for block, (make, given) in enumerate(zip((Mamba1, Mamba2), sizes), start=1):
        address = f"blocks.{block}.attention"
        edits.append(Replace(address, f"mamba{block}", given))
        weights = make(**given).state_dict().items()
        values |= {f"{address}.{name}": tensor for name, tensor in weights}
    return modwright.apply(modwright.open("preset:tiny-llama"), Change(tuple(edits), values))


def test_a_llama_takes_both_and_every_check_of_a_state_holds(llama: Any) -> None:
    done = llama.verification
    assert done is not None and done.ok
    assert "any chunking = the whole: ok" in str(done) and "left padding: ok" in str(done)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["pt2", "standalone"])
def test_a_llama_with_both_is_exported_at_any_length_and_without_modwright(
    llama: Any, target: str, tmp_path: Path
) -> None:
    if target == "pt2" and not hasattr(transformers, "exporters"):
        pytest.skip("this transformers has no exporters")
    assert export(llama.model, tmp_path / target, target).compared.largest <= 1e-5
