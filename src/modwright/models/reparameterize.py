"""From the form of a model that is trained to the one that is shipped: the same numbers, faster."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

from modwright.core.errors import InvalidInputError, VerificationError, refusing
from modwright.core.modes import set_eval
from modwright.models.classifier import ImageClassifier
from modwright.nn.reparameterize import reparameterize_

__all__ = ["reparameterize"]

_Model = TypeVar("_Model", bound=ImageClassifier)


def reparameterize(model: _Model, *, verify: bool = True, tolerance: float = 1e-4) -> _Model:
    """A twin without batch norms and parallel branches: all are folded into single layers.

    The twin has ``fused=True`` in its config, so it is saved and opened in its own form. It is not
    meant to be trained on. The model itself stays as it is.

    Args:
        model: in eval mode, of an architecture whose config has a field ``fused``.
        verify: compares the logits of both on a batch of random images.
        tolerance: how far they may be apart, in parts of the largest logit where that is above 1.

    Raises:
        InvalidInputError: another architecture, training mode, a model that is fused already, or
            running statistics that are not finite.
        VerificationError: the logits are too far apart.

    Example:
        >>> from modwright.models import create_model
        >>> model = create_model("fmvit_nano", num_classes=5).eval()
        >>> twin = reparameterize(model)
        >>> twin.config.fused, any("norms" in name for name in twin.state_dict())
        (True, False)
    """
    if not hasattr(model.config, "fused"):
        raise InvalidInputError(f"{type(model).__name__} has no fused form")
    if model.config.fused:
        raise InvalidInputError("the model is fused already")
    norms = (module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    if model.training or any(norm.training for norm in norms):
        raise InvalidInputError(
            "a model in training mode has no fixed statistics to fold: call eval() first"
        )
    dtype = model.dtype
    twin = copy.deepcopy(model).double()  # so that there is one rounding only, at the end
    with refusing():
        reparameterize_(twin)
    set_eval(twin.to(dtype))
    twin.config.fused = True
    if verify:
        shape = (2, model.config.num_channels, *model.config.size)
        images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        images = images.to(model.device, dtype)
        with torch.no_grad():
            expected = model(images).logits
            off = float((twin(images).logits - expected).abs().max())
        allowed = tolerance * max(1.0, float(expected.abs().max()))
        if not off <= allowed:
            raise VerificationError(
                f"the fused model's logits are off by {off:.2e}, more than {allowed:.2e}"
            )
    return twin
