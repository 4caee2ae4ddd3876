"""An objective is one file: what it asks of a training is done, and nothing else knows its name."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import TrainerCallback

import modwright
from modwright.core.errors import InvalidInputError
from modwright.core.plugins import add_plugin, plugins_restored
from modwright.core.registry import registries_restored
from modwright.training import EMACallback, ObjectiveTrainer, Training, train
from modwright.training.batches import inputs_of, unwrapped
from modwright.training.objectives import (
    OBJECTIVES,
    NextToken,
    Objective,
    as_objective,
    make_objective,
    objective,
)

SOURCE = Path(modwright.__file__).parent
ROWS = [{"input_ids": torch.arange(3 + i, 11 + i)} for i in range(8)]


def quiet(said: str) -> None:
    pass


@dataclass(eq=False)
class Watched(Objective):
    """Next token through a head of its own; writes down whatever a training does with it."""

    until: int = 99
    calls: list[str] = field(default_factory=list, init=False)
    parts: Any = field(default=None, init=False)

    def prepare(self, model: Any) -> None:
        if self.parts is None:
            torch.manual_seed(5)
            self.parts = nn.ModuleDict({"scale": nn.Linear(1, 1)})
        self.calls.append("prepare")

    def at(self, progress: float) -> None:
        self.calls.append(f"at {progress:g}")

    def __call__(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        logits = model(**inputs_of(batch)).logits[:, :-1]
        logits = self.parts["scale"](logits.unsqueeze(-1)).squeeze(-1)
        loss = F.cross_entropy(logits.flatten(0, 1), batch["input_ids"][:, 1:].flatten())
        return loss, {"watched": loss.detach()}

    def after_step(self, model: Any) -> None:
        self.calls.append("after")
        with torch.no_grad():
            unwrapped(model).lm_head.weight[0] = 0

    def finished(self) -> bool:
        return self.calls.count("after") >= self.until

    def result(self, model: Any) -> Any:
        return "a plan"


class Averages(TrainerCallback):
    def __init__(self, calls: list[str]) -> None:
        self.calls = calls

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.calls.append("others")


def keys(**more: Any) -> dict[str, Any]:
    return {"max_steps": 4, "learning_rate": 1e-2, "per_device_train_batch_size": 2, **more}


def test_an_objective_of_a_test_file_is_found_by_its_name() -> None:
    with registries_restored():

        @objective("toy")
        @dataclass(frozen=True)
        class Toy(Objective):
            power: float = 2.0

        assert make_objective({"toy": {"power": 3.0}}) == Toy(3.0)
        assert Training.of({"objective": "toy"}).objective == Toy()
        with pytest.raises(InvalidInputError, match=r"unknown option of toy 'powr'; .* 'power'"):
            make_objective("toy", {"powr": 1.0})
    assert "toy" not in OBJECTIVES


PLUGIN = """
from dataclasses import dataclass

from modwright.training import Objective, objective


@objective("rounded")
@dataclass(frozen=True)
class Rounded(Objective):
    digits: int = 2

    def __call__(self, model, batch):
        return model(**batch).logits.square().mean(), {}
