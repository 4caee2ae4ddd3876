"""Components in place of stock mixers: the same function, the same tensors, the same cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, FalconMambaConfig, FalconMambaForCausalLM

import modwright
from mamba_hosts import random_model
from modwright.anatomy import Anatomy
from modwright.checkpoint import save
from modwright.checkpoint.export import export
from modwright.checkpoint.export.to_stock import stock_model
from modwright.core.errors import InvalidInputError, VerificationError
from modwright.edits import factorize, remove
from modwright.edits.edit import Replace
from modwright.edits.precision import kept_in_float32
from modwright.edits.verify import check_reopens
from modwright.nn.token_mixers.mamba1 import Mamba1
from modwright.nn.token_mixers.mamba2 import Mamba2

OURS: dict[str, Any] = {"mamba": Mamba1, "falcon_mamba": Mamba1, "mamba2": Mamba2}


def wide_model(kind: str, **fields: Any) -> Any:
    """Weights of std 0.1, large steps, decays from 1 to 16."""
    fields = {"hidden_size": 64, **({"num_heads": 16} if kind == "mamba2" else {}), **fields}
    if kind == "falcon_mamba":
        small = {"vocab_size": 31, "state_size": 8, "num_hidden_layers": 2}
        torch.manual_seed(0)
        model: Any = FalconMambaForCausalLM(FalconMambaConfig(**{**small, **fields})).eval()
    else:
        model = random_model(kind, **fields)
    made = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            tensor.normal_(0.0, 0.1, generator=made)
            if name.endswith(("dt_bias", "dt_proj.bias")):
                tensor.normal_(1.0, 1.0, generator=made)
            elif name.endswith("A_log"):
                tensor.uniform_(1.0, 16.0, generator=made).log_()
            elif name.endswith((".D", "norm.weight", "norm_f.weight")):
                tensor.add_(1.0)
    return model


def tokens(rows: int = 3, length: int = 40) -> Tensor:
    return torch.randint(0, 31, (rows, length), generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def apart(one: Any, other: Any) -> tuple[float, float]:
    """Largest KL divergence of a prediction, and the largest difference of a logit, in units of the
    logits' spread."""
    ids = tokens()
    a, b = (model(input_ids=ids).logits.double() for model in (one, other))
    p, q = a.log_softmax(-1), b.log_softmax(-1)
    divergence = (p.exp() * (p - q)).sum(-1).max()
    return float(divergence), float((a - b).abs().max() / a.std())


def mixers(model: Any) -> list[nn.Module]:
    return [block.at("attention").module for block in Anatomy.of(model).blocks]


@pytest.mark.parametrize("kind", OURS)
def test_every_mixer_of_the_reopened_model_is_ours_and_computes_the_same(
    kind: str, tmp_path: Path
) -> None:
    stock = wide_model(kind)
    applied = modwright.apply(stock, "fast_scan")
    assert applied.verification is not None and applied.verification.ok and not applied.plain
    reopened = modwright.open(save(applied.model, tmp_path / "out")).model
    assert all(isinstance(mixer, OURS[kind]) for mixer in mixers(reopened))
    divergence, difference = apart(stock, reopened)
    assert divergence <= 1e-9 and difference <= 1e-5


@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize("left_out", ["D", "bias of the steps", "conv1d.bias"])
def test_what_is_left_out_would_be_seen(kind: str, left_out: str) -> None:
    stock = wide_model(kind)
    edited = modwright.apply(stock, "fast_scan", check=False).model
    steps = "dt_bias" if kind == "mamba2" else "dt_proj.bias"
    name = steps if left_out == "bias of the steps" else left_out
    path, _, leaf = name.rpartition(".")
    holder = mixers(edited)[1].get_submodule(path)
    tensor = getattr(holder, leaf)  # it may be the source's own
    setattr(holder, leaf, nn.Parameter(torch.zeros_like(tensor)))
    divergence, difference = apart(stock, edited)
    assert divergence > 1e-9 and difference > 1e-5


@pytest.mark.slow
def test_graphs_of_any_length_are_traced_of_our_scans_and_not_of_the_stock_ones(
    tmp_path: Path,
) -> None:
    stock = wide_model("mamba", num_hidden_layers=1)
    with pytest.raises(VerificationError, match="`modwright edit fast_scan` puts scans of any le"):
        export(stock, tmp_path / "stock", "onnx")
    assert export(
        modwright.apply(stock, "fast_scan").model, tmp_path / "ours", "onnx"
    ).compared.held


