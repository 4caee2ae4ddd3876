"""Mamba (arXiv 2312.00752): right, linear in the length, and able to choose what it keeps.

Times stand in benchmarks/scan_speed.py and benchmarks/state_decode.py; here work and memory are
counted. With MODWRIGHT_FIGURES more arms are trained, and the trainings are written down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from figures import figures_only, note
from small_language import own_loss
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, MambaForCausalLM
from transformers.models.mamba.modeling_mamba import mamba_selective_scan

import modwright
from golden_checks import GoldenCase
from mamba_hosts import MODELS
from modwright.core.compat.torch import tensors_of
from modwright.data.synthetic import (
    TokenDataset,
    answer_accuracy,
    induction_heads,
    selective_copying,
)
from modwright.edits.compose import compose
from modwright.nn.selective_scan import naive_selective_scan, selective_scan
from modwright.nn.ssd import naive_ssd_scan, ssd_scan
from modwright.surgery.fast_scan import FastScan
from modwright.training import Settings, fit
from nn.scans import gradients_of, relative, scan_inputs

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parents[1] / "golden" / "mamba"
WIDTH, LAYERS = 64, 2
SEEDS = (0, 1, 2)


# 1, 2 and 4: right


@pytest.mark.parametrize(("name", "kind"), [("mamba1_lm", "mamba"), ("mamba2_lm", "mamba2")])
def test_logits_gradients_and_steps_are_those_of_the_golden_files(name: str, kind: str) -> None:
    case = GoldenCase.read(GOLDEN / f"{name}.safetensors")
    config, model_class = MODELS[kind]
    fields = {key: value for key, value in case.config.items() if key != "model_type"}
    stock = model_class(config(**fields)).eval()
    stock.load_state_dict({n.removeprefix("weight."): case[n] for n in case.names("weight.")})
    model = modwright.apply(stock, FastScan()).model
    ids = case["input.input_ids"]
    found = model(ids, labels=ids, use_cache=False)
    found.loss.backward()
    named = dict(model.named_parameters())
    gradients = [
        float((named[n.removeprefix("grad.")].grad - case[n]).norm() / case[n].norm())
        for n in case.names("grad.")
    ]
    first = ids.shape[1] - case["output.recurrent_logits"].shape[1] + 1
    steps = stepwise(model, ids, first)
    parallel = found.logits.detach()
    logits = float((parallel - case["output.logits"]).abs().max())
    recurrent = float((steps - parallel[:, first - 1 :]).abs().max())
    assert logits <= 2e-5
    assert max(gradients) <= 1e-4
    assert recurrent <= 1e-5


@torch.no_grad()
def stepwise(model: Any, ids: Tensor, first: int) -> Tensor:
    """Logits of the last of ``first`` tokens, and of those after it, one by one."""
    seen = [model(ids[:, :first], use_cache=True)]
    for position in range(first, ids.shape[1]):
        token = ids[:, position : position + 1]
        seen.append(model(token, cache=seen[0].cache, use_cache=True))
    return torch.cat([out.logits[:, -1:] for out in seen], 1)


def test_the_scan_is_the_recurrence_with_its_gradients() -> None:
    given = [tensor.requires_grad_() for tensor in scan_inputs(1, 7, 2).values()]
    assert torch.autograd.gradcheck(lambda *t: selective_scan(*t, chunk=3), given)
    worst = 0.0
    for length in (1, 2, 31, 32, 33, 257):
        inputs = scan_inputs(length=length, dtype=torch.float32)
        truth = gradients_of(naive_selective_scan, inputs)
        found = gradients_of(selective_scan, inputs, method="blocked", chunk=32)
        worst = max(worst, *(relative(found[name], truth[name]) for name in truth))
    assert worst <= 1e-5
    inputs = scan_inputs(length=257, dtype=torch.float32)
    y, last = selective_scan(**inputs)
    halves, state = [], inputs["h0"]
    for part in (slice(0, 100), slice(100, 257)):
        cut = {n: t[:, part] for n, t in inputs.items() if n in ("u", "dt", "B", "C", "z")}
        half, state = selective_scan(**{**inputs, **cut, "h0": state})
        halves.append(half)
    carried = max(relative(torch.cat(halves, 1), y), relative(state, last))
    assert carried <= 1e-6


def test_large_steps_stay_near_double_precision() -> None:
    made = torch.Generator().manual_seed(0)
    length, width, states = 256, 64, 16
    u, dt = torch.randn(2, 1, length, width, generator=made)
    B, C = torch.randn(2, 1, length, states, generator=made)
    A = -torch.arange(16.0, 0.0, -1.0)
    given = (u, F.softplus(dt + 1), A.expand(width, states), B, C)
    y, truth = selective_scan(*given)[0], naive_selective_scan(*(t.double() for t in given))[0]
    heads = (
        u.unflatten(2, (16, 4)),
        F.softplus(dt[..., :16] + 1),
        A,
        B.unsqueeze(2),
        C.unsqueeze(2),
    )
    of_heads, exact = ssd_scan(*heads)[0], naive_ssd_scan(*(t.double() for t in heads))[0]
    off, off_heads = float((y - truth).abs().max()), float((of_heads - exact).abs().max())
    assert off <= 1e-4
    assert off_heads <= 1e-4


# 3: its weights are those of transformers


@torch.no_grad()
def test_a_model_of_130_million_goes_to_transformers_and_comes_back(tmp_path: Path) -> None:
    """Rounding grows over 24 layers of random weights: float32 itself is some 1e-3 off."""
    theirs = compose("mamba", hidden_size=768, num_hidden_layers=24, check=False)
    parameters = sum(p.numel() for p in theirs.parameters())
    assert parameters == 129_135_360
    ids = torch.randint(0, 50280, (1, 24))

    def logits(model: Any) -> Tensor:
        found: Tensor = model(ids, use_cache=False).logits
        return found

    ours = modwright.apply(theirs, FastScan(), check=False).model
    modwright.save(ours, tmp_path / "ours")
    reopened = logits(modwright.open(tmp_path / "ours").model)
    back = logits(MambaForCausalLM.from_pretrained(tmp_path / "ours").eval())
    of_theirs, of_ours = logits(theirs), logits(ours)
    there, here = (float((a - b).abs().max()) for a, b in ((back, of_theirs), (reopened, of_ours)))
    assert there == 0
    assert here == 0
    exact = logits(ours.double())
    between, rounding = (float((of_ours - other).abs().max()) for other in (of_theirs, exact))
    assert between <= rounding


def language_model(arm: str, vocab_size: int, seed: int = 0) -> Any:
    """Two blocks: a mixer each, or attention with an MLP of as many parameters."""
    arms: dict[str, Any] = {
        "mamba1": "mamba1",
        "mamba1, frozen": ("mamba1", {"selective": False}),
        "mamba2": ("mamba2", {"d_state": 16, "head_dim": 32}),
    }
    parts = {"attention[*]": arms[arm], "mlp[*]": None} if arm in arms else {}
    return compose(
        "llama",
        parts,
        seed=seed,
        check=False,
        vocab_size=vocab_size,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=84,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )


# 5, 6 and 8: what grows with the length, counted


class Written(TorchDispatchMode):
    """Counts the numbers that all operations write."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        views = func.is_view or "empty" in func.__name__ or "detach" in func.__name__
        if not views:
            self.numbers += sum(tensor.numel() for tensor in tensors_of(out))
        return out


