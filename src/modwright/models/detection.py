"""Which named model a file of weights belongs to, and what does not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from modwright.core.errors import InvalidInputError, refusing, unknown_name
from modwright.core.modes import set_eval
from modwright.models.importing import (
    ODD,
    OTHER_SHAPE,
    Imported,
    checkpoint_formats,
    differences,
    import_weights,
    name_classes,
)
from modwright.models.registry import create_model, list_models, model_class, variant_config
from modwright.models.source_configs import read_source_config, same_value

__all__ = ["DetectedCheckpoint", "MatchReport", "detect_variant", "import_named", "variants_of"]

_CLASSIFIER = "head.fc"
_SHOWN = 3


class MatchReport(NamedTuple):
    """How a file fits a named model in the layout that suits it best.

    ``wrong`` has names of tensors by what is wrong with them, ``classes`` how many the classifier
    in the file tells apart; None without one.
    """

    variant: str
    checkpoint_format: str
    wrong: Mapping[str, Sequence[str]]
    classes: int | None

    @property
    def mismatches(self) -> int:
        """How many names do not fit."""
        return sum(len(names) for names in self.wrong.values())

    def told(self) -> str:
        """What does not fit, in one line; some names of each kind.

        Example:
            >>> MatchReport("pit", "official", {"missing": ("a", "b"), "odd": ()}, None).told()
            'missing: 2 (a, b)'
        """
        return "; ".join(
            f"{what}: {len(names)} ({', '.join(names[:_SHOWN])}{', …' * (len(names) > _SHOWN)})"
            for what, names in self.wrong.items()
            if names
        )


@dataclass(frozen=True)
class DetectedCheckpoint(Imported):
    """A model with the weights of a file, in evaluation mode, and its name.

    ``changed`` has the fields whose value is that of a config.json beside the weights and not the
    named model's; ``has_config`` says whether there is one.
    """

    model: Any
    variant: str
    changed: Mapping[str, Any]
    has_config: bool


def variants_of(name: str) -> list[str]:
    """Named models of an architecture, or of the paper that it is of; a model's own name alone.

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


def detect_variant(
    name: str, tensors: Mapping[str, Tensor], checkpoint_format: str = "auto", **fields: Any
) -> MatchReport:
    """The named model that tensors belong to; arguments are those of :func:`import_named`.

    Raises:
        InvalidInputError: none fits (the nearest is told), or several do.
    """
    fits = _fits(variants_of(name), tensors, checkpoint_format, fields)
    whole = [fit.variant for fit in fits if not fit.mismatches]
    if len(whole) > 1:
        raise InvalidInputError(
            f"the file fits {len(whole)} models alike, name one of them: {', '.join(whole)}"
        )
    if not whole:
        nearest = fits[0]
        other = "" if len(fits) == 1 else f"no model of {name} fits the file; the nearest, "
        raise InvalidInputError(
            f"{other}{nearest.variant} in the format {nearest.checkpoint_format}: {nearest.told()}"
        )
    return fits[0]


def import_named(
    name: str,
    tensors: Mapping[str, Tensor],
    checkpoint_format: str = "auto",
    resize: bool = False,
    source: str | Path | None = None,
    **fields: Any,
) -> DetectedCheckpoint:
    """Builds the model that a file belongs to and fills it.

    Args:
        name: of a model, or of an architecture or paper with several.
        tensors: of the file, by their names there.
        checkpoint_format: that the file has; "auto" finds it.
        resize: positions of another grid are resized; name the model, then.
        source: where the tensors were read. The fields of a config.json there are those of the
            model, its class names, too; ``fields`` win over them.
        fields: of ``create_model``. With another ``num_classes`` than the file's the classifier is
            fresh.

    Raises:
        InvalidInputError: names or shapes do not fit, or config.json has a field that is not
            computed here.
    """
    if resize and name not in list_models():
        raise InvalidInputError("positions are resized for one model; name it, not the paper")
    variants = variants_of(name)
    kind = model_class(variant_config(variants[0]))
    told = None if source is None else read_source_config(source, kind.config_maps())
    said = {} if told is None else told.fields
    own = {**said, **fields}
    if told is None and not resize:
        fit = detect_variant(name, tensors, checkpoint_format, **fields)
    else:
        fit = _fits(variants, tensors, checkpoint_format, fields)[0]
    if told is not None:
        fit = _fits([fit.variant], tensors, checkpoint_format, own)[0]
        if fit.mismatches and not resize:
            raise InvalidInputError(
                f"{fit.variant} with the layout {fit.checkpoint_format}: {fit.told()}"
            )
    if fit.classes is not None:
        own = {"num_classes": fit.classes, **own}
    model = set_eval(create_model(fit.variant, **{**kind.config_from_state_dict(tensors), **own}))
    other = fit.classes is not None and own["num_classes"] != fit.classes
    chosen = checkpoint_format if resize else fit.checkpoint_format
    done = import_weights(model, tensors, chosen, resize, new_classifier=other)
    if told is not None and not other:
        name_classes(model, told)
    plain = variant_config(fit.variant)
    changed = {
        key: value
        for key, value in said.items()
        if key not in fields and not same_value(value, getattr(plain, key))
    }
    return DetectedCheckpoint(
        **vars(done), model=model, variant=fit.variant, changed=changed, has_config=told is not None
    )


def _fits(
    variants: list[str], tensors: Mapping[str, Tensor], layout: str, fields: Mapping[str, Any]
) -> list[MatchReport]:
    """How tensors fit each model in the layout that suits it best, the nearest first."""
    fits = []
    for variant in variants:
        told = model_class(variant_config(variant)).config_from_state_dict(tensors)
        with torch.device("meta"):
            model = create_model(variant, **{**told, **fields})
        own, tried = model.state_dict(), []
        for chosen, converter in checkpoint_formats(model, layout).items():
            with refusing():
                converted = converter.to_ours(tensors)
            wrong = differences(own, converted)
            for what, names in wrong.items():  # a classifier may be another one
                if what == OTHER_SHAPE or (what == ODD and "num_classes" in fields):
                    wrong[what] = [n for n in names if not n.startswith(_CLASSIFIER)]
            classifier = converted.tensors.get(f"{_CLASSIFIER}.weight")
            classes = None if classifier is None else len(classifier)
            tried.append(MatchReport(variant, chosen, wrong, classes))
        fits.append(min(tried, key=lambda fit: fit.mismatches))
    fits.sort(key=lambda fit: fit.mismatches)
    return fits
