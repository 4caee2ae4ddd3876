"""What was recorded over a training, in one file: every quantity at every recorded step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from modwright.core.errors import CheckpointError, reason
from modwright.core.files import write_file

__all__ = ["Trajectory"]

_STEPS = "steps"


@dataclass(frozen=True)
class Trajectory:
    """Quantities over the steps of a training.

    Attributes:
        steps: at which they were recorded, rising.
        values: name -> (n, ...), one entry for each step.

    Example:
        >>> import tempfile
        >>> one = Trajectory((0, 1), {"norm": torch.tensor([1.0, 2.0])})
        >>> one.save(Path(tempfile.mkdtemp(), "run.safetensors")).name
        'run.safetensors'
    """

    steps: tuple[int, ...] = ()
    values: Mapping[str, Tensor] = field(default_factory=dict)

    def extended(self, step: int, recorded: Mapping[str, Tensor]) -> Trajectory:
        """With what was recorded at one more step, in copies of its own on the CPU."""
        new = {name: value.detach().to("cpu", copy=True)[None] for name, value in recorded.items()}
        if self.steps:
            new = {name: torch.cat([self.values[name], value]) for name, value in new.items()}
        return Trajectory((*self.steps, step), new)

    def until(self, step: int) -> Trajectory:
        """What was recorded at a step and before."""
        kept = sum(one <= step for one in self.steps)
        return Trajectory(self.steps[:kept], {n: value[:kept] for n, value in self.values.items()})

    def save(self, file: Path) -> Path:
        """Writes one safetensors file, whole or not at all."""
        from safetensors.torch import save_file

        tensors = {n: value.contiguous() for n, value in self.values.items()}
        tensors[_STEPS] = torch.tensor(self.steps)
        return write_file(file, lambda partial: save_file(tensors, partial), kept_in=file.parent)

    @classmethod
    def load(cls, file: str | Path) -> Trajectory:
        """What :meth:`save` wrote.

        Raises:
            CheckpointError: the file cannot be read, or holds something else.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            values = load_file(file)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"cannot read {str(file)!r}: {reason(error)}") from None
        steps = values.pop(_STEPS, torch.empty(0, 0))
        if steps.dim() != 1 or any(len(v) != len(steps) for v in values.values() if v.dim()):
            raise CheckpointError(f"{str(file)!r} holds no trajectory")
        return cls(tuple(steps.tolist()), values)
