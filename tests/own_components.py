"""The components of ``toy_components`` in models of any kind, and what must hold of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import toy_components
from helpers import batch_of, edit, outputs, random_data, snapshot, unchanged, worst
from modwright.anatomy import Anatomy, Attention, Mlp, OpaqueMixer
from modwright.checkpoint import save
from modwright.checkpoint.classes import auto_classes
from modwright.core.capture import capture
from modwright.core.errors import InvalidInputError, ModwrightError
from modwright.core.modes import set_mode
from modwright.cost import count, inspect
from modwright.edits import (
    Applied,
    Change,
    Replace,
    factorize,
    keep_heads,
    keep_neurons,
    remove,
)
from modwright.edits import apply as apply_plan
from modwright.edits.verify import probe_batch, verify
from modwright.nn.component import COMPONENTS, component_of
from modwright.surgery import make_method, plan, unsupported_reason

__all__ = ["CHECKS", "TOYS", "Placed", "all_in", "is_the_same_in_another_process", "placed_in"]

TOYS = ("toy_memory", "toy_turn", "toy_hinge", "toy_share")
"""A token mixer with a state, a channel mixer without neurons, an activation whose neurons are
independent, and one that mixes them."""

_ROLES = {"token_mixer": "attention", "channel_mixer": "mlp", "activation": "mlp"}


@dataclass(frozen=True)
class Placed:
    """A model in which a toy stands; shared, so it stays as it is.

    Attributes:
        source: the model before.
        applied: the result.
        index: of the block where the toy stands.
        values: of the toy, by their names in it.
        source_unchanged: whether the source held the same bits afterwards.
    """

    toy: str
    source: Any
    applied: Applied
    index: int
    values: dict[str, Tensor]
    source_unchanged: bool

    @property
    def model(self) -> Any:
        return self.applied.model

    @cached_property
    def anatomy(self) -> Anatomy:
        return Anatomy.of(self.model)

    @property
    def is_activation(self) -> bool:
        return COMPONENTS[self.toy].kind == "activation"

    @property
    def role(self) -> str:
        return _ROLES[COMPONENTS[self.toy].kind]

    @property
    def address(self) -> str:
        return f"blocks.{self.index}.{self.role}"

    def part(self, model: Any = None, index: int | None = None) -> Any:
        """The sublayer that is the toy, or holds it, here or in a model that was made of this."""
        anatomy = self.anatomy if model is None else Anatomy.of(model)
        return anatomy.blocks[self.index if index is None else index].at(self.role)

    def module(self, model: Any = None, index: int | None = None) -> Any:
        inside = self.part(model, index).module.modules()
        return next(one for one in inside if component_of(one) is COMPONENTS[self.toy])

    def holds_values(self, model: Any, index: int | None = None) -> bool:
        """The toy stands there with its own numbers, to the bit."""
        found = dict(self.module(model, index).named_parameters())
        return found.keys() == self.values.keys() and all(
            torch.equal(found[name], value) for name, value in self.values.items()
        )


def placed_in(source: Any, toy: str, at: int = 1) -> Placed:
    """Puts a toy into a block, of those that have what it stands for, with values of its own: the
    second one, or the last of few."""
    anatomy, before = Anatomy.of(source), snapshot(source)
    role = _ROLES[COMPONENTS[toy].kind]
    has = [block.index for block in anatomy.blocks if block.at(role) is not None]
    index = has[min(at, len(has) - 1)]
    change, values = _change_of(anatomy, toy, index)
    applied = edit(source, change)
    return Placed(toy, source, applied, index, values, unchanged(source, before))


def all_in(source: Any) -> Any:
    """A model with every toy that it takes, each in a block of its own where there are so many."""
    model = source
    for at, toy in enumerate(TOYS):
        anatomy, role = Anatomy.of(model), _ROLES[COMPONENTS[toy].kind]
        free = [b.index for b in anatomy.blocks if b.at(role) is not None and _is_stock(b, role)]
        if COMPONENTS[toy].kind == "activation":
            free = [index for index in free if anatomy.blocks[index].mlp is not None]
        if free:
            model = edit(
                model, _change_of(anatomy, toy, free[at % len(free)])[0], check=False
            ).model
    assert verify(model).ok
    return model


def _is_stock(block: Any, role: str) -> bool:
    """No toy stands there."""
    told = (component_of(module) for module in block.at(role).module.modules())
    return not any(one is not None and one.name in TOYS for one in told)


def _change_of(anatomy: Anatomy, toy: str, index: int) -> tuple[Change, dict[str, Tensor]]:
    block, role = anatomy.blocks[index], _ROLES[COMPONENTS[toy].kind]
    address = f"{block.address}.{role}"
    with torch.random.fork_rng():
        torch.manual_seed(7)
        if COMPONENTS[toy].kind == "activation":
            made = make_method("replace_activation", activation=toy, blocks=str(index))
            planned = made.plan(anatomy)
            values = {n: t + 0.1 for n, t in COMPONENTS[toy].make().state_dict().items()}
            named = {f"{address}.act.{name}": value for name, value in values.items()}
            return Change(planned.edits, {**planned.tensors, **named}), values
        point = block.at(role).sublayer_input
        with capture({"x": point}) as seen, torch.no_grad():
            anatomy.model(**batch_of(anatomy.model))
        width = seen["x"].shape[-1]
        values = COMPONENTS[toy].make(hidden_size=width).state_dict()
    named = {f"{address}.{name}": value for name, value in values.items()}
    return Change((Replace(address, toy, {"hidden_size": width}),), named), values


def _verified(applied: Applied) -> Any:
    assert applied.verification is not None and applied.verification.ok
    return applied.model


# What holds of every toy


def stands_as_it_was_made(placed: Placed) -> None:
    _verified(placed.applied)
    assert placed.source_unchanged and not placed.applied.plain
    assert placed.holds_values(placed.model)
    kind = component_of(placed.module())
    assert kind is COMPONENTS[placed.toy]
    assert isinstance(placed.part(), OpaqueMixer) != placed.is_activation
    moved = worst(outputs(placed.model), outputs(placed.source))
    assert moved > 1e-4, "it computes something"


def is_counted(placed: Placed) -> None:
    counted, tree = count(placed.model, length=10), inspect(placed.model, length=10)
    assert counted.parameters == sum(p.numel() for p in placed.model.parameters())
    toy: Any = placed.module()
    if placed.is_activation:
        assert placed.toy in tree.find(placed.address).description
        before = Anatomy.of(placed.source)
        assert placed.anatomy.num_parameters == before.num_parameters + 1
        assert counted.prefill_macs == count(placed.source, length=10).prefill_macs
        return
    expected = _ran(placed)
    width = placed.values["decay" if placed.toy == "toy_memory" else "scale"].numel()
    if placed.toy == "toy_memory":
        assert counted.state_bytes == toy.state_bytes(torch.float32) == 4 * width
        assert tree.find(placed.address).description.startswith(f"sums of {width} channels")
    else:
        assert counted.state_bytes == 0
    row = next(row for row in counted.rows if row.address == placed.address)
    assert row.prefill_macs == expected
    assert tree.find(placed.address).parameters == sum(t.numel() for t in placed.values.values())


def _ran(placed: Placed) -> int:
    """Products of the toy while one sequence passes; recursive blocks call it more than once."""
    toy: Any = placed.module()
    width = placed.values["decay" if placed.toy == "toy_memory" else "scale"].numel()
    seen: list[int] = []

    def note(_: Any, given: Any, named: Any) -> None:
        x = given[0] if given else named["hidden_states"]
        seen.append(x.numel() // width)  # positions, whether they are tokens or lie on a map

    handle = toy.register_forward_pre_hook(note, with_kwargs=True)
    with torch.no_grad():
        placed.model(**probe_batch(placed.model, rows=1, length=10))
    handle.remove()
    if placed.toy == "toy_memory":
        return sum(toy.macs(1, positions) for positions in seen)
    return sum(positions * width**2 for positions in seen)


def is_removed(placed: Placed) -> None:
    gone = _verified(edit(placed.model, remove(placed.part())))
    assert placed.part(gone) is None and count(gone).state_bytes == 0
    for index in {0, placed.index}:
        here, there = (Anatomy.of(m).blocks[index] for m in (placed.model, placed.source))
        try:
            edit(placed.source, remove(there))
        except InvalidInputError as refused:  # the config has no number for its blocks
            assert "\n" not in str(refused)
            continue
        fewer = _verified(edit(placed.model, remove(here)))
        assert len(Anatomy.of(fewer).blocks) == len(placed.anatomy.blocks) - 1
        toys = [component_of(module) is COMPONENTS[placed.toy] for module in fewer.modules()]
        assert any(toys) == (index != placed.index)
        if any(toys):
            assert placed.holds_values(fewer, placed.index - 1)


def others_are_narrowed(placed: Placed) -> None:
    """Neurons and heads of other parts go; the toy stays to the bit."""
    change = Change()
    for block in placed.anatomy.blocks:
        if block.index == placed.index:
            continue
        if isinstance(block.mlp, Mlp) and block.mlp.up.axis == -1:
            change += keep_neurons(block.mlp, range(block.mlp.intermediate_size // 2))
        attention = block.attention
        if isinstance(attention, Attention) and not attention.blocker:
            change += keep_heads(attention, range(max(1, attention.num_heads // 2)))
    if not change.edits:
        assert not any(block.attention or block.mlp for block in _others(placed))
        return
    narrow = _verified(edit(placed.model, change))
    assert placed.holds_values(narrow)
    assert Anatomy.of(narrow).num_parameters < placed.anatomy.num_parameters


def _alike(model: Any, other: Any) -> None:
    found, wanted = outputs(model), outputs(other)
    assert worst(found, wanted) <= 1e-4 * float(wanted.abs().max())


def _others(placed: Placed) -> list[Any]:
    return [block for block in placed.anatomy.blocks if block.index != placed.index]


def its_layers_are_factored(placed: Placed) -> None:
    """Two factors compute what their product does; the toy's other numbers stay."""
    part = placed.part()
    if not placed.is_activation:
        said = placed.module().projections()
        assert list(part.projections()) == list(said) and said
    thin, products = Change(), {}
    for role, projection in part.projections().items():
        if projection.axis != -1 or projection.rows is not None or "experts" in projection.address:
            continue
        rank = min(projection.in_features, projection.out_features) // 3
        u, s, v = torch.linalg.svd(projection.weight, full_matrices=False)
        outer, inner = u[:, :rank] * s[:rank], v[:rank]
        thin += factorize(projection, outer, inner)
        products[f"{placed.address}.{role}.weight"] = outer @ inner
    if not thin.edits:
        assert placed.is_activation, "only maps of pixels and of experts are left out"
        return
    thinner = _verified(edit(placed.model, thin))
    assert Anatomy.of(thinner).num_parameters < placed.anatomy.num_parameters
    product = edit(placed.model, Change((), products), check=False).model
    _alike(thinner, product)
    assert component_of(placed.module(thinner)) is COMPONENTS[placed.toy]


