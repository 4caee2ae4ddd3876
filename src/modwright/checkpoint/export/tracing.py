"""What traced targets share: transformers' exporters, asked for plain outputs and kept quiet."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from modwright.checkpoint.export.comparing import (
    TRACED,
    ParityReport,
    compare,
    open_axes,
    probe,
    rounding,
)
from modwright.checkpoint.export.decoding import decode_greedily, prefill
from modwright.checkpoint.export.export_job import ExportJob
from modwright.checkpoint.export.target import Target
from modwright.checkpoint.silence import silence_transformers
from modwright.core.errors import InvalidInputError, ModwrightError, VerificationError, first_line
from modwright.core.progress import Progress
from modwright.edits.verify import probe_batch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Traced", "quiet"]


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

    def refusal(self, model: Any) -> str | None:
        if self.form == "generation" and not model.can_generate():
            return f"a {type(model).__name__} does not generate; the form 'outputs' takes it"
        return None

    def write(self, work: ExportJob, folder: Path, progress: Progress) -> None:
        from modwright.edits.remodeled import is_remodeled

        trace = {"outputs": self._trace_outputs, "generation": self._trace_generation}[self.form]
        try:
            with quiet():
                exported = trace(work)
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

    def _trace_outputs(self, work: ExportJob) -> Any:
        batch = probe(work.model, *TRACED)
        exporter, settings = self._tools(dynamic_shapes=open_axes(batch))
        with _tensors_alone(work.model):
            return exporter.export(work.model, batch, settings)

    def _trace_generation(self, work: ExportJob) -> Any:
        exporter, settings = self._tools()
        return exporter.export_for_generation(
            work.model, probe_batch(work.model, *TRACED), settings, multi_token_decode=True
        )

    @property
    @abstractmethod
    def runs_with(self) -> str:
        """The program that opens the file, with its version."""

    @abstractmethod
    def run_outputs(self, folder: Path) -> Any:
        """Opens the one graph: a function from inputs to the first output."""

    def compare(self, work: ExportJob, folder: Path) -> ParityReport:
        ways = {"outputs": self._compare_outputs, "generation": self._compare_generation}
        try:
            with quiet():
                return ways[self.form](work, folder)
        except ModwrightError:
            raise
        except Exception as error:
            raise VerificationError(
                f"{self.runs_with} does not run the exported file: {type(error).__name__}: "
                f"{first_line(error)}"
            ) from error

    def _compare_outputs(self, work: ExportJob, folder: Path) -> ParityReport:
        return compare(
            work,
            self.run_outputs(folder),
            opened_with=self.runs_with,
            tolerance=rounding(work.model),
        )

    def _compare_generation(self, work: ExportJob, folder: Path) -> ParityReport:
        from transformers.exporters import ExportedModel

        graphs = ExportedModel.from_pretrained(folder, trust_remote_code=True).runners

        def run(batch: dict[str, Tensor]) -> Tensor:
            found: Tensor = prefill(work, graphs["prefill"], batch)["logits"]
            return found.detach()

        said = decode_greedily(work, graphs)
        return compare(
            work,
            run,
            opened_with=self.runs_with,
            tolerance=rounding(work.model),
            said=said,
            positions=True,
        )


@contextlib.contextmanager
def _tensors_alone(model: Any) -> Iterator[None]:
    """The forward pass gives a dict of its tensors: no cache, no class that a reader must know."""
    own = model.forward

    def forward(**inputs: Any) -> dict[str, Any]:
        import torch

        caching = {"use_cache": False} if model.can_generate() else {}
        result = own(**inputs, **caching, return_dict=True)
        return {name: t for name, t in result.items() if isinstance(t, torch.Tensor)}

    model.forward = forward
    try:
        yield
    finally:
        del model.forward


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Tracers print, warn and log at length; what matters of it is raised."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            silence_transformers(),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
