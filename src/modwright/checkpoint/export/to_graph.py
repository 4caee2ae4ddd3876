"""Graphs that transformers' exporters trace: a program of ``torch.export``, and ONNX."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from transformers import DynamicCache

from modwright.anatomy import Anatomy
from modwright.checkpoint.export.comparing import (
    ParityReport,
    compare,
    positions_of,
    probe,
    rounding,
)
from modwright.checkpoint.export.target import Target, register_target
from modwright.checkpoint.opening import Checkpoint
from modwright.checkpoint.silence import quiet
from modwright.core.errors import InvalidInputError, ModwrightError, VerificationError, first_line
from modwright.core.modes import eval_mode
from modwright.core.progress import Progress
from modwright.core.subprocess_worker import write_greedily
from modwright.edits.remodeled import is_remodeled
from modwright.edits.verify import probe_batch

__all__ = ["Onnx", "Pt2", "Traced"]

# Rows and tokens of the example that graphs are traced with.
_TRACED = (2, 12)
_CACHE = ("cache", "past_key_values")
_NEW_TOKENS = 6


@dataclass(frozen=True)
class Traced(Target):
    """A graph that transformers' exporter traces, with batch and length left open.

    The size of images stays that of the model's config.

    Attributes:
        form: "outputs" writes one graph, ids and mask -> outputs, without a cache; "generation"
            writes two, ``prefill`` and ``decode``, with the key/value cache going in and out. Each
            of the two holds the weights.
    """

    form: Literal["outputs", "generation"] = "outputs"

    exporter: ClassVar[str]
    """Class in ``transformers.exporters``; ``settings`` is that of its options."""
    settings: ClassVar[str]
    trust: ClassVar[str] = ""
    """What opening the graphs for generation takes beside their folder."""

    def refusal(self, model: Any) -> str | None:
        if self.form == "generation" and not model.can_generate():
            return f"a {type(model).__name__} does not generate; the form 'outputs' takes it"
        return None

    def write(self, work: Checkpoint, folder: Path, progress: Progress) -> None:
        trace = self._trace_outputs if self.form == "outputs" else self._trace_generation
        try:
            with quiet():
                exported = trace(work.model)
                # The config of an edited model would tell a stock class something else.
                exported.config = None if is_remodeled(work.model) else work.model.config
                exported.generation_config = getattr(work.model, "generation_config", None)
                exported.save_pretrained(folder)
        except (ModwrightError, OSError):
            raise
        except Exception as error:
            cause = error.__cause__ or error
            raise InvalidInputError(
                f"cannot export to {self.name}: transformers' {self.exporter} does not take this "
                f"{type(work.model).__name__}: {type(cause).__name__}: {first_line(cause)}"
            ) from error

    def _tools(self, **options: Any) -> tuple[Any, Any]:
        """The exporter, and its options with batch and length left open."""
        from transformers import exporters

        settings = getattr(exporters, self.settings)(dynamic=True, **options)
        return getattr(exporters, self.exporter)(), settings

    def _trace_outputs(self, model: Any) -> Any:
        batch, own = probe(model, *_TRACED), model.forward
        # What a model does with an image depends on its size in too many ways for one graph.
        axes = {
            name: dict.fromkeys(
                (0,) if name == "pixel_values" else range(tensor.dim()), torch.export.Dim.AUTO
            )
            for name, tensor in batch.items()
        }
        exporter, settings = self._tools(dynamic_shapes=axes)

        def tensors_alone(**inputs: Any) -> dict[str, Any]:
            """No cache, no class that a reader must know."""
            caching = {"use_cache": False} if model.can_generate() else {}
            result = own(**inputs, **caching, return_dict=True)
            return {name: t for name, t in result.items() if isinstance(t, torch.Tensor)}

        model.forward = tensors_alone
        try:
            return exporter.export(model, batch, settings)
        finally:
            del model.forward

    def _trace_generation(self, model: Any) -> Any:
        exporter, settings = self._tools()
        batch = probe_batch(model, *_TRACED)
        return exporter.export_for_generation(model, batch, settings, multi_token_decode=True)

    @property
    @abstractmethod
    def runs_with(self) -> str:
        """The program that opens the file, with its version."""

    @abstractmethod
    def run_outputs(self, folder: Path) -> Callable[[dict[str, Tensor]], Tensor]:
        """Opens the one graph: a function from inputs to the first output."""

    @abstractmethod
    def opening_outputs(self, names: list[str]) -> str:
        """Python lines that open the one graph and run it on inputs of these names."""

    def opening(self, work: Checkpoint) -> str:
        if self.form == "outputs":
            return self.opening_outputs(list(probe(work.model, *_TRACED)))
        return (
            "from transformers.exporters import ExportedModel\n\n"
            f'parts = ExportedModel.from_pretrained("."{self.trust}).runners'
        )

    def compare(self, work: Checkpoint, folder: Path) -> ParityReport:
        try:
            with quiet():
                if self.form == "generation":
                    return self._compare_generation(work, folder)
                run, tolerance = self.run_outputs(folder), rounding(work.model)
                return compare(work, run, opened_with=self.runs_with, tolerance=tolerance)
        except ModwrightError:
            raise
        except Exception as error:
            raise VerificationError(
                f"{self.runs_with} does not run the exported file{_of_stock_scans(work.model)}: "
                f"{type(error).__name__}: {first_line(error)}"
            ) from error

    def _compare_generation(self, work: Checkpoint, folder: Path) -> ParityReport:
        from transformers.exporters import ExportedModel

        graphs = ExportedModel.from_pretrained(folder, trust_remote_code=True).runners

        def prefill(batch: Mapping[str, Tensor]) -> Any:
            """Reads a prompt, into an empty cache where it was traced with one."""
            wanted = [name for name in graphs["prefill"].metadata.kwargs if name in _CACHE]
            empty = {name: DynamicCache(config=work.model.config) for name in wanted}
            return graphs["prefill"](**batch, **empty)

        _decode_greedily(work.model, prefill, graphs["decode"])
        return compare(
            work,
            lambda batch: prefill(batch)["logits"].detach(),
            opened_with=self.runs_with,
            tolerance=rounding(work.model),
            said=f"wrote the same {_NEW_TOKENS} tokens, step by step with the cache handed on",
            positions=True,
        )


def _decode_greedily(model: Any, prefill: Callable[..., Any], decode: Any) -> None:
    """Writes tokens with the two graphs, the cache handed on, and holds them to ``generate``."""
    batch = probe_batch(model, 1, 5, seed=2)
    mask, written = batch["attention_mask"], batch["input_ids"]
    out = prefill({**batch, "position_ids": positions_of(batch)})
    cache = next(name for name in decode.metadata.kwargs if name in _CACHE)
    for _ in range(_NEW_TOKENS):
        chosen = out["logits"][:, -1:].argmax(-1)
        written = torch.cat((written, chosen), -1)
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        out = decode(
            input_ids=chosen,
            attention_mask=mask,
            position_ids=mask.sum(-1, keepdim=True) - 1,
            **{cache: out[cache]},
        )
    with torch.no_grad(), eval_mode(model):
        live = write_greedily(model, batch, _NEW_TOKENS)
    if not torch.equal(written, live):
        raise VerificationError("prefill and decode write other tokens than the model does")


@register_target("pt2")
@dataclass(frozen=True)
class Pt2(Traced):
    """A ``.pt2`` file, traced by transformers' DynamoExporter; needs torch to run, nothing else.

    Attributes:
        form: "outputs" for one graph without a cache, "generation" for prefill and decode.
    """

    exporter: ClassVar[str] = "DynamoExporter"
    settings: ClassVar[str] = "DynamoConfig"
    trust: ClassVar[str] = ", trust_remote_code=True"

    @property
    def runs_with(self) -> str:
        return f"torch.export of torch {torch.__version__.partition('+')[0]}"

    def run_outputs(self, folder: Path) -> Callable[[dict[str, Tensor]], Tensor]:
        program = torch.export.load(folder / "model.pt2").module()

        def run(batch: dict[str, Tensor]) -> Tensor:
            found: Tensor = next(iter(program(**batch).values()))
            return found

        return run

    def opening_outputs(self, names: list[str]) -> str:
        return (
            "import torch\n\n"
            'program = torch.export.load("model.pt2").module()\n'
            f"outputs = program({', '.join(f'{name}=...' for name in names)})"
        )


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

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        file, providers = str(folder / "model.onnx"), ["CPUExecutionProvider"]
        session = onnxruntime.InferenceSession(file, options, providers=providers)

        def run(batch: dict[str, Tensor]) -> Tensor:
            found = session.run(None, {name: t.numpy() for name, t in batch.items()})
            return torch.from_numpy(found[0])

        return run

    def opening_outputs(self, names: list[str]) -> str:
        given = ", ".join(f'"{name}": ...' for name in names)
        return (
            "import onnxruntime\n\n"
            'session = onnxruntime.InferenceSession("model.onnx")\n'
            f"outputs = session.run(None, {{{given}}})"
        )


def _of_stock_scans(model: Any) -> str:
    """What helps where the scans of transformers' Mamba have fixed the length, else nothing."""
    try:
        stock = Anatomy.of(model).stock_mixers
    except ModwrightError:
        return ""
    return " (`modwright edit fast_scan` puts scans of any length into it)" if stock else ""
