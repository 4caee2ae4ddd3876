"""``modwright import`` and ``modwright rename``: files of a paper's authors, in and out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from modwright.cli.console import emit_json, log, output
from modwright.cli.parameters import Force, Json
from modwright.core.files import require_new, write_file

__all__ = ["import_model", "rename"]


def import_model(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A model (poolformer_s12), or a paper with several (metaformer): the one that "
            "fits the file is found.",
        ),
    ],
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A .safetensors, .bin, .pth, .pt or .tar file, or a directory of transformers.",
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Directory to write.")],
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A field of the model: --set num_classes=10 gives it a fresh classifier. Repeat "
            "it for more.",
        ),
    ] = None,
    checkpoint_format: Annotated[
        str,
        typer.Option(
            "--format",
            "--layout",
            metavar="NAME",
            help="Whose names the file has; found by default. --layout is its name in version 0.1.",
        ),
    ] = "auto",
    key: Annotated[
        str | None,
        typer.Option(help="Which set of tensors of the file, where it holds several: params_ema."),
    ] = None,
    resize: Annotated[
        bool,
        typer.Option("--resize", help="Resize positions of another image size; NAME is a model."),
    ] = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """Make a checkpoint of a file of a paper's authors.

    Names are translated, never guessed: what is missing, what nothing knows and what has another
    shape is named, and nothing is written. The fields of a config.json beside the weights are
    taken, class names too, or refused by name; other files beside them are carried over. No code
    of the file runs. `modwright rename` goes back, bit for bit.
    """
    from modwright.checkpoint import rehearse, save
    from modwright.checkpoint.auxiliary_files import auxiliary_files
    from modwright.checkpoint.source import Source
    from modwright.models.detection import import_named
    from modwright.models.importing import read_weights
    from modwright.models.source_configs import config_beside

    fields = _fields(changes or ())
    tensors = read_weights(checkpoint, key)
    found = import_named(name, tensors, checkpoint_format, resize, checkpoint, **fields)
    folder = checkpoint if checkpoint.is_dir() else config_beside(checkpoint)
    source = None
    if folder is not None:  # what lies beside the weights travels
        source = Source("directory", str(folder), folder, auxiliary_files(folder))
    rehearse(found.model, out, source=source, force=force)
    save(found.model, out, source=source, force=force)
    carried = [] if source is None else list(source.files)
    if json:
        info = {
            "variant": found.variant,
            "format": found.checkpoint_format,
            "tensors": found.tensors,
        }
        info |= {"changed": dict(found.changed), "config": found.has_config, "carried": carried}
        emit_json({**info, "fresh": list(found.fresh), "output": str(out)})
        return
    count = sum(parameter.numel() for parameter in found.model.parameters())
    lines = [
        f"{found.variant}: {count:,} parameters, {found.model.config.num_labels} classes",
        f"format {found.checkpoint_format}: {found.tensors} tensors taken",
        f"not in the file, left as made: {', '.join(found.fresh) or 'none'}",
    ]
    if not found.has_config:
        lines.append(
            f"no config.json beside the weights: what they do not tell is as in {found.variant}"
        )
    if found.changed:
        other = ", ".join(f"{key} {value}" for key, value in found.changed.items())
        lines.append(f"other than {found.variant} by config.json: {other}")
    if carried:
        lines.append(f"carried over: {', '.join(carried)}")
    for line in lines:
        output().print(line, markup=False, soft_wrap=True)
    log(f"written: {out}")


def rename(
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL", help="A directory that import or train has written."),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "-o", "--output", metavar="FILE", help="A .safetensors, .pth, .pt or .bin file."
        ),
    ],
    to: Annotated[
        str,
        typer.Option(
            metavar="LAYOUT",
            help="Whose names the tensors get: official (the paper's authors), transformers or "
            "timm, where the model has it.",
        ),
    ] = "official",
    force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
) -> None:
    """Write a model's tensors under the names of its authors.

    The way back from `modwright import`: the file loads in the authors' code, or in transformers or
    timm, and every tensor has the same bits.
    """
    from modwright.cli.opening import open_checkpoint
    from modwright.core.errors import InvalidInputError
    from modwright.models import to_checkpoint_format
    from modwright.models.vision_model import VisionModel

    write = _writer(out)
    require_new(out, force)
    opened: Any = open_checkpoint(model).model
    if not isinstance(opened, VisionModel):
        raise InvalidInputError(
            f"{model}: {type(opened).__name__} has no names of others; `modwright export` writes "
            "it for other programs"
        )
    tensors = {
        name: tensor.contiguous() for name, tensor in to_checkpoint_format(opened, to).items()
    }
    write_file(out, lambda partial: write(tensors, partial))
    log(f"written: {out}, {len(tensors)} tensors")


def _fields(given: Sequence[str]) -> dict[str, Any]:
    """``num_classes=10`` and the like; values are YAML."""
    import yaml

    from modwright.core.errors import InvalidInputError

    found: dict[str, Any] = {}
    for one in given:
        key, equals, value = one.partition("=")
        if not equals or not key.isidentifier():
            raise InvalidInputError(
                f"--set {one!r}: KEY=VALUE is wanted, such as --set num_classes=10"
            )
        try:
            found[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise InvalidInputError(f"--set {one!r}: {value!r} is not a YAML value") from None
    return found


def _writer(out: Path) -> Any:
    """What writes a file of this ending."""
    import torch
    from safetensors.torch import save_file

    from modwright.core.errors import InvalidInputError

    writers = {
        ".safetensors": save_file,
        **dict.fromkeys((".pth", ".pt", ".bin"), torch.save),
    }
    if out.suffix not in writers:
        raise InvalidInputError(
            f"{out}: the file ends in {', '.join(writers)}, not in {out.suffix!r}"
        )
    return writers[out.suffix]
