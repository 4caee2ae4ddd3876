"""PolyCom: both activations, at their start values and with others, and all three gradients."""

from __future__ import annotations

from golden_checks import GoldenCase
from modwright.nn.activations.polynomial import PolyNorm, PolyReLU

RELATIVE = {"torch.float32": 1e-6, "torch.float64": 1e-12}


def check(case: GoldenCase) -> None:
    c = case.config
    sizes = {"order": c["order"], "eps": c["eps"]}
    if c["cls"] == "PolyReLU":
        del sizes["eps"]
    module = {"PolyNorm": PolyNorm, "PolyReLU": PolyReLU}[c["cls"]](**sizes)
    x = case["input.x"].clone().requires_grad_()
    assert str(x.dtype) == c["dtype"]
    module.to(x.dtype).load_state_dict(
        {name: case[f"weight.{name}"] for name in ("weight", "bias")}
    )
    y = module(x)
    y.backward(case["input.grad_y"])
    found = {"output.y": y.detach(), "grad.x": x.grad}
    found |= {f"grad.{name}": p.grad for name, p in module.named_parameters()}
    for name, value in found.items():
        assert value is not None and value.dtype == x.dtype
        largest = float(case[name].abs().max())
        case.close(name, value, atol=RELATIVE[c["dtype"]] * largest)
