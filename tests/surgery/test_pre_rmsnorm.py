"""Pre-RMSNorm and Pre-CRMSNorm: the same function, in inference and in training."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from norm_cases import (
    FORMS,
    PRE_LAYER_NORM,
    converted,
    far,
    gradients,
    loss_of,
    means,
    stored,
)
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    ViTConfig,
    ViTForMaskedImageModeling,
    ViTModel,
)

from helpers import outputs
from modwright.analysis import stream_mean
from modwright.anatomy import Anatomy
from modwright.cost import count
from modwright.edits.verify import probe_batch
from modwright.nn import CRMSNorm, RestoringCRMSNorm, RMSNorm
from modwright.surgery import make_method, plan

pytestmark = pytest.mark.contract("F1")
both_precisions = pytest.mark.parametrize(
    ("dtype", "allowed"), [(torch.float64, 1e-10), (torch.float32, 1e-4)], ids=["double", "single"]
)
every_form = pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
every_model = pytest.mark.parametrize("pre_norm", PRE_LAYER_NORM)


# The function is kept


@pytest.mark.contract("F1")
@every_model
@every_form
@both_precisions
def test_outputs_stay(
    tiny: Any, pre_norm: str, options: dict[str, Any], dtype: torch.dtype, allowed: float
) -> None:
    model = tiny(pre_norm, dtype=dtype)
    method = make_method("pre_rmsnorm", options)
    result = converted(model, **options).model
    assert far(outputs(result), outputs(model)) < allowed
    before, after = Anatomy.of(model), Anatomy.of(result)
    low, high = method.parameter_bounds(before)
    assert low == high == before.num_parameters - after.num_parameters
    assert after.hidden_size == before.hidden_size - (options["form"] == "crms")
    kinds = {"rms": (RMSNorm,), "crms": (CRMSNorm, RestoringCRMSNorm)}[options["form"]]
    assert all(type(norm.module) in kinds for norm in after.stream.norms)
    assert len(after.stream.norms) == len(before.stream.norms)
    for old, new in zip(before.stream.norms, after.stream.norms):
        assert new.eps == old.eps, "the same epsilon"


@both_precisions
def test_gpt2_of_another_shape(dtype: torch.dtype, allowed: float, tmp_path: Path) -> None:
    """Tied, its vocabulary a prime number; without its tie it reloads bit by bit."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=101, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.1
    )
    config.bos_token_id = config.eos_token_id = 0
    model = GPT2LMHeadModel(config).to(dtype).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=0.5)
    batch = probe_batch(model)
    for options in FORMS.values():
        result = converted(model, **options).model
        assert far(outputs(result, batch), outputs(model, batch)) < allowed
        folds = options["form"] == "crms" or options.get("fold_affine", False)
        assert Anatomy.of(result).is_tied != folds
        assert result.config.tie_word_embeddings != folds
        place = tmp_path / make_method("pre_rmsnorm", options).title().replace("/", "")
        place = place / str(options.get("drop_index", ""))
        result.save_pretrained(place)
        back = AutoModelForCausalLM.from_pretrained(place, dtype=dtype)
        assert torch.equal(outputs(back, batch), outputs(result, batch))


@pytest.mark.contract("C1")
@pytest.mark.parametrize("training", [False, True])
def test_a_tied_table_stays_tied_and_is_stored_once(tiny: Any, training: bool) -> None:
    model = tiny("tiny-gpt2")
    result = converted(model, form="rms", training=training).model
    assert Anatomy.of(result).is_tied
    assert Anatomy.of(result).num_bytes == Anatomy.of(model).num_bytes
    embed = Anatomy.of(result).outer["embed"].module.weight
    assert embed is Anatomy.of(model).outer["embed"].module.weight, "the table is not even copied"


