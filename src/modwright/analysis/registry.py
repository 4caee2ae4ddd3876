"""The registry of analyses: what looks into a model, with all that pages and commands say of it.

An analysis is a frozen dataclass of options that can run, and registers where it is defined.
``modwright analyze``, reports and the tables of the docs take everything from here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

from modwright.analysis.finding import Finding
from modwright.anatomy import Anatomy
from modwright.calibration import CalibrationData, calibration_of
from modwright.checkpoint import open as open_checkpoint
from modwright.core.errors import CheckpointError, InvalidInputError
from modwright.core.options import make_options
from modwright.core.progress import SILENT, Progress
from modwright.core.reading import read_json
from modwright.core.registry import Registry

__all__ = ["ANALYSES", "Analysis", "FileAnalysis", "Subject", "analysis", "analyze"]
__all__ += ["load_finding", "make_analysis"]

ANALYSES: Registry[type[Analysis]] = Registry("analysis", "modwright.analysis")

A = TypeVar("A", bound="type[Analysis]")


@dataclass(frozen=True)
class Subject:
    """What is looked at.

    Attributes:
        model: in transformers' terms; None where a file is read.
        data: batches that the model runs over; None where none are needed.
        tokenizer: the model's own; None where it has none.
        name: what messages call it.
        file: what is read in place of a model.
    """

    model: Any = None
    data: CalibrationData | None = None
    tokenizer: Any = None
    name: str = "the model"
    file: Path | None = None

    @property
    def anatomy(self) -> Anatomy:
        """The model as typed parts."""
        return Anatomy.of(self.model)


class Analysis:
    """Base of analyses of a model: a frozen dataclass of options, made by :func:`make_analysis`.

    Attributes:
        name, finding, value, null, paper, examples: as :func:`analysis` takes them.
        needs_data: the model runs over batches of text or images.
    """

    name: ClassVar[str] = ""
    finding: ClassVar[type[Finding]] = Finding
    value: ClassVar[str] = ""
    null: ClassVar[str] = ""
    paper: ClassVar[str | None] = None
    examples: ClassVar[tuple[Mapping[str, Any], ...]] = ({},)
    needs_data: ClassVar[bool] = True

    @classmethod
    def open(cls, source: str, **options: Any) -> Subject:
        """What a command names, opened; ``options`` as of :func:`modwright.open`."""
        opened = open_checkpoint(source, **options)
        return Subject(opened.model, tokenizer=opened.tokenizer, name=opened.source.name)

    def unsupported(self, subject: Subject) -> str | None:
        """Why it cannot be done, in a few words after "it"; None where it can."""
        return None

    def run(
        self, subject: Subject, *, directory: Path | None = None, progress: Progress = SILENT
    ) -> Finding:
        """Looks, and leaves the model bit-equal.

        Args:
            subject: one that :meth:`unsupported` has nothing against, with data where it is needed.
            directory: keeps what takes long, so that a stopped analysis goes on.
            progress: told of long phases.
        """
        raise NotImplementedError


class FileAnalysis(Analysis):
    """Base of analyses of a file, such as one that a training recorded."""

    needs_data = False

    @classmethod
    def open(cls, source: str, **options: Any) -> Subject:
        """The file.

        Raises:
            CheckpointError: there is none.
        """
        file = Path(source)
        if not file.exists():
            raise CheckpointError(f"there is no file {source!r}")
        return Subject(name=file.name, file=file)


def analysis(
    name: str,
    *,
    finding: type[Finding],
    value: str,
    null: str,
    paper: str | None = None,
    examples: Sequence[Mapping[str, Any]] = ({},),
) -> Callable[[A], A]:
    """Decorator that registers an analysis, a subclass of :class:`Analysis` and frozen dataclass.

    Args:
        name: as the command line calls it.
        finding: what it gives.
        value: what the number of a finding is, in words.
        null: what the number would be at most if there were nothing to find, in words.
        paper: slug in the catalogue; None for what no paper is needed for.
        examples: options that tests try on every tiny model.

    Raises:
        ValueError: it is no frozen dataclass, or derives from something else.
        InvalidInputError: the name is taken.

    Example:
        >>> from modwright.core.registry import registries_restored
        >>> with registries_restored():
        ...     @analysis("dead_rows", finding=Finding, value="rows of zeros", null="none")
        ...     @dataclass(frozen=True)
        ...     class DeadRows(Analysis):
        ...         needs_data = False
        ...         def run(self, subject, *, directory=None, progress=SILENT):
        ...             rows = [p.detach().abs().sum(1) for p in subject.model.parameters()
        ...                     if p.dim() == 2]
        ...             return Finding(value=float(sum((r == 0).sum() for r in rows)), null=0.0)
        ...     found = analyze("preset:tiny-opt", "dead_rows")
        >>> found.value, found.found  # the embedding of the padding token
        (1.0, True)
    """

    def register(cls: A) -> A:
        parameters = getattr(cls, "__dataclass_params__", None)
        if not issubclass(cls, Analysis) or parameters is None or not parameters.frozen:
            raise ValueError(f"analysis {name!r} is a frozen dataclass that derives from Analysis")
        cls.name, cls.finding, cls.value, cls.null, cls.paper = name, finding, value, null, paper
        cls.examples = tuple(dict(options) for options in examples)
        ANALYSES.add(name, cls)
        return cls

    return register


def make_analysis(name: str, options: Mapping[str, Any] | None = None) -> Analysis:
    """An analysis with its options, checked by their types.

    Raises:
        InvalidInputError: an unknown analysis or option, or an invalid value.
    """
    return make_options(ANALYSES[name], f"analysis {name}", options)


def analyze(
    subject: Any,
    what: str | Analysis,
    data: Any = None,
    *,
    directory: Path | None = None,
    progress: Progress = SILENT,
    **options: Any,
) -> Finding:
    """Looks into a model, or reads a file, and says what was found beside what nothing would give.

    Args:
        subject: a model, what ``modwright.open`` returned or takes, a file that a training
            recorded, or a :class:`Subject`; a model stays bit-equal.
        what: the name of an analysis, whose ``options`` follow, or one that was made.
        data: what the model runs over: token windows, token ids, or batches of tensors.
        directory: keeps what takes long, so that a stopped analysis goes on.
        progress: told of long phases.

    Raises:
        InvalidInputError: an unknown name or option, a model without what is looked for, or no
            data where it is needed.

    Example:
        >>> found = analyze("preset:tiny-gpt2", "stream_mean", [list(range(1, 21))])
        >>> found.found, found.recipe["analysis"], found.from_dict(found.to_dict()) == found
        (False, 'stream_mean', True)
    """
    asked = make_analysis(what, options) if isinstance(what, str) else what
    if isinstance(subject, str | Path):
        subject = asked.open(str(subject))
    elif not isinstance(subject, Subject):
        subject = Subject(Anatomy.of(subject).model)
    if data is not None:
        subject = dataclasses.replace(subject, data=calibration_of(data))
    if (reason := asked.unsupported(subject)) is not None:
        raise InvalidInputError(f"{asked.name}: {subject.name} {reason}")
    if asked.needs_data and subject.data is None:
        raise InvalidInputError(f"{asked.name} runs the model over data: pass token windows")
    found = asked.run(subject, directory=directory, progress=progress)
    recipe = {
        "analysis": asked.name,
        "options": dataclasses.asdict(cast(Any, asked)),
        "subject": subject.name,
    }
    if subject.data is not None:
        recipe["data"] = subject.data.recipe
    return dataclasses.replace(found, recipe={**recipe, **found.recipe})


def load_finding(path: str | Path) -> Finding:
    """A finding of a finding.json, or of the directory that holds one.

    Raises:
        CheckpointError: there is no readable finding.
    """
    file = Path(path) / "finding.json" if Path(path).is_dir() else Path(path)
    stored = read_json(file)
    name = stored.get("recipe", {}).get("analysis") if isinstance(stored, dict) else None
    if not isinstance(name, str):
        raise CheckpointError(f"{str(file)!r} holds no finding")
    return ANALYSES[name].finding.from_dict(stored)
