"""Graphs of transformers' exporters, run on batches and lengths they were not traced with."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from shutil import copy
from typing import Any

import pytest
import torch
import transformers

import modwright
from modwright.checkpoint import weights_bytes
from modwright.checkpoint.export import target_type
from modwright.core.errors import InvalidInputError, VerificationError

from .edited import by_method, short

pytestmark = pytest.mark.slow

PRESETS = ["tiny-llama", "tiny-gpt2", "tiny-gpt-neox", "tiny-bert"]

# A trace takes seconds. The families of PRESETS become pt2 and one becomes ONNX; of the others four
# become both, and all with --full.


@pytest.fixture(scope="module")
def pt2_of(edited_model: Callable[[str], Any], tmp_path_factory: Any) -> Callable[[str], Any]:
    """``pt2_of(preset)``: the export of its edited model, traced once for all that looks at it."""

    @cache
    def make(name: str) -> Any:
        return modwright.export(edited_model(name), tmp_path_factory.mktemp("pt2") / "out", "pt2")

    return make


def sizes_add_up(done: Any) -> bool:
    return done.bytes == sum((done.output / name).stat().st_size for name in done.made)


@pytest.mark.parametrize("name", PRESETS[1:])
def test_pt2_of_edited_models(
    name: str, edited_model: Callable[[str], Any], pt2_of: Callable[[str], Any]
) -> None:
    model, done = edited_model(name), pt2_of(name)
    assert done.compared.largest < 1e-5 * done.compared.spread
    assert done.compared.inputs == ((3, 17), (1, 5), (2, 1))
    settings = {"generation_config.json"} if model.can_generate() else set()
    assert set(done.made) == {"model.pt2", "export.json", *settings}
    assert sizes_add_up(done)
    assert done.checkpoint_bytes == weights_bytes(model)


def test_pt2_runs_where_there_is_no_transformers(
    edited_model: Callable[[str], Any], pt2_of: Callable[[str], Any]
) -> None:
    model, done = edited_model("tiny-llama"), pt2_of("tiny-llama")
    assert done.compared.largest < 1e-5 * done.compared.spread
    code = (
        "import sys; sys.modules['transformers'] = sys.modules['modwright'] = None\n"
        "import torch; torch.set_num_threads(1)\n"
        f"program = torch.export.load({str(done.output / 'model.pt2')!r}).module()\n"
        "ids = torch.arange(1, 22).view(3, 7)\n"
        "out = program(input_ids=ids, attention_mask=torch.ones_like(ids))\n"
        "print(list(out), float(out['logits'].double().sum()))\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr[-1000:]
    names, _, total = said.stdout.strip().rpartition(" ")
    ids = torch.arange(1, 22).view(3, 7)
    with torch.no_grad():
        live = model(input_ids=ids).logits.double().sum()
    assert names == "['logits']"
    assert float(total) == pytest.approx(float(live), rel=1e-5)


def test_onnx_runs_other_shapes(edited_model: Callable[[str], Any], tmp_path: Path) -> None:
    import onnxruntime

    model = edited_model("tiny-llama")
    done = modwright.export(model, tmp_path / "out", "onnx")
    assert done.compared.held and done.compared.largest < 1e-4 * done.compared.spread
    assert set(done.made) == {
        "model.onnx",
        "model.onnx.data",
        "export.json",
        "generation_config.json",  # end tokens travel; the config of an edited model does not
    }
    session = onnxruntime.InferenceSession(str(done.output / "model.onnx"))
    ids = torch.arange(1, 37).view(4, 9)
    given = {"input_ids": ids.numpy(), "attention_mask": torch.ones_like(ids).numpy()}
    with torch.no_grad():
        live = model(input_ids=ids)[0]
    off = (torch.from_numpy(session.run(None, given)[0]) - live).abs().max()
    assert float(off) < 1e-4 * float(live.std())
    assert [output.name for output in session.get_outputs()] == ["logits"]


def test_a_result_of_modegpt(tiny: Any, tmp_path: Path) -> None:
    """Queries and values of other widths, gathered rotary angles, narrow MLPs."""
    options = {"sparsity": 0.3, "round_to": 1, "allocation": "uniform"}
    model = by_method(short(tiny, "tiny-llama"), "modegpt", **options)
    done = modwright.export(model, tmp_path / "out", "pt2")
    assert not done.plain and done.compared.held


@pytest.mark.parametrize("target", ["pt2", "onnx"])
def test_the_generation_form_decodes_with_a_cache(
    target: str, edited_model: Callable[[str], Any], tmp_path: Path
) -> None:
    done = modwright.export(edited_model("tiny-gpt2"), tmp_path / "out", target, form="generation")
    assert "step by step with the cache handed on" in str(done.compared)
    ending = {"pt2": ".pt2", "onnx": ".onnx"}[target]
    assert {f"prefill{ending}", f"decode{ending}"} <= set(done.made)


def test_companions_travel_and_a_plain_config_too(llama_dir: Path, tmp_path: Path) -> None:
    done = modwright.export(modwright.open(llama_dir), tmp_path / "out", "pt2")
    for name in ("tokenizer.json", "generation_config.json", "chat_template.jinja"):
        assert (done.output / name).read_bytes() == (llama_dir / name).read_bytes()
    assert json.loads((done.output / "config.json").read_text())["model_type"] == "llama"
    assert not list(done.output.glob("*.safetensors"))
    assert "torch.export.load" in (done.output / "README.md").read_text()


def test_the_model_is_as_before(edited_model: Callable[[str], Any], pt2_of: Any) -> None:
    model = edited_model("tiny-llama")
    assert pt2_of("tiny-llama").made and "forward" not in vars(model) and not model.training
    assert model(torch.ones(1, 3, dtype=torch.long)).past_key_values is not None


# Refusals


def test_a_missing_package_is_named_with_its_extra(
    edited_model: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "onnxscript" else real(name, *rest),
    )
    with pytest.raises(InvalidInputError) as refused:
        modwright.export(edited_model("tiny-llama"), tmp_path / "out", "onnx")
    assert str(refused.value) == (
        "target 'onnx' needs onnxscript, which is not installed here: "
        "pip install 'modwright[export]'"
    )
    assert list(tmp_path.iterdir()) == []


def test_what_the_tracer_does_not_take_is_told_in_one_line(
    edited_model: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.exporters import DynamoExporter

    def fail(*given: Any, **named: Any) -> None:
        raise RuntimeError("data-dependent branch\nin a long trace")

    monkeypatch.setattr(DynamoExporter, "export", fail)
    with pytest.raises(InvalidInputError, match=r"RuntimeError: data-dependent branch$") as refused:
        modwright.export(edited_model("tiny-llama"), tmp_path / "out", "pt2")
    assert "DynamoExporter does not take this ModwrightLlamaForCausalLM" in str(refused.value)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def as_written_before(pt2_of: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The target pt2, which copies the file of the edited GPT-2 in place of tracing it again."""
    kind: Any = target_type("pt2")
    file = pt2_of("tiny-gpt2").output / "model.pt2"
    monkeypatch.setattr(kind, "write", lambda self, work, folder, progress: copy(file, folder))
    return kind


