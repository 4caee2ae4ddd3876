"""What a recipe would do and need, before any data is read. Writes nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from modwright.anatomy import Anatomy
from modwright.calibration import forecast_bytes
from modwright.checkpoint import available_bytes, weights_bytes
from modwright.errors import ModwrightError, Refused
from modwright.recipes.load import resolved
from modwright.recipes.schema import Recipe
from modwright.surgery import make_method

__all__ = ["Forecast", "StepForecast", "forecast"]


@dataclass(frozen=True)
class StepForecast:
    """One step: what it is, the parameters that will be left, and what it needs."""

    title: str
    method: str
    parameters: tuple[int, int]
    calibration_tokens: int
    memory: int
    disk: int


@dataclass(frozen=True)
class Forecast:
    """All steps of a recipe.

    Sizes are bytes. ``memory`` of a step counts the weights, one block's statistics and the streams
    at one boundary; ``available`` is what the machine has free beside the weights.
    """

    model: str
    parameters: int
    weights: int
    available: int
    steps: tuple[StepForecast, ...]
    recipe: dict[str, Any] = field(repr=False, default_factory=dict)

    @property
    def peak(self) -> int:
        """Most memory that any step needs."""
        return max((step.memory for step in self.steps), default=self.weights)

    @property
    def fits(self) -> bool:
        """Whether what is needed beside the weights is there."""
        return self.peak - self.weights <= self.available

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "model": self.model,
            "parameters": self.parameters,
            "weights_bytes": self.weights,
            "available_bytes": self.available,
            "peak_bytes": self.peak,
            "steps": [vars(step) | {"parameters": list(step.parameters)} for step in self.steps],
            "recipe": self.recipe,
        }


def forecast(recipe: Recipe, model: Any, name: str) -> Forecast:
    """What each step will leave and need.

    Later steps are reckoned on the model as it is now, less what earlier ones may have taken.

    Raises:
        Refused: a step that cannot be done on this model.
    """
    anatomy = Anatomy.of(model)
    weights = weights_bytes(model)
    item = weights / max(anatomy.num_parameters, 1)
    low = high = anatomy.num_parameters
    steps = []
    for index, step in enumerate(recipe.steps):
        method = make_method(step.method, step.options)
        try:
            fewest, most = method.forecast(anatomy)
        except ModwrightError as error:
            raise Refused(f"steps.{index}: {error}") from error
        # Of what earlier steps have taken nothing more can go.
        fewest = max(0, fewest - (anatomy.num_parameters - low))
        low, high = max(0, low - most), high - fewest
        data = step.calibration or recipe.calibration
        tokens = data.windows * data.length if method.wants_data() else 0
        needs = forecast_bytes(anatomy, tokens, method.collectors()) if tokens else {}
        # The edited model stands beside the source, at most whole: what it keeps is shared.
        new_weights = int(high * item)
        steps.append(
            StepForecast(
                title=method.title(),
                method=step.method,
                parameters=(low, high),
                calibration_tokens=tokens,
                memory=weights
                + max(needs.get("statistics", 0) + needs.get("streams", 0), new_weights),
                disk=needs.get("disk", 0) + int(high * item),
            )
        )
    return Forecast(
        model=name,
        parameters=anatomy.num_parameters,
        weights=weights,
        available=available_bytes(),
        steps=tuple(steps),
        recipe=resolved(recipe),
    )
