"""A program of ``torch.export``: one file that torch alone loads and runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from modwright.checkpoint.export.comparing import TRACED, probe
from modwright.checkpoint.export.export_job import ExportJob
from modwright.checkpoint.export.target import register_target
from modwright.checkpoint.export.tracing import Traced

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Pt2"]


@register_target("pt2")
@dataclass(frozen=True)
class Pt2(Traced):
    """A ``.pt2`` file, traced by transformers' DynamoExporter; needs torch to run, nothing else.

    Attributes:
        form: "outputs" for one graph without a cache, "generation" for prefill and decode.
    """

    exporter: ClassVar[str] = "DynamoExporter"
    settings: ClassVar[str] = "DynamoConfig"

    @property
    def runs_with(self) -> str:
        import torch

        return f"torch.export of torch {torch.__version__.partition('+')[0]}"

    def run_outputs(self, folder: Path) -> Callable[[dict[str, Tensor]], Tensor]:
        import torch

        program = torch.export.load(folder / "model.pt2").module()

        def run(batch: dict[str, Tensor]) -> Tensor:
            with torch.no_grad():
                found: Tensor = next(iter(program(**batch).values()))
            return found

        return run

    def opening(self, work: ExportJob) -> str:
        if self.form == "generation":
            return (
                "from transformers.exporters import ExportedModel\n\n"
                'parts = ExportedModel.from_pretrained(".", trust_remote_code=True).runners'
            )
        given = ", ".join(f"{name}=..." for name in probe(work.model, *TRACED))
        return (
            "import torch\n\n"
            'program = torch.export.load("model.pt2").module()\n'
            f"outputs = program({given})"
        )