@pytest.mark.contract("E4")
def test_a_graph_that_computes_something_else_never_stands(
    edited_model: Callable[[str], Any],
    as_written_before: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kind = as_written_before
    run_outputs = kind.run_outputs

    def shifted(self: Any, folder: Path) -> Any:
        run = run_outputs(self, folder)
        return lambda batch: run(batch) + 0.01

    monkeypatch.setattr(kind, "run_outputs", shifted)
    with pytest.raises(VerificationError, match=r"outputs differ by 1.0e-02, .* is allowed"):
        modwright.export(edited_model("tiny-gpt2"), tmp_path / "out", "pt2")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_does_not_run_never_stands(
    edited_model: Callable[[str], Any],
    as_written_before: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kind = as_written_before
    write = kind.write

    def cut_short(self: Any, work: Any, folder: Path, progress: Any) -> None:
        write(self, work, folder, progress)
        whole = (folder / "model.pt2").read_bytes()
        (folder / "model.pt2").write_bytes(whole[: len(whole) // 2])

    monkeypatch.setattr(kind, "write", cut_short)
    with pytest.raises(VerificationError, match="does not run the exported file"):
        modwright.export(edited_model("tiny-gpt2"), tmp_path / "out", "pt2")
    assert list(tmp_path.iterdir()) == []


def test_encoders_have_no_generation_form(
    edited_model: Callable[[str], Any], tmp_path: Path
) -> None:
    with pytest.raises(InvalidInputError, match="does not generate; the form 'outputs' takes it"):
        modwright.export(edited_model("tiny-bert"), tmp_path / "out", "pt2", form="generation")


def test_bfloat16_has_no_kernels_in_onnx_runtime(tmp_path: Path) -> None:
    opened = modwright.open("preset:tiny-llama", dtype="bfloat16")
    with pytest.raises(
        InvalidInputError, match="no bfloat16 kernels for the CPU; open the model in float32"
    ):
        modwright.export(opened, tmp_path / "out", "onnx")


@pytest.mark.families("tiny-bert", "tiny-gpt-neox", "tiny-mixtral", "tiny-qwen2-mixed")
def test_every_family_is_traced(
    preset: str,
    edited_model: Callable[[str], Any],
    pt2_of: Callable[[str], Any],
    tmp_path: Path,
) -> None:
    assert pt2_of(preset).compared.held
    assert modwright.export(edited_model(preset), tmp_path / "out", "onnx").compared.held


def test_fault_A15_segments_reach_the_graph(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    model = transformers.BertForSequenceClassification(config).eval()
    with torch.no_grad():
        model.bert.embeddings.token_type_embeddings.weight.mul_(100)
    done = modwright.export(model, tmp_path / "out", "pt2")
    program = torch.export.load(done.output / "model.pt2").module()
    ids = torch.randint(0, 40, (3, 9))
    for segments in (torch.zeros_like(ids), (torch.arange(9) > 4).long().expand(3, 9)):
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        batch["token_type_ids"] = segments.contiguous()
        found = next(iter(program(**batch).values()))
        torch.testing.assert_close(found, model(**batch).logits, atol=1e-4, rtol=1e-4)
