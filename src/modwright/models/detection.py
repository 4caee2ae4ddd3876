"""Which named model a file of weights belongs to, and what does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modwright.core.errors import InvalidInputError, refusing, unknown_name
from modwright.core.modes import set_eval
from modwright.models.importing import checkpoint_formats, import_weights, name_classes
from modwright.models.registry import create_model, list_models, model_class, variant_config
from modwright.models.source_configs import read_source_config, same_value

__all__ = ["DetectedCheckpoint", "MatchReport", "detect_variant", "import_named", "variants_of"]

_CLASSIFIER = "head.fc.weight"
_SHOWN = 3


@dataclass(frozen=True)
class MatchReport:
    """How a file fits a named model; empty lists where it does.

    Attributes:
        variant: name of the model.
        checkpoint_format: the layout that knows most of the file's names.
        missing: tensors of the model that the file does not have.
        unexpected: names in the file that the model has no place for.
        other_shapes: tensors that have another shape in the file.
        classes: what the classifier in the file tells apart; None without one.
    """

    variant: str
    checkpoint_format: str
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    other_shapes: tuple[str, ...]
    classes: int | None

    @property
    def mismatches(self) -> int:
        """How many names do not fit."""
        return len(self.missing) + len(self.unexpected) + len(self.other_shapes)

    def told(self) -> str:
        """What does not fit, in one line; some names of each kind.

        Example:
            >>> MatchReport("pit", "official", ("a", "b"), (), ("c",), None).told()
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
class DetectedCheckpoint:
    """A model with the weights of a file.

    Attributes:
        model: in evaluation mode.
        variant: its name.
        checkpoint_format: the layout that the file has.
        tensors: how many were taken.
        fresh: names of tensors that the file does not give, and that are as they were made.
        changed: fields whose value is that of the file's config.json and not the named model's.
        has_config: a config.json beside the weights said the fields; the named model's own do
            otherwise.
    """

    model: Any
    variant: str
    checkpoint_format: str
    tensors: int
    fresh: tuple[str, ...]
    changed: Mapping[str, Any] = field(default_factory=dict)
    has_config: bool = False


def variants_of(name: str) -> list[str]:
    """Named models of an architecture, or of the paper that it is of; a model's own name alone.

    Raises:
        InvalidInputError: no model and no architecture has this name.

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
    """The named model that tensors belong to.

    Args:
        name: of a model, or of an architecture or paper with several.
        tensors: of the file, by their names there.
        checkpoint_format: that the file has; "auto" tries all.
        fields: of the config; ``num_classes`` may differ from the file's.

    Raises:
        InvalidInputError: none fits (the nearest is told), or several do.
    """
    fits = [_match(variant, tensors, checkpoint_format, fields) for variant in variants_of(name)]
    fits.sort(key=lambda fit: fit.mismatches)
    whole = [fit for fit in fits if not fit.mismatches]
    if len(whole) > 1:
        names = ", ".join(fit.variant for fit in whole)
        raise InvalidInputError(
            f"the file fits {len(whole)} models alike, name one of them: {names}"
        )
    if not whole:
        nearest = fits[0]
        other = "" if len(fits) == 1 else f"no model of {name} fits the file; the nearest, "
        raise InvalidInputError(
            f"{other}{nearest.variant} in the format {nearest.checkpoint_format}: {nearest.told()}"
        )
    return whole[0]


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
        InvalidInputError: names that are missing, or that nothing knows, or shapes that differ, or
            a field of config.json that is not computed here.
    """
    if resize and name not in list_models():
        raise InvalidInputError("positions are resized for one model; name it, not the paper")
    maps = model_class(variant_config(variants_of(name)[0])).config_maps()
    told = None if source is None else read_source_config(source, maps)
    if told is not None:
        own = {**told.fields, **fields}
        variant = _nearest(name, tensors, checkpoint_format, fields)
        fit = _match(variant, tensors, checkpoint_format, own)
        if fit.mismatches and not resize:
            raise InvalidInputError(
                f"{variant} with the layout {fit.checkpoint_format}: {fit.told()}"
            )
    elif resize:
        own, fit = fields, _match(name, tensors, checkpoint_format, fields)
    else:
        own, fit = fields, detect_variant(name, tensors, checkpoint_format, **fields)
    if fit.classes is not None:
        own = {"num_classes": fit.classes, **own}
    plain = variant_config(fit.variant)
    own = {**model_class(plain).config_from_state_dict(tensors), **own}
    model = set_eval(create_model(fit.variant, **own))
    other = fit.classes is not None and own["num_classes"] != fit.classes
    chosen = checkpoint_format if resize else fit.checkpoint_format
    done = import_weights(model, tensors, chosen, resize, new_classifier=other)
    changed = {}
    if told is not None:
        changed = {
            key: value
            for key, value in told.fields.items()
            if key not in fields and not same_value(value, getattr(plain, key))
        }
        if not other:
            name_classes(model, told)
    return DetectedCheckpoint(
        model,
        fit.variant,
        done.checkpoint_format,
        done.tensors,
        done.fresh,
        changed,
        told is not None,
    )


def _nearest(
    name: str, tensors: Mapping[str, Tensor], checkpoint_format: str, fields: Mapping[str, Any]
) -> str:
    """The named model that tensors fit best by themselves; the first of several."""
    fits = [_match(variant, tensors, checkpoint_format, fields) for variant in variants_of(name)]
    return min(fits, key=lambda fit: fit.mismatches).variant


def _match(
    variant: str, tensors: Mapping[str, Tensor], checkpoint_format: str, fields: Mapping[str, Any]
) -> MatchReport:
    kind = model_class(variant_config(variant))
    with torch.device("meta"):
        model = create_model(variant, **{**kind.config_from_state_dict(tensors), **fields})
    maps = checkpoint_formats(model)
    if not maps:
        raise InvalidInputError(f"{type(model).__name__} has no layout of another library")
    if checkpoint_format not in ("auto", *maps):
        raise unknown_name("format", checkpoint_format, ["auto", *maps])
    own = model.state_dict()
    tried = []
    for chosen in maps if checkpoint_format == "auto" else [checkpoint_format]:
        with refusing():
            converted = maps[chosen].to_ours(tensors)
        found = converted.tensors
        classifier = found.get(_CLASSIFIER)
        odd = sorted(
            n for n in set(found) - set(own) if not ("num_classes" in fields and _of_classifier(n))
        )
        shaped = [n for n, t in found.items() if n in own and t.shape != own[n].shape]
        tried.append(
            MatchReport(
                variant,
                chosen,
                tuple(n for n in own if n not in found and not n.endswith("num_batches_tracked")),
                (*converted.unexpected, *odd),
                tuple(name for name in shaped if not _of_classifier(name)),
                None if classifier is None else len(classifier),
            )
        )
    return min(tried, key=lambda fit: fit.mismatches)


def _of_classifier(name: str) -> bool:
    return name.startswith("head.fc")
