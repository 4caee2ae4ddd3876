"""A checkpoint of the stock architecture, where the model is one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modwright.checkpoint.export.autoclasses import auto_classes
from modwright.checkpoint.export.comparing import ParityReport
from modwright.checkpoint.export.differences import differences
from modwright.checkpoint.export.export_job import ExportJob
from modwright.checkpoint.export.target import Target, register_target
from modwright.core.progress import Progress

__all__ = ["Plain"]


@register_target("plain")
@dataclass(frozen=True)
class Plain(Target):
    """A stock checkpoint: every tool that takes the base family takes it.

    Only for a model that needs no edits: whole blocks gone, widths that all layers share.
    """

    def refusal(self, model: Any) -> str | None:
        if not auto_classes(model):
            return f"no Auto class of transformers builds a {type(model).__name__}"
        found = differences(model)
        if not found:
            return None
        return (
            f"layers differ from the stock architecture ({'; '.join(found)}); "
            "--to standalone writes a checkpoint that loads without modwright"
        )

    def write(self, work: ExportJob, folder: Path, progress: Progress) -> None:
        from modwright.checkpoint.saving import save

        save(work.model, folder)

    def compare(self, work: ExportJob, folder: Path) -> ParityReport:
        from modwright.checkpoint.export.subprocess_check import compare_in_new_process

        return compare_in_new_process(work, folder, next(iter(auto_classes(work.model))))

    def opening(self, work: ExportJob) -> str:
        auto = next(iter(auto_classes(work.model)))
        return f'from transformers import {auto}\n\nmodel = {auto}.from_pretrained(".")'
