"""Massive activations: statistics, interventions and attention sinks of a tiny Llama; fits."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from golden_checks import GoldenCase
from modwright.analysis.massive_values import (
    detect_massive,
    mean_activations,
    set_activations,
)
from modwright.analysis.trajectory_fit import fit_trajectory, trajectory

# The model is in float64, but its norms, rotary positions and eager softmax round to float32.
TOLERANCE = 1e-6


def check(case: GoldenCase) -> None:
    {"fit": _check_fits, "llama": _check_model}[case.meta["kind"]](case)


def _check_fits(case: GoldenCase) -> None:
    order = case.meta["param_order"]
    assert case.meta["formula"] == "A*exp(-lam*x)*log(x)+K, x=gamma*t+t0"
    steps = case["input.t"].numpy()
    for number in range(len(case.names("input.y."))):
        y = case[f"input.y.{number}"]
        span = float(y.max() - y.min())
        truth = trajectory(steps, **dict(zip(order, case[f"input.true.{number}"].tolist())))
        noise = float((y - torch.from_numpy(truth)).std()) / float(np.ptp(truth))
        assert 0.7 < noise / case.meta["noise"] < 1.4, f"noise of {noise:.4f} of the range"
        found = fit_trajectory(steps, y.numpy())
        one = lambda values: torch.tensor(values, dtype=torch.float64)  # noqa: E731
        popt = one([found.params[name] for name in order])
        spread = one(
            [found.errors[name] for name in order]
        )  # the stored search stopped at 1e-6 of it
        case.close(f"output.popt.{number}", popt, atol=1.5e-6 * spread)
        case.close(f"output.fit.{number}", one(found.fitted), atol=1e-8 * span)
        case.close(f"output.r2.{number}", one(found.r2), atol=1e-12)
        case.close(f"output.aic.{number}", one(found.aic), atol=1e-9)
        # In units of the parameters: the stored Jacobian is one of differences, good to 1e-6.
        name, units = f"output.pcov.{number}", popt[:, None] * popt
        case.tensors[name] = case[name] / units
        case.close(name, one(found.covariance) / units, rtol=3e-6)


def _check_model(case: GoldenCase) -> None:
    model = LlamaForCausalLM(LlamaConfig(**dict(case.config.items()))).double().eval()
    model.load_state_dict(
        {name.removeprefix("weight."): case[name] for name in case.names("weight.")}
    )
    ids = {"input_ids": case["input.ids"]}
    limits = dict(case.meta["thresholds"].items())
    report = detect_massive(model, [ids], **limits, sink_from=1)
    case.close("output.stats", report.stats, rtol=TOLERANCE)
    rows = [(e.sequence, e.layer, e.position, e.dimension) for e in report.entries]
    case.equal("output.massive", torch.tensor(rows))
    case.close("output.sink", torch.tensor(report.sinks, dtype=torch.float64), rtol=TOLERANCE)

    place = dict(case.meta["intervention"].items())
    layer, dimension, position = place["layer"], place["dim"], place["token"]
    mean = mean_activations(model, layer, [position], [ids])[position][dimension]
    values: dict[str, Any] = {"zero": 0.0, "mean": float(mean)}

    def logits() -> Tensor:
        with torch.no_grad():
            found: Tensor = model(**ids).logits
        return found

    case.close("output.logits.full", logits(), rtol=TOLERANCE, atol=TOLERANCE)
    for name, value in values.items():
        case.close(f"output.value.{name}", torch.tensor(value, dtype=torch.float64), rtol=1e-7)
        with set_activations(model, layer, {(position, dimension): value}):
            case.close(f"output.logits.{name}", logits(), rtol=TOLERANCE, atol=TOLERANCE)
