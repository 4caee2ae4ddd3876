"""What a recipe would do and need, before any data is read. Writes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modwright.anatomy import Anatomy, Block
from modwright.calibration import Collector
from modwright.checkpoint import available_bytes, require_memory, weights_bytes
from modwright.core.compat.transformers import attention_implementation
from modwright.core.errors import InvalidInputError, ModwrightError
from modwright.core.files import require_space
from modwright.recipes.load import resolved
from modwright.recipes.schema import Evaluate, Recipe

__all__ = [
    "ResourceEstimate",
    "StepEstimate",
    "estimate_bytes",
    "estimate_resources",
    "require_room",
]


@dataclass(frozen=True)
class StepEstimate:
    """One step: what it is, the parameters that will be left, and what it needs; sizes are bytes.

    ``phases`` are "calibrate", "plan", "apply", "measure", and "reopen" for the new process that
    opens the result, each beside the source's weights.
    """

    title: str
    method: str
    parameters: tuple[int, int]  # between how many will be left
    calibration_tokens: int
    phases: dict[str, int]
    memory: int  # of the weights and of the phase that needs most
    disk: int  # of statistics and streams, and of the states before and after it


@dataclass(frozen=True)
class ResourceEstimate:
    """All steps of a recipe; sizes are bytes.

    ``available`` is what the machine has free beside the weights. Python and its libraries are not
    counted: they are there already.
    """

    model: str
    parameters: int
    weights: int
    available: int
    output: int
    steps: tuple[StepEstimate, ...]
    recipe: dict[str, Any] = field(repr=False, default_factory=dict)

    @property
    def peak(self) -> int:
        """Most memory that any step needs."""
        return max(step.memory for step in self.steps)

    @property
    def disk(self) -> int:
        """Most room on disk, before the last state makes way for the output."""
        return max([*(step.disk for step in self.steps), 2 * self.output])

    @property
    def fits(self) -> bool:
        """Whether what is needed beside the weights is there."""
        return self.peak - self.weights <= self.available

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


def estimate_resources(
    recipe: Recipe, model: Any, name: str, *, processes: int = 1
) -> ResourceEstimate:
    """What each step will leave and need.

    Later steps are reckoned on the model as it is now, less what earlier ones may have taken.
    ``processes`` run side by side on this machine, each with a model of its own.

    Raises:
        InvalidInputError: a step that cannot be done on this model.
    """
    anatomy = Anatomy.of(model)
    weights, before = weights_bytes(model), anatomy.num_parameters
    item = weights / max(before, 1)
    low = high = before
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
        low, high = max(0, low - most), high - max(0, fewest - (before - low))
        new_weights = int(high * item)
        data = step.calibration or recipe.calibration
        tokens = data.windows * data.length if method.wants_data() else 0
        walk = dict.fromkeys(("statistics", "streams", "activations", "entry", "disk"), 0)
        if tokens:
            batch = {"batch": data.batch_size, "length": data.length}
            walk = estimate_bytes(anatomy, tokens, method.collectors(), **batch)
        # A method may know the work of planning and its new values better.
        info = getattr(method, "memory_estimate", None)
        solve, values = (0, new_weights) if info is None else info(anatomy)
        written = min(values, new_weights)
        changed = processes * (carried + values + written)
        phases = {
            "calibrate": processes * (carried + walk["statistics"] + walk["activations"])
            + walk["streams"]
            + walk["entry"],
            "plan": processes * (carried + solve + values),
            "apply": changed,
            "measure": changed + measuring,
            "reopen": changed + new_weights,
        }
        steps.append(
            StepEstimate(
                title=method.title(),
                method=step.method,
                parameters=(low, high),
                calibration_tokens=tokens,
                phases=phases,
                memory=weights + max(phases.values()),
                disk=kept + walk["disk"] + new_weights,
            )
        )
        carried += written
        kept = new_weights
    return ResourceEstimate(
        name, before, weights, available_bytes(), kept, tuple(steps), resolved(recipe)
    )


def require_room(expected: ResourceEstimate, place: Path) -> int:
    """Bytes that are free on the disk of ``place``; too few, or too little memory, are refused."""
    step = max(expected.steps, key=lambda one: one.memory)
    phase = max(step.phases, key=step.phases.__getitem__)
    require_memory(
        expected.peak - expected.weights,
        f"this recipe, beside the weights, in {step.title!r} ({phase}),",
    )
    there = place.resolve()
    while not there.exists():
        there = there.parent
    return require_space(there, expected.disk, f"this recipe, into {str(place)!r},")


def _measuring(anatomy: Anatomy, evaluate: Evaluate) -> int:
    """Bytes of the activations of the longest forward pass that is measured."""
    return max([0, *(metric.memory_estimate(anatomy) for metric in evaluate.built.values())])


def estimate_bytes(
    anatomy: Anatomy,
    tokens: int,
    collectors: Sequence[Collector],
    *,
    batch: int = 0,
    length: int = 0,
) -> dict[str, int]:
    """What a calibration on ``tokens`` needs beside the weights: memory for one block, and disk.

    A batch has ``batch`` rows of ``length`` tokens; 0 leaves the activations out.

    Returns:
        "statistics" (memory, largest block), "streams" (mapped from disk), "activations" (memory,
        one batch in one block), "entry" (memory, the streams that enter block 0 before they are
        written), "disk" (all files).
    """
    stored = [sum(c.bytes(block) for c in collectors) for block in anatomy.blocks]
    history = max((c.history for c in collectors), default=1)
    stream = tokens * anatomy.hidden_size * next(anatomy.model.parameters()).element_size()
    return {
        # Beside the sums stand pieces of one batch's products, and what the block passes on.
        "statistics": max(stored, default=0) * 3 // 2,
        "streams": stream * (history + 1),
        "activations": batch
        * length
        * max(_activations(anatomy, block, length) for block in anatomy.blocks),
        "entry": stream,
        "disk": sum(stored) + stream * (history + 1),
    }


def _activations(anatomy: Anatomy, block: Block, length: int) -> int:
    """Bytes per token while a block runs on rows of ``length`` and its hook points are read.

    The stream before and after, its copies for the norm, the sublayers and the cosines (8 d, in
    float32 where they are compared), queries, keys, values and the mix, three times I in the MLP
    and once more in float32; with eager attention H t scores, twice.
    """
    numbers, singles = 8 * anatomy.hidden_size, 4 * anatomy.hidden_size
    if block.attention is not None:
        shape = block.attention.shape
        heads = shape.num_heads + shape.num_kv_heads
        numbers += heads * (shape.qk_head_dim + shape.v_head_dim)
        if attention_implementation(anatomy.config) == "eager":
            singles += 2 * shape.num_heads * length
    if block.mlp is not None:
        numbers += 3 * block.mlp.intermediate_size
        singles += block.mlp.intermediate_size
    return numbers * next(anatomy.model.parameters()).element_size() + singles * 4
