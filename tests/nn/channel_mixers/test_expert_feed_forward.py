"""A feed-forward part in experts: its two forms, its scores, its gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from modwright.core.macs import forward_macs
from modwright.nn import ExpertFeedForward, ExpertShape, FeedForward, FeedForwardShape, PolyNorm
from modwright.nn.routing import MODES, SCORES, SELECTIONS, choose_experts, nearest_divisors

D, INNER, N = 12, 48, 8
KINDS = {
    "gated": {"activation": "silu", "gated": True},
    "gated, biases": {"activation": "silu", "gated": True, "biases": "gud"},
    "plain": {"activation": "gelu"},
    "plain, biases": {"activation": "gelu", "biases": "ud"},
}
ACTS = {"silu": F.silu, "gelu": F.gelu}


def make(kind: str = "gated", dtype: torch.dtype = torch.float64, **routing: Any) -> Any:
    """A part with weights from seed 0."""
    given = {"num_experts": N, "top_k": 3, "score": "up", **routing}
    shape = ExpertShape(D, INNER, **KINDS[kind], **given)  # type: ignore[arg-type]
    torch.manual_seed(0)
    part = ExpertFeedForward(shape, ACTS[shape.activation]).to(dtype)
    part.tie_keys()
    return part.eval()


def dense_of(part: Any) -> FeedForward:
    names = ("hidden_size", "intermediate_size", "activation", "gated", "biases")
    shape = FeedForwardShape(*(getattr(part.shape, name) for name in names))
    dense = FeedForward(shape, part.act).to(part.up_proj.weight.dtype)
    dense.load_state_dict({k: v for k, v in part.state_dict().items() if "proj" in k})
    return dense


def by_hand(part: Any, x: Tensor) -> Tensor:
    """Token by token, neuron by neuron."""
    s, rows = part.shape, x.reshape(-1, D)
    out = []
    for token in rows:
        pre = {"up": part.up_proj(token)}
        pre["gate"] = pre["up"] if part.gate_proj is None else part.gate_proj(token)
        inner = part.act(pre["gate"]) * (pre["up"] if s.gated else 1)
        raw = {"gate": part.keys.weight @ token, "up": part.up_proj.weight @ token}
        values = {
            "avg_key": raw["gate"],
            **raw,
            "up_abs": raw["up"].abs(),
            "inter": inner,
            "inter_abs": inner.abs(),
        }[s.score]
        scores = [float(values[e * 6 : e * 6 + 6].mean()) for e in range(N)]
        ranked = sorted(range(N), key=lambda e: -scores[e])
        chosen = {
            "top": ranked[: s.top_k],
            "bottom": ranked[-s.top_k :],
            "not_top": ranked[s.top_k :],
        }[s.selection]
        kept = torch.zeros(INNER, dtype=x.dtype)
        for e in chosen:
            kept[e * 6 : e * 6 + 6] = 1
        out.append(part.down_proj(inner * kept))
    return torch.stack(out).view_as(x)


def scores_of(kind: str) -> list[str]:
    return [score for score in SCORES if score != "gate" or "gated" in kind]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize(
    ("kind", "score"), [(kind, score) for kind in KINDS for score in scores_of(kind)]
)
@torch.no_grad()
def test_both_forms_are_the_sum_over_the_chosen_experts(
    kind: str, score: str, selection: str, mode: str
) -> None:
    part = make(kind, score=score, selection=selection, mode=mode)
    for size in ((2, 5), (1, 1), (7,)):
        x = torch.randn(*size, D, dtype=torch.float64)
        torch.testing.assert_close(part(x), by_hand(part, x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_all_experts_are_the_dense_part(kind: str, mode: str) -> None:
    part = make(kind, torch.float32, top_k=N, mode=mode)
    x = torch.randn(3, 4, D)
    torch.testing.assert_close(part(x), dense_of(part)(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("score", SCORES)
def test_a_part_without_numbers_runs_so_that_what_it_costs_is_counted(score: str) -> None:
    part = make("gated", torch.float32, score=score)
    products = forward_macs(part, 1, 5, D) - 5 * 3 * D * part.shape.intermediate_size
    assert products == (5 * N * D if score == "avg_key" else 0), "what chooses is on top"


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("kind", ["gated", "plain, biases"])
def test_both_forms_have_the_same_gradients(kind: str, score: str) -> None:
    if score not in scores_of(kind):
        return
    found = []
    for mode in MODES:
        part = make(kind, score=score, mode=mode)
        x = torch.linspace(-2, 2, 5 * D, dtype=torch.float64).view(5, D).requires_grad_()
        part(x).square().sum().backward()
        found.append([x.grad, *(p.grad for p in part.parameters())])
    assert all(one is not None and one.abs().max() > 0 for one in found[0])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_an_activation_that_normalizes_does_so_within_each_expert(kind: str) -> None:
    found = []
    for mode in MODES:
        part = make(kind, mode=mode)
        part.act = PolyNorm().double()
        assert {"act.weight", "act.bias"} < set(part.state_dict())
        x = torch.linspace(-2, 2, 5 * D, dtype=torch.float64).view(5, D).requires_grad_()
        out = part(x)
        (out * torch.linspace(-1, 2, out.numel()).view_as(out)).sum().backward()
        found.append([out.detach(), x.grad, *(p.grad for p in part.parameters())])
    pre = (part.up_proj if part.gate_proj is None else part.gate_proj)(x)
    inner = part.act(pre.view(5, N, 6)).flatten(1) * (part.up_proj(x) if part.shape.gated else 1)
    by_hand = part.down_proj(inner * part.route(x).repeat_interleave(6, dim=-1))
    torch.testing.assert_close(found[0][0], by_hand.detach(), rtol=0, atol=1e-11)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("mode", MODES)
def test_neurons_that_a_token_does_not_use_get_no_gradient(mode: str) -> None:
    part = make("gated, biases", mode=mode)
    x = torch.randn(1, D, dtype=torch.float64)
    part(x).square().sum().backward()
    used = part.route(x)[0].repeat_interleave(6)
    assert used.sum() == 3 * 6
    for linear in (part.gate_proj, part.up_proj):
        assert torch.equal(linear.weight.grad[~used], torch.zeros(30, D, dtype=torch.float64))
        assert torch.equal(linear.bias.grad[~used], torch.zeros(30, dtype=torch.float64))
        assert bool((linear.weight.grad[used] != 0).any(1).all())
    assert torch.equal(part.down_proj.weight.grad[:, ~used], torch.zeros(D, 30).double())
    assert bool((part.down_proj.weight.grad[:, used] != 0).any(0).all())


def test_no_gradient_flows_through_the_choice() -> None:
    """Scaling the scores changes no gradient: up weights get theirs through the product alone."""
    part = make(score="avg_key")
    assert not part.avg_key.requires_grad
    x = torch.randn(4, D, dtype=torch.float64, requires_grad=True)
    part(x).sum().backward()
    first = x.grad.clone()
    part.avg_key.mul_(3.0)  # the same ranking
    x.grad = None
    part(x).sum().backward()
    assert torch.equal(x.grad, first)


@torch.no_grad()
def test_the_stored_score_is_the_mean_pre_activation() -> None:
    part = make("gated, biases", score="avg_key")
    x = torch.randn(9, D, dtype=torch.float64)
    pre = F.linear(x, part.gate_proj.weight)
    torch.testing.assert_close(
        F.linear(x, part.avg_key), pre.unflatten(-1, (N, -1)).mean(-1), rtol=0, atol=1e-12
    )
    plain = make("plain", score="avg_key")
    torch.testing.assert_close(plain.avg_key, plain.up_proj.weight.unflatten(0, (N, -1)).mean(1))


def test_stored_keys_follow_when_they_are_tied() -> None:
    part = make(score="avg_key")
    part.train()
    old = part.avg_key.clone()
    optimizer = torch.optim.SGD(part.parameters(), lr=0.5)
    part(torch.randn(6, D, dtype=torch.float64)).square().sum().backward()
    optimizer.step()
    assert torch.equal(part.avg_key, old)
    present = part.mean_keys()
    assert not torch.allclose(present, old)
    part.tie_keys(momentum=0.75)
    torch.testing.assert_close(part.avg_key, 0.75 * old + 0.25 * present)
    part.tie_keys()
    torch.testing.assert_close(part.avg_key, present)


@torch.no_grad()
def test_mean_keys_are_weighted_and_scaled_as_asked() -> None:
    part = make(score="avg_key", weigh_keys=True)
    lengths = part.down_proj.weight.norm(dim=0)
    for e in range(N):
        mine = slice(e * 6, e * 6 + 6)
        share = lengths[mine] / lengths[mine].sum()
        expected = share @ part.gate_proj.weight[mine]
        torch.testing.assert_close(part.avg_key[e], expected)
    both = make(score="avg_key", weigh_keys=True, normalize_keys=True)
    torch.testing.assert_close(both.avg_key, F.normalize(part.avg_key, dim=-1))


@torch.no_grad()
def test_each_token_is_routed_by_itself() -> None:
    for mode in MODES:
        part = make(mode=mode)
        x = torch.randn(2, 6, D, dtype=torch.float64)
        together = part(x)
        for row in range(2):
            torch.testing.assert_close(part(x[row : row + 1]), together[row : row + 1])
        assert torch.equal(part.route(x[:1, 2:4]), part.route(x)[:1, 2:4])


@pytest.mark.parametrize("score", SCORES)
@torch.no_grad()
def test_dispatch_multiplies_only_what_it_must(score: str) -> None:
    """k / N of the maps and N d for the scores, or all neurons where the score needs them."""
    part = make(score=score, mode="dispatch")
    x = torch.randn(10, D, dtype=torch.float64)
    with FlopCounterMode(display=False) as counter:
        part(x)
    choosing = N * D if score in ("avg_key", "gate", "up") else 2 * D * INNER
    assert counter.get_total_flops() == 2 * 10 * (3 * D * INNER * 3 // N + choosing)
    with FlopCounterMode(display=False) as counter:
        make(score=score)(x)
    keys = N * D if score == "avg_key" else 0
    assert counter.get_total_flops() == 2 * 10 * (3 * D * INNER + keys)


class Adapted(nn.Module):
    """A map with something added, as adapters do."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner, self.added = inner, torch.randn(inner.out_features, inner.in_features).double()

    @property
    def weight(self) -> Tensor:
        return self.inner.weight

    @property
    def bias(self) -> Tensor | None:
        return self.inner.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + F.linear(x, self.added)


