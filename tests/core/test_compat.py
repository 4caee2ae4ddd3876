"""Private names of other libraries: each is there, and means what the function says."""

from __future__ import annotations

import copy
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import transformers
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, LlamaConfig, OPTConfig

from modwright.core.compat import tools
from modwright.core.compat import torch as of_torch
from modwright.core.compat import transformers as of_transformers

# torch


def test_tensor_tables_are_the_module_s_own() -> None:
    """``_parameters``, ``_buffers``"""
    norm = nn.BatchNorm1d(3, affine=False)
    parameters, buffers = of_torch.tensor_tables(norm)
    assert parameters == {"weight": None, "bias": None}
    buffers["running_mean"] = torch.full((3,), 2.0)
    assert torch.equal(norm.running_mean, torch.full((3,), 2.0))


def test_child_modules_list_a_module_twice_that_stands_twice() -> None:
    """``_modules``"""
    step = nn.Linear(2, 2)
    twice = nn.Sequential(step, step)
    twice.register_module("nothing", None)
    assert list(of_torch.child_modules(twice).items()) == [("0", step), ("1", step)]


def test_hooks_are_seen() -> None:
    """``_forward_hooks``, ``_forward_pre_hooks``, ``_backward_hooks``, ``_backward_pre_hooks``"""
    step = nn.Linear(2, 2)
    assert not of_torch.has_forward_hooks(step)
    handles = [
        step.register_forward_hook(print),
        step.register_forward_pre_hook(print),
        step.register_full_backward_hook(print),
        step.register_full_backward_pre_hook(print),
    ]
    assert of_torch.has_forward_hooks(step)
    assert set(map(len, of_torch.hooks_of(step).values())) == {1}
    for handle in handles:
        handle.remove()
    assert not of_torch.has_forward_hooks(step)
    assert not any(of_torch.hooks_of(step).values())


