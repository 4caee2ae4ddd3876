"""Steps of several kinds in one recipe: cut, train, heal, export; a second run finds the result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from modwright.checkpoint import open as open_checkpoint
from modwright.core.errors import InvalidInputError
from modwright.data.texts import default_texts, held_out_texts
from modwright.recipes.load import load_recipe, parse_recipe, resolved
from modwright.recipes.plans import make_plans
from modwright.recipes.run import run
from wordy import write_text

CUT = {"method": "drop", "parts": "attention[1]"}
NOTHING = {"perplexity": None, "generation": None, "speed": None}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_text(tmp_path_factory.mktemp("text") / "words.txt", 400))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_text(tmp_path_factory.mktemp("other") / "more.txt", 300, seed=5))


def train(text: str, **more: Any) -> dict[str, Any]:
    data = {"text": text, "length": 32, "windows": 8}
    keys = {"max_steps": 3, "learning_rate": "1e-3", "per_device_train_batch_size": 2}
    return {"train": {"objective": "next_token", "data": data, **keys, **more}}


def heal(text: str, other: str, **more: Any) -> dict[str, Any]:
    sizes = {"length": 32, "batch_tokens": 64, "held_out_windows": 2, "held_out_length": 32}
    given = {"data": {"text": text}, "held_out": {"other": other}, "learning_rate": "3e-3"}
    return {"heal": {"tokens": 128, **sizes, **given, **more}}


def recipe(*steps: Any, **more: Any) -> Any:
    tree = {"model": "preset:byte-llama", "steps": list(steps), "evaluate": NOTHING, "threads": 1}
    return parse_recipe({**tree, **more})


def test_a_model_is_cut_trained_and_exported_and_the_second_run_finds_it(
    text: str, tmp_path: Path
) -> None:
    teach = {"distillation": {"weight": 0.5}}
    asked = recipe(CUT, train(text, objective=teach, teacher="source"), {"export": "standalone"})
    done = run(asked, tmp_path / "out", check=False)
    names = [stage.name for stage in done.report.stages]
    assert names == ["before", "1 drop", "2 train"]
    stage = done.report.stages[2]
    assert stage.title == "train with distillation" and stage.options["max_steps"] == 3
    assert stage.reasons["steps"] == 3 and stage.reasons["data"]["rows"] == {"train": 8}
    assert stage.source_blocks == [0, 1, 2, 3]
    source = open_checkpoint("preset:byte-llama").model.state_dict()
    learned = open_checkpoint(tmp_path / "out").model.state_dict()
    assert any(not torch.equal(source[name], learned[name]) for name in learned)
    assert (tmp_path / "out" / "standalone" / "model.safetensors").is_file()
    assert "standalone/model.safetensors" in done.report.files
    assert run(asked, tmp_path / "out").done_before
    written = load_recipe(tmp_path / "out" / "recipe.yaml")
    assert {**resolved(written), "output": ""} == {**resolved(asked), "output": ""}
    tree = yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())
    again = run(load_recipe(tmp_path / "out" / "recipe.yaml"), tmp_path / "again", check=False)
    weights = [tmp_path / place / "model.safetensors" for place in ("out", "again")]
    assert weights[0].read_bytes() == weights[1].read_bytes() and again.report.recipe == tree


def test_a_healing_stands_in_the_report(text: str, other: str, tmp_path: Path) -> None:
    done = run(recipe(CUT, heal(text, other)), tmp_path / "out", check=False)
    stage = done.report.stages[2]
    assert stage.name == "2 heal" and stage.title == "heal on 128 tokens"
    curve = stage.reasons["on other"]
    assert list(curve) == ["baseline", "0 tokens", "64 tokens", "128 tokens"]
    assert curve["baseline"]["divergence"] < 1e-6 < curve["0 tokens"]["divergence"]
    assert stage.options["arguments"]["max_steps"] == 2
    page = (tmp_path / "out" / "report.html").read_text()
    assert "On other" in page and "128 tokens" in page and json.dumps(stage.to_dict())


def test_a_healing_that_names_no_text_reads_the_default_ones() -> None:
    given = resolved(recipe({"heal": None}))["steps"][0]["heal"]
    assert given["data"] == [{"text": name} for name in default_texts()]
    assert given["held_out"] == {name: {"text": name} for name in held_out_texts()}
    assert not set(default_texts()) & set(held_out_texts())


def test_a_first_step_that_trains_leaves_the_source(text: str, tmp_path: Path) -> None:
    done = run(recipe(train(text)), tmp_path / "out", check=False)
    assert done.report.stages[1].reasons["parameters"] > 0
    before, after = (open_checkpoint(m).model for m in ("preset:byte-llama", tmp_path / "out"))
    moved = [
        not torch.equal(p, after.state_dict()[name]) for name, p in before.state_dict().items()
    ]
    assert any(moved) and done.report.stages[1].plain


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ([{"train": {}}], r"steps\.0: train: needs the key data"),
        ([{"train": None}], r"steps\.0: train: needs the key data"),
        ([{"train": 3}], r"steps\.0: train: must be a mapping of options, not 3"),
        ([{"train": {"data": "lee", "max_step": 1}}], r"unknown key of a training 'max_step'"),
        ([{"train": {"data": {"txt": "lee"}}}], r"steps\.0: data: unknown kind of data 'txt'"),
        ([{"train": {"data": "lee", "objective": "next"}}], r"unknown objective 'next'"),
        ([{"heal": {"token": 3}}], r"unknown key of heal 'token'.*did you mean 'tokens'"),
        ([{"heal": {"tokens": 3, "minutes": 1}}], "give tokens or minutes, not both"),
        ([{"heal": {"held_out": {"x": {"text": "leee"}}}}], "unknown text dataset 'leee'"),
        ([{"export": "guf"}], r"unknown target 'guf'.*did you mean 'gguf'"),
        ([{"export": []}], "export: must be a mapping of options"),
        ([{"export": "plain"}, CUT], r"steps\.0: export stands behind all others"),
        ([{"trian": {}}], r"steps\.0\.method: is missing"),
    ],
)
def test_what_is_wrong_with_a_step_is_one_line(steps: Any, says: str) -> None:
    with pytest.raises(InvalidInputError, match=says) as refused:
        recipe(*steps)
    assert "\n" not in str(refused.value)


def test_what_cannot_be_read_is_refused_before_any_work(text: str, tmp_path: Path) -> None:
    steps = [CUT, train(text, data={"text": text, "windows": 9999})]
    with pytest.raises(InvalidInputError, match=r"steps\.1\.train: .*9999 were asked for"):
        run(recipe(*steps), tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.work").exists()


def test_a_training_has_no_plan(text: str) -> None:
    with pytest.raises(InvalidInputError, match=r"steps\.1: train with next token has no plan"):
        make_plans(recipe(CUT, train(text)), open_checkpoint("preset:byte-llama"))


def test_a_stopped_training_step_goes_on_to_the_same_bits(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = recipe(CUT, train(text, max_steps=4, save_strategy="steps", save_steps=2))
    run(asked, tmp_path / "whole", check=False)
    from transformers import Trainer

    step, calls = Trainer.training_step, []

    def stops(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(BaseException, match="interrupted"):
        patch.setattr(Trainer, "training_step", stops)
        run(asked, tmp_path / "part", check=False)
    run(asked, tmp_path / "part", check=False)
    weights = [tmp_path / place / "model.safetensors" for place in ("whole", "part")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_language_model_from_scratch_reloads_with_its_tokenizer(
    text: str, tmp_path: Path
) -> None:
    from transformers import pipeline

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64}
    model = {"compose": "llama", **sizes, **heads, "tokenizer": {"train": text, "size": 300}}
    done = run(recipe(train(text), model=model), tmp_path / "out", check=False)
    writes = pipeline("text-generation", str(tmp_path / "out"), device="cpu")
    assert writes.tokenizer("w6 w7")["input_ids"] and len(writes.tokenizer) == 300
    assert writes.model.config.eos_token_id == writes.tokenizer.eos_token_id
    assert len(writes("w6 w7", max_new_tokens=4)[0]["generated_text"]) > 5
    assert done.report.stages[1].reasons["steps"] == 3
    for wrong, says in (("byte", "unknown tokenizer 'byte'"), ({"train": "lee"}, "needs a text")):
        with pytest.raises(InvalidInputError, match=rf"model\.tokenizer: .*{says}"):
            recipe(train(text), model={**model, "tokenizer": wrong})
