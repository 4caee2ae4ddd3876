"""What a method is, how it registers, and the one-line ways to use it."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError
from transformers import PreTrainedModel

from modwright.anatomy import Anatomy
from modwright.calibration import CalibrationData, Collector
from modwright.core.errors import ModwrightError, Refused, unknown_name
from modwright.core.progress import SILENT, Progress
from modwright.edits import Applied, Plan
from modwright.edits import apply as apply_plan

__all__ = [
    "Method",
    "Needs",
    "WithoutData",
    "apply",
    "make_method",
    "method_names",
    "method_type",
    "plan",
    "ready_for",
    "register_method",
    "why_not",
]


@dataclass(frozen=True)
class Needs:
    """What a method asks for before it can plan."""

    calibration: bool = False
    gradients: bool = False
    parts: tuple[str, ...] = ()


class Method(Protocol):
    """A frozen dataclass of options that can plan. It names no family's modules."""

    name: ClassVar[str]
    paper: ClassVar[str | None]
    needs: ClassVar[Needs]
    exact: ClassVar[bool]
    examples: ClassVar[tuple[Mapping[str, Any], ...]]
    after: ClassVar[tuple[str, Mapping[str, Any]] | None]

    def plan(
        self,
        anatomy: Anatomy,
        calibration: CalibrationData | None = None,
        *,
        directory: Path | None = None,
        progress: Progress = SILENT,
    ) -> Plan:
        """Decides; reads the model and the data and changes neither.

        ``directory`` keeps statistics, so that a stopped run goes on.
        """

    def title(self) -> str:
        """The method with its options in a few words, for tables."""

    def wants_data(self) -> bool:
        """Whether these options need calibration data."""

    def collectors(self) -> Sequence[Collector]:
        """What it collects from the data, for forecasts of memory and disk."""

    def forecast(self, anatomy: Anatomy) -> tuple[int, int]:
        """Between how many and how many parameters go, before any data is seen.

        Raises:
            Refused: these options cannot be used on this model. Whatever ``plan`` would refuse for
                the model's sake is refused here already.
        """


class WithoutData:
    """What methods share that decide from the model alone."""

    def wants_data(self) -> bool:
        return False

    def collectors(self) -> Sequence[Collector]:
        return ()


_M = TypeVar("_M")
_METHODS: dict[str, type[Any]] = {}


def register_method(
    name: str,
    *,
    needs: Needs,
    paper: str | None = None,
    exact: bool = False,
    examples: Sequence[Mapping[str, Any]] = ({},),
    after: tuple[str, Mapping[str, Any]] | None = None,
) -> Callable[[type[_M]], type[_M]]:
    """Class decorator that makes a method known under ``name``.

    Args:
        name: as recipes and the command line call it.
        paper: slug in the catalogue; None for what no paper is needed for.
        needs: what it asks for.
        exact: it keeps the function: outputs change by rounding alone.
        examples: options that change a model of four blocks, one set for each way of use that may
            work on some models and not on others. The table of what works where is made from them,
            and tests try each on every family.
        after: a method with its options that must have been used before, for one that undoes it or
            goes on from it; the examples are tried on its result.
    """

    def register(kind: type[_M]) -> type[_M]:
        if not dataclasses.is_dataclass(kind):
            raise TypeError(f"{kind.__name__} must be a dataclass")
        if name in _METHODS:
            raise Refused(f"a method called {name!r} is registered already")
        kind.name, kind.paper, kind.needs = name, paper, needs  # type: ignore[attr-defined]
        kind.exact = exact  # type: ignore[attr-defined]
        kind.examples = tuple(dict(options) for options in examples)  # type: ignore[attr-defined]
        kind.after = after  # type: ignore[attr-defined]
        kind.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[attr-defined]
        _METHODS[name] = kind
        return kind

    return register


@cache
def _discover() -> None:
    import modwright.surgery as room

    for module in pkgutil.iter_modules(room.__path__):
        if module.name != "method":
            importlib.import_module(f"modwright.surgery.{module.name}")


def method_names() -> list[str]:
    """All methods, from inside the package and registered outside."""
    _discover()
    return sorted(_METHODS)