def test_a_model_is_sharded_once_more_when_that_was_undone(tmp_path: Path) -> None:
    """``_module_state_mapping``, ``_parameters`` and the tables of hooks"""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    handle = model.register_forward_hook(lambda module, inputs, output: -output)
    own, expected = list(model.parameters()), model(torch.ones(1, 2))
    dist.init_process_group("gloo", f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        for _ in range(2):
            undo = of_torch.undoable(model, lambda: fully_shard(model, mesh=mesh))
            assert type(model) is not nn.Sequential
            assert all(hasattr(parameter, "full_tensor") for parameter in model.parameters())
            undo()
            assert type(model) is nn.Sequential and not model.__dict__.keys() - vars(
                nn.Sequential()
            )
            assert all(a is b for a, b in zip(model.parameters(), own, strict=True))
            assert model(torch.ones(1, 2)).equal(expected)
    finally:
        dist.destroy_process_group()
    handle.remove()
    assert model(torch.ones(1, 2)).equal(-expected)


def test_tensors_in_a_tree_are_found_and_changed() -> None:
    tree = {"a": (torch.ones(2), [torch.zeros(3)]), "b": "word", "c": None}
    assert [t.shape[0] for t in of_torch.tensors_of(tree)] == [2, 3]
    doubled = of_torch.on_tensors_of(tree, lambda tensor: tensor + 1)
    assert [t.sum() for t in of_torch.tensors_of(doubled)] == [4, 3]
    assert doubled["b"] == "word" and doubled["c"] is None and isinstance(doubled["a"], tuple)
    assert of_torch.tensors_of(None) == [] and of_torch.on_tensors_of(None, torch.neg) is None


def test_every_dropout_and_batch_norm_is_one() -> None:
    """``_DropoutNd``, ``_BatchNorm``"""
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    assert all(issubclass(kind, of_torch.BATCH_NORMS) for kind in norms)
    kinds = (nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout)
    assert all(issubclass(kind, of_torch.DROPOUTS) for kind in kinds)


# transformers


def test_model_classes_are_those_that_an_auto_class_builds() -> None:
    """``_model_mapping``"""
    classes = of_transformers.model_classes(AutoModelForCausalLM, LlamaConfig)
    assert classes == (transformers.LlamaForCausalLM,)
    assert len(of_transformers.model_classes(AutoModel, transformers.FunnelConfig)) == 2
    assert of_transformers.model_classes(AutoModelForCausalLM, transformers.ViTConfig) == ()


def test_an_auto_class_builds_that_of_the_registered_classes_which_a_config_names() -> None:
    """``_model_mapping.register``"""

    class OwnConfig(LlamaConfig):
        model_type = "own_of_two"

    class One(transformers.LlamaForCausalLM):
        config_class = OwnConfig

    class Two(One):
        pass

    mapping = AutoModelForCausalLM._model_mapping
    try:
        for kinds in ((One,), (One, Two)):
            of_transformers.register_classes(AutoModelForCausalLM, OwnConfig, kinds)
            assert of_transformers.model_classes(AutoModelForCausalLM, OwnConfig) == kinds
        small = {"vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 8}
        small |= {"num_attention_heads": 1, "num_key_value_heads": 1}
        for named, kind in (("Two", Two), ("One", One), ("Three", One)):
            config = OwnConfig(**small, architectures=[named])
            assert type(AutoModelForCausalLM.from_config(config)) is kind
    finally:
        mapping._extra_content.pop(OwnConfig, None)


def test_auto_classes_are_all_of_them() -> None:
    """``_LazyAutoMapping``"""
    found = list(of_transformers.auto_classes())
    assert {AutoModel, AutoModelForCausalLM, transformers.AutoModelForMaskedLM} <= set(found)
    assert all(inspect.isclass(auto) and auto.__name__.startswith("Auto") for auto in found)


def test_registered_configs_can_be_made_on_demand() -> None:
    """``CONFIG_MAPPING._extra_content``"""

    class Table:
        _extra_content: dict[str, Any] = {"there": 1}

    class Extended(dict[str, Any]):
        def __init__(self, known: dict[str, Any], stock: Any) -> None:
            super().__init__(known)
            self.stock = stock

    table = Table()
    of_transformers.extend_registered_configs(table, Extended)
    assert table._extra_content == {"there": 1} and table._extra_content.stock is table
    config = AutoConfig.for_model("modwright_llama")
    assert config.model_type == "modwright_llama"


@pytest.fixture(scope="module")
def llama() -> Any:
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    return of_transformers.build(transformers.LlamaForCausalLM, config)


def test_a_model_class_is_built_with_random_weights(llama: Any) -> None:
    """``_from_config``"""
    assert type(llama) is transformers.LlamaForCausalLM
    assert float(llama.model.embed_tokens.weight.detach().std()) > 0


def test_the_attention_implementation_is_told(llama: Any) -> None:
    """``_attn_implementation``"""
    model = copy.deepcopy(llama)
    for name in ("eager", "sdpa"):
        model.set_attn_implementation(name)
        assert of_transformers.attention_implementation(model.config) == name
    assert of_transformers.attention_implementation(object()) is None


def test_the_attention_of_every_config_is_set_by_itself(llama: Any) -> None:
    """``_attn_implementation_internal``: the public way sets those inside of a config, too."""
    model = copy.deepcopy(llama)
    ((config, name),) = of_transformers.attention_settings(model)
    assert config is model.config and name == model.config._attn_implementation
    of_transformers.set_attention(config, "eager")
    assert of_transformers.attention_implementation(config) == "eager"
    nested = transformers.AutoConfig.for_model("clip")
    holder = torch.nn.Module()
    holder.config = nested
    found = [config for config, _ in of_transformers.attention_settings(holder)]
    assert found[0] is nested and {id(c) for c in found[1:]} == {
        id(nested.text_config),
        id(nested.vision_config),
    }
    of_transformers.set_attention(nested, "eager")
    assert nested.text_config._attn_implementation != "eager"


def test_whether_experts_can_be_set(llama: Any) -> None:
    """``_can_set_experts_implementation``"""
    assert of_transformers.can_set_experts(transformers.MixtralForCausalLM)
    assert not of_transformers.can_set_experts(type(llama))


def test_loaded_tensors_are_known(llama: Any, tmp_path: Path) -> None:
    """``_is_hf_initialized``: set while a checkpoint is loaded, when weights are drawn."""
    seen: list[bool] = []

    class Watched(transformers.LlamaForCausalLM):
        def _init_weights(self, module: nn.Module) -> None:
            seen.extend(map(of_transformers.is_loaded, module.parameters(recurse=False)))
            super()._init_weights(module)

    llama.save_pretrained(tmp_path)
    Watched.from_pretrained(tmp_path)
    assert all(seen)  # what is loaded whole may not be asked about at all
    assert not of_transformers.is_loaded(torch.ones(1))
    marked = nn.Parameter(torch.ones(1))
    marked._is_hf_initialized = True
    assert of_transformers.is_loaded(marked)
    linear = nn.Linear(1, 1)
    linear.weight = marked
    assert not of_transformers.is_wholly_loaded(linear)
    linear.bias._is_hf_initialized = True
    assert of_transformers.is_wholly_loaded(linear)
    assert not of_transformers.is_wholly_loaded(nn.Sequential(linear))


def test_a_marked_module_is_passed_over(llama: Any) -> None:
    """``_is_hf_initialized`` of modules: the class's rule leaves those alone that have it."""
    model = copy.deepcopy(llama)
    head, norm = model.lm_head, model.model.norm
    for module in model.modules():
        module._is_hf_initialized = False
    assert not of_transformers.is_initialized(norm)
    of_transformers.mark_initialized(norm)
    with torch.no_grad():
        for weight in (head.weight, norm.weight):
            weight.fill_(77)
    model.initialize_weights()
    assert of_transformers.is_initialized(norm) and of_transformers.is_initialized(head)
    assert norm.weight.eq(77).all() and not head.weight.eq(77).any()


def test_parents_of_new_parts_start_again() -> None:
    """``_is_hf_initialized`` of modules"""
    tree = nn.Sequential(nn.Sequential(nn.Linear(1, 1)), nn.Sequential(nn.Linear(1, 1)))
    for module in tree.modules():
        module._is_hf_initialized = True
    assert not of_transformers.renew_parents(tree) and tree._is_hf_initialized
    tree[0][0] = nn.Linear(1, 1)
    assert of_transformers.renew_parents(tree)
    assert not tree._is_hf_initialized and not tree[0]._is_hf_initialized
    assert tree[1]._is_hf_initialized and tree[1][0]._is_hf_initialized


def test_blocks_are_named(llama: Any) -> None:
    """``_no_split_modules``"""
    assert of_transformers.blocks_in_one_piece(llama.model) == {"LlamaDecoderLayer"}
    assert of_transformers.blocks_in_one_piece(nn.Linear(1, 1)) == set()


def test_keys_that_are_not_saved(llama: Any) -> None:
    """``_keys_to_ignore_on_save``"""
    assert of_transformers.keys_not_saved(llama) == set()
    assert hasattr(transformers.PreTrainedModel, "_keys_to_ignore_on_save")


def test_keys_without_a_type_are_patterns_of_a_class() -> None:
    """``_keep_in_fp32_modules``, ``.._strict``, ``_keys_to_ignore_on_load_unexpected``"""

    class Kept(transformers.LlamaForCausalLM):
        _keep_in_fp32_modules = ["norm"]
        _keep_in_fp32_modules_strict = {"router"}
        _keys_to_ignore_on_load_unexpected = ["old"]

    assert of_transformers.keys_without_a_type(Kept) == ["norm", "router", "old"]
    assert of_transformers.keys_without_a_type(None) == []
    names = {"_keep_in_fp32_modules", "_keep_in_fp32_modules_strict"}
    assert names <= set(dir(transformers.PreTrainedModel))


def test_names_are_kept_in_float32_while_a_checkpoint_is_loaded(llama: Any, tmp_path: Path) -> None:
    """``_keep_in_fp32_modules_strict`` of an instance"""

    class Keeping(transformers.LlamaForCausalLM):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            of_transformers.keep_float32_on_loading(self, ["model.norm.weight", "lm_hea"])

    class KeepingBackbone(transformers.LlamaModel):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            of_transformers.keep_float32_on_loading(self, ["norm.weight"])

    llama.save_pretrained(tmp_path)
    for kind, wide in ((Keeping, "model.norm.weight"), (KeepingBackbone, "norm.weight")):
        model = kind.from_pretrained(tmp_path, dtype=torch.bfloat16)
        kept = {name for name, p in model.named_parameters() if p.dtype is torch.float32}
        assert kept == {wide}
        patterns = of_transformers.keys_without_a_type(model)
        for stored in ("model.norm.weight", "norm.weight"):
            assert any(re.search(pattern, stored) for pattern in patterns)
        assert not any(re.search(one, "model.layers.0.post_norm.weight") for one in patterns)


def test_adapters_are_seen(llama: Any) -> None:
    """``_hf_peft_config_loaded``"""
    assert not of_transformers.has_adapters(llama)
    assert hasattr(transformers.PreTrainedModel, "_hf_peft_config_loaded")


def test_the_final_norm_of_an_old_opt() -> None:
    """``_remove_final_layer_norm``"""
    assert not of_transformers.drops_final_norm(OPTConfig())
    assert of_transformers.drops_final_norm(OPTConfig(_remove_final_layer_norm=True))


def test_a_config_forgets_that_it_was_quantized() -> None:
    """``_is_quantized``"""
    config = LlamaConfig()
    config.quantization_config, config._is_quantized = {"bits": 4}, True
    of_transformers.forget_quantization(config)
    assert not {"quantization_config", "_is_quantized"} & config.__dict__.keys()


def test_names_in_files_are_those_of_a_saved_model(llama: Any, tmp_path: Path) -> None:
    """``revert_weight_conversion``, ``rename_source_key``, and what leaves out tied tensors."""
    from safetensors import safe_open

    mixtral = of_transformers.build(
        transformers.MixtralForCausalLM,
        transformers.MixtralConfig(
            vocab_size=16,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            num_local_experts=2,
        ),
    )
    for model, renamed in ((llama, False), (mixtral, True)):
        place = tmp_path / type(model).__name__
        model.save_pretrained(place)
        with safe_open(place / "model.safetensors", "pt") as file:
            written = set(file.keys())
        kept, found = of_transformers.names_in_files(model, model.state_dict())
        assert set(found) == written and (kept != written) == renamed
        assert all(tensor.is_meta for tensor in found.values())
        read = of_transformers.names_when_read(model, ["old.LayerNorm.gamma", *written & kept])
        assert {name for name, other in read.items() if name != other} == {"old.LayerNorm.gamma"}
        assert read["old.LayerNorm.gamma"] == "old.LayerNorm.weight"


def test_what_is_overridden_is_there_to_override() -> None:
    """Names that modwright's classes define anew, and transformers calls."""
    for name in ("_init_weights", "_supports_sdpa", "_get_static_cache_init_shape"):
        if name == "_get_static_cache_init_shape" and not hasattr(
            transformers.PreTrainedModel, name
        ):
            continue  # 5.5 asks the config
        assert hasattr(transformers.PreTrainedModel, name), name


# other tools


def test_processes_can_be_started_again() -> None:
    """``PartialState._reset_state``"""
    accelerate = pytest.importorskip("accelerate")
    held = dict(accelerate.PartialState._shared_state)
    try:
        accelerate.PartialState(cpu=True)
        assert accelerate.PartialState._shared_state
        tools.forget_processes()
        assert not accelerate.PartialState._shared_state
    finally:
        accelerate.PartialState._shared_state.update(held)


def test_data_sets_are_told_apart() -> None:
    """``_fingerprint``"""
    datasets = pytest.importorskip("datasets")
    one, two = (datasets.Dataset.from_dict({"a": [value]}) for value in (1, 2))
    assert tools.data_fingerprint(one) and tools.data_fingerprint(one) != tools.data_fingerprint(
        two
    )
    assert tools.data_fingerprint([1, 2]) is None


def test_numbers_of_a_gguf_file_are_read_where_they_stand(tmp_path: Path) -> None:
    """``_get``; and ``_get_field_parts``, which the reader of headers overrides."""
    gguf = pytest.importorskip("gguf")
    import numpy as np

    path = tmp_path / "one.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("answer", 42)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    reader = gguf.GGUFReader(path)
    assert tools.read_number(reader, 0, np.uint32) == gguf.GGUF_MAGIC
    assert list(inspect.signature(gguf.GGUFReader._get_field_parts).parameters) == [
        "self",
        "orig_offs",
        "raw_type",
    ]


@pytest.mark.slow  # the harness takes seconds to import
def test_a_task_file_of_the_harness_is_known(tmp_path: Path) -> None:
    """``tasks._index``; and ``_model_call``, ``_loglikelihood_tokens``, which are overridden."""
    pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM

    task, other = tmp_path / "task.yaml", tmp_path / "other.yaml"
    task.write_text("task: mine\ndataset_path: json\noutput_type: loglikelihood\n")
    other.write_text("nothing: here\n")
    assert tools.is_task_file(str(task)) and not tools.is_task_file(str(other))
    assert not tools.is_task_file("arc_easy")
    assert callable(HFLM._model_call) and callable(HFLM._loglikelihood_tokens)


def test_the_libraries_are_imported_when_they_are_asked_for() -> None:
    code = (
        "import sys; import modwright.core.compat.transformers, modwright.core.compat.tools\n"
        "libraries = {'torch', 'transformers', 'accelerate', 'gguf', 'lm_eval'}\n"
        "print(sorted(libraries & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
