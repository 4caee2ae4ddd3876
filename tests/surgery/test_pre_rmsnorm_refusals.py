"""What stands in the way of a conversion is named, with its place, before anything is done."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from norm_cases import FORMS, PRE_LAYER_NORM, converted
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from helpers import edit, snapshot, unchanged
from modwright.anatomy import Anatomy, Norm
from modwright.core.errors import InvalidInputError, ModwrightError, UnsupportedArchitecture
from modwright.edits import factorize
from modwright.surgery import make_method, plan, unsupported_reason
from modwright.surgery.stream_blockers import blockers

GPT2 = "tiny-gpt2"


def refusal(model: Any, **options: Any) -> str:
    """What the plan says; the estimate says the same, and the model stays as it is."""
    before = snapshot(model)
    method = make_method("pre_rmsnorm", options)
    with pytest.raises(ModwrightError) as caught:
        plan(model, method)
    said = str(caught.value)
    assert "\n" not in said
    if not next(model.parameters()).is_meta:  # one without weights can be counted
        assert unsupported_reason(method, Anatomy.of(model)) == said
        assert unchanged(model, before)
    return said


# Models of another kind


def test_only_pre_layer_norm_models_are_converted(tiny: Any, preset: str) -> None:
    for options in FORMS.values():
        reason = unsupported_reason(make_method("pre_rmsnorm", options), Anatomy.of(tiny(preset)))
        assert (reason is None) == (preset in PRE_LAYER_NORM), reason


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-opt-post"])
def test_post_norm(tiny: Any, name: str) -> None:
    said = refusal(tiny(name))
    assert said.startswith("pre_rmsnorm: blocks.0 is post-norm")
    assert "LayerNorm" in said and "only pre-norm and parallel blocks" in said
    assert "more such places" in said


def test_rms_norm_with_a_mean(tiny: Any) -> None:
    for form in ("rms", "crms"):
        said = refusal(tiny("tiny-llama"), form=form)
        assert "the norms are RMSNorm already" in said and "embed.weight" in said
        assert "the mean of the stream counts" in said


def test_a_model_that_is_converted_already(tiny: Any) -> None:
    model = tiny(GPT2)
    for options in (FORMS["rms"], FORMS["training"], FORMS["folded"]):
        once = converted(model, **options).model
        assert "already; nothing would change" in refusal(once, **options)
    small = converted(model, form="crms").model
    for options in FORMS.values():
        assert "the model is Pre-CRMSNorm already" in refusal(small, **options)


def test_a_norm_before_the_blocks_writes_to_the_stream(tiny: Any) -> None:
    anatomy = Anatomy.of(tiny(GPT2))
    anatomy.outer = {"embed_norm": Norm(nn.LayerNorm(48), "embed_norm"), **anatomy.outer}
    (said,) = blockers(anatomy)
    assert said.startswith("embed_norm (LayerNorm) writes to the stream")


# Parts that do not fit


@pytest.mark.parametrize(
    ("norm", "said"),
    [
        (nn.GroupNorm(1, 48), "blocks.1.attention_norm is a GroupNorm; only LayerNorm can become"),
        (nn.BatchNorm1d(48), "blocks.1.attention_norm is a BatchNorm1d"),
        (nn.LayerNorm((12, 48)), r"blocks.1.attention_norm normalizes over the axes \(12, 48\)"),
        (nn.RMSNorm(48), "blocks.1.attention_norm is a RMSNorm beside norms of another kind"),
        (nn.Identity(), "blocks.1.attention.q reads the stream without a norm"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_norms_that_are_no_layer_norm_of_the_last_axis(
    tiny: Any, norm: nn.Module, said: str
) -> None:
    model = tiny.copy(GPT2)
    model.transformer.h[1].ln_1 = norm
    for form in ("rms", "crms"):
        with pytest.raises(InvalidInputError, match=said):
            plan(model, make_method("pre_rmsnorm", {"form": form}))


def test_outputs_that_are_the_stream_itself(tiny: Any) -> None:
    said = refusal(tiny("tiny-opt", _remove_final_layer_norm=True))
    assert "head reads the stream without a norm" in said
    said = refusal(tiny("tiny-opt", "AutoModel", _remove_final_layer_norm=True))
    assert "no norm stands behind the blocks" in said


def test_a_tensor_that_two_writers_share(tiny: Any) -> None:
    model = tiny.copy(GPT2)
    model.transformer.h[2].mlp.c_proj.weight = model.transformer.h[0].mlp.c_proj.weight
    said = refusal(model)
    assert "transformer.h.0.mlp.c_proj.weight and transformer.h.2.mlp.c_proj.weight are one" in said
    model = tiny.copy(GPT2, tie_word_embeddings=False)
    model.transformer.wpe.weight = nn.Parameter(model.transformer.wte.weight.detach()[:128])
    assert "transformer.wte.weight and transformer.wpe.weight are one tensor" in refusal(model)


def test_weights_that_are_not_there_or_not_numbers_to_recentre(tiny: Any) -> None:
    with torch.device("meta"):
        empty = GPT2LMHeadModel(tiny.config(GPT2))
    assert "transformer.wte.weight is on the meta device" in refusal(empty)
    model = tiny.copy(GPT2)
    small = model.transformer.h[3].mlp.c_fc.weight.detach().to(torch.float8_e4m3fn)
    model.transformer.h[3].mlp.c_fc.weight = nn.Parameter(small, requires_grad=False)
    said = refusal(model)
    assert "transformer.h.3.mlp.c_fc.weight is torch.float8_e4m3fn" in said and "float32" in said
    model = tiny.copy(GPT2)
    model.config.quantization_config = {"quant_method": "bitsandbytes"}
    with pytest.raises(InvalidInputError, match="quantised"):
        Anatomy.of(model)


def test_a_stream_of_one_channel_has_none_to_spare() -> None:
    config = GPT2Config(vocab_size=9, n_embd=1, n_head=1, n_layer=1, n_positions=16)
    model = GPT2LMHeadModel(config).eval()
    assert "a stream 1 wide has no coordinate to spare" in refusal(model, form="crms")


def test_gpt2_without_its_head_cannot_give_a_coordinate_back(tiny: Any) -> None:
    for auto in ("AutoModel", tiny.classifier(GPT2)):
        said = refusal(tiny(GPT2, auto), form="crms")
        assert "final_norm" in said and "use form 'rms'" in said
        assert unsupported_reason(make_method("pre_rmsnorm"), Anatomy.of(tiny(GPT2, auto))) is None


def test_factor_pairs_have_no_training_form(tiny: Any) -> None:
    model = tiny(GPT2)
    down = Anatomy.of(model).blocks[2].mlp.down
    u, s, vh = torch.linalg.svd(down.weight, full_matrices=False)
    thin = edit(model, factorize(down, u[:, :9] * s[:9], vh[:9])).model
    said = refusal(thin, training=True)
    assert "blocks.2.mlp.down is a factor pair" in said and "factorize after" in said
    assert unsupported_reason(make_method("pre_rmsnorm"), Anatomy.of(thin)) is None


def test_a_plain_encoder_of_torch_has_no_family() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, norm_first=False)
    with pytest.raises(UnsupportedArchitecture, match="TransformerEncoderLayer has no config"):
        Anatomy.of(layer)


# Options


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"form": "rmsnorm"}, "form"),
        ({"form": "crms", "training": True}, "training=True keeps all parameters"),
        ({"training": True, "fold_affine": True}, "fold_affine=True changes them"),
        ({"drop_index": 3}, "drop_index is of form 'crms'"),
        ({"index": 3}, "drop_index"),
        ({"form": "crms", "drop_index": 1.5}, "drop_index"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        make_method("pre_rmsnorm", options)


@pytest.mark.parametrize("index", [48, -49])
def test_a_coordinate_that_is_not_there(tiny: Any, index: int) -> None:
    said = refusal(tiny(GPT2), form="crms", drop_index=index)
    assert f"drop_index {index} must lie between -48 and 47" in said


def test_every_place_is_listed(tiny: Any) -> None:
    model = tiny.copy(GPT2)
    for index in (1, 3):
        model.transformer.h[index].ln_2 = nn.GroupNorm(1, 48)
    found = blockers(Anatomy.of(model))
    assert [place.split()[0] for place in found] == ["blocks.1.mlp_norm", "blocks.3.mlp_norm"]
    assert refusal(model).endswith("(and 1 more such places)")