def method_type(name: str) -> type[Any]:
    """The dataclass of a method.

    Raises:
        Refused: unknown name; the message lists all and the nearest.
    """
    _discover()
    if name not in _METHODS:
        raise unknown_name("method", name, method_names())
    return _METHODS[name]


def make_method(name: str, options: Mapping[str, Any] | None = None) -> Any:
    """A method with checked options.

    Raises:
        Refused: unknown method or option, or an illegal value; one line each.

    Example:
        >>> make_method("llm_drop", {"target": "attention", "n": 4}).title()
        'drop 4 attentions'
    """
    kind = method_type(name)
    names = [field.name for field in dataclasses.fields(kind)]
    for key in options or {}:
        if key not in names:
            raise unknown_name(f"option of {name}", key, names)
    missing = [
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
        and field.name not in (options or {})
    ]
    if missing:
        raise Refused(f"{name}: needs the option {', '.join(missing)}")
    hints = get_type_hints(kind)
    checked: dict[str, Any] = {}
    wrong: list[str] = []
    for key, value in (options or {}).items():
        given = tuple(value) if isinstance(value, list) else value
        try:
            checked[key] = TypeAdapter(hints[key]).validate_python(given, strict=True)
        except ValidationError as error:
            wrong.append(_explain(key, error))
    if wrong:
        raise Refused(f"{name}: {'; '.join(wrong)}")
    return kind(**checked)


def _explain(option: str, error: ValidationError) -> str:
    """A validation error in one line: which option, what it was, what is legal."""
    parts = []
    for item in error.errors():
        where = ".".join([option, *(str(piece) for piece in item["loc"])])
        parts.append(
            f"{where}: {item['msg'][0].lower()}{item['msg'][1:]} (given: {item['input']!r})"
        )
    return "; ".join(parts)


def why_not(method: Any, anatomy: Anatomy) -> str | None:
    """Why a method cannot be used on a model, found before any data is read; None where it can.

    Example:
        >>> import modwright
        >>> anatomy = modwright.open("preset:tiny-llama").anatomy
        >>> why_not(make_method("llm_drop", {"n": 9}), anatomy)
        'llm_drop: n=9, but only 0 to 4 attention parts can go'
    """
    try:
        method.forecast(anatomy)
    except ModwrightError as refusal:
        return str(refusal)
    return None


def ready_for(name: str, model: PreTrainedModel) -> PreTrainedModel:
    """The model as a method's examples want it: after the method that must come before, if any.

    Where that one cannot be used the model is returned as it is.
    """
    before = method_type(name).after
    if before is None or why_not(make_method(*before), Anatomy.of(model)) is not None:
        return model
    return apply(model, make_method(*before), check=False).model


def plan(
    model: PreTrainedModel,
    method: Any,
    calibration: CalibrationData | None = None,
    *,
    directory: Path | None = None,
    progress: Progress = SILENT,
) -> Plan:
    """What a method would do to a model.

    Raises:
        Refused: the method needs calibration data and got none.
    """
    anatomy = Anatomy.of(model)
    if method.needs.calibration and calibration is None and method.wants_data():
        reads_text = anatomy.family.inputs().is_text
        what = "token windows" if reads_text else "pictures, as calibration.from_tensors takes them"
        raise Refused(f"{method.name} needs calibration data: pass {what}")
    found: Plan = method.plan(anatomy, calibration, directory=directory, progress=progress)
    return found


def apply(
    model: PreTrainedModel,
    what: Any,
    calibration: CalibrationData | None = None,
    *,
    check: bool = True,
    progress: Progress = SILENT,
) -> Applied:
    """Applies a plan, or plans with a method and applies that. The given model stays as it is.

    Example:
        >>> import modwright
        >>> from modwright.calibration.text import from_sequences
        >>> from modwright.surgery import make_method
        >>> model = modwright.open("preset:tiny-llama").model
        >>> data = from_sequences([torch.arange(1, 17)], pad_id=0)
        >>> method = make_method("llm_drop", {"target": "attention", "n": 1})
        >>> str(modwright.apply(model, method, data).accounting)
        '35 tensors kept, 0 changed, 0 added, 5 removed'
    """
    decided = what if isinstance(what, Plan) else plan(model, what, calibration, progress=progress)
    return apply_plan(model, decided, check=check)
