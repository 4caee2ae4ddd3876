"""bfloat16 stays close to float32, and recomputed activations give the same gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from labeled_images import digits, first
from models.tiny import TINY, tiny
from modwright.models import create_model
from modwright.training import Settings, fit


def learner() -> Any:
    torch.manual_seed(0)
    fields = {"depths": [1, 1], "hidden_sizes": [8, 16], "stem": [3, 4, 1], "drop_path_rate": 0.0}
    return create_model("poolformer_s12", num_classes=10, **fields)


def test_bfloat16_stays_close_to_float32() -> None:
    train = first(digits(), 128)
    settings = {"epochs": 4, "batch_size": 32, "learning_rate": 3e-3}
    losses = {}
    for bf16 in (False, True):
        model = learner()
        more = {"bf16": bf16, "logging_steps": 1}
        losses[bf16] = fit(model, train, None, Settings(**settings, more=more)).losses
        assert next(model.parameters()).dtype == torch.float32
    assert losses[True] != losses[False]
    for (_, exact), (_, rounded) in zip(losses[False], losses[True], strict=True):
        assert rounded == pytest.approx(exact, rel=0.02)


def test_a_training_with_recomputed_activations_is_the_same() -> None:
    train = first(digits(), 64)
    found = []
    for again in (False, True):
        model = learner()
        settings = Settings(epochs=1, batch_size=16, more={"gradient_checkpointing": again})
        fit(model, train, None, settings)
        found.append(model.state_dict())
    for name, tensor in found[0].items():
        assert torch.allclose(found[1][name], tensor, atol=1e-6), name


@pytest.mark.parametrize("model_type", sorted(set(TINY) - {"craft"}))
def test_recomputed_activations_give_the_same_gradients(model_type: str) -> None:
    torch.manual_seed(0)
    model = tiny(model_type).train()
    for (
        module
    ) in model.modules():  # what draws at random, or changes with every batch, stands still
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
    pixels = torch.randn(2, model.config.num_channels, *model.config.size)
    labels = torch.tensor([0, 1])

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        torch.manual_seed(1)
        F.cross_entropy(model(pixel_values=pixels).logits, labels).backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    plain = gradients()
    model.set_grad_checkpointing()
    again = gradients()
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        assert torch.allclose(again[name], gradient, atol=1e-6, rtol=1e-4), name
