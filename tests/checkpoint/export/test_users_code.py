"""What a plugin, a test or a module of a user registered goes into a standalone model's file."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch
from torch import nn

import modwright
from helpers import edit
from modwright.checkpoint.export import make_target, runtime_support
from modwright.checkpoint.export.to_standalone import layout_of, standalone_code
from modwright.core.errors import InvalidInputError
from modwright.core.plugins import add_plugin, load_plugins, plugins_restored
from modwright.core.registry import registries_restored
from modwright.edits import Change, Replace
from modwright.edits.verify import check_reopens
from modwright.nn.component import COMPONENTS, component

from .edited import short

Write = Callable[[str, str], Path]

HELPERS = """\
import math
import torch.nn.functional
from torch import Tensor, nn

RATES = {"slow": 0.9}


class Opaque(nn.Module):
    '''A name that the file has for something else, too.'''

    word = "slow"


def sum(x: Tensor) -> Tensor:
    return torch.nn.functional.pad(x, (0, 0, 0, 0)) * math.exp(0)


def decayed(x, total, real):
    rows = []
    for t in range(x.shape[1]):
        total = total * RATES[Opaque.word] + x[:, t] * real[:, t]
        rows.append(total)
    return torch.stack(rows, 1), total
"""

MINE = """\
import functools

import beside as helpers
import torch
import torch.nn as nn
import torch.nn.functional as F
from beside import Opaque as Base
from math import exp as e
from modwright.nn import RMSNorm
from modwright.nn import component as ways
from modwright.nn.activations import make_activation
from modwright.nn.component import component as registered

mixer = functools.partial(registered, kind="token_mixer")


def component(name):
    '''A decorator of the user's own; it stays.'''
    return lambda kind: setattr(kind, "called", name) or kind


@ways.component("users_squares", kind="activation", reads="either")
class Squares(nn.Module):
    def forward(self, x):
        return F.relu(x) ** 2


@component("a sum")
@mixer(
    "users_sum",
    state="recurrent",
    causal=True,
)
class Handover(Base):
    def __init__(self, hidden_size):
        super().__init__()
        self.norm = RMSNorm(hidden_size, 1e-6)
        self.rate = e(-1.0)

    def forward(self, x, state=None, padding_mask=None):
        real = torch.ones_like(x[..., :1]) if padding_mask is None else padding_mask[..., None]
        y, state = helpers.decayed(x, x[:, 0] * 0 if state is None else state, real)
        return self.norm(helpers.sum(y) * self.rate * len(self.called)), state


@registered("users_mlp", kind="channel_mixer")
class Gated(nn.Module):
    def __init__(self, hidden_size, act="users_squares"):
        super().__init__()
        self.up = nn.Linear(hidden_size, 8)
        self.act, self.gate = make_activation(act), make_activation("gelu")
        self.down = nn.Linear(8, hidden_size)

    def forward(self, x):
        return self.down(self.act(self.up(x)) * self.gate(self.up(x)))
"""


@component("test_users_code_shift", kind="token_mixer", causal=True)
class Shift(nn.Module):
    """The token before, of a test file."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(hidden_size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.pad(x, (0, 0, 1, 0))[:, :-1] * self.scale


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes a module of a user's, which lies where it is imported from; all are forgotten."""
    monkeypatch.syspath_prepend(tmp_path)
    known = set(sys.modules)

    def write(name: str, text: str) -> Path:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(dedent(text))
        return tmp_path / name

    with registries_restored(), plugins_restored():
        yield write
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def placed(tiny: Any, **parts: str) -> Any:
    """A Llama with components, each at an address of block 1."""
    change = Change()
    for role, name in parts.items():
        address = f"blocks.1.{role}"
        torch.manual_seed(1)
        kwargs = {"hidden_size": 48}
        made = COMPONENTS[name].make(**kwargs).state_dict()
        values = {f"{address}.{key}": value for key, value in made.items()}
        change += Change((Replace(address, name, kwargs),), values)
    return edit(short(tiny, "tiny-llama"), change, check=False).model


def part_of(tiny: Any, name: str) -> Any:
    change = Change((Replace("blocks.1.mlp_norm", name, {}),))
    return edit(short(tiny, "tiny-llama"), change, check=False).model


def code_in(folder: Path) -> str:
    (file,) = folder.glob("modeling_*.py")
    return file.read_text()


def imported(code: str) -> set[str]:
    nodes = list(ast.walk(ast.parse(code)))
    found = {one.name for node in nodes if isinstance(node, ast.Import) for one in node.names}
    return found | {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}


def test_a_plugin_and_the_files_beside_it_open_where_there_is_neither_they_nor_modwright(
    tiny: Any, write: Write, tmp_path: Path
) -> None:
    """Names that clash, other names for the same, and decorators under any name."""
    write("beside.py", HELPERS)
    add_plugin(write("mine.py", MINE))
    model = placed(tiny, attention="users_sum", mlp="users_mlp")
    done = modwright.export(model, tmp_path / "out", "standalone")
    assert done.compared.largest == 0.0 and "the same tokens with its cache" in str(done.compared)
    assert done.imports == ()
    code = code_in(tmp_path / "out")
    assert "(Apache-2.0) and of users' code: beside, mine." in code
    assert not {name for name in imported(code) if name.startswith(("modwright", "beside"))}
    assert '@component("a sum")\nclass Handover_mine(Opaque_beside):' in code
    assert "ACTIVATIONS = {'gelu': GELU, 'users_squares': Squares}" in code