@pytest.mark.slow
@pytest.mark.parametrize("kind", OURS)
def test_the_plain_export_is_the_stock_checkpoint(kind: str, tmp_path: Path) -> None:
    stock = wide_model(kind)
    source, out = tmp_path / "source", tmp_path / "edited"
    save(stock, source)
    save(modwright.apply(modwright.open(source), "fast_scan").model, out)
    done = export(modwright.open(out), tmp_path / "plain", "plain")
    assert done.compared.held
    before, after = (load_file(d / "model.safetensors") for d in (source, tmp_path / "plain"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert type(opened) is type(stock) and not hasattr(opened.config, "edits")
    ids = tokens()
    with torch.no_grad():
        assert torch.equal(opened.eval()(input_ids=ids).logits, stock(input_ids=ids).logits)


@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
def test_narrow_weights_come_back_as_they_were(kind: str, tmp_path: Path) -> None:
    stock = wide_model(kind).to(torch.bfloat16)
    source, out = tmp_path / "source", tmp_path / "edited"
    save(stock, source)
    edited = modwright.apply(modwright.open(source), "fast_scan").model
    kept = mixers(edited)[0]
    assert kept.get_parameter("A_log").dtype == torch.float32
    assert kept.get_parameter("in_proj.weight").dtype == torch.bfloat16
    save(edited, out)
    check_reopens(edited, out)
    save(stock_model(modwright.open(out).model), tmp_path / "plain")
    before, after = (load_file(d / "model.safetensors") for d in (source, tmp_path / "plain"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(before[name].dtype == after[name].dtype for name in before)


@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
def test_what_is_kept_in_float32_is_so_at_once_and_the_source_stays_narrow(kind: str) -> None:
    source = wide_model(kind).bfloat16()
    result = modwright.apply(source, "fast_scan", check=False).model
    stored, narrow = kept_in_float32(result), dict(source.named_parameters())
    assert len(stored) == 3 * len(Anatomy.of(source).blocks)
    for name, tensor in stored.items():
        assert (tensor.dtype, narrow[name].dtype) == (torch.float32, torch.bfloat16), name
        assert torch.equal(tensor, narrow[name].float())


@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
def test_the_stock_class_is_right_about_the_checkpoint(kind: str, tmp_path: Path) -> None:
    """No guard keeps it from opening the file: the tensors are its own."""
    stock = wide_model(kind)
    save(modwright.apply(stock, "fast_scan").model, tmp_path / "out")
    opened = type(stock).from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        assert torch.equal(opened(tokens()).logits, stock(tokens()).logits)


@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3}, {"cache_implementation": "static"}], ids=str
)
def test_generation_writes_the_same_tokens(kind: str, options: dict[str, Any]) -> None:
    """With transformers' own cache, and with rows that are left-padded."""
    stock = wide_model(kind)
    edited = modwright.apply(stock, "fast_scan", check=False).model
    ids = tokens(3, 7)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    common = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    given = {"input_ids": ids, "attention_mask": mask, **common, **options}
    assert torch.equal(edited.generate(**given), stock.generate(**given))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
@pytest.mark.parametrize("first", ["stock", "edited"])
def test_a_cache_goes_on_in_the_other_model(kind: str, first: str) -> None:
    stock = wide_model(kind)
    pair = [stock, modwright.apply(stock, "fast_scan", check=False).model]
    one, other = pair if first == "stock" else pair[::-1]
    ids = tokens(2, 9)
    cache = one(input_ids=ids[:, :8], use_cache=True).cache
    last = other(input_ids=ids[:, 8:], cache=cache).logits[:, -1]
    whole = stock(input_ids=ids).logits[:, -1]
    assert float((last - whole).abs().max() / whole.std()) < 1e-5


def test_what_is_not_there_to_replace_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="no component has the tensors of this llama's"):
        modwright.apply(modwright.open("preset:tiny-llama"), "fast_scan")
    edited = modwright.apply(wide_model("mamba"), "fast_scan", check=False)
    with pytest.raises(InvalidInputError, match="no stock token mixer is left"):
        modwright.apply(edited, "fast_scan")
    odd = random_model("mamba", hidden_act="gelu")
    with pytest.raises(InvalidInputError, match="no component has the tensors of this mamba's"):
        modwright.apply(odd, "fast_scan")


def test_other_arguments_than_the_config_says_are_guarded_from_the_stock_class(
    tmp_path: Path,
) -> None:
    stock = wide_model("mamba")
    told = dict(modwright.apply(stock, "fast_scan", check=False).model.config.edits[0]["kwargs"])
    odd = modwright.edits.Change(
        (Replace("blocks.0.attention", "mamba1", told | {"clamp_decay": True}),)
    )
    edited = modwright.apply(stock, odd).model
    assert edited.config.layer_overrides() == {0: {"state_size": 0, "skip": ["attention"]}}
    save(edited, tmp_path / "out")
    with pytest.raises(Exception, match="state_size"):
        type(stock).from_pretrained(tmp_path / "out")
    with pytest.raises(InvalidInputError, match="layers differ"):
        export(edited, tmp_path / "plain", "plain")


def test_it_composes_with_blocks_that_go_and_layers_in_factors() -> None:
    stock = wide_model("mamba", num_hidden_layers=3)
    fewer = modwright.apply(stock, remove("blocks.0"))
    projection = Anatomy.of(fewer).part("blocks.0.attention.in_proj")
    u, s, v = torch.linalg.svd(projection.weight, full_matrices=False)
    thin = modwright.apply(fewer, factorize(projection, u[:, :6] * s[:6], v[:6]))
    edited = modwright.apply(thin, "fast_scan")
    assert apart(thin.model, edited.model)[1] <= 1e-5
    assert Anatomy.of(edited).part("blocks.0.attention.in_proj").is_factored
    swapped = modwright.apply(modwright.apply(stock, "fast_scan"), remove("blocks.0"))
    assert apart(fewer.model, swapped.model)[1] <= 1e-5
    assert all(
        torch.equal(tensor, fewer.model.state_dict()[name])
        for name, tensor in stock_model(swapped.model).state_dict().items()
    )
