"""A standalone checkpoint opens, computes and decodes where there is no modwright."""

from __future__ import annotations

import ast
import copy
import inspect
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kept_toy
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from toy_recurrent import toys
from transformers.integrations.heterogeneity.configuration_utils import (
    AmbiguousGlobalPerLayerAttributeError,
)

import modwright
from helpers import batch_of, edit, outputs
from modwright.anatomy import Anatomy, Mlp
from modwright.anatomy.coerce import cache_keyword
from modwright.checkpoint.export import make_target
from modwright.checkpoint.export.to_standalone import layout_of, standalone_code
from modwright.core.errors import ModwrightError, VerificationError
from modwright.core.progress import SILENT
from modwright.core.registry import registries_restored
from modwright.edits import Change, Replace, keep_experts, remove
from modwright.edits.granularity import set_granularity
from modwright.edits.registry import PARTS, maker_of, part_names
from modwright.edits.remodeled import base_class, edits_of
from modwright.nn import GroupedAttention
from modwright.nn.component import COMPONENTS, components

from .edited import by_method, short, with_change

WORKER = Path(__file__).with_name("standalone_worker.py")
# Standalone checkpoints are of stock architectures, which call their sublayers in one way.
OF_IMAGE_MODELS = {"pass_through", "pointwise"}
ELSEWHERE = {"mamba1", "mamba2"}  # in a test of their own below
STOCK_REFUSES = (AmbiguousGlobalPerLayerAttributeError, RuntimeError, ValueError, TypeError)