def test_the_file_is_the_same_wherever_the_plugin_lies(
    tiny: Any, write: Write, tmp_path: Path
) -> None:
    write("beside.py", HELPERS)
    codes = []
    for folder in ("one", "two"):
        with registries_restored(), plugins_restored():
            add_plugin(write(f"{folder}/mine.py", MINE))
            model = placed(tiny, mlp="users_mlp")
            codes.append(standalone_code(model, layout_of(model)))
    assert codes[0] == codes[1]


def test_a_package_with_relative_imports_is_taken_along(
    tiny: Any, write: Write, tmp_path: Path
) -> None:
    write("kit/__init__.py", "from . import mixers\nSIZE = 3\n")
    write("kit/tools.py", "def mean(x, size):\n    return x.cumsum(1) / size\n")
    write(
        "kit/mixers.py",
        """
        from torch import nn
        from modwright.nn.component import component
        from . import tools as t
        from .tools import mean as averaged

        @component("users_mean", kind="token_mixer", causal=True)
        class Mean(nn.Module):
            def __init__(self, hidden_size):
                super().__init__()

            def forward(self, x):
                return averaged(x, 2) + t.mean(x, size=3)
        """,
    )
    add_plugin(tmp_path / "kit")
    done = modwright.export(placed(tiny, attention="users_mean"), tmp_path / "out", "standalone")
    assert done.compared.largest == 0.0
    assert "users' code: kit.tools, kit.mixers." in code_in(tmp_path / "out")


def test_what_a_test_file_registers_goes_along_and_is_known_where_a_result_is_reopened(
    tiny: Any, tmp_path: Path
) -> None:
    model = placed(tiny, attention="test_users_code_shift")
    seen = check_reopens(model, modwright.save(model, tmp_path / "saved"))
    assert seen.model_class == "ModwrightLlamaForCausalLM" and not seen.plain
    done = modwright.export(model, tmp_path / "out", "standalone")
    assert done.compared.largest == 0.0
    assert "class Shift(nn.Module):" in code_in(tmp_path / "out")


def test_what_is_installed_is_imported_and_said(tiny: Any, write: Write, tmp_path: Path) -> None:
    add_plugin(
        write(
            "mine.py",
            """
            import safetensors
            from torch import nn
            from modwright.edits import register_part

            @register_part("users_tanh")
            def make(config):
                assert safetensors.safe_open
                return nn.Tanh()

            register_part("users_relu")(nn.ReLU)
            """,
        )
    )
    load_plugins()
    done = modwright.export(part_of(tiny, "users_tanh"), tmp_path / "out", "standalone")
    assert done.imports == ("safetensors",)
    words = "imports safetensors, which must be installed where it is opened"
    assert str(done).endswith(f"; {words}")
    assert f"The code {words}." in (tmp_path / "out" / "README.md").read_text()
    model = part_of(tiny, "users_relu")
    code = standalone_code(model, layout_of(model))
    assert "torch.nn.modules.activation" in imported(code) and "class ReLU" not in code


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("lambda config: nn.Tanh()", "a lambda makes it"),
        ("functools.partial(make, size=2)", "a functools.partial makes it"),
        ("within()", "a function inside of within makes it"),
        ("Maker()", "an object of the class Maker makes it"),
    ],
)
def test_a_part_without_a_name_in_a_file_is_refused_before_any_work(
    source: str, told: str, tiny: Any, write: Write, tmp_path: Path
) -> None:
    head = """\
import functools
from torch import nn
from modwright.edits import register_part

def make(config, size=1):
    return nn.Tanh()

def within():
    def make(config):
        return nn.Tanh()
    return make

class Maker:
    def __call__(self, config):
        return nn.Tanh()

"""
    add_plugin(write("mine.py", f"{head}register_part('users_part')({source})\n"))
    model = part_of(tiny, "users_part")
    why = (
        f"part 'users_part': {told}, whose source cannot be taken along; write a class or a "
        "function at the top level of a file"
    )
    assert make_target("standalone").refusal(model) == why
    with pytest.raises(InvalidInputError) as caught:
        modwright.export(model, tmp_path / "out", "standalone")
    assert str(caught.value) == f"cannot export to standalone: {why}"
    assert not (tmp_path / "out").exists()
    found = {one.runtime: one for one in runtime_support(model)}
    alone = found["transformers without modwright"]
    assert (alone.answer, alone.why) == ("no", why)


def test_code_of_a_console_is_refused(tiny: Any) -> None:
    source = "@component('users_console', kind='norm')\nclass Norm(nn.Module):\n    pass\n"
    scope: dict[str, Any] = {"__name__": "console", "component": component, "nn": nn}
    with registries_restored(), pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "console", type(sys)("console"))
        exec(source, scope)
        model = part_of(tiny, "users_console")
        why = make_target("standalone").refusal(model)
    assert (
        why == "part 'users_console': the source of console is not there, so it cannot be exported"
    )
