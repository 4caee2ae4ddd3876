"""``plugins:`` in recipes: paths begin at the file that says them, and mistakes name their line."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from modwright.core.errors import InvalidInputError, ModwrightError
from modwright.core.plugins import plugin_digests, plugin_names, plugins_restored
from modwright.edits.registry import part_names
from modwright.models import list_models
from modwright.recipes import load_recipe
from modwright.recipes.load import parse_recipe, resolved
from modwright.recipes.training_schema import load_training, parse_training

USERS = Path(__file__).parents[1] / "users_plugin.py"
STEPS = "steps: [{method: users_method, block: 0}]\n"
TRAINING = """\
model: {name: users_pools, depths: [1, 1]}
data: {images: digits}
"""
POOLS = """\
from modwright.models import register_model
from modwright.models.architectures.metaformer import MetaFormerConfig


@register_model
def users_pools(**overrides):
    return MetaFormerConfig(**{"depths": [1, 1], "hidden_sizes": [8, 16], **overrides})
"""

Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes a file; there is a plugin ``mine.py`` and one of models, ``pools.py``."""
    shutil.copy(USERS, tmp_path / "mine.py")
    (tmp_path / "pools.py").write_text(POOLS)
    (tmp_path / "desk").mkdir()
    monkeypatch.chdir(tmp_path / "desk")

    def write(name: str, text: str) -> Path:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(dedent(text))
        return tmp_path / name

    with plugins_restored():
        yield write


def test_a_path_begins_at_the_recipe_and_its_method_is_known(write: Write, tmp_path: Path) -> None:
    file = write("deep/r.yaml", f"model: m\nplugins: [../mine.py, json]\n{STEPS}")
    found = load_recipe(file)
    assert found.plugins == [str(tmp_path / "mine.py"), "json"] == plugin_names()
    assert found.steps[0].built.block == 0 and "users_tanh" in part_names()


def test_the_resolved_recipe_has_whole_paths_and_gives_the_same(
    write: Write, tmp_path: Path
) -> None:
    tree = resolved(load_recipe(write("r.yaml", f"model: m\nplugins: [mine.py]\n{STEPS}")))
    assert tree["plugins"] == [str(tmp_path / "mine.py")]
    with plugins_restored():
        assert resolved(parse_recipe(tree)) == tree


def test_a_recipe_that_is_extended_names_its_plugins_from_where_it_lies(
    write: Write, tmp_path: Path
) -> None:
    write("base/b.yaml", f"model: m\nplugins: [../mine.py]\n{STEPS}")
    child = write("deep/er.yaml", "extends: ../base/b.yaml\ntitle: another\n")
    assert load_recipe(child).plugins == [str(tmp_path / "mine.py")]
    own = write("deep/own.yaml", "extends: ../base/b.yaml\nplugins: [../mine.py, ../pools.py]\n")
    assert load_recipe(own).plugins == [str(tmp_path / name) for name in ("mine.py", "pools.py")]


def test_a_change_of_the_command_line_begins_at_the_working_directory(
    write: Write, tmp_path: Path
) -> None:
    file = write("deep/r.yaml", f"model: m\nplugins: [gone.py]\n{STEPS}")
    assert load_recipe(file, ["plugins.0=../mine.py"]).plugins == [str(tmp_path / "mine.py")]
    with pytest.raises(InvalidInputError, match=r"^--set 'plugins.0=mine.py', plugins.0: plugin"):
        load_recipe(file, ["plugins.0=mine.py"])


def test_plugins_that_are_given_beside_are_loaded_and_noted(write: Write, tmp_path: Path) -> None:
    file = write("r.yaml", f"model: m\n{STEPS}")
    mine = str(tmp_path / "mine.py")
    assert load_recipe(file, plugins=[mine]).plugins == [mine]
    twice = write("twice.yaml", f"model: m\nplugins: [mine.py, ./mine.py]\n{STEPS}")
    assert load_recipe(twice, plugins=["../mine.py"]).plugins == [mine]


def test_without_its_plugin_the_method_is_unknown(write: Write) -> None:
    with pytest.raises(ModwrightError, match=r"^r.yaml line 2, steps.0: unknown method 'users_me"):
        load_recipe(write("r.yaml", f"model: m\n{STEPS}"))


@pytest.mark.parametrize("kind", ["recipe", "training"])
@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("plugins: [json, gone.py]", "line 1, plugins.1: plugin '{}/gone.py': no such file"),
        ("plugins:\n- ./", "line 2, plugins.0: plugin '{}': it is a folder without"),
        ("plugins: [bad.py]", "line 1, plugins.0: plugin '{}/bad.py', line 2: ZeroDivisionError"),
        ("plugins: [none_such_module]", "line 1, plugins.0: plugin 'none_such_module': no module"),
        ("plugins: ['a b']", "line 1, plugins.0: plugin 'a b' is neither a file that ends"),
        ("plugins: mine.py", "line 1, plugins: "),
        ("plugins: [3]", "line 1, plugins.0: "),
        ("plugins: [null]", "line 1, plugins.0: "),
        ("plugin: [mine.py]", "line 1, plugin: "),
    ],
)
def test_a_wrong_value_is_refused_by_its_line(
    kind: str, said: str, told: str, write: Write, tmp_path: Path
) -> None:
    write("bad.py", "x = 1\nx / 0\n")
    text = f"{said}\n" + (f"model: m\n{STEPS}" if kind == "recipe" else TRAINING)
    load: Any = load_recipe if kind == "recipe" else load_training
    with pytest.raises(InvalidInputError) as caught:
        load(write("r.yaml", text))
    message = str(caught.value)
    assert message.startswith(f"r.yaml {told.format(tmp_path)}") and "\n" not in message


def test_a_training_names_models_of_its_plugins(write: Write, tmp_path: Path) -> None:
    file = write("deep/t.yaml", f"plugins: [../pools.py]\n{TRAINING}")
    found = load_training(file)
    assert found.plugins == [str(tmp_path / "pools.py")] and "users_pools" in list_models()
    tree = found.model_dump(mode="json")
    with plugins_restored():
        assert parse_training(tree).model_dump(mode="json") == tree
    extended = write("more.yaml", "extends: deep/t.yaml\nmodel: {depths: [2, 1]}\n")
    assert load_training(extended).plugins == found.plugins
    with plugins_restored():
        before = plugin_digests()
        write("pools.py", POOLS + "# another line\n")
        assert plugin_digests() != before


def test_without_its_plugin_the_model_is_unknown(write: Write) -> None:
    with pytest.raises(InvalidInputError, match=r"^t.yaml line 1, model.name: unknown model 'user"):
        load_training(write("t.yaml", TRAINING))
