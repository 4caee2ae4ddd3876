"""What a report holds: plain frozen values that survive the way to JSON and back unchanged."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from modwright.core.errors import InvalidInputError, unknown_name

__all__ = ["FORMAT", "Report", "Stage"]

FORMAT = 2  # since 2 a stage has agreement and harness

# Of these groups: the numbers that must be finite for the whole to be.
_FINITE = {"quality": ("perplexity",), "agreement": ("kl", "cosine"), "harness": ()}
_ATTENTION = ("heads", "kv_heads", "qk", "v")
_PARTS = ("attention", "mlp")


@dataclass(frozen=True)
class Stage:
    """The model before the first step or after one step, and everything measured on it.

    Every value is a plain JSON value. A number that is not finite becomes None; a perplexity that
    is not finite also sets ``finite`` to False. What was not measured is None or left out. Each
    ``recipe`` says how its numbers were measured and holds no measured time: where the recipes of
    two stages differ, their numbers are shown but no change between them is calculated.

    Args:
        name: short and unique: ``"before"``, ``"1 llm_drop"``, ``"2 modegpt"``.
        method: name of the method of the step; None for the model as it came.
        title: what was done, for people: ``"drop 4 attentions"``.
        options: resolved options of the method.
        seconds: phase of the step -> seconds.
        cost: ``parameters``, ``stored_bytes``, ``prefill_macs``, ``decode_macs`` (per token),
            ``kv_bytes``, ``activation_bytes``, and ``recipe``: how they were counted.
        quality: ``perplexity``, ``finite`` and ``recipe``; None if not measured.
        agreement: with the model as it came: ``kl`` (nats per token) and ``top1`` (a share), or
            ``cosine`` for a model without a head; ``tokens``, ``finite`` and ``recipe``.
        harness: ``scores``, ``finite`` and ``recipe``. A score has ``name``, ``task``, ``metric``,
            ``filter``, ``value``, ``stderr``, ``higher_is_better``, ``documents``, ``num_fewshot``,
            ``version``, ``harness``, and ``asked``: False for a task of a group that was asked for.
        speed: ``prefill_tokens_per_second``, ``decode_tokens_per_second`` and ``recipe``.
        sample: ``prompt``, ``text``, ``repetition`` (0 to 1) and ``settings``.
        shape: per block ``{"attention": {"heads", "kv_heads", "qk", "v"} or None, "mlp": width or
            None}``, with ``qk`` and ``v`` per head.
        source_blocks: which block of the model as it came each block is; None for a new one.
        reasons: why the method decided so. Drawn where present: ``scores`` (``attention``, ``mlp``,
            ``block`` -> one number or None per layer) or ``influence`` (one number per block),
            ``removed`` (the same names -> layer numbers), ``sparsity`` (one share per layer) and
            ``meaning``: one sentence on what a score says. All else is printed.
        notes: sentences of the method for the user.
        accounting: ``kept``, ``changed``, ``added``, ``removed`` -> number of tensors.
        plain: stock transformers loads the checkpoint.
        servable: runtime -> ``answer`` ("yes", "after export", "no", "not tested"), ``why`` and
            ``command``: whether it takes the model, as `modwright.checkpoint.export` says it. One
            sentence in place of the three is a reason.

    Raises:
        InvalidInputError: a value is not plain, or ``shape`` and ``source_blocks`` do not fit.

    Example:
        >>> Stage("before", quality={"perplexity": float("inf")}).quality
        {'perplexity': None, 'finite': False}
    """

    name: str
    method: str | None = None
    title: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)
    quality: dict[str, Any] | None = None
    agreement: dict[str, Any] | None = None
    harness: dict[str, Any] | None = None
    speed: dict[str, Any] | None = None
    sample: dict[str, Any] | None = None
    shape: list[dict[str, Any]] = field(default_factory=list)
    source_blocks: list[int | None] = field(default_factory=list)
    reasons: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    accounting: dict[str, int] = field(default_factory=dict)
    plain: bool = True
    servable: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given = {group: getattr(self, group) for group in _FINITE}
        _make_plain(self, f"stage {self.name!r}")
        for group, names in _FINITE.items():
            if given[group] is not None:
                object.__setattr__(self, group, _finite(given[group], getattr(self, group), names))
        told = {name: _told(entry, f"{self.name!r}") for name, entry in self.servable.items()}
        object.__setattr__(self, "servable", told)
        _check_values(self)
        _check_shape(self)

    @property
    def perplexity(self) -> float | None:
        """The perplexity, or None where it was not measured or is not finite."""
        return self.quality.get("perplexity") if self.quality else None

    @property
    def is_broken(self) -> bool:
        """Whether perplexity was measured and is not a finite number."""
        return self.quality is not None and not self.quality["finite"]

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Stage:
        """The stage that ``to_dict`` wrote.

        Raises:
            InvalidInputError: an unknown field, or no name.
        """
        return cls(**_fields_of(cls, stored, "stage"))

    def __repr__(self) -> str:
        return f"Stage({self.name!r}, {self.title!r}, perplexity {self.perplexity})"


@dataclass(frozen=True)
class Report:
    """Before and after: a model, the steps that changed it, and what was measured on the way.

    Args:
        title: heading of the page.
        model: ``name``, ``family`` and ``source``; ``auto_class`` if it is not clear from the
            measurements whether the model is a causal language model.
        created: date in ISO form, passed in so that a report is reproducible.
        versions: package -> version.
        environment: ``threads``, ``dtype``, ``device``, ``memory``.
        recipe: the resolved recipe.
        stages: the model as it came, then one stage per step.
        files: output file -> bytes.
        reproduce: the command that makes this result again.

    Raises:
        InvalidInputError: no stages, two of one name, a first stage with a method or a later one
            without.

    Example:
        >>> report = Report("example", stages=[Stage("before")])
        >>> Report.from_dict(report.to_dict()) == report
        True
    """

    title: str
    model: dict[str, Any] = field(default_factory=dict)
    created: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    stages: list[Stage] = field(default_factory=list)
    files: dict[str, int] = field(default_factory=dict)
    reproduce: str = ""

    def __post_init__(self) -> None:
        stages = list(self.stages)
        object.__setattr__(self, "stages", [])
        _make_plain(self, "report")
        object.__setattr__(self, "stages", stages)
        odd = next((stage for stage in stages if not isinstance(stage, Stage)), None)
        if odd is not None:
            raise InvalidInputError(f"stages of a report must be Stage objects, got {odd!r:.60}")
        if not stages:
            raise InvalidInputError("a report needs at least one stage, the model as it came")
        names = [stage.name for stage in stages]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise InvalidInputError(f"two stages are named {twice!r}; each needs a name of its own")
        if stages[0].method is not None:
            raise InvalidInputError(
                f"the first stage is the model as it came and has no method, "
                f"got {stages[0].method!r}"
            )
        nameless = next((stage.name for stage in stages[1:] if stage.method is None), None)
        if nameless is not None:
            raise InvalidInputError(f"stage {nameless!r} needs the name of its method")

    @property
    def before(self) -> Stage:
        """The model as it came."""
        return self.stages[0]

    @property
    def after(self) -> Stage:
        """The model after the last step."""
        return self.stages[-1]

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON values, with the number of the format."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Report:
        """The report that ``to_dict`` wrote.

        Raises:
            InvalidInputError: a newer format, an unknown field, or a value that no report has.
        """
        if not isinstance(stored, Mapping):
            raise InvalidInputError(f"a report is a mapping of fields, got {type(stored).__name__}")
        number = stored.get("format", FORMAT)
        if not isinstance(number, int) or number > FORMAT:
            raise InvalidInputError(f"the report has format {number!r}; known up to {FORMAT}")
        rest = {name: value for name, value in stored.items() if name != "format"}
        values = _fields_of(cls, rest, "report")
        stages = values.get("stages", [])
        if not isinstance(stages, list):
            raise InvalidInputError(
                f"stages of a report must be a list, got {type(stages).__name__}"
            )
        values["stages"] = [Stage.from_dict(stage) for stage in stages]
        return cls(**values)

    def __repr__(self) -> str:
        return f"Report({self.title!r}: {' -> '.join(stage.name for stage in self.stages)})"


def _fields_of(cls: type[Any], stored: Mapping[str, Any], what: str) -> dict[str, Any]:
    if not isinstance(stored, Mapping):
        raise InvalidInputError(f"a {what} is a mapping of fields, got {type(stored).__name__}")
    known = {f.name: f for f in dataclasses.fields(cls)}
    for name in stored:
        if name not in known:
            raise unknown_name(f"field of a {what}:", name, known)
    first = next(iter(known))
    if first not in stored:
        raise InvalidInputError(f"a {what} needs the field {first!r}")
    return dict(stored)


_CONTAINERS = {"str": str, "dict": dict, "list": list, "bool": bool}


def _make_plain(record: Any, where: str) -> None:
    """Replaces every field by its plain copy and holds it to the container it declares."""
    for f in dataclasses.fields(record):
        value = _plain(getattr(record, f.name), f"{where}, {f.name}")
        declared = str(f.type)
        wanted = _CONTAINERS[declared.partition("[")[0].partition(" ")[0]]
        optional = value is None and declared.endswith("| None")
        if not optional and not isinstance(value, wanted):
            raise InvalidInputError(
                f"{where}, {f.name}: {wanted.__name__} expected, got {value!r:.60}"
            )
        object.__setattr__(record, f.name, value)


def _plain(value: Any, where: str) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {_key(k, where): _plain(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, f"{where}[{i}]") for i, v in enumerate(value)]
    raise InvalidInputError(
        f"{where} is a {type(value).__name__}; valid values: text, numbers, booleans, None, "
        "lists and mappings of these"
    )


def _finite(given: Any, stored: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """A group with ``finite`` set, and without the numbers of one that is not.

    A number that was given and is gone was not finite; a group without any is not either.
    """
    lost = any(given.get(name) is not None and stored.get(name) is None for name in names)
    empty = bool(names) and all(stored.get(name) is None for name in names)
    finite = bool(stored.get("finite", True)) and not lost and not empty
    missing = {} if finite else {name: None for name in names if name in stored}
    return {**stored, **missing, "finite": finite}


_TOLD = ("answer", "why", "command")


def _told(entry: Any, stage: str) -> dict[str, str]:
    """What is said of one runtime, with all three texts."""
    given = {"why": entry} if isinstance(entry, str) else entry
    if not isinstance(given, dict) or set(given) - set(_TOLD):
        raise InvalidInputError(
            f"stage {stage}, servable: {', '.join(_TOLD)} expected, got {entry!r:.60}"
        )
    if not all(isinstance(text, str) for text in given.values()):
        raise InvalidInputError(f"stage {stage}, servable: text expected, got {entry!r:.60}")
    return {name: given.get(name, "") for name in _TOLD}


def _key(key: Any, where: str) -> str:
    if isinstance(key, str):
        return key
    if isinstance(key, int) and not isinstance(key, bool):
        return str(key)
    raise InvalidInputError(f"{where} has the key {key!r}; valid keys: text and whole numbers")


_NUMBERS = {
    "cost": (
        "parameters",
        "stored_bytes",
        "prefill_macs",
        "decode_macs",
        "kv_bytes",
        "activation_bytes",
    ),
    "quality": ("perplexity",),
    "agreement": ("kl", "top1", "cosine"),
    "speed": ("prefill_tokens_per_second", "decode_tokens_per_second"),
    "sample": ("repetition",),
}
_TEXTS = ("prompt", "text")


def _check_values(stage: Stage) -> None:
    """What pages calculate with must be numbers, and what they quote must be text."""
    for group, names in _NUMBERS.items():
        _check_numbers(getattr(stage, group) or {}, names, f"stage {stage.name!r}, {group}")
    for score in (stage.harness or {}).get("scores") or ():
        if not isinstance(score, dict) or not isinstance(score.get("name"), str):
            raise InvalidInputError(
                f"stage {stage.name!r}, harness: a score needs a name, got {score!r:.60}"
            )
        _check_numbers(score, ("value", "stderr"), f"stage {stage.name!r}, harness")
    for name in _TEXTS:
        value = (stage.sample or {}).get(name, "")
        if not isinstance(value, str):
            raise InvalidInputError(
                f"stage {stage.name!r}, sample.{name}: text expected, got {value!r}"
            )


def _check_numbers(values: Mapping[str, Any], names: tuple[str, ...], where: str) -> None:
    for name in names:
        value = values.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise InvalidInputError(f"{where}.{name}: number expected, got {value!r}")


def _check_shape(stage: Stage) -> None:
    where = f"stage {stage.name!r}, shape"
    for index, block in enumerate(stage.shape):
        if not isinstance(block, dict) or set(block) != set(_PARTS):
            raise InvalidInputError(
                f"{where}[{index}] needs exactly {' and '.join(_PARTS)}, got {block!r}"
            )
        attention = block["attention"]
        if attention is not None and (
            not isinstance(attention, dict) or any(name not in attention for name in _ATTENTION)
        ):
            raise InvalidInputError(
                f"{where}[{index}].attention needs {', '.join(_ATTENTION)} or is None, "
                f"got {attention!r}"
            )
    if stage.source_blocks and len(stage.source_blocks) != len(stage.shape):
        raise InvalidInputError(
            f"stage {stage.name!r} has {len(stage.shape)} blocks in shape and "
            f"{len(stage.source_blocks)} in source_blocks; both list every block"
        )
