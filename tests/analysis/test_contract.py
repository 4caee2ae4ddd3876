"""Every analysis of a model on every family: nothing is found in random weights, what was planted
is, the model stays bit-equal, and JSON keeps the finding. New analyses enter by registering, and by
an effect in ``PLANTED``."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import modwright
from helpers import number_of_hooks, random_data, snapshot, unchanged
from modwright.analysis import (
    ANALYSES,
    Analysis,
    Chart,
    FileAnalysis,
    Finding,
    Subject,
    analysis,
    analyze,
    load_finding,
    make_analysis,
)
from modwright.cli.entry import run_command
from modwright.core.errors import CheckpointError, InvalidInputError, ModwrightError
from modwright.core.plugins import add_plugin, plugins_restored
from modwright.core.progress import SILENT
from modwright.core.registry import registries_restored
from modwright.report.findings import draw, finding_sentence

OF_MODELS = [name for name in ANALYSES.names() if not issubclass(ANALYSES[name], FileAnalysis)]
CASES = [(name, i) for name in OF_MODELS for i in range(len(ANALYSES[name].examples))]


@torch.no_grad()
def along_ones(model: Any) -> None:
    modwright.Anatomy.of(model).outer["embed"].module.weight.add_(0.05)


@torch.no_grad()
def idle_attention(model: Any) -> None:
    modwright.Anatomy.of(model).blocks[1].attention.o.weight.zero_()


@torch.no_grad()
def favored_expert(model: Any) -> None:
    along_ones(model)
    modwright.Anatomy.of(model).blocks[0].mlp.router.weight[1] = 1.0


@torch.no_grad()
def checkerboard(model: Any) -> None:
    reads = modwright.Anatomy.of(model).family.inputs()
    rows, columns = (whole // one for whole, one in zip(reads.size, reads.patch))
    signs = 1 - 2.0 * ((torch.arange(rows)[:, None] + torch.arange(columns)) % 2)
    model.get_parameter(next(n for n, _ in model.named_parameters() if "position" in n))[
        :, reads.extra :
    ] += 9 * signs.flatten()[:, None]


@torch.no_grad()
def massive_value(model: Any) -> None:
    modwright.Anatomy.of(model).outer["embed"].module.weight[:, 7] = 1e4


PLANTED: dict[str, tuple[str, Callable[[Any], None]]] = {
    "expert_usage": ("tiny-mixtral", favored_expert),
    "massive_activations": ("tiny-llama", massive_value),
    "similarity": ("tiny-llama", idle_attention),
    "spectrum": ("tiny-vit", checkerboard),
    "stream_mean": ("tiny-gpt2", along_ones),
}
"""Analysis -> a preset, and what makes there be something to find in it."""


def opened(preset: str) -> Any:
    """With the start values of its config, as untrained models have them."""
    return modwright.open(f"preset:{preset}").model


@pytest.mark.parametrize(("name", "example"), CASES)
def test_nothing_is_found_in_random_weights(preset: str, name: str, example: int) -> None:
    model = opened(preset)
    before, hooks = snapshot(model), number_of_hooks(model)
    modes = [module.training for module in model.modules()]
    asked = make_analysis(name, ANALYSES[name].examples[example])
    data = random_data(model) if asked.needs_data else None
    if (reason := asked.unsupported(Subject(model, data))) is not None:
        with pytest.raises(ModwrightError, match=name) as refusal:
            analyze(model, asked, data)
        assert "\n" not in str(refusal.value) and reason in str(refusal.value)
        return
    found = analyze(model, asked, data)
    assert unchanged(model, before) and number_of_hooks(model) == hooks
    assert [module.training for module in model.modules()] == modes
    assert isinstance(found, asked.finding) and not found.found, (found.value, found.null)
    stored = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert type(found).from_dict(stored) == found
    assert f"not above its null, {found.null:.4g}" in finding_sentence(found)
    for chart in found.charts():
        plot, png = draw(chart, "test")
        assert plot.svg.startswith("<svg") and png.startswith(b"\x89PNG")


@pytest.mark.parametrize("name", OF_MODELS)
def test_what_was_planted_is_found(name: str) -> None:
    assert name in PLANTED, f"plant an effect that {name} finds"
    preset, plant = PLANTED[name]
    model = opened(preset)
    plant(model)
    before = snapshot(model)
    found = analyze(model, name, random_data(model) if ANALYSES[name].needs_data else None)
    assert found.found and unchanged(model, before), (found.value, found.null)
    plan = found.plan(modwright.Anatomy.of(model))
    if plan is not None:
        assert modwright.apply(model, plan).verification.ok


def test_the_plan_removes_the_part_that_does_nothing() -> None:
    model = opened("tiny-llama")
    idle_attention(model)
    found = analyze(model, "similarity", random_data(model), untrained=2)
    plan = found.plan(modwright.Anatomy.of(model))
    assert plan is not None and [edit.path for edit in plan.edits] == ["blocks.1.attention"]


def test_a_stopped_analysis_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from modwright.analysis import untrained

    model, made = opened("tiny-llama"), []
    real = untrained.untrained
    monkeypatch.setattr(untrained, "untrained", lambda m, seed: made.append(seed) or real(m, seed))
    first = analyze(model, "similarity", random_data(model), directory=tmp_path, untrained=2)
    again = analyze(model, "similarity", random_data(model), directory=tmp_path, untrained=3)
    assert made == [1, 2, 3] and again.untrained[:2] == first.untrained
    assert again.scores == first.scores


def test_what_is_wrong_is_refused_in_one_line(tmp_path: Path) -> None:
    model = opened("tiny-llama")
    for call, told in (
        (lambda: analyze(model, "stream_men"), "unknown analysis 'stream_men'.*did you mean"),
        (lambda: analyze(model, "stream_mean"), "runs the model over data"),
        (lambda: make_analysis("similarity", {"untrained": 1}), "must be 2 or more"),
        (lambda: analyze(model, "expert_usage", [[1, 2]]), "the model has no experts"),
        (lambda: Finding.from_dict({"value": "x", "null": 0}), "value: must be a number"),
        (lambda: load_finding(tmp_path), "finding.json"),
    ):
        with pytest.raises((InvalidInputError, CheckpointError), match=told) as refusal:
            call()
        assert "\n" not in str(refusal.value)


# One that no line of the package knows

PLUGIN = '''
from dataclasses import dataclass

from modwright.analysis import Analysis, Chart, Finding, analysis
from modwright.core.progress import SILENT


@dataclass(frozen=True, kw_only=True)
class Largest(Finding):
    """Largest numbers.

    Attributes:
        of: each tensor's.
    """

    of: tuple[float, ...]

    def charts(self):
        return [Chart("Largest", "One point a tensor.", "tensor", "number", {"largest": self.of})]


@analysis("users_largest", finding=Largest, value="the largest number", null="ten")
@dataclass(frozen=True)
class UsersLargest(Analysis):
    """The largest number that a model stores.

    Attributes:
        least: tensors of so many numbers are looked at.
    """

    least: int = 1
    needs_data = False

    def run(self, subject, *, directory=None, progress=SILENT):
        tensors = [p.detach() for p in subject.model.parameters() if p.numel() >= self.least]
        of = [float(tensor.max()) for tensor in tensors]
        return Largest(value=max(of), null=10.0, of=tuple(of))
'''


@pytest.fixture
def plugin(tmp_path: Path) -> Iterator[Path]:
    file = tmp_path / "largest.py"
    file.write_text(PLUGIN, encoding="utf-8")
    with registries_restored(), plugins_restored():
        yield file


def test_one_of_a_plugin_is_a_command(
    plugin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    start = f"--plugin {plugin} analyze users_largest"
    line = f"{start} preset:tiny-llama -o {out} --least 48"
    assert run_command(shlex.split(line)) == 0
    printed = capsys.readouterr()
    assert "The largest number is 1, not above its null, 10 (ten)." in printed.out
    files = {file.name for file in out.iterdir()}
    assert files == {"finding.json", "report.html", "figure-1.svg", "figure-1.png"}
    assert "The largest number is 1, not above its null" in (out / "report.html").read_text()
    with plugins_restored():
        add_plugin(str(plugin))
        found = load_finding(out)
    assert found.recipe["options"] == {"least": 48} and found.value == 1.0
    assert run_command(shlex.split(line)) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert run_command(shlex.split(f"{line} --force --json")) == 0
    assert json.loads(capsys.readouterr().out)["value"] == 1.0
    assert run_command(shlex.split(f"{start} --help")) == 0
    assert "Tensors of so many numbers" in capsys.readouterr().out
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


def test_one_of_a_plugin_is_in_the_tables_of_the_docs(
    plugin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "docs" / "hooks"))
    monkeypatch.delitem(sys.modules, "tables", raising=False)
    import tables

    add_plugin(str(plugin))
    (row,) = [row for row in tables.MAKERS["analyses"]().splitlines() if "users_largest" in row]
    assert "The largest number that a model stores." in row and "ten" in row and "`least`" in row
    monkeypatch.delitem(sys.modules, "tables")


@dataclass(frozen=True, kw_only=True)
class Lines(Finding):
    def charts(self) -> list[Chart]:
        return [Chart("Lines", "None.", "x", "y", {"a": [1.0, None]}, [0.5, 0.5], [0, 9], True)]


def test_one_that_reads_a_file_gets_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with registries_restored():

        @analysis("count_lines", finding=Lines, value="lines", null="none")
        @dataclass(frozen=True)
        class CountLines(FileAnalysis):
            """How many lines a file has."""

            def run(
                self, subject: Subject, *, directory: Any = None, progress: Any = SILENT
            ) -> Any:
                assert subject.file is not None
                return Lines(value=float(len(subject.file.read_text().splitlines())), null=0.0)

        (tmp_path / "lines.txt").write_text("a\nb\n")
        assert analyze(tmp_path / "lines.txt", "count_lines").value == 2
        line = f"analyze count_lines {tmp_path / 'lines.txt'} -o {tmp_path / 'out'}"
        assert run_command(shlex.split(line)) == 0
        assert load_finding(tmp_path / "out").recipe["subject"] == "lines.txt"
        assert run_command(shlex.split(f"analyze count_lines nothing -o {tmp_path / 'no'}")) == 2
        assert "there is no file 'nothing'" in capsys.readouterr().err


def test_only_frozen_analyses_register() -> None:
    with registries_restored(), pytest.raises(ValueError, match="frozen dataclass"):
        analysis("loose", finding=Finding, value="x", null="y")(Analysis)
