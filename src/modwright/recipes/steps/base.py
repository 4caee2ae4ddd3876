"""What a kind of step is: read from a recipe once, checked before any work, then run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from modwright.anatomy import Anatomy
from modwright.calibration import TensorBatches, TokenWindows
from modwright.checkpoint import Checkpoint
from modwright.core.errors import InvalidInputError
from modwright.core.progress import SILENT, Progress
from modwright.core.registry import Registry
from modwright.data import Data
from modwright.surgery.method import Requirements

__all__ = ["STEPS", "StepContext", "StepKind", "StepOutcome", "step_kind"]

STEPS: Registry[type[StepKind]] = Registry("kind of step", "modwright.recipes.steps")
K = TypeVar("K", bound="type[StepKind]")


def step_kind(name: str) -> Callable[[K], K]:
    """Decorator that makes a kind of step known by the key of a recipe that holds its options."""
    return STEPS.register(name)


@dataclass(frozen=True)
class StepContext:
    """What a step works with.

    Attributes:
        opened: what the recipe opened, whatever steps came before: the teacher ``source``.
        model: as the steps before left it; it may share tensors with the source.
        directory: for what is to be found again when a run that was stopped goes on.
        windows: calibration data, where the step wants some.
        seed: of the recipe.
        source_blocks: which block of the baseline each block is; None outside the main process.
    """

    opened: Checkpoint
    model: Any
    directory: Path
    windows: TokenWindows | TensorBatches | None = None
    seed: int = 0
    source_blocks: list[int | None] | None = None
    progress: Progress = SILENT
    log: Callable[[str], None] = lambda message: None


@dataclass(frozen=True)
class StepOutcome:
    """The model that came out, and what a report holds of the step beside what is measured."""

    model: Any
    info: dict[str, Any] = field(default_factory=dict)


class StepKind:
    """Base of kinds of step but methods; it looks at no calibration data and removes nothing."""

    requires: ClassVar[Requirements] = Requirements()

    @classmethod
    def of(cls, given: Any) -> StepKind:
        """From what stands behind the key in a recipe.

        Raises:
            InvalidInputError: an unknown key or an invalid value.
        """
        raise NotImplementedError

    @classmethod
    def schema(cls) -> dict[str, Any]:
        """What may stand behind the key, as JSON Schema."""
        return {}

    def title(self) -> str:
        """What is done, for people."""
        raise NotImplementedError

    def resolved(self) -> Any:
        """What stands behind the key, with every default written out."""
        raise NotImplementedError

    def digest(self, opened: Checkpoint) -> str | None:
        """Of what it reads; what could not be done later is refused."""
        return None

    def images(self, opened: Checkpoint) -> Data | None:
        """What it learns from, where the model is one of images."""
        return None

    def run(self, context: StepContext) -> StepOutcome:
        """Does it, in every process."""
        raise NotImplementedError

    def wants_data(self) -> bool:
        return False

    def collectors(self) -> tuple[Any, ...]:
        return ()

    def parameter_bounds(self, anatomy: Anatomy) -> tuple[int, int]:
        return 0, 0

    def memory_estimate(self, anatomy: Anatomy) -> tuple[int, int]:
        """Most bytes of its work, and of new values, beside the weights."""
        return 0, 0


def options_in(given: Any, key: str) -> dict[str, Any]:
    """The mapping behind a key; nothing stands for an empty one."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise InvalidInputError(f"{key}: must be a mapping of options, not {given!r}")
    return dict(given)