@contextmanager
def kept_for_backward(inputs: dict[str, Tensor]) -> Iterator[dict[int, int]]:
    """Bytes of what graphs keep within the block, by its address; inputs aside."""
    given = {tensor.untyped_storage().data_ptr() for tensor in inputs.values()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in given:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


def long_inputs(length: int, width: int = 32) -> dict[str, Tensor]:
    """What the scans of both libraries read, with gradients."""
    given = scan_inputs(1, length, width, states=16, dtype=torch.float32)
    return {name: given[name].requires_grad_() for name in ("u", "dt", "A", "B", "C")}


def of_transformers(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    turned = (tensor.transpose(1, 2) for tensor in (u, dt, B, C))
    u, dt, B, C = turned
    found: Tensor = mamba_selective_scan(u, dt, A, B, C)
    return found


def test_a_training_step_is_linear_in_the_length_and_keeps_few_states() -> None:
    written: dict[int, int] = {}
    for length in (1024, 4096):
        given = long_inputs(length)
        with Written() as counted:
            y, _ = selective_scan(**given)
            y.sum().backward()
        written[length] = counted.numbers
    growth = written[4096] / written[1024]
    assert growth <= 4.1
    given = long_inputs(512)
    with kept_for_backward(given) as ours:
        mine = selective_scan(**given)[0]
    with kept_for_backward(given) as theirs:
        other = of_transformers(**given)
    share = sum(ours.values()) / sum(theirs.values())
    note("mamba-memory", kept=sum(ours.values()), transformers=sum(theirs.values()))
    assert relative(mine, other.transpose(1, 2)) <= 1e-5
    assert share <= 1 / 3


def bytes_and_work(model: Any, context: int) -> tuple[int, int]:
    """Bytes of the cache behind a context, and numbers that the next token makes a model write."""
    made = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.config.vocab_size, (1, context + 1), generator=made)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=ids[:, :-1], cache=cache, use_cache=True, logits_to_keep=1)
        size = sum(t.numel() * t.element_size() for t in in_cache(cache))
        with Written() as counted:
            model(input_ids=ids[:, -1:], cache=cache, use_cache=True)
    return size, counted.numbers


