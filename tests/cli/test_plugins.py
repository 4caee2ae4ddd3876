"""``--plugin``: what a user's file registers is known to the commands, and in what they start."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import yaml

from modwright.core.plugins import VARIABLE, plugin_names
from modwright.edits.registry import part_names
from modwright.surgery import method_names

from .conftest import Command

USERS = Path(__file__).parents[1] / "users_plugin.py"


@pytest.fixture
def plugin(place: Path) -> str:
    """The file of a user in the working directory."""
    shutil.copy(USERS, place / "mine.py")
    return "mine.py"


@pytest.fixture
def users_recipe(plugin: str, wordy_model: Path, place: Path) -> str:
    """A recipe with a step of the user's method, which places the user's part."""
    nothing = {"perplexity": None, "generate": None, "speed": None, "length": 32}
    steps = [{"method": "users_method", "block": 0}]
    tree = {"model": str(wordy_model), "steps": steps, "evaluate": nothing, "threads": 1}
    (place / "r.yaml").write_text(yaml.safe_dump(tree))
    return "r.yaml"


def test_a_method_of_a_plugin_is_a_subcommand_and_its_part_is_known_where_it_is_reopened(
    plugin: str, wordy_model: Path, place: Path, command: Command
) -> None:
    line = f"edit users_method {wordy_model} -o out --block 0 --no-eval"
    done = command(f"--plugin {plugin} {line}")
    assert done.code == 0, done.err
    assert "reopening it in a new process" in done.err
    stored = yaml.safe_load((place / "out" / "recipe.yaml").read_text())
    assert stored["plugins"] == [str(place / plugin)]
    assert "users_method" not in method_names() and "users_tanh" not in part_names()
    assert plugin_names() == []
    done = command(line.replace("-o out", "-o other"))
    assert (done.code, len(done.err.splitlines())) == (2, 1)
    assert done.err.startswith("modwright: unknown command 'users_method'")


@pytest.mark.parametrize("way", ["option", "equals", "variable"])
def test_presets_and_families_of_a_plugin_are_known(
    way: str, plugin: str, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "variable":
        monkeypatch.setenv(VARIABLE, os.pathsep.join([plugin, "json"]))
    given = {"option": f"--plugin {plugin}", "equals": f"--plugin={plugin}"}.get(way, "")
    for preset in ("users-preset", "tiny-starcoder2"):
        done = command(f"{given} inspect preset:{preset} --json")
        assert done.code == 0, done.err


def test_the_help_names_the_option_and_the_help_of_edit_the_methods(
    plugin: str, command: Command
) -> None:
    assert "--plugin" in command("--help").out
    assert all("--plugin" in command(f"{name} --help").out for name in ("run", "train", "plan"))
    assert "users_method" in command(f"--plugin {plugin} edit --help").out
    assert "In which block." in command(f"--plugin {plugin} edit users_method --help").out


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("--plugin gone.py inspect preset:tiny-llama", "plugin 'gone.py': no such file"),
        ("--plugin ./ inspect preset:tiny-llama", "plugin './': it is a folder without"),
        ("--plugin bad.py inspect preset:tiny-llama", "plugin 'bad.py', line 1: ZeroDivision"),
        ("--plugin bad.py edit --help", "plugin 'bad.py', line 1: ZeroDivisionError: division by"),
        ("--plugin none_such inspect preset:tiny-llama", "plugin 'none_such': no module of this"),
        ("run r.yaml -o out --plugin gone.py", "plugin 'gone.py': no such file"),
        ("--plugin", "option '--plugin' requires an argument"),
    ],
)
def test_what_cannot_be_a_plugin_is_refused_in_one_line(
    line: str, told: str, place: Path, command: Command
) -> None:
    (place / "bad.py").write_text("1 / 0\n")
    (place / "r.yaml").write_text("model: m\nsteps: [{method: llm_drop, n: 1}]\n")
    done = command(line)
    assert (done.code, len(done.err.splitlines())) == (2, 1), done.err
    assert done.err.startswith(f"modwright: {told}")


@pytest.mark.parametrize(
    "where", ["run r.yaml -o out --plugin {}", "--plugin {} run r.yaml -o out"]
)
def test_a_run_notes_its_plugins_in_the_recipe_beside_the_result(
    where: str, plugin: str, users_recipe: str, place: Path, command: Command
) -> None:
    done = command(where.format(plugin))
    assert done.code == 0, done.err
    stored = yaml.safe_load((place / "out" / "recipe.yaml").read_text())
    assert stored["plugins"] == [str(place / plugin)]
    again = command(f"run {place}/out/recipe.yaml -o out")
    assert again.code == 0 and "holds the result of this recipe already" in again.err


def test_a_plan_that_is_kept_knows_its_plugins(
    plugin: str, users_recipe: str, command: Command
) -> None:
    done = command(f"plan {users_recipe} --plugin {plugin} --save kept")
    assert done.code == 0, done.err
    done = command("apply kept -o applied")
    assert done.code == 0 and "written: applied" in done.err, done.err