@pytest.mark.parametrize("role", ["up_proj", "gate_proj", "down_proj"])
@torch.no_grad()
def test_adapters_and_hooks_are_heard_when_dispatching(role: str) -> None:
    masked, sparse = make(), make(mode="dispatch")
    x = torch.randn(4, D, dtype=torch.float64)
    plain = masked(x)
    for part in (masked, sparse):
        torch.manual_seed(1)
        setattr(part, role, Adapted(getattr(part, role)))
    assert (masked(x) - plain).abs().max() > 1e-3
    torch.testing.assert_close(sparse(x), masked(x))

    watched, seen = make(mode="dispatch"), []
    hook = getattr(watched, role).register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    torch.testing.assert_close(watched(x), plain)
    hook.remove()
    assert len(seen) == 1
    if role == "down_proj":
        silent = ~watched.route(x).repeat_interleave(6, dim=-1)
        assert torch.equal(seen[0] == 0, silent)


@pytest.mark.parametrize("mode", MODES)
def test_half_precision_runs_and_trains(mode: str) -> None:
    part = make(dtype=torch.bfloat16, mode=mode, score="avg_key")
    x = torch.randn(3, D, dtype=torch.bfloat16, requires_grad=True)
    out = part(x)
    assert out.dtype == torch.bfloat16 and torch.isfinite(out).all()
    out.float().sum().backward()
    assert x.grad.dtype == torch.bfloat16
    full = make(dtype=torch.float32, mode=mode, score="avg_key")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = full(x.float().detach())
    torch.testing.assert_close(mixed.float(), full(x.float().detach()), rtol=0.1, atol=0.02)


