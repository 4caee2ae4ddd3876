"""A model of images gets a fresh classifier, for classes that it was not trained on."""

from __future__ import annotations

import copy
from typing import Any

import torch

from modwright.checkpoint.classes import auto_classes
from modwright.checkpoint.memory import require_memory, weights_bytes
from modwright.core.compat.transformers import build
from modwright.core.errors import InvalidInputError
from modwright.core.modes import set_eval
from modwright.edits.stock_classes import HEADS, model_class

__all__ = ["with_classes"]

_HEAD = "image-classification"


def with_classes(model: Any, num_classes: int, *, seed: int = 0) -> Any:
    """The model as a classifier of so many classes; one that has as many already as it is.

    Everything but the classifier keeps its values. A backbone without one gets one; what it has
    that the classifier's class has not, such as a pooler, is left out.

    Args:
        model: of images, as it was opened.
        num_classes: of the fresh classifier.
        seed: of its first values.

    Raises:
        InvalidInputError: the model reads no images, or its classifier is not apart from the rest.

    Example:
        >>> import modwright
        >>> backbone = modwright.open("preset:tiny-vit").model
        >>> model = with_classes(backbone, 3)
        >>> type(model).__name__, model.config.num_labels, tuple(model.classifier.weight.shape)
        ('ViTForImageClassification', 3, (3, 48))
    """
    if not isinstance(num_classes, int) or isinstance(num_classes, bool) or num_classes < 1:
        raise InvalidInputError(f"num_classes is a whole number above 0, not {num_classes!r}")
    name = type(model).__name__
    if getattr(model, "main_input_name", "") != "pixel_values":
        raise InvalidInputError(f"{name} reads no images and cannot be given classes of them")
    has_classifier = HEADS[_HEAD] in auto_classes(model)
    if has_classifier and model.config.num_labels == num_classes:
        return model
    if hasattr(model, "reset_classifier"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model.reset_classifier(num_classes)
        return model
    require_memory(weights_bytes(model), f"a fresh classifier of {name}")
    config = copy.deepcopy(model.config)
    config.num_labels = num_classes
    kind = type(model) if has_classifier else model_class(config, _HEAD)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = build(kind, config).to(model.device, model.dtype)
    _take_over(made, model, "" if has_classifier else f"{made.base_model_prefix}.")
    return set_eval(made)


def _take_over(made: Any, model: Any, prefix: str) -> None:
    """Gives a model another's tensors, whose names there begin with a prefix, but the classifier's.

    Raises:
        InvalidInputError: some other tensor is missing or has another shape.
    """
    known = {f"{prefix}{name}": tensor for name, tensor in model.state_dict().items()}
    wanted = made.state_dict()
    taken = {n: t for n, t in wanted.items() if n in known and known[n].shape == t.shape}
    inner = f"{made.base_model_prefix}."
    for name in wanted.keys() - taken.keys():
        counts_classes = name in known and known[name].shape[:1] == (model.config.num_labels,)
        if name.startswith(inner) and not counts_classes:
            raise InvalidInputError(
                f"{type(made).__name__} cannot be given other classes: {name} would be fresh, too"
            )
    made.load_state_dict({name: known[name] for name in taken}, strict=False)
