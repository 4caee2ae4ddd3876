"""A plan that was saved and is applied later gives what the run gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import ViTConfig, ViTForImageClassification

from modwright.checkpoint import open as open_checkpoint
from modwright.checkpoint import save
from modwright.core.errors import CheckpointError, InvalidInputError, ModwrightError
from modwright.data.texts import default_texts
from modwright.recipes import Recipe
from modwright.recipes.load import parse_recipe, resolved
from modwright.recipes.plans import apply_plans, load_plans, make_plans, save_plans, step_windows
from modwright.recipes.run import RunResult

from .shared import config_of, same_weights, snapshot

MakeRecipe = Callable[..., Recipe]


@pytest.fixture(scope="module")
def planned(
    recipe: MakeRecipe, wordy_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The plans of the two-step recipe on disk."""
    plans, _ = make_plans(recipe(), open_checkpoint(wordy_model))
    return save_plans(plans, recipe(), tmp_path_factory.mktemp("planned") / "plan")


def test_applying_a_saved_plan_is_the_run(
    planned: Path, finished: RunResult, wordy_model: Path, tmp_path: Path
) -> None:
    plans, info = load_plans(planned)
    assert [plan.method for plan in plans] == ["llm_drop", "modegpt"]
    opened = open_checkpoint(info["model"])
    applied = apply_plans(opened.model, plans)
    save(applied.model, tmp_path / "out", source=opened.source)
    assert same_weights(tmp_path / "out", finished.output)
    assert config_of(tmp_path / "out") == config_of(finished.output)
    assert not applied.plain


def test_planning_leaves_the_model_and_torch_as_they_are(
    recipe: MakeRecipe, wordy_model: Path, two_threads: None
) -> None:
    opened = open_checkpoint(wordy_model)
    before = {name: tensor.clone() for name, tensor in opened.model.state_dict().items()}
    state = torch.get_rng_state()
    plans, led_to = make_plans(recipe(threads=1), opened)
    after = opened.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert torch.get_num_threads() == 2
    assert torch.equal(torch.get_rng_state(), state)
    assert sum(p.numel() for p in led_to.parameters()) < sum(t.numel() for t in before.values())
    assert len(plans) == 2


def test_the_recipe_lies_beside_the_plans(planned: Path, recipe: MakeRecipe) -> None:
    assert yaml.safe_load((planned / "recipe.yaml").read_text()) == resolved(recipe())
    assert sorted(entry.name for entry in planned.iterdir()) == ["recipe.yaml", "step-1", "step-2"]


def test_one_plan_alone_can_be_loaded(planned: Path) -> None:
    plans, info = load_plans(planned / "step-1")
    assert [plan.method for plan in plans] == ["llm_drop"]
    assert info == {}


def test_ten_steps_and_more_keep_their_order(
    recipe: MakeRecipe, planned: Path, tmp_path: Path
) -> None:
    (first, second), _ = load_plans(planned)
    many = [first] * 10 + [second]
    loaded, _ = load_plans(save_plans(many, recipe(), tmp_path / "many"))
    assert [plan.method for plan in loaded] == ["llm_drop"] * 10 + ["modegpt"]


def test_a_plan_for_another_model_is_refused(planned: Path) -> None:
    plans, _ = load_plans(planned)
    with pytest.raises(InvalidInputError, match="plan was made for"):
        apply_plans(open_checkpoint("preset:tiny-gpt2").model, plans)
    with pytest.raises(InvalidInputError, match="does not fit"):
        apply_plans(open_checkpoint("preset:tiny-llama").model, plans[1:])


def test_plans_do_not_replace_what_stands_there(
    recipe: MakeRecipe, planned: Path, tmp_path: Path
) -> None:
    plans, _ = load_plans(planned)
    before = snapshot(planned)
    with pytest.raises(CheckpointError, match="is not empty; name another directory"):
        save_plans(plans, recipe(), planned)
    assert snapshot(planned) == before
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="is a file"):
        save_plans(plans, recipe(), tmp_path / "file")


@pytest.mark.parametrize("content", [{}, {"step-1/x": "x"}, {"recipe.yaml": "[", "step-1/x": ""}])
def test_what_is_no_plan(content: dict[str, str], tmp_path: Path) -> None:
    for name, text in content.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(ModwrightError, match=r"holds no plan.*--save DIR"):
        load_plans(tmp_path)
    with pytest.raises(CheckpointError, match="holds no plan"):
        load_plans(tmp_path / "not-there")


def test_a_damaged_plan_is_refused(planned: Path, tmp_path: Path) -> None:
    for name, content in snapshot(planned).items():
        if content != b"(folder)":
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(content)
    (tmp_path / "step-2" / "plan.json").write_text("{")
    with pytest.raises(CheckpointError, match="step-2 holds no readable plan"):
        load_plans(tmp_path)


def test_there_must_be_a_plan() -> None:
    with pytest.raises(CheckpointError, match="no plan to apply"):
        apply_plans(open_checkpoint("preset:tiny-llama").model, [])


def test_calibration_takes_the_key_data(wordy_model: Path, wordy_text: Path) -> None:
    """A mapping is the text that it names; of a list, texts are taken in turn."""
    opened = open_checkpoint(wordy_model)

    def windows(data: Any) -> Any:
        calibration = {"data": data, "windows": 4, "length": 32}
        steps = [{"method": "modegpt", "sparsity": 0.1}]
        tree = {"model": str(wordy_model), "calibration": calibration, "steps": steps}
        return step_windows(parse_recipe(tree), opened)[0]

    plain = windows(str(wordy_text))
    assert windows({"text": str(wordy_text)}).recipe["sha256"] == plain.recipe["sha256"]
    with pytest.raises(InvalidInputError, match=r"calibration\.data: data: unknown kind of data"):
        windows({"txt": str(wordy_text)})
    both = windows([{"text": str(wordy_text), "weight": 3}, {"text": str(wordy_text)}])
    assert [part["windows"] for part in both.recipe["parts"]] == [3, 1]


def test_where_no_text_is_named_two_origins_are_read_in_turn() -> None:
    opened = open_checkpoint("preset:byte-llama")

    def read(windows: int) -> Any:
        calibration = {"windows": windows, "length": 32}
        steps = [{"method": "modegpt", "sparsity": 0.1}]
        tree = {"model": "preset:byte-llama", "calibration": calibration, "steps": steps}
        return step_windows(parse_recipe(tree), opened)[0].recipe

    assert [part["data"] for part in read(4)["parts"]] == default_texts()
    assert [part["windows"] for part in read(4)["parts"]] == [2, 2]
    assert [part["data"] for part in read(1)["parts"]] == default_texts()[:1]


def test_a_model_of_images_is_calibrated_on_images(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2}
    config = ViTConfig(**sizes, num_attention_heads=2, image_size=16, patch_size=4)
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    calibration = {"data": {"images": "digits", "image_size": 16}, "windows": 6, "batch_size": 4}
    steps = [{"method": "modegpt", "sparsity": 0.2}]
    asked = parse_recipe(
        {"model": str(tmp_path / "vit"), "calibration": calibration, "steps": steps}
    )
    opened = open_checkpoint(tmp_path / "vit")
    (data,) = step_windows(asked, opened)
    assert data is not None and data.describe().startswith("digits: 6 rows in 2 batches")
    plans, model = make_plans(asked, opened)
    assert len(plans) == 1 and model.num_parameters() < opened.model.num_parameters()
    text = parse_recipe({"model": str(tmp_path / "vit"), "steps": steps})
    with pytest.raises(InvalidInputError, match=r"give it images: calibration: \{data: \{images"):
        step_windows(text, opened)
