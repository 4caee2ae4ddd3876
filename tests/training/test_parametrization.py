"""Groups of parameters: two by default, ratios that every schedule keeps, components' wishes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import SchedulerType

import modwright
from helpers import edit
from labeled_images import noise
from models.tiny import TINY, tiny
from modwright.anatomy import Anatomy
from modwright.core.errors import InvalidInputError
from modwright.core.registry import registries_restored
from modwright.data import Data
from modwright.edits import Change, Replace, compose, register_part
from modwright.models import create_model
from modwright.nn.component import component
from modwright.training import CrossEntropy, ObjectiveTrainer, Settings, fit
from modwright.training.parametrization import (
    PARAMETRIZATIONS,
    Rates,
    Standard,
    check_groups,
    grouped,
    register_parametrization,
)

FOLLOW_A_METRIC = ("reduce_lr_on_plateau", "greedy")
MORE: dict[str, dict[str, Any]] = {
    "cosine_with_min_lr": {"min_lr": 1e-4},
    "cosine_warmup_with_min_lr": {"min_lr": 1e-4, "warmup_lr_rate": 0.1},
    "warmup_stable_decay": {"num_decay_steps": 3},
    "reduce_lr_on_plateau": {"patience": 0, "min_lr": 3e-4, "factor": 0.5},
    "greedy": {"patience": 0, "min_lr": 3e-4, "max_lr": 4e-3, "factor": 0.5},
}


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    with registries_restored():
        yield


def toy() -> type[nn.Module]:
    """A token mixer that spares some of its parameters, some of them deep inside."""

    @component("decaying_mean", kind="token_mixer", causal=True)
    class DecayingMean(nn.Module):
        no_weight_decay = ("A_log", "inner.0.weight", "inner.0.bias", "skip")
        learning_rate_multipliers = {"inner.1.weight": 0.5}

        def __init__(self, width: int) -> None:
            super().__init__()
            self.A_log = nn.Parameter(torch.zeros(width, 2))
            self.inner = nn.Sequential(nn.Linear(width, width), nn.Linear(width, width))
            self.skip = None  # a variant has one

        def reset_parameters(self) -> None:
            nn.init.zeros_(self.A_log)
            for linear in self.inner:
                linear.reset_parameters()

        def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            out: Tensor = self.inner(x) * self.A_log.exp().mean()
            return out

    return DecayingMean


def model(seed: int = 0, **fields: Any) -> Any:
    torch.manual_seed(seed)
    sizes = {"depths": [1, 1], "hidden_sizes": [8, 16], "layer_scale_init": 0.1, **fields}
    return create_model("poolformer_s12", num_classes=10, drop_path_rate=0.0, **sizes)


def images(count: int = 16) -> Data:
    drawn = torch.Generator().manual_seed(0)
    pixels = torch.randn(count, 3, 32, 32, generator=drawn)
    return noise(pixels, torch.arange(count) % 10, "abcdefghij")


def trainer(of: Any, folder: Path, **options: Any) -> ObjectiveTrainer:
    words = ("one_cycle", "parametrization", "eval_dataset")
    own = {name: options.pop(name) for name in words if name in options}
    given = {"report_to": [], "use_cpu": True, "learning_rate": 2e-3, "weight_decay": 0.05}
    arguments = TrainingArguments(str(folder), **{**given, **options})
    return ObjectiveTrainer(of, arguments, objective=CrossEntropy(), **own)


def names_of(of: nn.Module, groups: list[dict[str, Any]]) -> list[list[str]]:
    known = {id(p): name for name, p in of.named_parameters()}
    return [[known[id(p)] for p in group["params"]] for group in groups]


class AsBefore(Trainer):
    """The two groups as they were made before there were parametrizations."""

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        spared = getattr(model, "no_weight_decay", set)()
        return [n for n, p in model.named_parameters() if p.dim() > 1 and n not in spared]


@pytest.mark.parametrize("name", ["llama", "gpt2", *sorted(TINY)])
def test_groups_of_models_without_wishes_are_those_of_before(name: str, tmp_path: Path) -> None:
    of: Any = tiny(name) if name in TINY else modwright.open(f"preset:tiny-{name}").model
    frozen = next(iter(of.parameters()))
    frozen.requires_grad_(False)
    found = trainer(of, tmp_path).create_optimizer()
    expected = AsBefore(of, found_arguments(tmp_path)).create_optimizer()
    assert type(found) is type(expected) and found.defaults == expected.defaults
    assert len(found.param_groups) == len(expected.param_groups) == 2
    for ours, theirs in zip(found.param_groups, expected.param_groups):
        params, wanted = ours.pop("params"), theirs.pop("params")
        assert len(params) == len(wanted) and all(a is b for a, b in zip(params, wanted))
        assert ours == theirs and not any(p is frozen for p in params)


def found_arguments(folder: Path) -> TrainingArguments:
    given = {"report_to": [], "use_cpu": True, "learning_rate": 2e-3, "weight_decay": 0.05}
    return TrainingArguments(str(folder), **given)


def test_a_component_spares_its_parameters_wherever_it_stands() -> None:
    mixer = toy()
    register_part("decaying_mean")(lambda config, width: mixer(width))
    source = modwright.open("preset:tiny-llama").model
    values = {f"blocks.2.attention.{n}": t.clone() for n, t in mixer(48).state_dict().items()}
    change = Change((Replace("blocks.2.attention", "decaying_mean", {"width": 48}),), values)
    placed: nn.Module = edit(source, change).model
    beside = nn.ModuleDict({"deep": nn.Sequential(nn.Identity(), mixer(8))})
    for of, path in ((placed, "model.layers.2.self_attn"), (beside, "deep.1"), (mixer(8), "")):
        begin = f"{path}." if path else ""
        decayed, spared, slow = names_of(of, Standard().groups(of, 1.0, 0.1))
        assert slow == [f"{begin}inner.1.weight"]
        assert {f"{begin}A_log", f"{begin}inner.0.weight"} <= set(spared)
        assert not any(name.startswith(f"{begin}inner") for name in decayed)
        every = sorted([*decayed, *spared, *slow])
        assert every == sorted(n for n, p in of.named_parameters() if p.requires_grad)
    user = Standard({"*inner.1.weight": 2.0}).groups(beside, 1.0, 0.1)
    assert [group["lr"] for group in user] == [1.0, 1.0, 2.0]


def with_poly_norm(**options: Any) -> Any:
    act = ("feed_forward", {"activation": "poly_norm", "activation_kwargs": options})
    return compose("tiny-llama", {"mlp[*]": act}, check=False, num_hidden_layers=1)


def decaying(of: nn.Module, parametrization: Standard) -> set[str]:
    groups = parametrization.groups(of, 1.0, 0.1)
    return {n for g, m in zip(groups, names_of(of, groups)) if g["weight_decay"] for n in m}


def test_a_component_may_ask_for_decay_of_parameters_of_one_axis() -> None:
    learned = {f"model.layers.0.mlp.act.{name}" for name in ("weight", "bias")}
    spared, forced = (with_poly_norm(weight_decay=decays) for decays in (False, True))
    names = {name for name, _ in spared.named_parameters()}
    wide = {name for name, p in spared.named_parameters() if p.dim() > 1}
    assert learned < names and decaying(spared, Standard()) == wide
    assert decaying(forced, Standard()) == wide | learned
    # Norms and biases too, as the authors of PolyCom train mixtures.
    everything = Standard(decay_norm_and_bias=True)
    assert decaying(spared, everything) == names - learned
    assert decaying(forced, everything) == names


def test_what_somebody_spares_does_not_decay_whoever_asks_for_it() -> None:
    mixer: Any = toy()
    mixer.force_weight_decay = ("inner.0.bias", "inner.1.bias")
    assert decaying(mixer(4), Standard()) == {"inner.1.weight", "inner.1.bias"}
    mixer.force_weight_decay = ("A_lag",)
    with pytest.raises(InvalidInputError, match="force_weight_decay names 'A_lag'"):
        Standard().groups(mixer(4), 1.0, 0.1)


def test_decay_that_is_asked_for_shrinks_the_coefficients(tmp_path: Path) -> None:
    of = with_poly_norm(weight_decay=True)
    made = trainer(of, tmp_path, weight_decay=0.5, learning_rate=0.1)
    optimizer = made.create_optimizer()
    for parameter in of.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    found = of.model.layers[0].mlp.act.weight
    torch.testing.assert_close(found.detach(), torch.full((3,), (1 - 0.1 * 0.5) / 3))


def test_a_name_that_a_component_does_not_have_is_refused() -> None:
    mixer: Any = toy()
    mixer.no_weight_decay = ("A_lag",)
    with pytest.raises(
        InvalidInputError, match=r"deep: no_weight_decay names 'A_lag'.*has A_log, "
    ):
        Standard().groups(nn.ModuleDict({"deep": mixer(4)}), 1.0, 0.1)
    mixer.no_weight_decay = ()
    mixer.learning_rate_multipliers = {"A_log": 0.0}
    with pytest.raises(InvalidInputError, match="'A_log': must be a number above 0, not 0"):
        Standard().groups(mixer(4), 1.0, 0.1)
    other: Any = nn.Linear(2, 2)  # no component: what it says to others is not read
    other.no_weight_decay = ("foo",)
    assert Standard().groups(nn.Sequential(other), 1.0, 0.1)


def test_patterns_and_selectors_choose_what_learns_at_another_rate() -> None:
    of = modwright.open("preset:tiny-gpt2").model
    anatomy = Anatomy.of(of)
    chosen = {"attention[0, 2]": 0.5, "*.mlp.*": 0.25, "block[0]": 4.0}
    groups = Standard(chosen).groups(of, 0.1, 0.05)
    names = names_of(of, groups)
    by_rate: dict[float, set[str]] = {}
    for group, members in zip(groups, names):
        by_rate.setdefault(group["lr"], set()).update(members)
    every = {name for name, _ in of.named_parameters()}
    attention = {n for n in every if ".attn." in n and n.split(".")[2] in "02"}
    mlp = {n for n in every if ".mlp." in n}
    block = {n for n in every if ".h.0." in n}
    assert by_rate[0.05] == attention and by_rate[0.025] == mlp
    assert by_rate[0.4] == block - attention - mlp
    assert by_rate[0.1] == every - attention - mlp - block
    assert groups[0]["weight_decay"] == 0.05 and groups[1]["weight_decay"] == 0.0
    assert len(anatomy.blocks) == 4 and sum(map(len, names)) == len(every)


def test_a_selector_reaches_maps_beside_the_module_of_a_sublayer() -> None:
    of = modwright.open("preset:tiny-bert").model
    groups = Standard({"attention[*]": 0.5}).groups(of, 1.0, 0.0)
    slow = [n for g, m in zip(groups, names_of(of, groups)) if g["lr"] == 0.5 for n in m]
    assert sum(name.endswith("attention.output.dense.weight") for name in slow) == 4
    assert not any("LayerNorm" in name or "intermediate" in name for name in slow)


@pytest.mark.parametrize(
    ("multipliers", "says"),
    [
        ({"mlp[9]": 1.0}, "there is no layer 9"),
        ({"*.gate": 1.0}, r"'\*.gate' matches no parameter; write a selector, as mlp\[\*\]"),
        ({"mlp[*]": 0}, r"multiplier of 'mlp\[\*\]': must be a number above 0, not 0"),
        ({"mlp[*]": True}, "must be a number above 0, not True"),
        ({"mlp[*]": float("inf")}, "must be a number above 0, not inf"),
        ({"mlp[*]": "fast"}, "must be a number above 0, not 'fast'"),
    ],
)
def test_multipliers_that_mean_nothing_are_refused(multipliers: Any, says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        Standard(multipliers).groups(modwright.open("preset:tiny-gpt2").model, 1.0, 0.1)


@pytest.mark.parametrize("schedule", ["one_cycle", *(kind.value for kind in SchedulerType)])
def test_every_schedule_keeps_the_ratio_of_groups(schedule: str, tmp_path: Path) -> None:
    one_cycle = schedule == "one_cycle"
    more = {"lr_scheduler_type": "constant" if one_cycle else schedule}
    if schedule in MORE:
        more["lr_scheduler_kwargs"] = MORE[schedule]
    if schedule in FOLLOW_A_METRIC:
        more |= {"eval_strategy": "steps", "eval_steps": 1, "eval_dataset": images(2)}
    given: dict[str, Any] = {**more, "warmup_steps": 3, "one_cycle": one_cycle}
    twins = []
    for parametrization in (Standard({"mlp[*]": 0.25}), None):
        made = trainer(model(), tmp_path, parametrization=parametrization, **given)
        optimizer = made.create_optimizer()
        scheduler: Any = made.create_scheduler(12)
        seen = []
        for step in range(12):
            seen.append([group["lr"] for group in optimizer.param_groups])
            optimizer.step()
            metric = (abs(step - 6.0),) if schedule in FOLLOW_A_METRIC else ()
            scheduler.step(*metric)
        twins.append(seen)
    for rates, (height, _) in zip(*twins):
        assert rates == [height, height, 0.25 * height, 0.25 * height]
    varies = len({rates[0] for rates in twins[0]}) > 1
    assert varies == (schedule != "constant")


def test_bounds_that_are_given_for_each_group_stay_as_they_are(tmp_path: Path) -> None:
    more = {"patience": 0, "min_lr": [1e-4, 2e-4, 3e-4, 4e-4]}
    made = trainer(
        model(),
        tmp_path,
        parametrization=Standard({"mlp[*]": 0.25}),
        lr_scheduler_type="reduce_lr_on_plateau",
        lr_scheduler_kwargs=more,
        eval_strategy="steps",
        eval_steps=1,
        eval_dataset=images(2),
    )
    made.create_optimizer()
    assert made.create_scheduler(4).min_lrs == more["min_lr"]


class Watch(TrainerCallback):
    """Keeps the learning rates of every step."""

    def __init__(self) -> None:
        self.rates: list[list[float]] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.rates.append([group["lr"] for group in kwargs["optimizer"].param_groups])


@pytest.mark.parametrize(("schedule", "average"), [("one_cycle", 0.9), ("cosine", None)])
def test_a_stopped_training_with_groups_goes_on_to_the_same_bits(
    schedule: str, average: float | None, tmp_path: Path
) -> None:
    settings = Settings(epochs=2, batch_size=8, schedule=schedule, average=average, seed=4)
    quarter, train = Standard({"mlp[*]": 0.25}), images()
    whole, seen = model(), Watch()
    given: dict[str, Any] = {"output": tmp_path, "parametrization": quarter}
    losses = fit(whole, train, None, settings, callbacks=[seen], **given).losses
    assert len(seen.rates) == len({rates[0] for rates in seen.rates}) == 4
    assert all(rates[2:] == [0.25 * rates[0]] * 2 for rates in seen.rates)
    shutil.rmtree(tmp_path / "checkpoint-4")  # as if it had been stopped after the first epoch
    resumed, later = model(seed=9), Watch()
    found = fit(resumed, train, None, settings, resume=True, callbacks=[later], **given).losses
    assert found == losses and later.rates == seen.rates[2:]
    for name, tensor in whole.state_dict().items():
        assert resumed.state_dict()[name].equal(tensor), name
    plain = model()
    fit(plain, train, None, settings)
    assert not plain.head.fc.weight.equal(whole.head.fc.weight)


def test_a_quarter_of_the_rate_is_what_the_update_shows(tmp_path: Path) -> None:
    # The first step of Adam is the learning rate times a sign, but for its epsilon.
    settings = Settings(epochs=1, batch_size=16, weight_decay=0.0, schedule="constant", clip=0.0)
    moved = []
    for parametrization in (None, Standard({"mlp[*]": 0.25})):
        of = model()
        before = {name: p.detach().clone() for name, p in of.named_parameters()}
        fit(of, images(), None, settings, parametrization=parametrization)
        moved.append({n: (p.detach() - before[n]).abs().max() for n, p in of.named_parameters()})
    for name, full in moved[0].items():
        wanted = full / 4 if ".mlp." in name else full
        assert torch.isclose(moved[1][name], wanted, rtol=1e-3, atol=1e-8), name


def test_a_parametrization_is_had_by_its_name_or_from_the_objective(tmp_path: Path) -> None:
    @register_parametrization("halves")
    class Halves:
        def groups(self, model: nn.Module, rate: float, decay: float) -> list[dict[str, Any]]:
            return grouped(model, lambda name, p: Rates(0.5, 2.0), rate, decay)

    class Wishes(CrossEntropy):
        parametrization = "halves"

    assert "halves" in PARAMETRIZATIONS.names() and "standard" in PARAMETRIZATIONS.names()
    arguments = found_arguments(tmp_path)
    named = trainer(model(), tmp_path, parametrization="halves")
    brought = ObjectiveTrainer(model(), arguments, objective=Wishes())
    chosen = ObjectiveTrainer(
        model(), arguments, objective=Wishes(), parametrization=Standard({"mlp[*]": 0.25})
    )
    for made in (named, brought):
        groups = made.create_optimizer().param_groups
        assert [group["lr"] for group in groups] == [2e-3, 2e-3, 1e-3]
        assert groups[2]["weight_decay"] == 0.1 and not groups[0]["params"]
    assert [g["lr"] for g in chosen.create_optimizer().param_groups] == [2e-3, 2e-3, 5e-4, 5e-4]
    with pytest.raises(InvalidInputError, match=r"unknown parametrization 'halfs'.*'halves'"):
        fit(model(), images(), None, Settings(epochs=1), parametrization="halfs")


@pytest.mark.parametrize("count", [0, 2])
def test_a_parameter_that_is_forgotten_or_taken_twice_is_named(count: int, tmp_path: Path) -> None:
    class Wrong:
        def groups(self, model: nn.Module, rate: float, decay: float) -> list[dict[str, Any]]:
            named = dict(model.named_parameters())
            odd = named.pop("head.fc.bias")
            return [{"params": [*named.values()]}, *[{"params": [odd]}] * count]

    with pytest.raises(InvalidInputError, match=f"head.fc.bias in {count} groups"):
        trainer(model(), tmp_path, parametrization=Wrong()).create_optimizer()
    frozen = model().requires_grad_(False)
    check_groups(frozen, [])


def test_an_optimizer_that_makes_its_own_groups_takes_no_parametrization(tmp_path: Path) -> None:
    of = model()
    own = torch.optim.SGD, {"params": [{"params": list(of.parameters()), "lr": 0.5}]}
    for parametrization in (None, Standard({"mlp[*]": 0.25})):
        made = trainer(of, tmp_path, parametrization=parametrization)
        made.optimizer_cls_and_kwargs = (own[0], dict(own[1]))
        if parametrization is None:
            assert [group["lr"] for group in made.create_optimizer().param_groups] == [0.5]
        else:
            with pytest.raises(InvalidInputError, match="SGD makes groups of its own"):
                made.create_optimizer()


def test_an_optimizer_of_the_user_keeps_its_own_rates_under_one_cycle(tmp_path: Path) -> None:
    of = model()
    by_axis = [[p for p in of.parameters() if (p.dim() > 1) == wide] for wide in (True, False)]
    given = torch.optim.SGD(
        [{"params": by_axis[0], "lr": 0.4}, {"params": by_axis[1], "lr": 0.1}], momentum=0.9
    )
    made = ObjectiveTrainer(
        of,
        found_arguments(tmp_path),
        objective=CrossEntropy(),
        one_cycle=True,
        optimizers=(given, None),
    )
    for _ in range(2):  # a second training begins at the same heights
        optimizer = made.create_optimizer()
        scheduler = made.create_scheduler(10)
        assert [group["max_lr"] for group in optimizer.param_groups] == [0.4, 0.1]
        optimizer.step()
        scheduler.step()
        made.lr_scheduler = None


def test_groups_are_split_where_parameters_lie_on_several_meshes(tmp_path: Path) -> None:
    from modwright.training.trainer import _split_by_mesh

    first, second, third = (SimpleNamespace(device_mesh=mesh) for mesh in "aba")
    split = _split_by_mesh([{"params": [first, second, third], "lr": 1.0}, {"params": []}])
    assert split == [
        {"params": [first, third], "lr": 1.0},
        {"params": [second], "lr": 1.0},
        {"params": []},
    ]
