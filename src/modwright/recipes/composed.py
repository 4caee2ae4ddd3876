"""A model that a recipe composes or changes the classes of: checked where it is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

from modwright.anatomy import Anatomy
from modwright.checkpoint import Checkpoint, require_memory, weights_bytes, with_classes
from modwright.checkpoint import open as open_checkpoint
from modwright.checkpoint.opening import known_device
from modwright.checkpoint.source import Source
from modwright.core.errors import InvalidInputError, ModwrightError, did_you_mean, unknown_name
from modwright.core.progress import SILENT, Progress
from modwright.data.tokenizers import check_tokenizer, make_tokenizer
from modwright.edits.compose import (
    Part,
    base_config,
    compose,
    compose_target,
    edits_at,
    field_names,
)
from modwright.edits.stock_classes import model_class
from modwright.recipes.reading import Lines

__all__ = ["check_composed", "composed_schema", "model_name", "open_model"]

_SPECIAL = ("bos", "eos", "pad")
_OWN = ("compose", "parts", "head", "tokenizer")
_CHANGED = ("checkpoint", "num_classes")


class Asked(Protocol):
    """What recipes say of the model that they begin with."""

    model: Any
    dtype: Any
    device: Any
    seed: int


def model_name(model: str | Mapping[str, Any]) -> str:
    """What a recipe's model is called in messages.

    Example:
        >>> model_name({"compose": "llama"}), model_name("preset:tiny-llama")
        ('a composed llama', 'preset:tiny-llama')
    """
    if isinstance(model, str):
        return model
    return model["checkpoint"] if "checkpoint" in model else f"a composed {model['compose']}"


def open_model(recipe: Asked, progress: Progress = SILENT) -> Checkpoint:
    """The model that a recipe begins with, opened or composed of its seed.

    Raises:
        ModwrightError: as of :func:`modwright.open`, :func:`modwright.checkpoint.with_classes` and
            :func:`modwright.edits.compose`.
    """
    if isinstance(recipe.model, str):
        return _opened(recipe, recipe.model, progress)
    if "checkpoint" in recipe.model:
        found = _opened(recipe, recipe.model["checkpoint"], progress)
        if (count := recipe.model.get("num_classes")) is None:
            return found
        model = with_classes(found.model, count, seed=recipe.seed)
        told = () if model is found.model else (f"Its classifier is fresh, for {count} classes.",)
        return replace(found, model=model, remarks=(*found.remarks, *told))
    base, parts, head, fields = _spoken(recipe.model)
    if recipe.dtype is not None:
        fields["dtype"] = recipe.dtype
    tokenizer = None
    if "tokenizer" in recipe.model:
        tokenizer = make_tokenizer(recipe.model["tokenizer"])
        ids = {"vocab_size": len(tokenizer)}
        ids |= {f"{of}_token_id": getattr(tokenizer, f"{of}_token_id") for of in _SPECIAL}
        fields = {name: ids[name] for name in field_names(base) if name in ids} | fields
    _, target = compose_target(base_config(base, fields), parts, head)
    needed = 2 * weights_bytes(target.skeleton())  # the stock model gives its values
    require_memory(needed, f"composing {base}")
    model = compose(base, parts, seed=recipe.seed, head=head, **fields)
    if (place := known_device(recipe.device)) is not None:
        model.to(place)
    said = f"{base} composed with start values of seed {recipe.seed}"
    opened = Checkpoint(model, Source("composed", base, description=said))
    if tokenizer is not None:
        vars(opened)["tokenizer"] = tokenizer  # what would be loaded when it is first asked for
    return opened


def _opened(recipe: Asked, model: str, progress: Progress) -> Checkpoint:
    return open_checkpoint(model, dtype=recipe.dtype, device=recipe.device, progress=progress)


def check_composed(given: Mapping[str, Any], lines: Lines) -> None:
    """Refuses what names no base, field, place, component or argument, by its line.

    Raises:
        InvalidInputError: names the place, the value and what is valid.
    """

    def refuse(problem: object, *key: str) -> InvalidInputError:
        at = ("model", *key)
        path = ".".join(piece if piece.isprintable() else repr(piece) for piece in at)
        return InvalidInputError(f"{lines.of(at)}, {path}: {problem}")

    if "checkpoint" in given:
        _check_changed(given, refuse)
        return
    _check_words(given, refuse)
    base, parts, head, fields = _spoken(given)
    if "tokenizer" in given:
        try:
            check_tokenizer(given["tokenizer"])
        except ModwrightError as error:
            raise refuse(error, "tokenizer") from None
    try:
        valid = field_names(base)
    except ModwrightError as error:
        raise refuse(error, "compose") from None
    for name in fields:
        if name not in valid:
            raise refuse(f"{base} has no field {name!r}{did_you_mean(name, [*valid, *_OWN])}", name)
    try:
        config = base_config(base, fields)
    except ModwrightError as error:
        raise refuse(error, *_blamed(fields, error)) from None
    try:
        kind = model_class(config, head)
    except ModwrightError as error:
        raise refuse(error, "head") from None
    try:
        _, plain = compose_target(config, {}, head)
        anatomy = Anatomy.of(plain.skeleton()) if parts else None
    except ModwrightError as error:
        raise refuse(error, *_blamed(fields, error)) from None
    for selector, part in parts.items():
        try:
            edits_at(anatomy, selector, part) if anatomy is not None else None
        except ModwrightError as error:
            arguments = part[1] if isinstance(part, tuple) else {}
            blamed = _blamed(arguments, error) or ("part",) * isinstance(part, tuple)
            raise refuse(error, "parts", selector, *blamed) from None
    try:
        compose_target(config, parts, head)[1].skeleton()
    except ModwrightError as error:
        raise refuse(f"no {kind.__name__} can be built so: {error}", "parts") from None


def _check_changed(given: Mapping[str, Any], refuse: Any) -> None:
    """A checkpoint with other classes: what the keys hold."""
    for key in given:
        if key not in _CHANGED:
            raise refuse(unknown_name("key", key, _CHANGED), str(key))
    if not isinstance(given["checkpoint"], str):
        raise refuse(f"must be text, not {given['checkpoint']!r}", "checkpoint")
    count = given.get("num_classes")
    if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
        raise refuse(f"is a whole number above 0, not {count!r}", "num_classes")


def _check_words(given: Mapping[str, Any], refuse: Any) -> None:
    """Refuses what is no text or no mapping where there should be one."""
    for key in given:
        if not isinstance(key, str):
            raise refuse(f"a key must be text, not {key!r}")
    if "compose" not in given:
        near = did_you_mean(next(iter(given), ""), ["compose"])
        raise refuse(
            f"is missing: a model type or a preset, as {{compose: llama}}{near}", "compose"
        )
    for word in ("compose", "head"):
        if not isinstance(given.get(word, ""), str) and not (
            word == "head" and given[word] is None
        ):
            raise refuse(f"must be text, not {given[word]!r}", word)
    parts = given.get("parts", {})
    if not isinstance(parts, dict):
        raise refuse(f"must be a mapping of selectors, as 'mlp[*]', not {parts!r:.60}", "parts")
    for selector, part in parts.items():
        at = ("parts", str(selector))
        if not isinstance(selector, str):
            raise refuse(f"a selector is text, as 'mlp[*]', not {selector!r}", *at)
        if part is None or isinstance(part, str):
            continue
        if not isinstance(part, dict) or not all(isinstance(key, str) for key in part):
            raise refuse(
                "must be {part: NAME, with its arguments beside it}, a name, or null for nothing, "
                f"not {part!r:.60}",
                *at,
            )
        if not isinstance(part.get("part"), str):
            near = did_you_mean(next(iter(part), ""), ["part"], cutoff=0.6)
            raise refuse(f"is missing: the name of a component{near}", *at, "part")


def _spoken(
    given: Mapping[str, Any],
) -> tuple[str, dict[str, Part], str | None, dict[str, Any]]:
    """The base, parts, head and fields of a mapping that was checked."""
    parts: dict[str, Part] = {}
    for selector, part in given.get("parts", {}).items():
        if isinstance(part, dict):
            parts[selector] = part["part"], {k: v for k, v in part.items() if k != "part"}
        else:
            parts[selector] = part
    fields = {name: value for name, value in given.items() if name not in _OWN}
    return given["compose"], parts, given.get("head"), fields


def _blamed(named: Mapping[str, Any], error: Exception) -> tuple[str, ...]:
    """The one of some keys that a message speaks of first, or none."""
    found = {key: re.search(rf"\b{re.escape(key)}\b", str(error)) for key in named}
    starts = {key: match.start() for key, match in found.items() if match}
    return (min(starts, key=starts.__getitem__),) if starts else ()


def composed_schema() -> dict[str, Any]:
    """The JSON Schema of what a recipe's ``model`` may be."""
    name = {"type": "string"}
    part = {
        "type": "object",
        "description": "a component and its arguments",
        "properties": {"part": name},
        "required": ["part"],
    }
    composed = {
        "type": "object",
        "description": "a stock architecture in which components stand; fields of its config "
        "beside these keys",
        "properties": {
            "compose": {**name, "description": "a model type of transformers, or a preset"},
            "parts": {
                "type": "object",
                "description": "selector, as mlp[*], -> what stands there; null for nothing",
                "additionalProperties": {"anyOf": [{"type": "null"}, name, part]},
            },
            "head": {"anyOf": [name, {"type": "null"}]},
            "tokenizer": {
                "anyOf": [{"const": "bytes"}, {"type": "object", "required": ["train", "size"]}],
                "description": "bytes, or {train: TEXT, size: NUMBER}; saved with the model",
            },
        },
        "required": ["compose"],
    }
    changed = {
        "type": "object",
        "description": "a model of images with a fresh classifier",
        "properties": {"checkpoint": name, "num_classes": {"type": "integer", "minimum": 1}},
        "required": ["checkpoint"],
        "additionalProperties": False,
    }
    return {"anyOf": [name, composed, changed]}
