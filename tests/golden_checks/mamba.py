"""Mamba and Mamba-2: a small language model, its loss and gradients, and its tokens one by one.

The models are those of transformers with the mixers of modwright in them.
"""

from __future__ import annotations

import torch

from golden_checks import GoldenCase
from golden_checks.images import outputs_of
from mamba_hosts import MODELS, with_our_mixers

LOGITS, RECURRENT, GRADIENTS = 2e-5, 1e-5, 1e-4


def check(case: GoldenCase) -> None:
    fields = dict(case.config.items())
    config, kind = MODELS[fields.pop("model_type")]
    model = with_our_mixers(kind(config(**fields))).eval()
    weights = {name.removeprefix("weight."): case[name] for name in case.names("weight.")}
    model.load_state_dict(weights)
    ids = case["input.input_ids"]
    first = model.backbone.layers[0]

    with outputs_of({"input": first.norm, "output": first.mixer}) as seen:
        found = model(ids, labels=ids, use_cache=False)
    for end, value in seen.items():
        case.close(f"inter.layer0_mixer_{end}", value, atol=LOGITS)
    case.close("output.logits", found.logits.detach(), atol=LOGITS)
    case.close("output.loss", found.loss.detach(), atol=LOGITS)
    found.loss.backward()
    named = dict(model.named_parameters())
    for name in case.names("grad."):
        grad = named[name.removeprefix("grad.")].grad
        assert grad is not None
        case.close(name, grad, atol=GRADIENTS * float(case[name].abs().max()))

    prefill = ids.shape[1] - case["output.recurrent_logits"].shape[1] + 1
    with torch.no_grad():
        steps = [model(ids[:, :prefill], use_cache=True)]
        cache = steps[0].cache
        for position in range(prefill, ids.shape[1]):
            steps.append(model(ids[:, position : position + 1], cache=cache, use_cache=True))
    logits = torch.cat([step.logits[:, -1:] for step in steps], 1)
    case.close("output.recurrent_logits", logits, atol=LOGITS)
    parallel = found.logits.detach()[:, prefill - 1 :]
    assert float((logits - parallel).abs().max()) <= RECURRENT
