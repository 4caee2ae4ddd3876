"""What code outside of the package registers is known in the process that reopens a result."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import modwright
from helpers import edit
from modwright.core.errors import InvalidInputError, VerificationError
from modwright.core.handover import Handover, handover
from modwright.core.plugins import VARIABLE, add_plugin, load_plugins, plugins_restored
from modwright.core.registry import Registry
from modwright.edits import Change, Replace, register_part
from modwright.edits.registry import PARTS
from modwright.edits.verify import check_reopens
from warm_processes import run_python

HERE = str(Path(__file__).resolve())
PLUGIN = Path(__file__).parents[1] / "users_plugin.py"
SCRIPT = """\
from pathlib import Path

from torch import nn

import modwright
from modwright.core.handover import handover
from modwright.edits import register_part


@register_part("of_a_script")
def of_a_script(config):
    return nn.Identity()


def main():
    with open("log", "a") as log:
        log.write(repr(handover(["of_a_script"])) + "\\n")


"""


@register_part("test_handover_tanh")
def _tanh(config: Any) -> nn.Module:
    return nn.Tanh()


def with_part(tiny: Any, name: str) -> Any:
    """A model that has a part in place of a norm."""
    change = Change((Replace("blocks.1.mlp_norm", name, {}),))
    return edit(tiny("tiny-llama"), change, check=False).model


def reopened(model: Any, tmp_path: Path) -> Any:
    return check_reopens(model, modwright.save(model, tmp_path / "saved"))


def test_what_a_test_file_registers_is_known_there(tiny: Any, tmp_path: Path) -> None:
    seen = reopened(with_part(tiny, "test_handover_tanh"), tmp_path)
    assert seen.model_class == "ModwrightLlamaForCausalLM" and not seen.plain


def test_code_that_registered_nothing_that_is_used_is_not_imported_there() -> None:
    assert handover(["test_handover_tanh", "linear"]).plugins in ((HERE,), ("core.test_handover",))
    assert handover(["linear", "llama"]) == Handover()
    assert handover(["test_handover_tanh"]).plugins[0] in handover().plugins


@pytest.mark.slow
@pytest.mark.cold_processes
def test_a_family_and_a_part_of_plugins_are_known_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process that is started from nothing; the working directory is another one there."""
    shutil.copy(PLUGIN, tmp_path / "family.py")
    (tmp_path / "part.py").write_text(
        "from torch import nn\nfrom modwright.edits import register_part\n"
        "register_part('of_a_plugin')(lambda config: nn.Tanh())\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, "family.py")
    with plugins_restored():
        add_plugin("part.py")
        model = modwright.open("preset:tiny-starcoder2").model
        change = Change((Replace("blocks.1.mlp_norm", "of_a_plugin", {}),))
        seen = reopened(edit(model, change, check=False).model, tmp_path)
        assert seen.model_class == "ModwrightStarcoder2ForCausalLM"


def test_code_in_no_file_is_unknown_there_and_the_message_says_why(
    tiny: Any, tmp_path: Path
) -> None:
    code = "register_part('of_a_console')(lambda config: nn.Tanh())"
    with PARTS.restored():
        exec(code, {"__name__": "console", "register_part": register_part, "nn": nn})
        with pytest.raises(
            VerificationError,
            match=r"new process: unknown part 'of_a_console'; valid values: .*; part "
            r"'of_a_console' is registered by code that is in no file; write it into one$",
        ):
            reopened(with_part(tiny, "of_a_console"), tmp_path)


def test_what_a_function_registers_later_is_told_of_too() -> None:
    with PARTS.restored():
        register_part("of_a_function")(lambda config: nn.Tanh())
        told = handover(["of_a_function"])
    assert told.unknown == (
        "part 'of_a_function' is registered by a function of test_handover.py; a new process "
        "knows what a file registers when it is imported",
    )


@pytest.mark.parametrize("guarded", [True, False])
def test_a_script_is_imported_there_where_that_does_not_do_its_work_again(
    guarded: bool, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        SCRIPT + ("if __name__ == '__main__':\n    main()\n" if guarded else "main()\n")
    )
    done = run_python(["script.py"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (told,) = (tmp_path / "log").read_text().splitlines()
    assert told.startswith(
        f"Handover(plugins=({str(script)!r},)" if guarded else "Handover(plugins=(), folders=()"
    )
    assert ("put the work below `if __name__ == '__main__':`" in told) is not guarded


def test_a_module_of_a_package_goes_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = Registry[Any]("book")
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").write_text("")
    (tmp_path / "shop" / "shelf.py").write_text("from . import TABLE\nTABLE.add('emma', 1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    import shop  # type: ignore[import-not-found]

    shop.TABLE = table
    import shop.shelf  # type: ignore[import-not-found]

    told = handover(["emma"])
    assert told.plugins == ("shop.shelf",) and str(tmp_path) in told.folders
    assert told.environment() == {VARIABLE: "shop.shelf"}
    Registry._all.remove(table)


def test_a_plugin_that_reopens_something_when_it_is_imported_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "busy.py"
    file.write_text(
        "from pathlib import Path\n"
        "from modwright.core.subprocesses import open_in_new_process\n"
        "open_in_new_process(Path('.'), [], library='imported', what='it')\n"
    )
    with plugins_restored():
        add_plugin(file)
        with pytest.raises(
            InvalidInputError, match=r"line 3: .*busy.py' does its work when it is imported .* put"
        ):
            load_plugins()


@pytest.mark.slow
def test_the_part_of_a_script_is_known_in_the_process_that_its_save_starts(tmp_path: Path) -> None:
    """All of it as a user does it: a script, a save, a check."""
    (tmp_path / "script.py").write_text(SCRIPT + END)
    done = run_python(["script.py"], {**os.environ, "OMP_NUM_THREADS": "1"}, tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == ["ModwrightLlamaForCausalLM", False]


END = """
if __name__ == "__main__":
    import json

    from modwright.edits import Change, Plan, Replace
    from modwright.edits.verify import check_reopens

    model = modwright.open("preset:tiny-llama").model
    change = Change((Replace("blocks.1.mlp_norm", "of_a_script", {}),))
    plan = Plan.of(modwright.Anatomy.of(model), "by hand", change)
    done = modwright.apply(model, plan, check=False).model
    seen = check_reopens(done, modwright.save(done, "out"))
    print(json.dumps([seen.model_class, seen.plain]))
"""
