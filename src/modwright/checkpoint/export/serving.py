"""Which runtimes take a model, and why not: data for reports. Only what was run is claimed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from modwright.checkpoint.export.target import make_target
from modwright.edits.edit import Remove, split_address
from modwright.edits.remodeled import edits_of, is_plain
from modwright.edits.stock_parts import has_stock_tensors

__all__ = ["Answer", "RuntimeSupport", "differences", "runtime_support"]

Answer = Literal["yes", "after export", "no", "not tested"]

_WORDS = {
    "attention": "another shape of attention",
    "factors": "factors in place of",
    "linear": "another width of",
    "feed_forward": "a feed-forward part of its own in",
}
_WHY = {
    "plain": "as a stock checkpoint, whose classes compute the same from these tensors",
    "standalone": "with one Python file beside the weights and `trust_remote_code=True`",
    "gguf": "as a GGUF file, which the export reads back with transformers; llama.cpp itself was "
    "run on small models of this family, not on this one",
    "onnx": "the export runs the graph there and compares its outputs; where the tracer does not "
    "take the model it says so",
}


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
        return {name: value for name, value in asdict(self).items() if name != "runtime"}


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
    plain, odd = "the checkpoint is plain" if is_plain(model) else "", differences(model)
    alone = "transformers without modwright"
    target = "standalone" if odd or not edits_of(model.config) else "plain"
    vllm = f"layers differ: {'; '.join(odd)}" if odd else "a plain checkpoint"
    return (
        RuntimeSupport("transformers", "yes", plain or "after `import modwright`"),
        RuntimeSupport(alone, "yes", plain) if plain else _exported(model, alone, target),
        RuntimeSupport("vLLM, transformers backend", "not tested", f"{vllm}; vLLM was not run"),
        _exported(model, "llama.cpp", "gguf"),
        _exported(model, "ONNX Runtime", "onnx"),
    )


def _exported(model: Any, runtime: str, target: str) -> RuntimeSupport:
    refused = make_target(target).refusal(model)
    if refused is not None:
        return RuntimeSupport(runtime, "no", refused)
    command = f"modwright export DIR -o OUT --to {target}"
    return RuntimeSupport(runtime, "after export", _WHY[target], command)


def differences(model: Any) -> list[str]:
    """What differs from the stock architecture, and in which blocks; nothing for a plain model, nor
    where components compute what the stock parts do from the same tensors.

    Example:
        >>> import modwright
        >>> from modwright.edits import Plan, remove
        >>> anatomy = modwright.open("preset:tiny-llama").anatomy
        >>> change = remove(anatomy.blocks[0].attention) + remove(anatomy.blocks[1].attention)
        >>> differences(modwright.apply(anatomy.model, Plan.of(anatomy, "by hand", change)).model)
        ['no attention in blocks 0-1']
    """
    found: dict[str, list[int]] = {}
    for edit in edits_of(model.config):
        if has_stock_tensors(edit, model.config):
            continue
        index, role = split_address(edit.path)
        if isinstance(edit, Remove):
            what = f"no {role}"
        elif role == edit.part:
            what = _WORDS.get(role, f"another {role}")
        else:
            what = f"{_WORDS.get(edit.part, f'{edit.part} in place of')} {role}"
        found.setdefault(what, []).extend([] if index is None else [index])
    return [f"{what} in {_blocks(where)}" if where else what for what, where in found.items()]


def _blocks(indices: list[int]) -> str:
    """[0, 1, 2, 5] -> "blocks 0-2, 5"."""
    runs: list[list[int]] = []
    for index in sorted(set(indices)):
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    told = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return f"block{'' if told.isdigit() else 's'} {told}"
