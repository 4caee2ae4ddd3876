"""Where a model comes from: one word or path of the user becomes a `Source`, or a clear refusal."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from modwright.checkpoint.aliases import ALIASES, STAND_INS, alias_names
from modwright.checkpoint.auxiliary_files import auxiliary_files
from modwright.checkpoint.presets import PREFIX, preset_names
from modwright.core.errors import CheckpointError, did_you_mean, first_line, nearest, unknown_name
from modwright.core.reading import first_bytes

__all__ = ["Source", "locate"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# Weights of other frameworks and other copies of the same weights are not fetched.
_NOT_FETCHED = [
    "*.bin",
    "*.gguf",
    "*.h5",
    "*.msgpack",
    "*.onnx",
    "*.onnx_data",
    "*.ot",
    "*.pt",
    "*.pth",
    "*.tflite",
    "consolidated*",
]


@dataclass(frozen=True)
class Source:
    """Where a model was opened from, and what of it has to travel with the weights.

    Attributes:
        kind: ``directory``, ``gguf``, ``alias``, ``hub``, ``preset`` or ``live``.
        name: as the user gave it.
        path: the directory or the GGUF file; None for a preset and for a live model.
        files: the non-weight files of the directory, relative to it, that an output carries over.
        description: one line for people, without paths of this machine.
    """

    kind: str
    name: str
    path: Path | None = None
    files: tuple[str, ...] = ()
    description: str = ""

    @property
    def is_gguf(self) -> bool:
        """Whether the weights lie in a GGUF file, which has no files beside it to carry."""
        return self.path is not None and self.path.is_file()

    @property
    def short_name(self) -> str:
        """The name without folders and endings: what an output may be called after."""
        if self.kind in ("directory", "gguf") and self.path is not None:
            return self.path.stem if self.is_gguf else self.path.resolve().name
        return self.name.removeprefix(PREFIX).split("/")[-1]


def locate(source: str | os.PathLike[str] | Source) -> Source:
    """Find a model: a directory, a GGUF file, a packaged name, ``preset:NAME`` or a hub id.

    A path that exists wins over a packaged name of the same spelling. Nothing is loaded.

    Raises:
        CheckpointError: nothing of this name can be opened; says what is valid and what is nearest.
        InvalidInputError: unknown preset.

    Example:
        >>> from modwright.checkpoint import register_preset
        >>> from transformers import LlamaConfig
        >>> register_preset("doc-source", LlamaConfig)
        >>> locate("preset:doc-source").description
        'random weights (seed 0) of the preset doc-source'
    """
    if isinstance(source, Source):
        return source
    name = os.fspath(source)
    if name.startswith(PREFIX):
        return _preset(name)
    path = Path(name).expanduser()
    if name and path.is_dir():
        return _directory(name, path)
    if name and path.exists():
        return _file(name, path)
    if name and path.is_symlink():
        raise CheckpointError(
            f"{name!r} is a link to {str(path.readlink())!r}, which leads nowhere"
        )
    if name in ALIASES:
        return _alias(name)
    if isinstance(source, str) and _HUB_ID.fullmatch(name) and not name.endswith(".gguf"):
        return _hub(name)
    if isinstance(source, os.PathLike) or os.sep in name or name.endswith(".gguf"):
        raise CheckpointError(f"no such file or directory: {name!r}{_nearest_sibling(path)}")
    raise CheckpointError(f"cannot open {name!r}: not {_valid()}{_nearest_word(name)}")


def _preset(name: str) -> Source:
    preset = name.removeprefix(PREFIX)
    if preset not in preset_names():
        raise unknown_name("preset", preset, preset_names())
    return Source("preset", name, description=f"random weights (seed 0) of the preset {preset}")


def _directory(name: str, path: Path) -> Source:
    return Source(
        "directory",
        name,
        path,
        auxiliary_files(path),
        description=f"checkpoint directory {path.resolve().name}",
    )


def _file(name: str, path: Path) -> Source:
    magic = first_bytes(path, 4)
    if magic == b"GGUF":
        return Source("gguf", name, path, description=f"GGUF file {path.name}")
    if path.suffix == ".gguf":
        raise CheckpointError(f"{name!r} is not a GGUF file: it does not begin with the bytes GGUF")
    if (path.parent / "config.json").exists():
        raise CheckpointError(f"{name!r} is a file; give the directory it is in: {path.parent}")
    raise CheckpointError(f"{name!r} is a file, but not {_valid()}")


def _alias(name: str) -> Source:
    alias = ALIASES[name]
    path = alias.path()
    files = auxiliary_files(path) if path.is_dir() else ()
    description = f"{alias.description} (package {alias.distribution})"
    if alias.stand_in is not None:
        description = f"a stand-in for {name} from {STAND_INS}"
    return Source("alias", name, path, files, description)


def _hub(name: str) -> Source:
    from huggingface_hub import is_offline_mode, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    offline = is_offline_mode()
    try:
        path = Path(snapshot_download(name, ignore_patterns=_NOT_FETCHED, local_files_only=offline))
    except LocalEntryNotFoundError as error:
        why = "HF_HUB_OFFLINE is set" if offline else "the hub cannot be reached"
        raise CheckpointError(
            f"{name!r} is no directory here and not in the local Hugging Face cache, and {why}; "
            f"run `hf download {name}` where there is a network, or give a directory, a .gguf file "
            f"or a packaged name ({', '.join(alias_names())}){_nearest_sibling(Path(name))}"
        ) from error
    except GatedRepoError as error:
        raise CheckpointError(
            f"{name!r} is gated on the hub: accept its terms on its page, then run `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{name!r} is no directory here and the hub does not know it"
            f"{_nearest_sibling(Path(name))}"
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"{name!r} could not be fetched from the hub: {first_line(error)}"
        ) from error
    return Source("hub", name, path, auxiliary_files(path), f"hub model {name}")


def _valid() -> str:
    presets = f"preset:NAME ({', '.join(preset_names())})" if preset_names() else "preset:NAME"
    return (
        "a directory with a config.json, a .gguf file, a packaged name "
        f"({', '.join(alias_names())}), {presets} or a hub id org/name"
    )


def _nearest_word(name: str) -> str:
    here = [entry.name for entry in Path().iterdir() if not entry.name.startswith(".")]
    known = [*alias_names(), *(PREFIX + preset for preset in preset_names()), *here]
    return did_you_mean(name.lower(), known, cutoff=0.6)


def _nearest_sibling(path: Path) -> str:
    """What stands where the path breaks off: the nearest existing name, or nothing to say."""
    missing = path
    while not missing.parent.exists():
        missing = missing.parent
    try:
        siblings = [entry.name for entry in missing.parent.iterdir()]
    except OSError:
        return ""
    near = nearest(missing.name, siblings)
    return f" (did you mean {str(missing.parent / near[0])!r}?)" if near else ""
