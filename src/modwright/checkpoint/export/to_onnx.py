"""An ONNX graph, for ONNX Runtime and what else reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from modwright.checkpoint.export.comparing import TRACED, probe
from modwright.checkpoint.export.export_job import ExportJob
from modwright.checkpoint.export.target import register_target
from modwright.checkpoint.export.tracing import Traced

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Onnx"]


@register_target("onnx")
@dataclass(frozen=True)
class Onnx(Traced):
    """An ONNX graph with its weights beside it, traced by transformers' OnnxExporter.

    Attributes:
        form: "outputs" for one graph without a cache, "generation" for prefill and decode.
    """

    packages: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript", "onnxruntime")
    exporter: ClassVar[str] = "OnnxExporter"
    settings: ClassVar[str] = "OnnxConfig"

    def refusal(self, model: Any) -> str | None:
        if str(model.dtype) == "torch.bfloat16":
            return (
                "ONNX Runtime has no bfloat16 kernels for the CPU; open the model in float32 or "
                "float16 (--dtype)"
            )
        return super().refusal(model)

    @property
    def runs_with(self) -> str:
        import onnxruntime

        return f"ONNX Runtime {onnxruntime.__version__}"

    def run_outputs(self, folder: Path) -> Callable[[dict[str, Tensor]], Tensor]:
        import onnxruntime
        import torch

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )

        def run(batch: dict[str, Tensor]) -> Tensor:
            found = session.run(None, {name: t.numpy() for name, t in batch.items()})
            return torch.from_numpy(found[0])

        return run

    def opening(self, work: ExportJob) -> str:
        if self.form == "generation":
            return (
                "from transformers.exporters import ExportedModel\n\n"
                'parts = ExportedModel.from_pretrained(".").runners'
            )
        given = ", ".join(f'"{name}": ...' for name in probe(work.model, *TRACED))
        return (
            "import onnxruntime\n\n"
            'session = onnxruntime.InferenceSession("model.onnx")\n'
            f"outputs = session.run(None, {{{given}}})"
        )