@pytest.mark.parametrize("mode", MODES)
def test_it_is_exported_as_a_graph_for_any_length(mode: str) -> None:
    part = make(dtype=torch.float32, mode=mode)
    length = torch.export.Dim("length", min=2, max=64)
    exported = torch.export.export(
        part, (torch.randn(1, 5, D),), dynamic_shapes={"hidden_states": {1: length}}
    )
    x = torch.randn(1, 9, D)
    torch.testing.assert_close(exported.module()(x), part(x))


# Capacity


def test_capacity_lets_first_choices_and_sure_tokens_go_first() -> None:
    scores = torch.tensor([[1.0, 0.9, 0.0], [3.0, 2.0, 0.0], [2.0, 0.0, 1.0], [0.0, 5.0, 4.0]])
    # ceil(4 / 3) = 2 tokens on average, two choices each: four places, and all fit.
    assert choose_experts(scores, 2, capacity=1.0).sum() == 8
    # One choice each: two places. Expert 0 is asked by tokens 0, 1 and 2; token 0 is least sure.
    assert choose_experts(scores, 1, capacity=1.0).tolist() == [
        [False, False, False],
        [True, False, False],
        [True, False, False],
        [False, True, False],
    ]


def test_second_choices_wait_for_first_ones() -> None:
    scores = torch.tensor([[9.0, 8.0], [1.0, 2.0]]).repeat(2, 1)
    # Both experts have 2 int(1.0 * 2) = 4 places for 4 tokens, so nobody is turned away ...
    assert bool(choose_experts(scores, 2, capacity=1.0).all())
    # ... but with three experts there are 4 places where 6 tokens choose twice.
    scores = torch.tensor([[9.0, 8.0, 0.0]] * 3 + [[1.0, 2.0, 0.0]] * 3)
    chosen = choose_experts(scores, 2, capacity=1.0)
    assert chosen.sum(0).tolist() == [4, 4, 0]
    assert chosen[:3, 0].all() and chosen[3:, 1].all()  # every first choice
    assert chosen[:3, 1].sum() == 1 and chosen[3:, 0].sum() == 1


