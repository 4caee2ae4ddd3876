"""What a method is, how it registers, and the one-line ways to use it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeVar, get_args, get_origin, get_type_hints

from pydantic import ConfigDict
from transformers import PreTrainedModel

from modwright.anatomy import Anatomy
from modwright.calibration import (
    CalibrationData,
    Collector,
    Statistics,
    calibrate,
    calibration_of,
)
from modwright.core.errors import InvalidInputError, ModwrightError, unknown_name
from modwright.core.options import make_options
from modwright.core.progress import SILENT, Progress
from modwright.core.registry import Registry
from modwright.edits import Applied, Change, Plan
from modwright.edits import apply as apply_plan
from modwright.edits.canonical import target_of

__all__ = ["METHODS", "Decision", "Method", "Requirements", "WithoutData"]
__all__ += ["after_prerequisite", "apply", "make_method", "method_names", "method_type"]
__all__ += ["plain_options", "plan", "register_method", "unsupported_reason"]

METHODS: Registry[type[Any]] = Registry("method", "modwright.surgery")

_M = TypeVar("_M")


@dataclass(frozen=True)
class Requirements:
    """What a method asks for before it can plan."""

    calibration: bool = False
    parts: tuple[str, ...] = ()


Data = CalibrationData | None
Folder = Path | None
Decision = tuple[Change, Mapping[str, Any], tuple[str, ...]]
"""What a method changes, why, and what the user should know."""


def plain_options(method: Any) -> dict[str, Any]:
    """The options of a method as a recipe writes them."""
    given = dataclasses.asdict(method)
    return {name: list(v) if isinstance(v, tuple) else v for name, v in given.items()}


class Method(Protocol):
    """A frozen dataclass of options that can plan. It names no family's modules."""

    name: ClassVar[str]
    paper: ClassVar[str | None]
    requires: ClassVar[Requirements]
    exact: ClassVar[bool]
    examples: ClassVar[tuple[Mapping[str, Any], ...]]
    after: ClassVar[tuple[str, Mapping[str, Any]] | None]

    def plan(
        self,
        anatomy: Anatomy,
        calibration: Data = None,
        *,
        directory: Folder = None,
        progress: Progress = SILENT,
    ) -> Plan:
        """Decides; reads the model and the data and changes neither.

        ``directory`` keeps statistics, so that a stopped run goes on.
        """
        return self._planned(anatomy, self._found(anatomy, calibration, directory, progress))

    def title(self) -> str:
        """The method with its options in a few words, for tables."""

    def wants_data(self) -> bool:
        """Whether these options need calibration data."""

    def collectors(self) -> Sequence[Collector]:
        """What it collects from the data, for estimates of memory and disk."""

    def parameter_bounds(self, anatomy: Anatomy) -> tuple[int, int]:
        """Between how many and how many parameters go, before any data is seen.

        Raises:
            InvalidInputError: whatever ``plan`` would refuse for the model's sake.
        """

    def _found(self, anatomy: Anatomy, data: Data, folder: Folder, progress: Progress) -> Decision:
        """What :meth:`plan` makes a plan of."""

    def _planned(self, anatomy: Anatomy, decision: Decision) -> Plan:
        change, reasons, notes = decision
        return Plan.of(anatomy, self.name, change, plain_options(self), reasons, notes)

    def _measured(
        self,
        anatomy: Anatomy,
        data: Data,
        folder: Folder,
        progress: Progress,
        label: str,
        collectors: Sequence[Collector] | None = None,
    ) -> Statistics:
        if data is None:
            raise InvalidInputError(f"{self.name} needs calibration data")
        wanted = self.collectors() if collectors is None else collectors
        return calibrate(anatomy, data, wanted, directory=folder, progress=progress, label=label)

    def _check_choices(self) -> None:
        """Refuses a word that is none of its option's ``Literal``."""
        for name, hint in get_type_hints(type(self)).items():
            if get_origin(hint) is Literal and getattr(self, name) not in get_args(hint):
                raise unknown_name(name, getattr(self, name), get_args(hint))


class WithoutData(Method):
    """What methods share that decide from the model alone."""

    def decide(self, anatomy: Anatomy, progress: Progress) -> Decision:
        """Reads the model and does not change it."""
        raise NotImplementedError

    def parameter_bounds(self, anatomy: Anatomy) -> tuple[int, int]:
        """Exactly what goes, less than nothing where the model grows."""
        edits = self.decide(anatomy, SILENT)[0].edits
        models = anatomy.model, target_of(anatomy, edits).skeleton()
        before, after = (sum(p.numel() for p in model.parameters()) for model in models)
        return before - after, before - after

    def _found(self, anatomy: Anatomy, data: Data, folder: Folder, progress: Progress) -> Decision:
        return self.decide(anatomy, progress)

    def wants_data(self) -> bool:
        return False

    def collectors(self) -> Sequence[Collector]:
        return ()


