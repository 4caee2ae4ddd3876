"""The one verb: a model becomes files of another kind, compared with it before they stand."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modwright.checkpoint.auxiliary_files import copy_auxiliary_files
from modwright.checkpoint.export.comparing import ParityReport
from modwright.checkpoint.export.export_job import ExportJob
from modwright.checkpoint.export.readme import readme
from modwright.checkpoint.export.target import Target, make_target
from modwright.checkpoint.memory import require_memory, weights_bytes
from modwright.core.errors import InvalidInputError
from modwright.core.files import require_space, whole_directory, write_file
from modwright.core.formatting import format_bytes
from modwright.core.modes import eval_mode
from modwright.core.progress import SILENT, Progress

__all__ = ["Exported", "export"]

_README = "README.md"


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
    """

    output: Path
    target: str
    plain: bool
    compared: ParityReport
    files: dict[str, int]
    made: tuple[str, ...]
    checkpoint_bytes: int

    @property
    def bytes(self) -> int:
        """Size of what the target wrote."""
        return sum(self.files[name] for name in self.made)

    def __str__(self) -> str:
        stored = self.checkpoint_bytes
        return (
            f"{self.target}: {format_bytes(self.bytes)} beside {format_bytes(stored)} of weights "
            f"({self.bytes / stored:.2f} x); {self.compared}"
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
    work = ExportJob.of(checkpoint_or_model)
    chosen.check(work.model)
    stored = weights_bytes(work.model)
    require_memory(stored, "opening what was exported, beside the model,")
    source = work.source
    keep = (source.path,) if source is not None and source.path is not None else ()
    with whole_directory(out, force=force, keep=keep) as folder:
        require_space(folder, stored, f"exporting to {os.fspath(out)!r}")
        with progress.phase(f"export to {chosen.name}", 2) as task:
            with eval_mode(work.model):
                chosen.write(work, folder, progress)
            made = _names(folder)
            task.advance()
            compared = chosen.compare(work, folder)
            task.advance()
        _carry_over(work, chosen, folder, made)
        text = readme(work, chosen, compared, {name: _size(folder, name) for name in made}, stored)
        write_file(folder / _README, text)
        files = {name: _size(folder, name) for name in _names(folder)}
    return Exported(Path(out), chosen.name, work.plain, compared, files, made, stored)


def _carry_over(work: ExportJob, target: Target, folder: Path, made: tuple[str, ...]) -> None:
    """The source's files beside its weights, but for what the target wrote or holds inside.

    Of the generation config the source's own wins: it may say more than the model knows.
    """
    if work.loose_tokenizer is not None and not target.holds("tokenizer.json"):
        work.loose_tokenizer.save_pretrained(folder)
    source = work.source
    if source is None or source.path is None:
        return
    wanted = [name for name in source.files if not target.holds(name)]
    own = set(made) - {"generation_config.json"}
    copy_auxiliary_files(source.path, wanted, folder, written={_README, *own})


def _names(folder: Path) -> tuple[str, ...]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return tuple(sorted(path.relative_to(folder).as_posix() for path in found))


def _size(folder: Path, name: str) -> int:
    return (folder / name).stat().st_size