def test_behind_a_bare_norm_a_tied_table_is_recentered_once_and_for_all(tiny: Any) -> None:
    model = tiny.copy("tiny-gpt2", dtype=torch.float64)
    norm = Anatomy.of(model).outer["final_norm"]
    norm.write("weight", torch.full((48,), 0.7, dtype=torch.float64))
    norm.write("bias", torch.zeros(48, dtype=torch.float64))
    result = converted(model).model
    assert Anatomy.of(result).is_tied and means(result) < 1e-15
    assert type(Anatomy.of(result).outer["embed"].module) is torch.nn.Embedding
    assert far(outputs(result), outputs(model)) < 1e-12
    # A common gain can be folded too; it is not one, so the tables part.
    folded = converted(model, fold_affine=True).model
    assert not Anatomy.of(folded).is_tied
    assert far(outputs(folded), outputs(model)) < 1e-12


def test_nothing_to_fold_leaves_the_tie(tiny: Any) -> None:
    model = tiny("tiny-opt", dtype=torch.float64, layer_norm_elementwise_affine=False)
    result = converted(model, fold_affine=True).model
    assert Anatomy.of(result).is_tied
    assert far(outputs(result), outputs(model)) < 1e-12


@pytest.mark.contract("C4")
def test_a_smaller_stream_reaches_every_table_norm_and_map(tiny: Any) -> None:
    model = tiny("tiny-gpt2")
    before, after = stored(model), stored(converted(model, form="crms").model)
    inner = ("q.weight", "k.weight", "v.weight", "o.weight", "q.bias", "k.bias", "v.bias")
    for name, tensor in after.items():
        assert 48 not in tensor.shape or name.endswith(inner), name
    assert after["embed.weight"].shape == (128, 47) == after["head.weight"].shape
    assert after["positions.weight"].shape == (256, 47)
    gone = set(before) - set(after)
    assert all("norm" in name for name in gone) and len(gone) == 18


def test_the_dropped_coordinate_is_chosen(tiny: Any) -> None:
    model = tiny("tiny-vit", dtype=torch.float64)
    tables = []
    for index in (0, 5, 47, -1):
        result = converted(model, form="crms", drop_index=index).model
        assert far(outputs(result), outputs(model)) < 1e-12
        tables.append(stored(result)["positions.position_embeddings"])
    whole = stored(model)["positions.position_embeddings"]
    whole = whole - whole.mean(-1, keepdim=True)
    kept = [i for i in range(48) if i != 5]
    assert far(tables[1], whole[..., kept]) < 1e-15
    assert torch.equal(tables[2], tables[3])