def register_method(
    name: str,
    *,
    requires: Requirements,
    paper: str | None = None,
    exact: bool = False,
    examples: Sequence[Mapping[str, Any]] = ({},),
    after: tuple[str, Mapping[str, Any]] | None = None,
) -> Callable[[type[_M]], type[_M]]:
    """Class decorator that makes a method known under ``name``.

    Args:
        name: as recipes and the command line call it.
        paper: slug in the catalogue; None for what no paper is needed for.
        exact: it keeps the function: outputs change by rounding alone.
        examples: options that change a model of four blocks, one set for each way of use. The table
            of what works where is made from them, and tests try each on every family.
        after: a method with its options that must have been used before, for one that undoes it or
            goes on from it; the examples are tried on its result.
    """

    def register(kind: type[_M]) -> type[_M]:
        if not dataclasses.is_dataclass(kind):
            raise TypeError(f"{kind.__name__} must be a dataclass")
        METHODS.add(name, kind)
        kind.name, kind.paper, kind.requires = name, paper, requires  # type: ignore[attr-defined]
        kind.exact, kind.after = exact, after  # type: ignore[attr-defined]
        kind.examples = tuple(dict(options) for options in examples)  # type: ignore[attr-defined]
        kind.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[attr-defined]
        return kind

    return register


method_names = METHODS.names
"""All methods, from inside the package and registered outside."""


def method_type(name: str) -> type[Any]:
    """The dataclass of a method; an unknown name is refused."""
    return METHODS[name]


def make_method(name: str, options: Mapping[str, Any] | None = None, **more: Any) -> Any:
    """A method with checked options, given as a mapping or by name.

    Raises:
        InvalidInputError: unknown method or option, or an invalid value; one line each.

    Example:
        >>> make_method("llm_drop", target="attention", n=4).title()
        'drop 4 attentions'
    """
    return make_options(method_type(name), name, {**(options or {}), **more})


def unsupported_reason(method: Any, anatomy: Anatomy) -> str | None:
    """Why a method cannot be used on a model, found before any data is read; None where it can.

    Example:
        >>> import modwright
        >>> anatomy = modwright.open("preset:tiny-llama").anatomy
        >>> unsupported_reason(make_method("llm_drop", {"n": 9}), anatomy)
        'llm_drop: n=9, but only 0 to 4 attention parts can go'
    """
    try:
        method.parameter_bounds(anatomy)
    except ModwrightError as refusal:
        return str(refusal)
    return None


def after_prerequisite(name: str, model: PreTrainedModel) -> PreTrainedModel:
    """The model after the method that must come before this one, if any and if it can be used."""
    before = method_type(name).after
    if before is None or unsupported_reason(make_method(*before), Anatomy.of(model)) is not None:
        return model
    return apply(model, make_method(*before), check=False).model


def plan(
    model: Any,
    method: Any,
    calibration: Any = None,
    *,
    directory: Path | None = None,
    progress: Progress = SILENT,
) -> Plan:
    """What a method, or the one of a name, would do to a model.

    Args:
        calibration: its data: token windows, token ids, or batches of tensors.
        directory: keeps statistics, so that a stopped run goes on.
        progress: told of long phases.

    Raises:
        InvalidInputError: it is no method, or needs calibration data and got none.
    """
    anatomy = Anatomy.of(model)
    method = make_method(method) if isinstance(method, str) else method
    if isinstance(method, type) or not callable(getattr(method, "plan", None)):
        raise InvalidInputError(
            f"expected a method, such as make_method('llm_drop', n=2), the name of one, a plan or "
            f"a change, not {method!r:.60}"
        )
    calibration = None if calibration is None else calibration_of(calibration)
    if method.requires.calibration and calibration is None and method.wants_data():
        reads_text = anatomy.family.inputs().is_text
        what = "token windows" if reads_text else "images, as calibration.from_tensors takes them"
        raise InvalidInputError(f"{method.name} needs calibration data: pass {what}")
    found: Plan = method.plan(anatomy, calibration, directory=directory, progress=progress)
    return found


def apply(
    model: Any,
    what: Any,
    calibration: Any = None,
    *,
    check: bool = True,
    progress: Progress = SILENT,
) -> Applied:
    """Applies a plan or a change, or plans with a method and applies that.

    Args:
        model: stays as it is; a model, or what `modwright.open` or `modwright.apply` returned.
        what: a plan, a change or a list of changes, a method, or the name of one.
        calibration: data of a method, as for :func:`plan`.

    Example:
        >>> import modwright
        >>> from modwright.data.text import from_sequences
        >>> data = from_sequences([torch.arange(1, 17)], pad_id=0)
        >>> method = make_method("llm_drop", target="attention", n=1)
        >>> str(modwright.apply(modwright.open("preset:tiny-llama"), method, data).tensor_diff)
        '35 tensors kept, 0 changed, 0 added, 5 removed'
    """
    if not isinstance(what, Plan | Change | list | tuple):
        what = plan(model, what, calibration, progress=progress)
    return apply_plan(model, what, check=check)
