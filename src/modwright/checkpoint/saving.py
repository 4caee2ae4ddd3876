"""Saves a model as a checkpoint directory: whole or not at all, with the source's other files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel

from modwright.anatomy.coerce import model_of, require_no_adapters
from modwright.checkpoint.auxiliary_files import copy_auxiliary_files
from modwright.checkpoint.directory import INDEX, read_headers
from modwright.checkpoint.memory import weights_bytes
from modwright.checkpoint.silence import silence_transformers
from modwright.checkpoint.source import Source, load_tokenizer
from modwright.core.compat.transformers import keys_not_saved, names_in_files, names_when_read
from modwright.core.errors import (
    CheckpointError,
    InvalidInputError,
    VerificationError,
    WriteFailed,
    first_line,
)
from modwright.core.files import require_space, whole_directory, write_file

__all__ = ["output_directory", "rehearse", "save", "state_apart", "stored_names", "verify_files"]

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
        out: the directory to make, which is returned.
        source: where the model was opened from; its tokenizer, chat template and so on travel.
        tokenizer: written where the source carries no files of it, as with GGUF.
        max_shard_size: size of one weight file, ``"200MB"`` or bytes.
        force: replace an ``out`` that is not empty.
        files: more files, by path inside the output. With a ``README.md`` among them, the
            source's becomes ``SOURCE_README.md``.
        check: called with the finished directory before it is renamed; raising keeps it out.

    Raises:
        CheckpointError: ``out`` is in use or not empty, the disk is too small, or the model cannot
            be written.
        WriteFailed: the disk became full on the way.
        VerificationError: the files do not hold what the model holds.
    """
    if isinstance(getattr(model, "source", None), Source):  # a checkpoint that was opened
        source, tokenizer = source or model.source, tokenizer or model.tokenizer
    model, extra = model_of(model), dict(files or {})
    _check_names(extra)
    _check_model(model)
    with output_directory(model, out, source, force) as folder:
        _write_weights(model, folder, max_shard_size)
        _write_companions(folder, source, tokenizer, extra)
        _forget_places(folder / "config.json")
        verify_files(model, folder)
        if check is not None:
            check(folder)
    return Path(out)


