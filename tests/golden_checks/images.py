"""What checks of vision models share: weights of a case in a model, outputs of its modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from golden_checks import GoldenCase
from modwright.models import import_weights

__all__ = ["fill", "outputs_of"]


def fill(model: Any, case: GoldenCase, aliases: Mapping[str, str] | None = None) -> Any:
    """Puts the case's weights, which have the official names, into a model; gives it in eval mode.

    Args:
        aliases: further names that a released file has for some of the tensors.
    """
    start = "weight."
    weights = {name.removeprefix(start): case[name] for name in case.names(start)}
    for alias, first in (aliases or {}).items():
        weights[alias] = weights[first]
    import_weights(model, weights, "official")
    return model.eval()


@contextmanager
def outputs_of(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Any]]:
    """Collects what modules return while the context lasts, by the names that are given."""
    found: dict[str, Any] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            found[name] = output.detach() if isinstance(output, Tensor) else output

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def tokens(found: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H W, C), as the references of token models store maps."""
    return found.flatten(2).transpose(1, 2)


def logits_of(model: Any, case: GoldenCase) -> Tensor:
    """Logits of the case's images, without gradients."""
    with torch.no_grad():
        out: Tensor = model(case["input.x"]).logits
    return out
