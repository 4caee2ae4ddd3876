"""A step that writes the result for other programs, too, into a folder of the output."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modwright.checkpoint import Checkpoint
from modwright.checkpoint.export import export, make_target, target_names
from modwright.core.errors import InvalidInputError
from modwright.core.progress import SILENT, Progress
from modwright.recipes.steps.base import StepContext, StepKind, StepOutcome, options_in, step_kind

__all__ = ["ExportStep"]


@step_kind("export")
@dataclass(frozen=True)
class ExportStep(StepKind):
    """An export: ``standalone``, or ``{gguf: {type: q8_0}}``. It stands behind all other steps.

    Attributes:
        target: its name, and the name of the folder.
        options: of the target.
    """

    target: str
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, given: Any) -> ExportStep:
        named = {given: {}} if isinstance(given, str) else options_in(given, "export")
        if len(named) != 1:
            raise InvalidInputError(f"export: names one of {', '.join(target_names())}")
        ((target, options),) = named.items()
        found = options_in(options, f"export.{target}")
        make_target(target, found).check_installed()
        return cls(target, found)

    @classmethod
    def schema(cls) -> dict[str, Any]:
        options = {"anyOf": [{"type": "object"}, {"type": "null"}]}
        closed = {"type": "object", "additionalProperties": False}
        named = [
            {**closed, "properties": {name: options}, "required": [name]} for name in target_names()
        ]
        return {"anyOf": [{"enum": target_names()}, *named]}

    def title(self) -> str:
        return f"export to {self.target}"

    def resolved(self) -> dict[str, Any]:
        return {self.target: self.options}

    def run(self, context: StepContext) -> StepOutcome:
        return StepOutcome(context.model)

    def write(self, result: Checkpoint, folder: Path, progress: Progress = SILENT) -> str:
        """Exports the result into a folder beside it; what was compared, in a sentence."""
        target = make_target(self.target, self.options)
        return str(export(result, folder / self.target, target, progress=progress))