@contextmanager
def output_directory(
    model: Any,
    out: str | os.PathLike[str],
    source: Source | None,
    force: bool,
    doing: str = "saving",
) -> Iterator[Path]:
    """A directory with room for the weights, which becomes ``out`` when the block ends well."""
    keep = (source.path,) if source is not None and source.path is not None else ()
    with whole_directory(out, force=force, keep=keep) as folder:
        require_space(folder, weights_bytes(model), f"{doing} to {os.fspath(out)!r}")
        yield folder


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

    Takes the same lock, makes the same directory and writes the config there; nothing is left.

    Raises:
        CheckpointError: as in `save`.
    """
    _check_model(model)
    try:
        with output_directory(model, out, source, force) as folder:
            with silence_transformers():
                model.save_pretrained(folder, state_dict={})
            _forget_places(folder / "config.json")
            raise _DryRunError
    except _DryRunError:
        return
    except WriteFailed as error:
        raise CheckpointError(str(error)) from error  # no work is lost yet


def _write_weights(model: PreTrainedModel, folder: Path, max_shard_size: int | str) -> None:
    try:
        with silence_transformers():
            model.save_pretrained(
                folder, state_dict=state_apart(model), max_shard_size=max_shard_size
            )
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
    if source is not None and tokenizer is None and not source.has_tokenizer_files:
        tokenizer = load_tokenizer(source)  # of a GGUF file or a preset
    if tokenizer is not None and not (source is not None and source.has_tokenizer_files):
        tokenizer.save_pretrained(folder)
    if source is not None and source.path is not None:
        copy_auxiliary_files(source.path, source.files, folder, written=extra)
    for name, content in extra.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_file(folder / name, content)


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
    kept, reverted = names_in_files(model, _saved_state(model))
    for name, read in names_when_read(model, sorted(kept.intersection(reverted))).items():
        if name != read:
            raise InvalidInputError(
                f"{name} would be opened as {read}: files of this model may have names of an older "
                "version, which transformers changes; give the component's parameter another name"
            )


def verify_files(model: PreTrainedModel, directory: Path) -> None:
    """Check that a directory holds each tensor of ``model`` once, and nothing else.

    Names, shapes, number of bytes, and a shard index that lists every shard. Values are not read.

    Raises:
        VerificationError: names the first tensor or file that is wrong.
    """
    stored = read_headers(directory)
    _check_index(directory, {name: tensor.file for name, tensor in stored.items()})
    expected = _expected(model)
    for names in expected:
        written = [name for name in names if name in stored]
        if not written:
            raise VerificationError(f"the output lacks the tensor {min(names)}")
        for name in written:
            if stored[name].shape != names[name]:
                raise VerificationError(
                    f"the output holds {name} as {stored[name].shape}, the model as {names[name]}"
                )
        if len(written) > 1:
            raise VerificationError(f"the output stores tied tensors twice: {', '.join(written)}")
    surplus = sorted(set(stored).difference(*expected))
    if surplus:
        raise VerificationError(f"the output holds {surplus[0]}, which the model does not have")


def _expected(model: PreTrainedModel) -> list[dict[str, tuple[int, ...]]]:
    """The tensors a checkpoint must hold: one entry each, with all its names if it is tied."""
    tied, state = stored_names(model), _saved_state(model)
    # Files keep the names of the original format, which for some families (experts) are others
    # than the model's; transformers' own rules, run without values, tell which.
    kept, reverted = names_in_files(model, state)
    if set(reverted) != kept:
        return [{name: tuple(tensor.shape)} for name, tensor in reverted.items()]
    groups: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, tensor in state.items():
        groups.setdefault(tied[name], {})[name] = tuple(tensor.shape)
    return list(groups.values())


def _saved_state(model: PreTrainedModel) -> dict[str, Tensor]:
    ignored = keys_not_saved(model)
    return {name: t for name, t in state_apart(model).items() if name not in ignored}


def _check_index(directory: Path, stored: dict[str, str]) -> None:
    shards = {file.name for file in directory.glob("*.safetensors")}
    if not (directory / INDEX).exists():
        if len(shards) != 1:
            raise VerificationError(f"the output has {len(shards)} weight files and no index")
        return
    weight_map = json.loads((directory / INDEX).read_text(encoding="utf-8"))["weight_map"]
    unlisted = sorted(shards - set(weight_map.values()))
    if unlisted:
        raise VerificationError(f"the shard index does not list {unlisted[0]}")
    for name, file in stored.items():
        if weight_map.get(name) != file:
            raise VerificationError(f"the shard index does not say that {name} is in {file}")


def stored_names(model: nn.Module) -> dict[str, str]:
    """Each name of the state -> the name that it is tied to, or itself.

    Ties go by name, as a class and its config declare them, and hold as long as both names are one
    tensor: a checkpoint can say these and no others.
    """
    state = model.state_dict(keep_vars=True)
    declared: Any = getattr(model, "all_tied_weights_keys", None)
    if declared is None:  # a transformers that tells no pairs
        first: dict[int, str] = {}
        return {name: first.setdefault(id(tensor), name) for name, tensor in state.items()}
    found = {}
    for name, tensor in state.items():
        source = name
        while source in declared and state.get(declared[source]) is tensor:
            source = declared[source]
        found[name] = source
    return found


def state_apart(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model, with copies of what overlaps in memory with what it is not tied to.

    Nothing is copied of nearly every model.
    """
    state: dict[str, Tensor] = model.state_dict()
    names = stored_names(model)
    here = {name: t for name, t in state.items() if not t.is_meta and t.numel()}
    copies: dict[str, Tensor] = {}
    end, owner = (-1, -1), ""
    for storage, start, stop, name in sorted((*_span(t), name) for name, t in here.items()):
        overlaps = (storage, start) < end
        if overlaps and names[name] != owner:
            state[name] = copies.setdefault(names[name], state[name].clone())
        if not overlaps:
            owner = names[name]
        end = max(end, (storage, stop))
    return state


def _span(tensor: Tensor) -> tuple[int, int, int]:
    """The storage, and where in it the tensor begins and ends, in bytes."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    start = tensor.data_ptr()
    return tensor.untyped_storage().data_ptr(), start, start + (last + 1) * tensor.element_size()