def its_neurons_go_or_are_refused(placed: Placed) -> None:
    part = placed.part()
    if not placed.is_activation:
        assert part.neurons is None
        with pytest.raises(InvalidInputError, match="has no neurons") as refused:
            keep_neurons(part, range(4))
        with pytest.raises(InvalidInputError, match=r"has no heads|heads cannot go"):
            keep_heads(part, range(1))
    elif placed.toy == "toy_share":
        assert not part.separable
        with pytest.raises(InvalidInputError, match="normalizes over the neurons") as refused:
            keep_neurons(part, range(4))
    else:
        assert part.separable
        width = part.neurons.size
        zeroed = {
            f"{placed.address}.{name}": _without_rest(value, width // 2)
            for name, value in part.parameters().items()
            if name.endswith("down.weight")
        }
        narrow = _verified(edit(placed.model, keep_neurons(part, range(width // 2))))
        assert placed.part(narrow).neurons.size == width // 2 and placed.holds_values(narrow)
        dense = edit(placed.model, Change((), zeroed), check=False).model
        _alike(narrow, dense)
        return
    assert "\n" not in str(refused.value)


def _without_rest(value: Tensor, kept: int) -> Tensor:
    value = value.clone()
    value[..., kept:] = 0
    return value


def attentions_and_mlps_are_dropped_by_score(placed: Placed) -> None:
    data = random_data(placed.model, count=4, length=12, batch_size=2)
    for target in ("attention", "mlp"):
        method = make_method("llm_drop", target=target, n=1)
        decided = plan(placed.model, method, data)
        there = [block.at(target) is not None for block in placed.anatomy.blocks]
        scores = decided.reasons["scores"][target]
        assert [score is not None for score in scores] == there
        left = _verified(apply_plan(placed.model, decided))
        still = [block.at(target) is not None for block in Anatomy.of(left).blocks]
        assert still.count(True) == there.count(True) - 1


def is_compressed_by_modegpt(placed: Placed) -> None:
    """Other parts are narrowed; where its neurons depend on each other it is refused in a line."""
    source = Anatomy.of(placed.source)
    tried = [{"pairs": ["mlp", "query_key", "value_output"]}, {"pairs": ["mlp", "value_output"]}]
    tried += [{"pairs": ["mlp"]}, {"pairs": ["value_output"]}]
    methods = [make_method("modegpt", {"sparsity": 0.3, "round_to": 1, **told}) for told in tried]
    asked = [(m, *(unsupported_reason(m, of) for of in (source, placed.anatomy))) for m in methods]
    asked = [one for one in asked if None in one[1:]]  # else the model itself has nothing for it
    reached = not asked
    for method, _, reason in asked:
        if placed.toy == "toy_share" and "mlp" in method.pairs:
            with pytest.raises(ModwrightError, match="normalizes over its neurons") as refused:
                plan(placed.model, method, random_data(placed.model))
            assert str(refused.value) == reason and "\n" not in str(reason)
        elif reason is None:
            decided = plan(placed.model, method, random_data(placed.model))
            narrow = _verified(apply_plan(placed.model, decided))
            assert placed.holds_values(narrow)
            assert Anatomy.of(narrow).num_parameters < placed.anatomy.num_parameters
            if placed.toy == "toy_hinge" and "mlp" in method.pairs:
                assert placed.part(narrow).neurons.size < placed.part().neurons.size
            return
        else:
            assert not _others_have(placed, method.pairs), reason
        reached = True
    assert reached


def _others_have(placed: Placed, pairs: Any) -> bool:
    """Parts that the method narrows are left beside the toy."""
    roles = {"mlp" if pair == "mlp" else "attention" for pair in pairs}
    return any(getattr(block, role) is not None for block in _others(placed) for role in roles)


def its_norms_become_rms_norms_exactly_or_not_at_all(placed: Placed) -> None:
    method = make_method("pre_rmsnorm")
    reason = unsupported_reason(method, placed.anatomy)
    if reason is not None:
        with pytest.raises(ModwrightError) as refused:
            plan(placed.model, method)
        assert str(refused.value) == reason and "\n" not in reason
        return
    exact = _verified(apply_plan(placed.model, plan(placed.model, method)))
    _alike(exact, placed.model)


def its_parameters_learn(placed: Placed) -> None:
    """Each of them, and the same where activations are computed anew in the backward pass.

    Of all tokens: a class token that comes first sees nothing of what a causal part carries.
    """
    model, found = copy.deepcopy(placed.model), []
    set_mode(model, True)
    for recomputed in (False, True):
        if recomputed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        torch.manual_seed(0)
        out = model(**batch_of(model), output_hidden_states=True, return_dict=True)
        sum(seen.square().mean() for seen in (out[0], *out.hidden_states)).backward()
        found.append({name: p.grad for name, p in placed.module(model).named_parameters()})
    assert all(gradient.abs().max() > 0 for gradient in found[0].values())
    torch.testing.assert_close(found[0], found[1])


Reload = Callable[..., dict[str, Any]]


def is_the_same_in_another_process(placed: Placed, fresh_process: Reload, folder: Any) -> None:
    save(placed.model, folder / "saved")
    save_file(batch_of(placed.model), folder / "batch.safetensors")
    answer = fresh_process(
        folder / "saved",
        next(iter(auto_classes(placed.model))),
        batch=str(folder / "batch.safetensors"),
        out=str(folder / "out.safetensors"),
        modules=[toy_components.__file__],
    )
    assert "error" not in answer, answer
    assert answer["class"] == type(placed.model).__name__
    assert answer["parameters"] == placed.anatomy.num_parameters
    with torch.no_grad():
        live = placed.model(**batch_of(placed.model), return_dict=True)[0]
    assert torch.equal(load_file(folder / "out.safetensors")["out"], live)


CHECKS: dict[str, Callable[[Placed], None]] = {
    check.__name__: check
    for check in (
        stands_as_it_was_made,
        is_counted,
        is_removed,
        others_are_narrowed,
        its_layers_are_factored,
        its_neurons_go_or_are_refused,
        attentions_and_mlps_are_dropped_by_score,
        is_compressed_by_modegpt,
        its_norms_become_rms_norms_exactly_or_not_at_all,
        its_parameters_learn,
    )
}
