"""Which named model a file of weights belongs to, and what does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from modwright.core.errors import Refused, unknown_name
from modwright.core.modes import set_eval
from modwright.models.importing import import_weights, layouts_of
from modwright.models.registry import create_model, list_models, model_class, variant_config

__all__ = ["Fit", "Recognised", "import_named", "recognise", "variants_of"]

_CLASSIFIER = "head.fc.weight"
_SHOWN = 3


@dataclass(frozen=True)
class Fit:
    """How a file fits a named model; empty lists where it does.

    Attributes:
        variant: name of the model.
        layout: the layout that knows most of the file's names.
        missing: tensors of the model that the file does not have.
        unexpected: names in the file that the model has no place for.
        other_shapes: tensors that have another shape in the file.
        classes: what the classifier in the file tells apart; None without one.
    """

    variant: str
    layout: str
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    other_shapes: tuple[str, ...]
    classes: int | None

    @property
    def faults(self) -> int:
        """How many names do not fit."""
        return len(self.missing) + len(self.unexpected) + len(self.other_shapes)

    def told(self) -> str:
        """What does not fit, in one line; some names of each kind.

        Example:
            >>> Fit("pit", "official", ("a", "b"), (), ("c",), None).told()
            'missing from the file: 2 (a, b); of another shape: 1 (c)'
        """
        kinds = {
            "missing from the file": self.missing,
            "without a place in the model": self.unexpected,
            "of another shape": self.other_shapes,
        }
        return "; ".join(
            f"{what}: {len(names)} ({', '.join(names[:_SHOWN])}{', …' * (len(names) > _SHOWN)})"
            for what, names in kinds.items()
            if names
        )


@dataclass(frozen=True)
class Recognised:
    """A model with the weights of a file.

    Attributes:
        model: in evaluation mode.
        variant: its name.
        layout: the layout that the file has.
        tensors: how many were taken.
        fresh: names of tensors that the file does not give, and that are as they were made.
    """

    model: Any
    variant: str
    layout: str
    tensors: int
    fresh: tuple[str, ...]


def variants_of(name: str) -> list[str]:
    """Named models of an architecture, or of the paper that it is of; a model's own name alone.

    Raises:
        Refused: no model and no architecture has this name.

    Example:
        >>> variants_of("poolformer_s12"), "poolformer_s24" in variants_of("metaformer")
        (['poolformer_s12'], True)
    """
    if name in list_models():
        return [name]
    kinds = {variant: variant_config(variant).model_type for variant in list_models()}
    found = [variant for variant, kind in kinds.items() if kind == name.replace("-", "_")]
    if not found:
        papers = sorted({kind.replace("_", "-") for kind in kinds.values()})
        raise unknown_name("model", name, [*papers, *kinds])
    return found


def recognise(name: str, tensors: Mapping[str, Tensor], layout: str = "auto", **fields: Any) -> Fit:
    """The named model that tensors belong to.

    Args:
        name: of a model, or of an architecture or paper with several.
        tensors: of the file, by their names there.
        layout: that the file has; "auto" tries all.
        fields: of the config; ``num_classes`` may differ from the file's.

    Raises:
        Refused: none fits (the nearest is told), or several do.
    """
    fits = [_fit(variant, tensors, layout, fields) for variant in variants_of(name)]
    fits.sort(key=lambda fit: fit.faults)
    whole = [fit for fit in fits if not fit.faults]
    if len(whole) > 1:
        names = ", ".join(fit.variant for fit in whole)
        raise Refused(f"the file fits {len(whole)} models alike, name one of them: {names}")
    if not whole:
        nearest = fits[0]
        other = "" if len(fits) == 1 else f"no model of {name} fits the file; the nearest, "
        raise Refused(
            f"{other}{nearest.variant} with the layout {nearest.layout}: {nearest.told()}"
        )
    return whole[0]


def import_named(
    name: str,
    tensors: Mapping[str, Tensor],
    layout: str = "auto",
    resize: bool = False,
    **fields: Any,
) -> Recognised:
    """Builds the model that a file belongs to and fills it.

    Args:
        name: of a model, or of an architecture or paper with several.
        tensors: of the file, by their names there.
        layout: that the file has; "auto" finds it.
        resize: positions of another grid are resized; name the model, then.
        fields: of ``create_model``. With another ``num_classes`` than the file's the classifier is
            fresh.

    Raises:
        Refused: names that are missing, or that nothing knows, or shapes that differ.
    """
    if resize:
        variant, classes = name, None
        if name not in list_models():
            raise Refused("positions are resized for one model; name it, not the paper")
        classes = _fit(variant, tensors, layout, fields).classes
    else:
        fit = recognise(name, tensors, layout, **fields)
        variant, layout, classes = fit.variant, fit.layout, fit.classes
    if classes is not None:
        fields = {"num_classes": classes, **fields}
    told = model_class(variant_config(variant)).fields_of(tensors)
    model = set_eval(create_model(variant, **{**told, **fields}))
    other = classes is not None and fields["num_classes"] != classes
    done = import_weights(model, tensors, layout, resize, new_classifier=other)
    return Recognised(model, variant, done.layout, done.tensors, done.fresh)


def _fit(
    variant: str, tensors: Mapping[str, Tensor], layout: str, fields: Mapping[str, Any]
) -> Fit:
    kind = model_class(variant_config(variant))
    with torch.device("meta"):
        model = create_model(variant, **{**kind.fields_of(tensors), **fields})
    maps = layouts_of(model)
    if not maps:
        raise Refused(f"{type(model).__name__} has no layout of another library")
    if layout not in ("auto", *maps):
        raise unknown_name("layout", layout, ["auto", *maps])
    own = model.state_dict()
    tried = []
    for chosen in maps if layout == "auto" else [layout]:
        try:
            converted = maps[chosen].to_ours(tensors)
        except ValueError as error:
            raise Refused(str(error)) from None
        found = converted.tensors
        classifier = found.get(_CLASSIFIER)
        odd = sorted(
            n for n in set(found) - set(own) if not ("num_classes" in fields and _of_classifier(n))
        )
        shaped = [n for n, t in found.items() if n in own and t.shape != own[n].shape]
        tried.append(
            Fit(
                variant,
                chosen,
                tuple(n for n in own if n not in found and not n.endswith("num_batches_tracked")),
                (*converted.unexpected, *odd),
                tuple(name for name in shaped if not _of_classifier(name)),
                None if classifier is None else len(classifier),
            )
        )
    return min(tried, key=lambda fit: fit.faults)


def _of_classifier(name: str) -> bool:
    return name.startswith("head.fc")
