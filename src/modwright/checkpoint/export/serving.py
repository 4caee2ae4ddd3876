"""Which runtimes take a model, and why not: data for reports. Only what was run is claimed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from modwright.checkpoint.export.differences import differences
from modwright.checkpoint.export.target import make_target
from modwright.edits.remodeled import is_plain

__all__ = ["Answer", "RuntimeSupport", "runtime_support"]

Answer = Literal["yes", "after export", "no", "not tested"]


@dataclass(frozen=True)
class RuntimeSupport:
    """Whether one runtime takes a model.

    Attributes:
        runtime: the program.
        answer: "yes" as the checkpoint is, "after export", "no", or "not tested": it was not run
            on such a model, so nothing is claimed.
        why: the reason, or how it is opened.
        command: what makes the files for it; empty where none are needed or none can be made.
    """

    runtime: str
    answer: Answer
    why: str
    command: str = ""

    def to_dict(self) -> dict[str, str]:
        """Everything but the runtime, which is the key in a report."""
        fields = asdict(self)
        del fields["runtime"]
        return fields


def runtime_support(model: Any) -> tuple[RuntimeSupport, ...]:
    """One entry per runtime, for a live model. Its weights are not looked at.

    Example:
        >>> import modwright
        >>> for entry in runtime_support(modwright.open("preset:tiny-gpt2").model):
        ...     print(f"{entry.runtime}: {entry.answer}")
        transformers: yes
        transformers without modwright: yes
        vLLM, transformers backend: not tested
        llama.cpp: no
        ONNX Runtime: after export
    """
    odd = differences(model)
    note = f"layers differ: {'; '.join(odd)}" if odd else ""
    return (
        _transformers(model),
        _without_modwright(model),
        RuntimeSupport(
            "vLLM, transformers backend",
            "not tested",
            f"{note}; vLLM was not run" if odd else "a plain checkpoint; vLLM was not run",
        ),
        _exported(model, "llama.cpp", "gguf"),
        _exported(model, "ONNX Runtime", "onnx"),
    )


def _transformers(model: Any) -> RuntimeSupport:
    why = "the checkpoint is plain" if is_plain(model) else "after `import modwright`"
    return RuntimeSupport("transformers", "yes", why)


def _without_modwright(model: Any) -> RuntimeSupport:
    runtime = "transformers without modwright"
    if is_plain(model):
        return RuntimeSupport(runtime, "yes", "the checkpoint is plain")
    return _exported(model, runtime, "standalone")


_WHY = {
    "standalone": "with one Python file beside the weights and `trust_remote_code=True`",
    "gguf": "as a GGUF file, which the export reads back with transformers; llama.cpp itself was "
    "run on small models of this family, not on this one",
    "onnx": "the export runs the graph there and compares its outputs; where the tracer does not "
    "take the model it says so",
}


def _exported(model: Any, runtime: str, target: str) -> RuntimeSupport:
    refused = make_target(target).refusal(model)
    if refused is not None:
        return RuntimeSupport(runtime, "no", refused)
    command = f"modwright export DIR -o OUT --to {target}"
    return RuntimeSupport(runtime, "after export", _WHY[target], command)
