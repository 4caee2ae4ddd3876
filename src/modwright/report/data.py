"""What a report holds: plain frozen values that survive the way to JSON and back unchanged."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, get_type_hints

from pydantic import (
    BaseModel,
    ConfigDict,
    InstanceOf,
    ValidationError,
    create_model,
    model_validator,
)

from modwright.core.errors import InvalidInputError, unknown_name
from modwright.core.options import one_line
from modwright.metrics.registry import METRICS, old_fields

__all__ = ["FORMAT", "Report", "Stage"]

FORMAT = 3  # since 3 a stage has what was measured by the names of the metrics


@dataclass(frozen=True)
class Stage:
    """The model before the first step or after one step, and everything measured on it.

    Values are plain JSON. A number that is not finite becomes None, a perplexity that is not sets
    ``finite`` to False; what was not measured is None or left out. Each ``recipe`` says how its
    numbers were measured; where those of two stages differ, no change between them is calculated.

    Args:
        name: short and unique: ``"before"``, ``"1 llm_drop"``, ``"2 modegpt"``.
        method: name of the method of the step; None for the baseline.
        title: what was done, for people: ``"drop 4 attentions"``.
        options: resolved options of the method.
        seconds: phase of the step -> seconds.
        cost: ``parameters``, ``stored_bytes``, ``prefill_macs``, ``decode_macs`` (per token),
            ``kv_bytes``, ``state_bytes`` where there are states, ``activation_bytes``, and
            ``recipe``.
        measured: by the name of a metric what it stored, with ``finite`` and ``recipe``; see the
            metrics' own results in `modwright.metrics`.
        shape: per block ``{"attention": {"heads", "kv_heads", "qk", "v"} or None, "mlp": width or
            None}``, with ``qk`` and ``v`` per head.
        source_blocks: which block of the baseline each block is; None for a new one.
        reasons: why the method decided so. Drawn where present: ``scores`` (``attention``, ``mlp``,
            ``block`` -> one number or None per layer) or ``influence`` (one number per block),
            ``removed`` or ``masked`` (the same names -> layer numbers),
            ``sparsity`` (one share per layer) and
            ``meaning``: one sentence on what a score says. All else is printed.
        notes: sentences of the method for the user.
        accounting: ``kept``, ``changed``, ``added``, ``removed`` -> number of tensors;
            ``masked`` where some were.
        plain: stock transformers loads the checkpoint.
        servable: runtime -> ``answer`` ("yes", "after export", "no", "not tested"), ``why`` and
            ``command``, as `modwright.checkpoint.export` says it. One sentence is a reason.

    Raises:
        InvalidInputError: a value is not plain, or ``shape`` and ``source_blocks`` do not fit.

    Example:
        >>> Stage("before", measured={"perplexity": {"value": float("inf")}}).measured
        {'perplexity': {'value': None, 'finite': False}}
    """

    name: str
    method: str | None = None
    title: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, dict[str, Any]] = field(default_factory=dict)
    shape: list[dict[str, Any]] = field(default_factory=list)
    source_blocks: list[int | None] = field(default_factory=list)
    reasons: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    accounting: dict[str, int] = field(default_factory=dict)
    plain: bool = True
    servable: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given = self.measured
        where = f"stage {self.name!r}"
        checked = _plain_record(self, where)
        measured = {
            name: _checked_metric(name, given[name], values, f"{where}, measured.{name}")
            for name, values in self.measured.items()
        }
        object.__setattr__(self, "measured", measured)
        servable = {name: runtime.model_dump() for name, runtime in checked.servable.items()}
        object.__setattr__(self, "servable", servable)
        if self.source_blocks and len(self.source_blocks) != len(self.shape):
            raise InvalidInputError(
                f"{where} has {len(self.shape)} blocks in shape and "
                f"{len(self.source_blocks)} in source_blocks; both list every block"
            )

    @property
    def broken(self) -> list[str]:
        """The metrics that were measured and gave no finite number."""
        return [name for name, values in self.measured.items() if not values.get("finite", True)]

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Stage:
        """The stage that ``to_dict`` wrote, or an older version; an unknown field is refused."""
        return cls(**_fields_of(cls, _of_old(stored), "stage"))

    def __repr__(self) -> str:
        return f"Stage({self.name!r}, {self.title!r}, {len(self.measured)} metrics)"


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
        stages: the baseline, then one stage per step.
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
        _plain_record(self, "report")
        if not self.stages:
            raise InvalidInputError("a report needs at least one stage, the baseline")
        if (method := self.before.method) is not None:
            raise InvalidInputError(
                f"the first stage is the baseline and has no method, got {method!r}"
            )
        names = [stage.name for stage in self.stages]
        for at, (name, stage) in enumerate(zip(names, self.stages)):
            if name in names[:at]:
                raise InvalidInputError(f"two stages are named {name!r}; each needs its own name")
            if at and stage.method is None:
                raise InvalidInputError(f"stage {name!r} needs the name of its method")

    @property
    def before(self) -> Stage:
        """The baseline."""
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
        if isinstance(stored, Mapping) and "format" in stored:
            stored = dict(stored)
            number = stored.pop("format")
            if not isinstance(number, int) or number > FORMAT:
                raise InvalidInputError(f"the report has format {number!r}; known up to {FORMAT}")
        values = _fields_of(cls, stored, "report")
        if isinstance(values.get("stages"), list):
            values["stages"] = [Stage.from_dict(stage) for stage in values["stages"]]
        return cls(**values)

    def __repr__(self) -> str:
        return f"Report({self.title!r}: {' -> '.join(stage.name for stage in self.stages)})"


def _fields_of(cls: type[Any], stored: Mapping[str, Any], what: str) -> dict[str, Any]:
    if not isinstance(stored, Mapping):
        raise InvalidInputError(f"a {what} is a mapping of fields, got {type(stored).__name__}")
    known = [f.name for f in dataclasses.fields(cls)]
    for name in stored:
        if name not in known:
            raise unknown_name(f"field of a {what}:", name, known)
    if known[0] not in stored:
        raise InvalidInputError(f"a {what} needs the field {known[0]!r}")
    return dict(stored)


class _Values(BaseModel):
    """What pages calculate with or quote; other keys hold any plain value."""

    model_config = ConfigDict(extra="allow", strict=True)


def _values(**fields: Any) -> Any:
    return create_model("_Values", __base__=_Values, **fields)


def _numbers(*names: str) -> Any:
    return _values(**dict.fromkeys(names, (float | None, None)))


class _Runtime(_Values, extra="forbid"):
    answer: str = ""
    why: str = ""
    command: str = ""

    @model_validator(mode="before")
    @classmethod
    def _reason_alone(cls, given: Any) -> Any:
        return {"why": given} if isinstance(given, str) else given


_Attention = _values(**dict.fromkeys(("heads", "kv_heads", "qk", "v"), (Any, ...)))


class _Block(_Values, extra="forbid"):
    attention: _Attention | None  # type: ignore[valid-type]
    mlp: Any


_COST = ("parameters", "stored_bytes", "prefill_macs", "decode_macs", "kv_bytes")
_SAID = {"list_type": lambda item: "must be a list"}  # no recipe
_READ: dict[str, Any] = {
    "seconds": dict[str, Any],
    "cost": _numbers(*_COST, "state_bytes", "activation_bytes"),
    "measured": dict[str, dict[str, Any]],
    "shape": list[_Block],
    "servable": dict[str, _Runtime],
    "stages": list[InstanceOf[Stage]],
}


@cache
def _model_of(kind: type[Any]) -> Any:
    """Each field as it is declared, and what is read of the mappings that it holds."""
    return _values(**{name: _READ.get(name, hint) for name, hint in get_type_hints(kind).items()})


def _plain_record(record: Any, where: str) -> Any:
    """Replaces every field by its plain copy; what pages read of them."""
    for f in dataclasses.fields(record):
        value = getattr(record, f.name)
        is_stages = f.name == "stages" and isinstance(value, list | tuple)
        plain = list(value) if is_stages else _plain(value, f"{where}, {f.name}")
        object.__setattr__(record, f.name, plain)
    try:
        return _model_of(record.__class__).model_validate(vars(record))
    except ValidationError as error:
        raise InvalidInputError(f"{where}, {one_line(error, said=_SAID)}") from None


def _plain(value: Any, where: str) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str | int) or isinstance(key, bool):
                raise InvalidInputError(
                    f"{where} has the key {key!r}; valid keys: text and whole numbers"
                )
        return {str(key): _plain(v, f"{where}.{key}") for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, f"{where}[{i}]") for i, v in enumerate(value)]
    raise InvalidInputError(
        f"{where} is a {type(value).__name__}; valid values: text, numbers, booleans, None, "
        "lists and mappings of these"
    )


def _of_old(stored: Any) -> Any:
    """A stage of formats 1 and 2, which had a field for each metric, as it is stored now."""
    if not isinstance(stored, Mapping) or "measured" in stored:
        return stored
    fields = old_fields()
    kept = {name: value for name, value in stored.items() if name not in fields}
    found = {
        metric.name: metric.of_old(stored[name]) if isinstance(stored[name], Mapping) else None
        for name, metric in fields.items()
        if stored.get(name) is not None
    }
    return {**kept, "measured": found}


def _checked_metric(
    name: str, given: Mapping[str, Any], stored: dict[str, Any], where: str
) -> dict[str, Any]:
    """What a metric stored, with ``finite``; one that is not registered here is kept as it is."""
    if name not in METRICS:
        return stored
    metric = METRICS[name]
    for key in (column.key or column.name for column in metric.columns):
        number = stored.get(key)
        if isinstance(number, bool) or not isinstance(number, int | float | None):
            raise InvalidInputError(f"{where}.{key}: must be a number, not {number!r}")
    if (problem := metric.problem_of(stored)) is not None:
        raise InvalidInputError(f"{where}.{problem}")
    return _finite(given, stored, metric.must_be_finite)


def _finite(given: Any, stored: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """The values with ``finite`` set, and without the numbers of a metric that is not.

    A number that was given and is gone was not finite; a metric without any is not either.
    """
    lost = any(given.get(name) is not None and stored.get(name) is None for name in names)
    empty = bool(names) and all(stored.get(name) is None for name in names)
    finite = bool(stored.get("finite", True)) and not lost and not empty
    missing = {} if finite else {name: None for name in names if name in stored}
    return {**stored, **missing, "finite": finite}