"""


def test_an_objective_of_a_plugin_is_found_by_its_name(tiny: Any, tmp_path: Path) -> None:
    (tmp_path / "rounding.py").write_text(PLUGIN)
    with plugins_restored(), registries_restored():
        add_plugin(tmp_path / "rounding.py")
        asked = Training.of({"objective": {"rounded": {"digits": 3}}, **keys()})
        assert asked.objective.digits == 3
        assert train(tiny.copy("tiny-llama"), ROWS, asked, log=quiet).steps == 4


def test_a_function_is_an_objective_and_a_word_is_none(tiny: Any) -> None:
    def loss(model: Any, batch: Any) -> Any:
        return model(**batch).logits.pow(2).mean(), {}

    found = train(tiny.copy("tiny-llama"), ROWS, Training(loss, arguments=keys()), log=quiet)
    assert found.steps == 4 and found.losses
    with pytest.raises(InvalidInputError, match="an objective is called with a model and a batch"):
        as_objective(3)
    with pytest.raises(InvalidInputError, match="one name with its options, not 2 names"):
        make_objective({"next_token": {}, "l1": {}})


def test_no_other_file_lists_objectives() -> None:
    """A literal that holds two of their names would have to grow with each of them."""
    known = set(OBJECTIVES.names())

    def names_in(node: ast.AST) -> set[str]:
        if isinstance(node, ast.Dict):
            parts: list[Any] = [*node.keys, *node.values]
        elif isinstance(node, ast.List | ast.Tuple | ast.Set):
            parts = list(node.elts)
        else:
            return set()
        return {part.value for part in parts if isinstance(part, ast.Constant)} & known

    assert len(names_in(ast.parse("{'l1': 1, 'next_token': 2}").body[0].value)) == 2  # type: ignore[attr-defined]
    home = SOURCE / "training" / "objectives"
    for file in SOURCE.rglob("*.py"):
        if home not in file.parents:
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                assert len(names_in(node)) < 2, f"{file}:{node.lineno}"  # type: ignore[attr-defined]


def test_what_an_objective_asks_for_is_done_in_its_order(tiny: Any) -> None:
    watched = Watched(until=2)
    asked = Training(watched, arguments=keys())
    callbacks = [Averages(watched.calls)]
    found = train(tiny.copy("tiny-llama"), ROWS, asked, log=quiet, callbacks=callbacks)
    assert watched.calls == [
        *("prepare", "at 0", "after", "others", "at 0.25", "after", "others"),
    ]
    assert found.steps == 2 and found.result == "a plan" and "watched" in found.log[-1]


def test_parts_learn_beside_the_model_and_are_not_in_it(tiny: Any, tmp_path: Path) -> None:
    model, watched = tiny.copy("tiny-llama"), Watched()
    named = set(model.state_dict())
    asked = Training(watched, arguments=keys(save_strategy="steps", save_steps=2))
    train(model, ROWS, asked, output=tmp_path, log=quiet)
    moved = watched.parts["scale"].weight.detach().clone()
    torch.manual_seed(5)
    assert not torch.equal(moved, nn.Linear(1, 1).weight) and set(model.state_dict()) == named
    assert (tmp_path / "checkpoint-2" / "objective.safetensors").is_file()
    whole = model.state_dict()
    import shutil

    shutil.rmtree(tmp_path / "checkpoint-4")
    again, second = tiny.copy("tiny-llama"), Watched()
    asked = Training(second, arguments=keys(save_strategy="steps", save_steps=2))
    train(again, ROWS, asked, output=tmp_path, resume=True, log=quiet)
    assert torch.equal(second.parts["scale"].weight, moved)
    assert all(torch.equal(again.state_dict()[name], whole[name]) for name in whole)
    assert [word for word in second.calls if word.startswith("at")] == ["at 0.5", "at 0.75"]


def test_what_is_masked_after_a_step_is_masked_in_the_average(tiny: Any) -> None:
    model = tiny.copy("tiny-llama")
    train(model, ROWS, Training(Watched(), ema_decay=0.5, arguments=keys()), log=quiet)
    assert not model.lm_head.weight[0].any()


def test_an_own_step_gives_the_gradients_of_its_losses_together(tiny: Any, tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Halves(Objective):
        def step(self, model: nn.Module, batch: Any, backward: Any) -> Any:
            losses = [NextToken()(model, {"input_ids": row[None]})[0] for row in batch["input_ids"]]
            for loss in losses:
                backward(loss / len(losses))
            return torch.stack(losses).mean(), {}

    one, other = tiny.copy("tiny-llama"), tiny.copy("tiny-llama")
    for accumulated in (1, 2):
        for model, how in ((one, NextToken()), (other, Halves())):
            more = keys(gradient_accumulation_steps=accumulated, max_steps=2, optim="sgd")
            train(model, ROWS, Training(how, arguments=more), log=quiet)
        for name, tensor in one.state_dict().items():
            assert torch.allclose(tensor, other.state_dict()[name], atol=1e-6), name


def test_groups_of_an_objective_are_the_optimizers(tiny: Any, tmp_path: Path) -> None:
    class Slow(NextToken):
        def groups(self, model: Any, learning_rate: float, weight_decay: float) -> Any:
            learns = [p for p in model.parameters() if p.requires_grad]
            return [{"params": learns, "lr": learning_rate / 4, "weight_decay": 0.0}]

    trainer = ObjectiveTrainer(
        tiny.copy("tiny-llama"),
        Training(arguments=keys()).training_arguments(str(tmp_path), keep=False),
        objective=Slow(),
    )
    (group,) = trainer.create_optimizer().param_groups
    assert group["lr"] == 2.5e-3 and isinstance(EMACallback(0.9), TrainerCallback)