def in_cache(cache: Any) -> list[Tensor]:
    return [t for layer in cache.layers for t in tensors_of(list(vars(layer).values()))]


@pytest.mark.parametrize("arm", ["mamba1", "mamba2"])
def test_the_next_token_costs_the_same_behind_any_context(arm: str) -> None:
    model = language_model(arm, vocab_size=32)
    short, long = (bytes_and_work(model, context) for context in (16, 4096))
    per_layer = next(m for m in model.modules() if hasattr(m, "state_bytes"))
    assert short[0] == long[0] == LAYERS * per_layer.state_bytes(torch.float32)
    assert long[1] / short[1] <= 1.01
    attention = language_model("attention", vocab_size=32)
    few, many = (bytes_and_work(attention, context) for context in (16, 4096))
    assert many[0] / few[0] == 256
    assert many[1] / few[1] >= 10


# 7: what is chosen


def accuracies(
    task: str,
    arm: str,
    train: Callable[..., TokenDataset],
    tests: dict[int, TokenDataset],
    seeds: tuple[int, ...],
    **settings: Any,
) -> dict[int, float]:
    """Length -> percent of the answers that are right, mean over seeds, each after one pass.

    A seed draws the same sequences in the same order for all arms.
    """
    each = []
    for seed in seeds:
        data = train(seed=1000 + seed)
        model = language_model(arm, data.vocab_size, seed)
        how = Settings(epochs=1, seed=seed, weight_decay=0.0, **settings)
        fitted = fit(model, data, settings=how, objective=own_loss)
        each.append({n: 100 * answer_accuracy(model, test, 20) for n, test in tests.items()})
    found = {n: mean(one[n] for one in each) for n in tests}
    figures = {"parameters": fitted.parameters, "steps": fitted.steps, "seconds": fitted.seconds}
    note(f"mamba-{task}-{arm}", mean=found, each=each, **figures)
    return found


COPYING = {"batch_size": 32, "learning_rate": 3e-3}
LENGTHS = (64, 256, 1024, 4096)


def copying(arm: str, seeds: tuple[int, ...] = SEEDS) -> float:
    """Percent of the tokens that are copied, among 64."""
    tests = {64: selective_copying(500)}
    train = partial(selective_copying, 48_000)
    rate = {"learning_rate": 2e-3} if arm == "attention" else {}
    return accuracies("copying", arm, train, tests, seeds, **{**COPYING, **rate})[64]


def induction(arm: str, seeds: tuple[int, ...] = SEEDS) -> dict[int, float]:
    """Percent of the answers, trained at 64. Attention needs more sequences, and a lower rate."""
    tests = {length: induction_heads(200, length) for length in LENGTHS}
    attention = arm == "attention"
    train = partial(induction_heads, 96_000 if attention else 25_600)
    rate = 2e-3 if attention else 3e-3
    return accuracies("induction", arm, train, tests, seeds, batch_size=32, learning_rate=rate)


def test_selective_copying_needs_parameters_that_depend_on_the_input() -> None:
    chosen, frozen = copying("mamba1"), copying("mamba1, frozen")
    assert chosen >= 95
    assert chosen - frozen >= 25


def test_induction_heads_reach_sixteen_times_as_far_as_they_were_trained() -> None:
    state, attention = induction("mamba1"), induction("attention")
    assert state[1024] >= 95
    assert attention[64] - attention[1024] >= 50
    assert state[1024] - attention[1024] >= 25


@figures_only
def test_the_other_arms() -> None:
    copied = {arm: copying(arm, (0,)) for arm in ("mamba2", "attention")}
    recalled = {arm: induction(arm, (0,)) for arm in ("mamba2", "mamba1, frozen")}
    assert min(copied.values()) >= 90
    assert recalled["mamba2"][64] >= 95
    assert recalled["mamba1, frozen"][1024] <= 50