@pytest.mark.parametrize(
    ("name", "auto", "changed"),
    [
        ("tiny-gpt-neox", "", {"use_parallel_residual": False}),
        ("tiny-gpt-neox", "", {"attention_bias": False}),
        ("tiny-gpt-neox", "", {"tie_word_embeddings": True}),
        ("tiny-opt", "", {"enable_bias": False}),
        ("tiny-opt", "", {"layer_norm_elementwise_affine": False}),
        ("tiny-opt", "", {"word_embed_proj_dim": 24}),
        ("tiny-gpt2", "", {"scale_attn_by_inverse_layer_idx": True}),
        ("tiny-gpt2", "", {"tie_word_embeddings": False}),
        ("tiny-vit", "", {"qkv_bias": False}),
        ("tiny-vit", "AutoModelForImageClassification", {}),
        ("tiny-opt", "AutoModelForSequenceClassification", {}),
        ("tiny-gpt-neox", "AutoModel", {}),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else value,
)
def test_variants_of_the_families(tiny: Any, name: str, auto: str, changed: dict[str, Any]) -> None:
    model = tiny(name, auto, dtype=torch.float64, **changed)
    for options in FORMS.values():
        method = make_method("pre_rmsnorm", options)
        result = converted(model, **options).model
        assert far(outputs(result), outputs(model)) < 1e-12
        gone = Anatomy.of(model).num_parameters - Anatomy.of(result).num_parameters
        assert method.parameter_bounds(Anatomy.of(model)) == (gone, gone)


def test_masked_images(tiny: Any) -> None:
    """The token that hides a patch writes to the stream too."""
    config = tiny.config("tiny-vit", initializer_range=0.3, encoder_stride=4)
    torch.manual_seed(0)
    model = ViTForMaskedImageModeling(config).double().eval()
    torch.nn.init.normal_(model.vit.embeddings.mask_token)
    batch = probe_batch(model)
    batch["bool_masked_pos"] = torch.rand(2, 16) < 0.5
    with torch.no_grad():
        before = model(**batch).reconstruction
        for options in FORMS.values():
            result = converted(model, **options).model
            assert far(result(**batch).reconstruction, before) < 1e-12


# Training


def trained(model: Any, steps: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()


@every_model
def test_gradients_are_those_of_layer_norm(tiny: Any, pre_norm: str) -> None:
    model = tiny.copy(pre_norm, dtype=torch.float64)
    twin = copy.deepcopy(converted(model, training=True).model)
    for one in (model, twin):
        loss_of(one).backward()
    mine, truth = gradients(twin), gradients(model)
    assert mine.keys() == truth.keys()
    assert max(float(g.abs().max()) for g in truth.values()) > 1e-3
    for name, gradient in truth.items():
        assert far(mine[name], gradient) < 1e-12, name


@every_model
def test_training_goes_on_as_before(tiny: Any, pre_norm: str) -> None:
    """Twenty steps of AdamW; weights that were recentered once drift away in the same steps."""
    model = tiny.copy(pre_norm, dtype=torch.float64)
    twin = copy.deepcopy(converted(model, training=True).model)
    static = copy.deepcopy(converted(model).model)
    assert means_of_maps(static) < 1e-15
    for one in (model, twin, static):
        trained(one, 20)
    mine, truth = stored(twin), stored(model)
    for name, weight in truth.items():
        assert far(mine[name], weight) < 1e-8, name
    assert far(outputs(twin), outputs(model)) < 1e-8
    assert means_of_maps(static) > 1e-5
    assert far(outputs(static), outputs(model)) > 1e-3


def means_of_maps(model: Any) -> float:
    """As means(), of the maps in blocks alone: a tied table is recentered as it runs."""
    found = []
    for writer in Anatomy.of(model).stream.writers:
        if writer.address.startswith("blocks."):
            found += [float(t.mean(0).abs().max()) for t in writer.parameters().values()]
    return max(found)


@every_model
def test_what_was_trained_is_recentered_for_good_afterwards(tiny: Any, pre_norm: str) -> None:
    model = tiny(pre_norm, dtype=torch.float64, tie_word_embeddings=False)
    running = copy.deepcopy(converted(model, training=True).model)
    trained(running, 2)
    for options in (FORMS["rms"], FORMS["folded"], FORMS["crms"]):
        result = converted(running, **options).model
        assert far(outputs(result), outputs(running)) < 1e-12
        if options["form"] == "rms":
            assert means(result) < 1e-15
            names = {type(m).__name__ for m in result.modules()}
            assert not any(name.startswith("ZeroMean") for name in names)
    once = converted(model).model
    again = converted(once, training=True).model
    assert far(outputs(again), outputs(model)) < 1e-12
    assert any(type(m).__name__.startswith("ZeroMean") for m in again.modules())


# What goes


def test_a_vit_of_base_size_loses_a_channel_of_everything() -> None:
    with torch.device("meta"):
        model = ViTModel(ViTConfig(), add_pooling_layer=False)
    low, high = make_method("pre_rmsnorm", {"form": "crms"}).parameter_bounds(Anatomy.of(model))
    d, patch, tokens, layers = 768, 16 * 16 * 3, 197 + 1, 12
    norms = layers * 4 * d  # transformers' norms have gain and shift, which are folded
    assert low == high == layers * (12 * d + 2) + patch + 1 + tokens + norms
    assert 12 * d + 2 == 9218


def test_every_map_multiplies_one_channel_less(tiny: Any) -> None:
    model = tiny("tiny-gpt-neox")
    rows = [
        {row.address: row.prefill_macs for row in count(m, length=8).rows}
        for m in (model, converted(model, form="crms").model)
    ]
    scores = 8 * 8 * 4 * (12 + 12)
    for address, before in rows[0].items():
        fixed = scores if address.endswith("attention") else 0
        assert (rows[1][address] - fixed) * 48 == (before - fixed) * 47, address


@every_model
def test_the_mean_of_the_stream_is_gone(tiny: Any, pre_norm: str) -> None:
    model = tiny(pre_norm, dtype=torch.float64)
    batch = probe_batch(model)
    assert min(stream_mean(model, batch).shares) > 1e-6
    for options in FORMS.values():
        assert max(stream_mean(converted(model, **options).model, batch).shares) < 1e-12


# What is told, and used


def test_the_plan_tells_what_becomes_of_everything(tiny: Any, tmp_path: Path) -> None:
    decided = plan(tiny("tiny-gpt2"), make_method("pre_rmsnorm", {"form": "crms", "drop_index": 7}))
    told = decided.reasons
    assert told["hidden_size"] == [48, 47] and told["dropped coordinate"] == 7
    assert len(told["writers"]) == 2 + 4 * 2 and len(told["readers"]) == 4 * 4 + 1
    assert told["norms"][-1] == "final_norm" and told["norms"] == told["folded"]
    assert told["untied"] == ["head.weight"] and told["recentered as they run"] == []
    assert any("24,064 bytes more" in note for note in decided.notes)
    assert any("hidden_states" in note and "47 wide" in note for note in decided.notes)
    assert any("inputs_embeds" in note for note in decided.notes)
    decided.save(tmp_path / "plan")

    kept = plan(tiny("tiny-gpt2"), make_method("pre_rmsnorm"))
    assert kept.reasons["recentered as they run"] == ["embed"] and kept.reasons["folded"] == []
    assert not any("bytes more" in note for note in kept.notes)
    training = plan(tiny("tiny-gpt2"), make_method("pre_rmsnorm", {"training": True}))
    assert training.reasons["recentered as they run"] == training.reasons["writers"]
    assert any("resid_pdrop 0.1, embd_pdrop 0.1" in note for note in training.notes)
    assert not training.tensors.keys() - {
        f"{n}.{leaf}" for n in training.reasons["norms"] for leaf in ("weight", "bias")
    }
    labels = plan(tiny("tiny-vit"), make_method("pre_rmsnorm", {"form": "crms"}))
    assert any("final_norm gives back the dropped coordinate" in note for note in labels.notes)


@pytest.mark.contract("F2")
@every_form
def test_half_precision_moves_by_its_rounding(tiny: Any, options: dict[str, Any]) -> None:
    wide = tiny("tiny-gpt-neox", dtype=torch.float32)
    narrow = tiny("tiny-gpt-neox", dtype=torch.bfloat16)
    applied = converted(narrow, **options)
    assert {p.dtype for p in applied.model.parameters()} == {torch.bfloat16}
    own = far(outputs(narrow), outputs(wide))
    assert far(outputs(applied.model), outputs(wide)) < 3 * own
    notes = plan(narrow, make_method("pre_rmsnorm", options)).notes
    assert any("bfloat16" in note for note in notes) != options.get("training", False)


def test_norms_load_into_rms_kernels_as_they_are(tiny: Any) -> None:
    """After folding, a norm is F.rms_norm with nothing but its epsilon."""
    model = tiny("tiny-gpt2", dtype=torch.float64)
    result = converted(model, fold_affine=True).model
    norms = Anatomy.of(result).stream.norms
    x = torch.randn(3, 48, dtype=torch.float64)
    for norm in norms:
        assert not norm.parameters()
        assert torch.equal(norm.module(x), F.rms_norm(x, (48,), eps=norm.eps))
    scales = Anatomy.of(converted(model).model).stream.norms
    for norm in scales:
        weight, bias = norm.module.weight, norm.module.bias
        assert far(norm.module(x), F.rms_norm(x, (48,), weight, norm.eps) + bias) < 1e-15


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_too_the_mean_is_gone(tiny: Any, dtype: torch.dtype) -> None:
    """So the coordinate can be dropped in a second step as in one."""
    model = tiny("tiny-gpt-neox", dtype=dtype)
    result = converted(model).model
    eps = torch.finfo(dtype).eps
    assert means(result) < 4 * eps / 48
    twice = converted(result, form="crms").model
    own = far(outputs(model), outputs(tiny("tiny-gpt-neox")))
    assert far(outputs(twice), outputs(tiny("tiny-gpt-neox"))) < 4 * own
