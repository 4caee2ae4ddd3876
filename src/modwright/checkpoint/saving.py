"""Saves a model as a checkpoint directory: whole or not at all, with the source's other files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modwright.checkpoint.auxiliary_files import copy_auxiliary_files
from modwright.checkpoint.memory import weights_bytes
from modwright.checkpoint.source import Source
from modwright.checkpoint.ties import state_apart
from modwright.checkpoint.tokenizer import has_tokenizer, load_tokenizer
from modwright.core.errors import CheckpointError, InvalidInputError, WriteFailed, first_line
from modwright.core.files import require_space, whole_directory, write_file

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["rehearse", "save"]

# Where transformers notes the place a model was opened from.
_PLACE = "_name_or_path"


def save(
    model: Any,
    out: str | os.PathLike[str],
    *,
    source: Source | None = None,
    tokenizer: Any = None,
    max_shard_size: int | str = "5GB",
    force: bool = False,
    files: Mapping[str, str | bytes] | None = None,
    check: Callable[[Path], None] | None = None,
) -> Path:
    """Write a checkpoint that ``from_pretrained`` opens, beside its place, and rename at the end.

    The weights go into safetensors files and are compared with the model by name and shape. The
    non-weight files of ``source`` follow byte for byte and win over what the model would write,
    its generation config included; ``files`` wins over both.

    Args:
        model: what to save, or an opened checkpoint or an edit's result that holds it; its values
            are streamed, so memory does not grow.
        out: the directory to make.
        source: where the model was opened from; its tokenizer, chat template and so on travel.
        tokenizer: written where the source carries no files of it, as with GGUF.
        max_shard_size: size of one weight file, ``"200MB"`` or bytes.
        force: replace an ``out`` that is not empty.
        files: more files, by path inside the output. With a ``README.md`` among them, the
            source's becomes ``SOURCE_README.md``.
        check: called with the finished directory before it is renamed; raising keeps it out.

    Returns:
        The directory.

    Raises:
        CheckpointError: ``out`` is in use or not empty, the disk is too small, or the model cannot
            be written.
        WriteFailed: the disk became full on the way.
        VerificationError: the files do not hold what the model holds.
    """
    from modwright.anatomy.coerce import model_of

    if isinstance(getattr(model, "source", None), Source):  # a checkpoint that was opened
        source, tokenizer = source or model.source, tokenizer or model.tokenizer
    model = model_of(model)
    extra = dict(files or {})
    _check_names(extra)
    _check_model(model)
    keep = (source.path,) if source is not None and source.path is not None else ()
    with whole_directory(out, force=force, keep=keep) as folder:
        require_space(folder, weights_bytes(model), f"saving to {os.fspath(out)!r}")
        _write_weights(model, folder, max_shard_size)
        _write_companions(folder, source, tokenizer, extra)
        _forget_places(folder / "config.json")
        from modwright.checkpoint.verify_files import verify_files

        verify_files(model, folder)
        if check is not None:
            check(folder)
    return Path(out)


class _DryRunError(Exception):
    pass


def rehearse(
    model: PreTrainedModel,
    out: str | os.PathLike[str],
    *,
    source: Source | None = None,
    force: bool = False,
) -> None:
    """Go through a save without weights, before long work: would its result find its place?

    Takes the same lock, makes the same directory and writes config and companions there; nothing is
    left. What a save would refuse is refused now.

    Raises:
        CheckpointError: as in `save`.
    """
    from modwright.checkpoint.silence import silence_transformers

    _check_model(model)
    keep = (source.path,) if source is not None and source.path is not None else ()
    try:
        with whole_directory(out, force=force, keep=keep) as folder:
            require_space(folder, weights_bytes(model), f"saving to {os.fspath(out)!r}")
            with silence_transformers():
                model.save_pretrained(folder, state_dict={})
            _forget_places(folder / "config.json")
            raise _DryRunError
    except _DryRunError:
        return
    except WriteFailed as error:
        raise CheckpointError(str(error)) from error  # no work is lost yet


def _write_weights(model: PreTrainedModel, folder: Path, max_shard_size: int | str) -> None:
    from safetensors import SafetensorError

    from modwright.checkpoint.silence import silence_transformers

    try:
        with silence_transformers():
            model.save_pretrained(
                folder, state_dict=state_apart(model), max_shard_size=max_shard_size
            )
    except OSError:
        raise
    except SafetensorError as error:
        raise WriteFailed(f"cannot write {str(folder)!r}: {first_line(error)}") from error
    except (ValueError, RuntimeError, TypeError, NotImplementedError) as error:
        raise CheckpointError(
            f"cannot write {type(model).__name__}: {first_line(error)}"
        ) from error
    # safetensors makes its files readable by their owner alone; they get the mode of the others.
    mode = (folder / "config.json").stat().st_mode
    for file in folder.glob("*.safetensors"):
        file.chmod(mode)


def _write_companions(
    folder: Path, source: Source | None, tokenizer: Any, extra: Mapping[str, str | bytes]
) -> None:
    """Tokenizer, carried files, extra files; the later ones win."""
    if source is not None and source.is_gguf and tokenizer is None:
        tokenizer = load_tokenizer(source)
    carried = source.files if source is not None else ()
    if tokenizer is not None and not has_tokenizer(carried):
        tokenizer.save_pretrained(folder)
    if source is not None and source.path is not None:
        copy_auxiliary_files(source.path, carried, folder, written=extra)
    for name, content in extra.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        write_file(target, content)


def _forget_places(file: Path) -> None:
    """Take paths of this machine out of a config, those of nested configs too."""
    config = json.loads(file.read_text(encoding="utf-8"))
    cleaned = _without_places(config)
    if cleaned != config:
        write_file(file, json.dumps(cleaned, indent=2, sort_keys=True) + "\n")


def _without_places(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_places(part) for key, part in value.items() if key != _PLACE}
    if isinstance(value, list):
        return [_without_places(part) for part in value]
    return value


def _check_names(files: Mapping[str, str | bytes]) -> None:
    for name in files:
        path = Path(name)
        if not name or path.is_absolute() or ".." in path.parts:
            raise InvalidInputError(f"{name!r} is no path inside the output")
        if name == "config.json" or name.endswith((".safetensors", ".safetensors.index.json")):
            raise InvalidInputError(
                f"{name!r} is written from the model; give the file another name"
            )


def _check_model(model: PreTrainedModel) -> None:
    from huggingface_hub.errors import StrictDataclassError

    from modwright.anatomy.coerce import require_no_adapters

    require_no_adapters(model)
    try:
        model.config.validate()
    except (ValueError, StrictDataclassError) as error:
        told = " ".join(str(error).split())
        raise InvalidInputError(f"the model's config cannot be written: {told}") from error
    for name, tensor in model.state_dict().items():
        if tensor.is_meta:
            raise CheckpointError(
                f"{name} is on the meta device, its values are not in memory; load the model "
                "without offloading before saving"
            )