@pytest.fixture(autouse=True)
def _no_load_reports() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def modules_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where transformers keeps the code of checkpoints: of this test alone, files and modules."""
    from transformers import dynamic_module_utils

    place = tmp_path / "modules"
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(place))
    yield place
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]


def write(model: Any, place: Path) -> Path:
    """The files of a standalone checkpoint, without the comparison in a process of its own."""
    place.mkdir(parents=True)
    make_target("standalone").write(modwright.open(model), place, SILENT)
    return place


def in_a_process_without_modwright(jobs: list[dict[str, str]], place: Path) -> list[Any]:
    done = subprocess.run(
        [sys.executable, str(WORKER), json.dumps(jobs), str(place)],
        capture_output=True,
        text=True,
        cwd=place,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return answers


def code_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.py"))


def every_other_part(tiny: Any) -> dict[str, Any]:
    """Models that hold the parts that the edits of `edited_model` do not place."""
    names = ("gpt2", "llama", "mixtral", "vit")
    gpt2, llama, mixtral, vit = (short(tiny, f"tiny-{name}") for name in names)
    mlp = Anatomy.of(llama).blocks[0].mlp
    assert isinstance(mlp, Mlp)
    rows = {f"{mlp.address}.{role}.weight": p.weight[:40] for role, p in mlp.projections().items()}
    rows[f"{mlp.down.address}.weight"] = mlp.down.weight[:, :40]
    own = {**mlp.shape.to_dict(), "intermediate_size": 40}
    narrow = Change((Replace(mlp.address, "feed_forward", own),), rows)
    fewer = keep_experts(Anatomy.of(mixtral).blocks[0].mlp, range(2))
    forms = {"rms": {"form": "rms"}, "crms": {"form": "crms"}}
    forms["training"] = {"form": "rms", "training": True}
    nested = by_method(llama, "nest")
    set_granularity(nested, "M")  # with all neurons stock classes open it
    return {
        "narrow": with_change(llama, narrow),
        "fewer experts": with_change(mixtral, fewer),
        "emoe": by_method(llama, "emoe", num_experts=4, top_k=2),
        "nested": nested,
        "identity mixer": by_method(llama, "replace_token_mixer", mixer="identity", blocks="1"),
        "learned activation": by_method(llama, "replace_activation", order=2, eps=1e-5),
        "activation of experts": by_method(mixtral, "replace_activation", activation="poly_relu"),
        "bare": by_method(short(tiny, "tiny-gpt-neox").gpt_neox, "pre_rmsnorm", form="crms"),
        **{name: by_method(gpt2, "pre_rmsnorm", **options) for name, options in forms.items()},
        **{
            mixer: by_method(vit, "replace_token_mixer", mixer=mixer, blocks="1")
            for mixer in ("pool", "depthwise", "spatial_fc", "random")
        },
    }


@pytest.mark.contract("A14")
def test_every_family_in_one_process_without_modwright_and_saved_again(
    tiny: Any, edited_model: Callable[[str], Any], family_presets: dict[str, str], tmp_path: Path
) -> None:
    """All are opened before any is run, so classes that mixed would show."""
    models = {preset: edited_model(preset) for preset in family_presets}
    models["modegpt"] = by_method(
        short(tiny, "tiny-llama"), "modegpt", sparsity=0.3, round_to=1, allocation="uniform"
    )
    models["llm_drop"] = by_method(short(tiny, "tiny-llama"), "llm_drop", n=2)
    models |= every_other_part(tiny)
    placed = {name for model in models.values() for _, name, _ in layout_of(model).parts}
    own = {name for name in part_names() if maker_of(name)[0].__module__.startswith("modwright.")}
    functions = components("activation").keys() - PARTS.all().keys()
    assert placed >= own - functions - OF_IMAGE_MODELS - ELSEWHERE
    jobs = []
    for name, model in models.items():
        batch = tmp_path / f"{name}.safetensors"
        save_file(batch_of(model), batch)
        auto = "AutoModelForCausalLM" if model.can_generate() else "AutoModel"
        # The same folder name everywhere: the code must not be told apart by it.
        folder = write(model, tmp_path / name / "standalone")
        jobs.append({"folder": str(folder), "auto": auto, "batch": str(batch), "name": name})
    answers = in_a_process_without_modwright(jobs, tmp_path)
    for job, answer in zip(jobs, answers):
        name, model = job["name"], models[job["name"]]
        stock = base_class(type(model)).__name__
        assert answer["classes"] == [f"Standalone{stock}"] * 2, name
        with torch.no_grad():
            live = model(**batch_of(model))[0]
        for turn in ("first", "again"):
            found = load_file(tmp_path / f"{name}-{turn}.safetensors")
            assert torch.equal(found["out"], live), (name, turn)
        (code,) = code_files(Path(job["folder"]))
        assert answer["code_of_again"] == [code], name
        assert answer["tied"] == Anatomy.of(model).is_tied, name
        assert answer["refused_by_stock"], f"{name}: {stock} opened it"


def test_the_verb_compares_in_a_process_without_modwright(edited_dir: Path, tmp_path: Path) -> None:
    opened = modwright.open(edited_dir)
    done = modwright.export(opened, tmp_path / "out", "standalone")
    assert (done.compared.largest, done.compared.same_choice) == (0.0, 1.0)
    assert "wrote the same tokens with its cache" in str(done.compared)
    (code,) = code_files(done.output)
    assert {"config.json", "model.safetensors", code} <= set(done.made)
    for name in ("tokenizer.json", "chat_template.jinja", "1_Pooling/config.json"):
        assert (done.output / name).read_bytes() == (edited_dir / name).read_bytes()
    settings = json.loads((done.output / "generation_config.json").read_text())
    assert settings["eos_token_id"] == [2, 5, 7]
    assert (done.output / "SOURCE_README.md").read_bytes() == (
        edited_dir / "README.md"
    ).read_bytes()
    page = (done.output / "README.md").read_text()
    assert 'AutoModelForCausalLM.from_pretrained(".", trust_remote_code=True)' in page
    assert code in page and "largest difference 0.0e+00" in page
    stored = (edited_dir / "model.safetensors").stat().st_size
    assert (done.output / "model.safetensors").stat().st_size == stored
    assert abs(done.checkpoint_bytes - stored) < 10_000  # the header of the file


def test_a_wrong_cache_slot_is_noticed_and_nothing_is_left(
    edited_model: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from modwright.checkpoint.export import to_standalone

    def shifted(model: Any) -> Any:
        layout = layout_of(model)
        return replace(layout, slots={path: slot + 1 for path, slot in layout.slots.items()})

    monkeypatch.setattr(to_standalone, "layout_of", shifted)
    with pytest.raises(VerificationError, match=r"writes other tokens|does not open"):
        modwright.export(edited_model("tiny-llama"), tmp_path / "out", "standalone")
    assert list(tmp_path.iterdir()) == []


def test_the_layout_spells_out_paths_parts_and_slots(edited_model: Callable[[str], Any]) -> None:
    model = edited_model("tiny-llama")
    layout = layout_of(model)
    placed = {path: name for path, name, _ in layout.parts}
    assert placed["model.layers.0.self_attn"] == "absent_attention"
    assert placed["model.layers.0.mlp.down_proj"] == "factors"
    assert placed["model.layers.1.self_attn"] == "attention"
    assert placed["model.layers.2.mlp"] == "absent"
    assert layout.slots == {"model.layers.1.self_attn": 0, "model.layers.2.self_attn": 1}
    shape = next(kwargs for path, _, kwargs in layout.parts if path == "model.layers.1.self_attn")
    assert (shape["qk_head_dim"], shape["v_head_dim"]) == (10, 11)


def test_paths_have_the_prefix_of_the_backbone_also_without_a_head(
    edited_model: Callable[[str], Any],
) -> None:
    layout = layout_of(edited_model("tiny-bert"))
    assert all(path.startswith("bert.encoder.layer.") for path, _, _ in layout.parts)


def test_fault_A17_there_is_one_attention_map_a_layer(
    folder: Path, edited_model: Callable[[str], Any], modules_cache: Path
) -> None:
    model = edited_model("tiny-llama")
    expected = attention_maps(copy.deepcopy(model))
    assert [weights is None for weights in expected][:2] == [True, False]
    for auto in ("AutoModelForCausalLM", "AutoModel"):
        opened = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True).eval()
        found = attention_maps(opened)
        assert len(found) == len(expected)
        for one, other in zip(found, expected):
            assert (one is None) == (other is None)
            assert one is None or torch.equal(one, other)


def attention_maps(model: Any) -> Any:
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return model(**batch_of(model), output_attentions=True).attentions


# The file


def test_the_file_has_the_parts_as_their_modules_have_them_and_no_others(
    tiny: Any, edited_model: Callable[[str], Any]
) -> None:
    model = edited_model("tiny-llama")
    code = standalone_code(model, layout_of(model))
    assert inspect.getsource(GroupedAttention).partition("\n")[2] in code
    assert "@component" not in code and "register" not in code.partition("PARTS = ")[2]
    anatomy = Anatomy.of(short(tiny, "tiny-llama"))
    from modwright.edits import remove

    small = with_change(anatomy.model, remove(anatomy.blocks[0].attention))
    short_code = standalone_code(small, layout_of(small))
    assert "GroupedAttention" not in short_code and "class SkippedAttention" in short_code
    assert "modwright" not in {
        (node.module or "").partition(".")[0]
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.ImportFrom)
    }


def test_equal_parts_give_one_file_whatever_the_numbers(
    tiny: Any, edited_model: Callable[[str], Any]
) -> None:
    """So two checkpoints that share a class cannot disagree on what it does."""
    anatomy = Anatomy.of(short(tiny, "tiny-llama"))
    files = set()
    for block in anatomy.blocks[:2]:
        model = with_change(anatomy.model, remove(block.attention))
        files.add(standalone_code(model, layout_of(model)))
    assert len(files) == 1


def test_a_part_of_the_users_own_goes_into_the_file(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, modules_cache: Path
) -> None:
    from modwright.edits import Change, Replace

    source = (
        "from torch import nn\n"
        "from modwright.edits import register_part\n\n"
        "class Doubled(nn.Module):\n"
        "    def forward(self, x, *args, **kwargs):\n"
        "        return _twice(x)\n\n"
        "def _twice(x):\n    return 2 * x\n\n"
        "@register_part('doubled')\n"
        "def make(config):\n    return Doubled()\n"
    )
    (tmp_path / "users_parts.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with PARTS.restored():
        import users_parts  # type: ignore[import-not-found]  # noqa: F401

        model = with_change(
            short(tiny, "tiny-llama"), Change((Replace("blocks.1.mlp_norm", "doubled", {}),))
        )
        folder = write(model, tmp_path / "out")
        again = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
        assert torch.equal(outputs(again.eval(), batch_of(model)), outputs(model))


def test_a_component_keeps_float32_and_sets_what_no_file_holds(
    tiny: Any, tmp_path: Path, modules_cache: Path
) -> None:
    with registries_restored():
        kept_toy.register()
        toy = kept_toy.Decaying(48)
        values = {f"blocks.1.mlp.{name}": t.clone() for name, t in toy.state_dict().items()}
        values["blocks.1.mlp.scratch"] = torch.full((2,), 3.0)
        change = Change((Replace("blocks.1.mlp", "decaying", {"width": 48}),), values)
        source = copy.deepcopy(short(tiny, "tiny-llama"))
        folder = write(with_change(source, change).to(torch.bfloat16), tmp_path / "out")
        model: Any = modwright.open(folder).model
    kept = {f"model.layers.1.mlp.{name}" for name in ("A_log", "inner.bias", "scale")}
    for dtype in ("auto", torch.bfloat16, torch.float16):
        opened = transformers.AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=True, dtype=dtype
        )
        state, stored = opened.state_dict(), model.state_dict()
        assert {name for name, t in state.items() if t.dtype is torch.float32} == kept
        assert all(state[name].equal(stored[name]) for name in kept)
        assert opened.model.layers[1].mlp.scratch.eq(3).all()
        if dtype != torch.float16:
            assert torch.equal(outputs(opened.eval(), batch_of(model)), outputs(model))
    again = opened.float().bfloat16().state_dict()
    assert {name for name, t in again.items() if t.dtype is torch.float32} == kept


def test_a_model_that_is_not_what_its_edits_say_is_refused(tiny: Any) -> None:
    stock = short(tiny, "tiny-llama")
    model = with_change(stock, remove(Anatomy.of(stock).blocks[0].attention))
    layout_of(model)
    model.model.layers[1].mlp.up_proj = torch.nn.Linear(2, 2)
    with pytest.raises(ModwrightError, match=r"not what its edits say: .*mlp\.up_proj.* stands"):
        layout_of(model)


# What else opens it


@pytest.fixture
def folder(edited_model: Callable[[str], Any], tmp_path: Path) -> Path:
    return write(edited_model("tiny-llama"), tmp_path / "standalone")


def test_without_trust_it_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)


def test_the_bare_backbone_opens_from_the_same_files(
    folder: Path, edited_model: Callable[[str], Any], modules_cache: Path
) -> None:
    model = edited_model("tiny-llama")
    bare = transformers.AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    assert type(bare).__name__ == "StandaloneLlamaModel"
    assert torch.equal(outputs(bare, batch_of(model)), outputs(model.model, batch_of(model)))


def test_with_modwright_imported_its_code_is_still_what_opens_it_and_travels(
    folder: Path, tmp_path: Path, modules_cache: Path
) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules.")
    model.save_pretrained(tmp_path / "again")
    assert code_files(tmp_path / "again") == code_files(folder)


def test_modwright_opens_it_as_the_edited_model_and_runs_none_of_its_code(
    folder: Path, edited_model: Callable[[str], Any], tmp_path: Path
) -> None:
    model = edited_model("tiny-llama")
    (code,) = code_files(folder)
    (folder / code).write_text("raise RuntimeError('this must not run')")
    opened = modwright.open(folder)
    assert type(opened.model) is type(model)
    assert edits_of(opened.model.config) == edits_of(model.config)
    assert torch.equal(outputs(opened.model), outputs(model))
    assert code not in opened.source.files
    saved = opened.save(tmp_path / "edited-again")
    assert code_files(saved) == []
    assert "auto_map" not in json.loads((saved / "config.json").read_text())
    assert torch.equal(outputs(modwright.open(saved).model), outputs(model))


def test_a_plain_model_needs_no_file(tiny: Any, tmp_path: Path) -> None:
    folder = write(short(tiny, "tiny-gpt2"), tmp_path / "out")
    assert code_files(folder) == []
    assert json.loads((folder / "config.json").read_text())["model_type"] == "gpt2"


@pytest.mark.parametrize("auto", ["AutoModelForCausalLM", "AutoModel"])
def test_a_component_travels_with_its_state_and_its_parameters_in_float32(
    tiny: Any, tmp_path: Path, modules_cache: Path, auto: str
) -> None:
    """Its class comes from a module that is no package of modwright's."""
    source = tiny("tiny-llama", auto=auto, dtype=torch.bfloat16)
    model = edit(source, toys(Anatomy.of(source), (0, 2))).model
    folder = write(model, tmp_path / "out")
    opened = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True).eval()
    assert type(opened).__module__.startswith("transformers_modules.")
    found = {name: p.dtype for name, p in opened.named_parameters()}
    assert found == {name: p.dtype for name, p in model.named_parameters()}
    assert sorted(n[-5:] for n, d in found.items() if d == torch.float32) == ["decay", "decay"]
    batch = batch_of(model)
    assert torch.equal(outputs(opened, batch), outputs(model, batch))
    name, ids = cache_keyword(model), batch["input_ids"][:1]
    with torch.no_grad():
        held = [m(ids[:, :5], use_cache=True)[name] for m in (opened, model)]
        second, wanted = (m(ids[:, 5:], **{name: c})[0] for m, c in zip((opened, model), held))
    assert torch.equal(second, wanted)


MIXERS: dict[str, dict[str, Any]] = {
    "mamba1": {"d_model": 48, "d_state": 4},
    "mamba2": {"d_model": 48, "d_state": 8, "head_dim": 16},
}


@pytest.mark.parametrize("name", MIXERS)
def test_mixers_of_the_package_travel_as_source(
    tiny: Any, tmp_path: Path, modules_cache: Path, name: str
) -> None:
    source, address = tiny("tiny-llama"), "blocks.1.attention"
    made = COMPONENTS[name].make(**MIXERS[name]).state_dict()
    values = {f"{address}.{key}": value for key, value in made.items()}
    model = edit(source, Change((Replace(address, name, MIXERS[name]),), values), check=False).model
    folder = write(model, tmp_path / "out")
    opened = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert torch.equal(outputs(opened, batch_of(model)), outputs(model))
