"""A step of surgery: a method plans on the model, and the plan is applied and verified."""

from __future__ import annotations

import time
from typing import Any

from modwright.anatomy import Anatomy
from modwright.core import distributed
from modwright.core.errors import VerificationError
from modwright.edits import Plan
from modwright.edits import apply as apply_plan
from modwright.edits.canonical import target_of
from modwright.recipes.steps.base import StepContext, StepOutcome

__all__ = ["run_method"]


def run_method(method: Any, context: StepContext) -> StepOutcome:
    """Plans and applies, in every process; all of them plan the same.

    Raises:
        VerificationError: they did not, or the result is not what was planned.
    """
    start = time.monotonic()
    plan = _plan(method, context)
    planned = time.monotonic()
    with context.progress.phase("apply and verify", 1) as task:
        applied = apply_plan(context.model, plan)
        task.advance()
    seconds = {"plan": planned - start, "apply and verify": time.monotonic() - planned}
    counted = ["kept", "changed", "added", "removed"]
    notes = list(plan.notes)
    if plan.masks:
        counted.append("masked")
        zeros = sum(int((~keep).sum()) for keep in plan.masks.values())
        notes.append(f"{zeros:,} numbers are masked: zero, and stored and computed as before.")
    blocks = target_of(Anatomy.of(context.model), plan.edits).blocks
    before = context.source_blocks
    info = {
        "options": dict(plan.options),
        "seconds": seconds,
        "source_blocks": [] if before is None else [before[index] for index in blocks],
        "reasons": dict(plan.reasons),
        "notes": notes,
        "accounting": {name: len(getattr(applied.tensor_diff, name)) for name in counted},
        "plain": applied.plain,
    }
    return StepOutcome(applied.model, info)


def _plan(method: Any, context: StepContext) -> Plan:
    if context.windows is not None:
        context.log(f"calibration: {context.windows.describe()}")
    plan: Plan = method.plan(
        Anatomy.of(context.model),
        context.windows,
        directory=context.directory,
        progress=context.progress,
    )
    edits = [edit.to_dict() for edit in plan.edits]
    if any(others != edits for others in distributed.all_gather(edits)):
        raise VerificationError(
            f"{method.title()}: the processes planned differently from the same statistics; "
            "give them the same machine, packages and threads"
        )
    return plan
