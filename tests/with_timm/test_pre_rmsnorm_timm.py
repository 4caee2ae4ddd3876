"""Pre-RMSNorm of timm's ViTs, with gains on the branches (LayerScale) and without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from norm_cases import FORMS, converted, far, means
from small_vits import KINDS

from helpers import batch_of, outputs, snapshot, unchanged
from modwright.analysis import stream_mean
from modwright.anatomy import Anatomy
from modwright.edits.verify import check_reopens
from modwright.surgery import make_method, plan, unsupported_reason

OFFLINE = {name: options for name, options in FORMS.items() if name != "training"}
NORM_FIRST = "vit_base_patch16_clip_224"
GAINS = "deit3_small_patch16_224"


@pytest.fixture(scope="module")
def double(vit: Callable[..., Any]) -> Callable[..., Any]:
    """A tiny model in float64, as transformers calls it."""

    def build(name: str, **arguments: Any) -> Any:
        return Anatomy.of(vit(name, **arguments)).model.double()

    return build


@pytest.mark.parametrize("options", OFFLINE.values(), ids=OFFLINE)
@pytest.mark.parametrize("name", [name for name in KINDS if name != NORM_FIRST])
def test_outputs_stay(double: Callable[..., Any], name: str, options: dict[str, Any]) -> None:
    model = double(name)
    before = snapshot(model)
    result = converted(model, **options).model
    assert unchanged(model, before)
    assert far(outputs(result), outputs(model)) < 1e-12
    gone = Anatomy.of(model).num_parameters - Anatomy.of(result).num_parameters
    assert make_method("pre_rmsnorm", options).parameter_bounds(Anatomy.of(model)) == (gone, gone)
    assert Anatomy.of(result).hidden_size == 48 - (options["form"] == "crms")
    assert max(stream_mean(result, batch_of(model)).shares) < 1e-12


def test_a_gain_goes_into_the_map_that_it_multiplies(double: Callable[..., Any]) -> None:
    model = double(GAINS)
    stream = Anatomy.of(model).stream
    assert len(stream.scales) == 8
    result = converted(model).model
    after = Anatomy.of(result)
    assert not after.stream.scales and not after.blocks[0].scales and means(result) < 1e-15
    block = Anatomy.of(model).blocks[1]
    scale = block.scales["mlp"].scale
    folded = scale[:, None] * block.mlp.down.weight
    written = after.blocks[1].mlp.down
    assert far(written.weight, folded - folded.mean(0)) < 1e-15
    wrong = scale[:, None] * (block.mlp.down.weight - block.mlp.down.weight.mean(0))
    assert far(written.weight, wrong) > 1e-3, "the gain comes first"


@pytest.mark.parametrize("options", OFFLINE.values(), ids=OFFLINE)
@pytest.mark.parametrize("name", [GAINS, "vit_tiny_patch16_224"])
def test_a_new_process_opens_the_result(
    vit: Callable[..., Any], name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    result = converted(vit(name), **options).model
    result.save_pretrained(tmp_path / "saved")
    assert not check_reopens(result, tmp_path / "saved").plain


@pytest.mark.parametrize(
    ("name", "arguments", "options", "said"),
    [
        (NORM_FIRST, {}, {}, "embed_norm .* writes to the stream"),
        ("vit_tiny_patch16_224", {}, {"training": True}, "parameters of its own"),
        (
            GAINS,
            {},
            {"training": True},
            "blocks.0.attention.o is multiplied by blocks.0.attention_gain",
        ),
        ("vit_base_patch16_224.mae", {"num_classes": 0}, {}, "before pooled_norm, with its mean"),
    ],
)
def test_what_cannot_be_converted_is_refused_first(
    double: Callable[..., Any], name: str, arguments: Any, options: Any, said: str
) -> None:
    model, method = double(name, **arguments), make_method("pre_rmsnorm", options)
    with pytest.raises(Exception, match=said) as refusal:
        plan(model, method)
    assert unsupported_reason(method, Anatomy.of(model)) == str(refusal.value)


def test_the_order_of_precision_is_that_of_the_weights(vit: Callable[..., Any]) -> None:
    wide, narrow = Anatomy.of(vit(GAINS)).model, Anatomy.of(vit(GAINS)).model.bfloat16()
    batch = batch_of(wide)
    half = {name: tensor.bfloat16() for name, tensor in batch.items()}
    own = far(outputs(narrow, half), outputs(wide, batch))
    for options in OFFLINE.values():
        result = converted(narrow, **options).model
        assert {p.dtype for p in result.parameters()} == {torch.bfloat16}
        assert far(outputs(result, half), outputs(wide, batch)) < 4 * own
