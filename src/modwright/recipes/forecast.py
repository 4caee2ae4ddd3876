"""What a recipe would do and need, before any data is read. Writes nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modwright.anatomy import Anatomy
from modwright.calibration import forecast_bytes
from modwright.checkpoint import available_bytes, require_memory, weights_bytes
from modwright.core.errors import InvalidInputError, ModwrightError
from modwright.core.files import require_space
from modwright.cost import activation_bytes, kv_cache_bytes
from modwright.recipes.load import resolved
from modwright.recipes.schema import Evaluate, Recipe

__all__ = ["Forecast", "StepForecast", "forecast", "require_room"]

# A forward pass holds about this many times what it cannot do without.
_TEMPORARIES = 2
# Logits are compared in slices of this many bytes, which stand up to three times.
_SLICE = 1 << 25


@dataclass(frozen=True)
class StepForecast:
    """One step: what it is, the parameters that will be left, and what it needs.

    Attributes:
        parameters: between how many will be left.
        calibration_tokens: how many tokens it looks at.
        phases: bytes beside the source's weights: "calibrate", "plan", "apply", "measure", and
            "reopen" for the new process that opens the result.
        memory: bytes of the weights and of the phase that needs most.
        disk: bytes of statistics and streams, and of the states before and after it.
    """

    title: str
    method: str
    parameters: tuple[int, int]
    calibration_tokens: int
    phases: dict[str, int]
    memory: int
    disk: int


@dataclass(frozen=True)
class Forecast:
    """All steps of a recipe.

    Sizes are bytes. ``memory`` of a step counts the weights and what stands beside them in the
    phase that needs most; ``available`` is what the machine has free beside the weights. Python
    and its libraries are not counted: they are there already.
    """

    model: str
    parameters: int
    weights: int
    available: int
    output: int
    steps: tuple[StepForecast, ...]
    recipe: dict[str, Any] = field(repr=False, default_factory=dict)

    @property
    def peak(self) -> int:
        """Most memory that any step needs."""
        return max((step.memory for step in self.steps), default=self.weights)

    @property
    def disk(self) -> int:
        """Most room on disk, before the last state makes way for the output."""
        return max([*(step.disk for step in self.steps), 2 * self.output])

    @property
    def fits(self) -> bool:
        """Whether what is needed beside the weights is there."""
        return self.peak - self.weights <= self.available

    def hungriest(self) -> tuple[str, str]:
        """The step and the phase that need most."""
        step = max(self.steps, key=lambda one: one.memory)
        return step.title, max(step.phases, key=step.phases.__getitem__)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "model": self.model,
            "parameters": self.parameters,
            "weights_bytes": self.weights,
            "available_bytes": self.available,
            "peak_bytes": self.peak,
            "disk_bytes": self.disk,
            "output_bytes": self.output,
            "steps": [vars(step) | {"parameters": list(step.parameters)} for step in self.steps],
            "recipe": self.recipe,
        }


def forecast(recipe: Recipe, model: Any, name: str, *, processes: int = 1) -> Forecast:
    """What each step will leave and need.

    Later steps are reckoned on the model as it is now, less what earlier ones may have taken.

    Args:
        recipe: what to do.
        model: it begins with this one.
        name: what to call the model.
        processes: how many run side by side on this machine, each with a model of its own.

    Raises:
        InvalidInputError: a step that cannot be done on this model.
    """
    anatomy = Anatomy.of(model)
    weights = weights_bytes(model)
    item = weights / max(anatomy.num_parameters, 1)
    low = high = anatomy.num_parameters
    measuring = _measuring(anatomy, recipe.evaluate)
    carried = kept = 0  # new values of earlier steps, and the state on disk
    steps = []
    for index, step in enumerate(recipe.steps):
        method = step.built
        try:
            fewest, most = method.parameter_bounds(anatomy)
        except ModwrightError as error:
            raise InvalidInputError(f"steps.{index}: {error}") from error
        # Of what earlier steps have taken nothing more can go.
        fewest = max(0, fewest - (anatomy.num_parameters - low))
        low, high = max(0, low - most), high - fewest
        data = step.calibration or recipe.calibration
        tokens = data.windows * data.length if method.wants_data() else 0
        walk = (
            forecast_bytes(
                anatomy, tokens, method.collectors(), batch=data.batch_size, length=data.length
            )
            if tokens
            else {}
        )
        new_weights = int(high * item)
        solve, values = _planning(method, anatomy, new_weights)
        written = min(values, new_weights)
        phases = {
            "calibrate": processes
            * (carried + walk.get("statistics", 0) + walk.get("activations", 0))
            + walk.get("streams", 0)
            + walk.get("entry", 0),
            "plan": processes * (carried + solve + values),
            "apply": processes * (carried + values + written),
            "measure": processes * (carried + values + written) + measuring,
            "reopen": processes * (carried + values + written) + new_weights,
        }
        steps.append(
            StepForecast(
                title=method.title(),
                method=step.method,
                parameters=(low, high),
                calibration_tokens=tokens,
                phases=phases,
                memory=weights + max(phases.values()),
                disk=kept + walk.get("disk", 0) + new_weights,
            )
        )
        carried += written
        kept = new_weights
    return Forecast(
        model=name,
        parameters=anatomy.num_parameters,
        weights=weights,
        available=available_bytes(),
        output=kept,
        steps=tuple(steps),
        recipe=resolved(recipe),
    )


def require_room(expected: Forecast, place: Path) -> int:
    """Refuses a recipe that the machine has no memory or the disk no room for.

    Returns:
        Bytes that are free on the disk of ``place``.

    Raises:
        InvalidInputError: too little memory.
        CheckpointError: too little room on the disk of ``place``.
    """
    step, phase = expected.hungriest()
    require_memory(
        expected.peak - expected.weights,
        f"this recipe, beside the weights, in {step!r} ({phase}),",
    )
    there = place.resolve()
    while not there.exists():
        there = there.parent
    return require_space(there, expected.disk, f"this recipe, into {str(place)!r},")


def _planning(method: Any, anatomy: Anatomy, new_weights: int) -> tuple[int, int]:
    """Bytes of the work of planning, and of the new values; a method may know them better."""
    info = getattr(method, "memory_estimate", None)
    found: tuple[int, int] = (0, new_weights) if info is None else info(anatomy)
    return found


def _measuring(anatomy: Anatomy, evaluate: Evaluate) -> int:
    """Bytes of the activations of the longest forward pass that is measured."""
    sizes = [0]
    quality, speed, sample = evaluate.perplexity, evaluate.speed, evaluate.generate
    if quality is not None:
        rows, length = quality.batch_size, quality.length
        logits = 4 * length * int(getattr(anatomy.config, "vocab_size", None) or 0)
        forward = _TEMPORARIES * activation_bytes(anatomy, length, rows)
        sizes.append(forward + 3 * min(_SLICE, logits))
    if speed is not None:
        length = speed.prompt + speed.new_tokens
        cache = kv_cache_bytes(anatomy, length, speed.batch)
        sizes.append(_TEMPORARIES * activation_bytes(anatomy, speed.prompt, speed.batch) + cache)
    if sample is not None:
        sizes.append(kv_cache_bytes(anatomy, sample.max_new_tokens + 64))
    return max(sizes)