def test_capacity_counts_in_training_only() -> None:
    part = make(top_k=1, capacity=1.0)
    x = torch.randn(64, D, dtype=torch.float64)
    assert (part.route(x).sum(-1) == 1).all()
    part.train()
    served = part.route(x)
    assert (served.sum(0) <= 8).all() and served.sum() < 64
    torch.testing.assert_close(
        part(x)[served.sum(-1) == 0],
        torch.zeros(1, D).double().expand(int((served.sum(-1) == 0).sum()), D),
    )


# Refusals


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"num_experts": 7}, "48 neurons do not split into 7 experts of one size; nearest: 6 or 8"),
        ({"num_experts": 96}, "nearest: 48"),
        ({"num_experts": 0}, "nearest: 1 or 2"),
        ({"top_k": 0}, "top_k 0 must lie between 1 and 8"),
        ({"top_k": 9}, "between 1 and 8"),
        ({"top_k": 8, "selection": "not_top"}, "between 1 and 7"),
        ({"score": "value"}, "score 'value' is none of avg_key, gate, up"),
        ({"selection": "best"}, "selection 'best' is none of top, bottom, not_top"),
        ({"mode": "sparse"}, "mode 'sparse' is none of mask, dispatch"),
        ({"weigh_keys": True}, "go with score 'avg_key' only"),
        ({"capacity": 0.5}, "capacity 0.5 must be at least 1"),
        ({"capacity": float("nan")}, "capacity nan must be at least 1"),
    ],
)
def test_shapes_that_cannot_be_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make(**given)


def test_a_plain_part_has_no_gate_to_score_by() -> None:
    with pytest.raises(ValueError, match="score 'gate' is none of avg_key, up, up_abs"):
        make("plain", score="gate")


def test_nearest_divisors_bracket_a_number() -> None:
    assert nearest_divisors(96, 64) == [48, 96]
    assert nearest_divisors(96, 8) == [8, 12]
    assert nearest_divisors(96, 1000) == [96]
    assert nearest_divisors(7, 3) == [1, 7]


def test_rerouting_keeps_the_experts() -> None:
    import dataclasses

    part = make(score="avg_key")
    part.avg_key.mul_(2.0)
    weights = {k: v.clone() for k, v in part.state_dict().items()}
    part.reroute(dataclasses.replace(part.shape, top_k=1))
    assert all(torch.equal(v, weights[k]) for k, v in part.state_dict().items())
    part.reroute(dataclasses.replace(part.shape, score="up"))
    assert "avg_key" not in part.state_dict()
    part.reroute(dataclasses.replace(part.shape, score="avg_key", normalize_keys=True))
    torch.testing.assert_close(part.avg_key.norm(dim=-1), torch.ones(N).double())
