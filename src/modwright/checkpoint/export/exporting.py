"""The one verb: a model becomes files of another kind, compared with it before they stand."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modwright.checkpoint.auxiliary_files import copy_auxiliary_files
from modwright.checkpoint.export.comparing import ParityReport
from modwright.checkpoint.export.target import Target, make_target
from modwright.checkpoint.memory import require_memory, weights_bytes
from modwright.checkpoint.opening import Checkpoint
from modwright.checkpoint.saving import output_directory
from modwright.checkpoint.source import Source
from modwright.core.errors import InvalidInputError
from modwright.core.files import write_file
from modwright.core.formatting import format_bytes
from modwright.core.modes import eval_mode
from modwright.core.progress import SILENT, Progress
from modwright.edits.remodeled import is_plain

__all__ = ["Exported", "export"]

_PAGE = """\
---
tags: [modwright, {target}]
---

# {name}, exported to {target}

```python
{opening}
```
{imports}
Written by `modwright export` and opened again before it was put here: {compared}.

| file | size |
| :--- | ---: |
{rows}

The model's own checkpoint stores {stored}.
"""


@dataclass(frozen=True)
class Exported:
    """What an export left.

    Attributes:
        output: the directory.
        target: name of the target.
        plain: stock transformers loads the model's own checkpoint.
        compared: how the files computed beside the live model.
        files: path in the directory -> bytes.
        made: the files that the target wrote; the others were carried over.
        checkpoint_bytes: what a checkpoint of the model stores.
        imports: packages beside torch and transformers that its code imports.
    """

    output: Path
    target: str
    plain: bool
    compared: ParityReport
    files: dict[str, int]
    made: tuple[str, ...]
    checkpoint_bytes: int
    imports: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Size of what the target wrote."""
        return sum(self.files[name] for name in self.made)

    def __str__(self) -> str:
        stored = self.checkpoint_bytes
        return (
            f"{self.target}: {format_bytes(self.bytes)} beside {format_bytes(stored)} of weights "
            f"({self.bytes / stored:.2f} x); {self.compared}"
            f"{'; ' * bool(self.imports)}{_imports(self.imports)}"
        )


def export(
    checkpoint_or_model: Any,
    out: str | os.PathLike[str],
    target: str | Target = "standalone",
    *,
    force: bool = False,
    progress: Progress = SILENT,
    **options: Any,
) -> Exported:
    """Writes a model as files of another kind, opens them again and compares their outputs.

    All or nothing: what cannot be exported is refused before work starts, and a directory whose
    files compute something else than the model never stands.

    Args:
        checkpoint_or_model: what `modwright.open` returns, or a model; then no tokenizer and no
            other files travel with it.
        out: the directory to make.
        target: ``plain``, ``standalone``, ``pt2``, ``onnx``, ``gguf`` or another registered one.
        force: replace an ``out`` that holds files.
        progress: hears of long phases.
        options: of the target; see its class.

    Raises:
        InvalidInputError: the target cannot hold this model, a package is missing, or an option is
            unknown.
        CheckpointError: ``out`` is in use, not empty, or cannot be written.
        VerificationError: the files do not open, or compute something else.

    Example:
        >>> import modwright, tempfile
        >>> opened = modwright.open("preset:tiny-llama")
        >>> done = modwright.export(opened, Path(tempfile.mkdtemp(), "out"), "plain")
        >>> done.compared.largest, "model.safetensors" in done.made
        (0.0, True)
    """
    if isinstance(target, Target) and options:
        raise InvalidInputError(f"options of a target that is made already: {', '.join(options)}")
    chosen = target if isinstance(target, Target) else make_target(target, options)
    chosen.check_installed()
    work = _opened(checkpoint_or_model)
    if why := chosen.refusal(work.model):
        raise InvalidInputError(f"cannot export to {chosen.name}: {why}")
    stored = weights_bytes(work.model)
    require_memory(stored, "opening what was exported, beside the model,")
    with output_directory(work.model, out, work.source, force, "exporting") as folder:
        with progress.phase(f"export to {chosen.name}", 2) as task:
            with eval_mode(work.model):
                chosen.write(work, folder, progress)
            made, imports = _sizes(folder), chosen.imports(folder)
            task.advance()
            compared = chosen.compare(work, folder)
            task.advance()
        _carry_over(work, chosen, folder, set(made))
        page = _PAGE.format(
            target=chosen.name,
            name=work.name,
            opening=chosen.opening(work),
            imports=f"\nThe code {_imports(imports)}.\n" if imports else "",
            compared=compared,
            rows="\n".join(f"| {name} | {format_bytes(size)} |" for name, size in made.items()),
            stored=format_bytes(stored),
        )
        write_file(folder / "README.md", page)
        files = _sizes(folder)
    plain = is_plain(work.model)
    return Exported(Path(out), chosen.name, plain, compared, files, tuple(made), stored, imports)


def _imports(names: tuple[str, ...]) -> str:
    return f"imports {', '.join(names)}, which must be installed where it is opened" * bool(names)


def _opened(what: Any) -> Checkpoint:
    model = what if hasattr(what, "save_pretrained") else getattr(what, "model", what)
    if not hasattr(model, "config") or not hasattr(model, "save_pretrained"):
        raise InvalidInputError(
            f"a {type(what).__name__} cannot be exported; give what modwright.open returns, or a "
            "transformers model"
        )
    for name, tensor in model.state_dict().items():
        if tensor.device.type != "cpu":
            raise InvalidInputError(
                f"{name} is on {tensor.device}; export works on the CPU: open the model there"
            )
    if isinstance(what, Checkpoint):
        return what
    return Checkpoint(model, Source("live", str(model.config.model_type)))


def _carry_over(work: Checkpoint, target: Target, folder: Path, made: set[str]) -> None:
    """The source's files beside its weights, but for what the target wrote or holds inside.

    Of the generation config the source's own wins: it may say more than the model knows.
    """
    source = work.source
    loose = None if source.has_tokenizer_files else work.tokenizer
    if loose is not None and not target.holds("tokenizer.json"):
        loose.save_pretrained(folder)
    if source.path is not None:
        wanted = [name for name in source.files if not target.holds(name)]
        own = made - {"generation_config.json"} | {"README.md"}
        copy_auxiliary_files(source.path, wanted, folder, written=own)


def _sizes(folder: Path) -> dict[str, int]:
    found = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    return {name: found[name].stat().st_size for name in sorted(found)}
