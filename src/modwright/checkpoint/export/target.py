"""What an export target is, and how it registers: a file here, or a class of the user's."""

from __future__ import annotations

import dataclasses
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from modwright.checkpoint.export.comparing import ParityReport
from modwright.checkpoint.opening import Checkpoint
from modwright.core.errors import InvalidInputError
from modwright.core.options import make_options
from modwright.core.progress import Progress
from modwright.core.registry import Registry

__all__ = [
    "TARGETS",
    "Target",
    "make_target",
    "register_target",
    "target_names",
    "target_type",
]


class Target(ABC):
    """One kind of file that a model can become. Subclasses are frozen dataclasses of options.

    Class attributes:
        name: as the command line calls it; set by :func:`register_target`.
        packages: what must be importable; the extra ``export`` brings it.
    """

    name: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def refusal(self, model: Any) -> str | None:
        """Why a model cannot become this; None where it can. Weights are not looked at."""

    @abstractmethod
    def write(self, work: Checkpoint, folder: Path, progress: Progress) -> None:
        """Writes the files into an empty folder."""

    @abstractmethod
    def compare(self, work: Checkpoint, folder: Path) -> ParityReport:
        """Opens what was written and compares its outputs with the live model's.

        Raises:
            VerificationError: it does not open, or computes something else.
        """

    @abstractmethod
    def opening(self, work: Checkpoint) -> str:
        """Python lines that open the result from its folder."""

    def holds(self, name: str) -> bool:
        """A file of the source that is not carried over, since the target has it inside."""
        return False

    def imports(self, folder: Path) -> tuple[str, ...]:
        """Packages beside torch and transformers that code in the folder imports."""
        return ()

    @classmethod
    def check_installed(cls) -> None:
        """Refuses when a package is missing.

        Raises:
            InvalidInputError: names the package and the extra that brings it.
        """
        missing = [name for name in cls.packages if importlib.util.find_spec(name) is None]
        if missing:
            raise InvalidInputError(
                f"target {cls.name!r} needs {', '.join(missing)}, which is not installed here: "
                "pip install 'modwright[export]'"
            )


_T = TypeVar("_T", bound=type[Target])
TARGETS: Registry[type[Target]] = Registry("target", __package__, prefix="to_")


def register_target(name: str) -> Callable[[_T], _T]:
    """Class decorator that makes a target known under ``name``."""

    def register(kind: _T) -> _T:
        if not dataclasses.is_dataclass(kind):
            raise TypeError(f"{kind.__name__} must be a dataclass")
        TARGETS.add(name, kind)
        kind.name = name
        return kind

    return register


def target_names() -> list[str]:
    """All targets, from inside the package and registered outside.

    Example:
        >>> target_names()
        ['gguf', 'onnx', 'plain', 'pt2', 'standalone']
    """
    return TARGETS.names()


def target_type(name: str) -> type[Target]:
    """The class of a target.

    Raises:
        InvalidInputError: unknown name; the message lists all and the nearest.
    """
    return TARGETS[name]


def make_target(name: str, options: Mapping[str, Any] | None = None) -> Target:
    """A target with checked options; text stands for numbers and booleans.

    Raises:
        InvalidInputError: unknown target or option, or an invalid value; one line each.

    Example:
        >>> make_target("gguf", {"type": "q8_0"})
        Gguf(type='q8_0')
    """
    return make_options(TARGETS[name], name, options, strict=False)
