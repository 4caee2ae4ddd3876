"""``modwright import``, ``rename`` and ``export``: files of others, in and out."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from modwright.cli import parameters as arg
from modwright.cli.console import emit_json, log, make_progress, open_checkpoint, output
from modwright.core.files import require_new, write_file

__all__ = ["export", "import_model", "rename"]

_NOT_FIELDS = {"pretrained", "features_only", "out_indices", "checkpoint_path"}
"""Arguments of ``create_model`` that no config has."""


def import_model(
    name: Annotated[
        str,
        Argument(
            metavar="NAME",
            help="A model (poolformer_s12), or a paper with several (metaformer): the one that "
            "fits the file is found.",
        ),
    ],
    checkpoint: Annotated[
        Path,
        Argument(
            metavar="CHECKPOINT",
            help="A .safetensors, .bin, .pth, .pt or .tar file, or a directory of transformers.",
        ),
    ],
    out: arg.Out,
    changes: Annotated[
        list[str] | None,
        arg.set_option(
            "A field of the model: --set num_classes=10 gives it a fresh classifier. Repeat it for "
            "more."
        ),
    ] = None,
    checkpoint_format: Annotated[
        str,
        Option(
            "--format",
            "--layout",
            metavar="NAME",
            help="Whose names the file has; found by default. --layout is its name in version 0.1.",
        ),
    ] = "auto",
    key: Annotated[
        str | None,
        Option(help="Which set of tensors of the file, where it holds several: params_ema."),
    ] = None,
    resize: Annotated[
        bool, Option("--resize", help="Resize positions of another image size; NAME is a model.")
    ] = False,
    force: arg.Force = False,
    json: arg.Json = False,
) -> None:
    """Convert a published checkpoint.

    Names are translated, never guessed: missing, unexpected and mismatched tensors are listed, and
    nothing is written then. The fields of a config.json beside the weights are taken, class names
    too, or refused by name; other files beside them are copied. No code of the file
    runs. `modwright rename` goes back, bit for bit.
    """
    import yaml

    from modwright.checkpoint import rehearse, save
    from modwright.checkpoint.auxiliary_files import auxiliary_files
    from modwright.checkpoint.source import Source
    from modwright.core.errors import InvalidInputError
    from modwright.models.detection import import_named
    from modwright.models.importing import read_weights
    from modwright.models.source_configs import config_beside

    fields: dict[str, Any] = {}
    taken = {*inspect.signature(import_named).parameters, *_NOT_FIELDS}
    for field, value in arg.key_values(changes, "num_classes=10").items():
        if field in taken:
            raise InvalidInputError(f"--set {field}: the config has no such field")
        try:
            fields[field] = yaml.safe_load(value)
        except yaml.YAMLError:
            said = f"--set {f'{field}={value}'!r}"
            raise InvalidInputError(f"{said}: {value!r} is not a YAML value") from None
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
        info: dict[str, Any] = {"variant": found.variant, "format": found.checkpoint_format}
        info |= {"tensors": found.tensors, "changed": dict(found.changed)}
        info |= {"config": found.has_config, "carried": carried}
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
    output().print("\n".join(lines), soft_wrap=True)
    log(f"written: {out}")


def rename(
    model: Annotated[
        Path, Argument(metavar="MODEL", help="A directory that import or train has written.")
    ],
    out: Annotated[Path, arg.to_output("FILE", "A .safetensors, .pth, .pt or .bin file.")],
    to: Annotated[
        str,
        Option(
            metavar="LAYOUT",
            help="Whose names the tensors get: official (the paper's authors), transformers or "
            "timm, where the model has it.",
        ),
    ] = "official",
    force: arg.ReplaceFile = False,
) -> None:
    """Convert back to the published format.

    The way back from `modwright import`: the file loads in the authors' code, or in transformers or
    timm, and every tensor has the same bits.
    """
    import torch
    from safetensors.torch import save_file

    from modwright.core.errors import InvalidInputError
    from modwright.models import to_checkpoint_format
    from modwright.models.vision_model import VisionModel

    writers: dict[str, Any] = dict.fromkeys((".pth", ".pt", ".bin"), torch.save)
    writers = {".safetensors": save_file, **writers}
    if out.suffix not in writers:
        raise InvalidInputError(
            f"{out}: the file ends in {', '.join(writers)}, not in {out.suffix!r}"
        )
    require_new(out, force)
    opened: Any = open_checkpoint(model).model
    if not isinstance(opened, VisionModel):
        raise InvalidInputError(
            f"{model}: {type(opened).__name__} has no names of others; `modwright export` writes "
            "it for other programs"
        )
    named = to_checkpoint_format(opened, to).items()
    tensors = {name: tensor.contiguous() for name, tensor in named}
    write_file(out, lambda partial: writers[out.suffix](tensors, partial))
    log(f"written: {out}, {len(tensors)} tensors")


def export(
    model: arg.Model,
    out: Annotated[
        Path | None,
        arg.to_output(
            "DIR", "Directory to write. Without it, say where the model runs and write nothing."
        ),
    ] = None,
    to: Annotated[
        str, Option(metavar="TARGET", help="plain, standalone, pt2, onnx or gguf.")
    ] = "standalone",
    options: Annotated[
        list[str] | None,
        arg.set_option("An option of the target: --to gguf --set type=q8_0. Repeat it for more."),
    ] = None,
    dtype: arg.Dtype = None,
    trust_remote_code: Annotated[
        bool, Option("--trust-remote-code", help="Run model code that MODEL brings.")
    ] = False,
    force: arg.Force = False,
    json: arg.Json = False,
) -> None:
    """Write a model for other programs, and compare it there.

    plain: a stock checkpoint. standalone: a checkpoint with one Python file, for transformers
    without modwright. pt2: torch.export. onnx: ONNX Runtime. gguf: llama.cpp and its kin.
    """
    from dataclasses import asdict

    from modwright.checkpoint.export import export as export_model
    from modwright.checkpoint.export import make_target, runtime_support
    from modwright.cli.show import serving_table, show_export

    target = make_target(to, arg.key_values(options, "type=q8_0"))
    if out is not None:
        target.check_installed()  # before a model is opened
    progress = make_progress()
    opened = open_checkpoint(
        model, dtype=dtype, trust_remote_code=trust_remote_code, progress=progress
    )
    if out is None:
        found = runtime_support(opened.model)
        if json:
            emit_json([asdict(entry) for entry in found])
        else:
            output().print(serving_table(opened.name, found))
        return
    done = export_model(opened, out, target, force=force, progress=progress)
    if json:
        emit_json({**asdict(done), "output": str(done.output), "bytes": done.bytes})
    else:
        show_export(done, target.name)
