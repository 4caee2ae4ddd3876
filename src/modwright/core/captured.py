"""Tensors that pass hook points over many batches, kept in memory or streamed to files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modwright.core.capture import HookPoint, capture
from modwright.core.digest import sha256_of
from modwright.core.errors import CheckpointError, InvalidInputError, reason
from modwright.core.files import alone_at, require_space, write_file, writing
from modwright.core.modes import eval_mode
from modwright.core.progress import SILENT, Progress

__all__ = ["Captured", "capture_batches"]


@dataclass(frozen=True)
class Captured:
    """What passed the points: it iterates over the batches, each a mapping of names to tensors.

    Attributes:
        held: the batches, where they stay in memory.
        files: one for each batch, where they do not: a safetensors file of the tensors by name.
    """

    held: tuple[Mapping[str, Tensor], ...] = ()
    files: tuple[Path, ...] = ()

    @classmethod
    def load(cls, directory: str | Path) -> Captured:
        """What :func:`capture_batches` wrote.

        Raises:
            CheckpointError: nothing of it stands there.
        """
        files = tuple(sorted(Path(directory).glob("batch-*.safetensors")))
        if not files:
            raise CheckpointError(f"{str(directory)!r} holds no captured batches")
        return cls(files=files)

    def __len__(self) -> int:
        return len(self.held) + len(self.files)

    def __iter__(self) -> Iterator[Mapping[str, Tensor]]:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        yield from self.held
        for file in self.files:
            try:
                yield load_file(file)
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"cannot read {str(file)!r}: {reason(error)}") from None

    def __getitem__(self, name: str) -> Tensor:
        """All batches of one point, one after the other along the first axis; in memory."""
        return torch.cat([batch[name] for batch in self])


def capture_batches(
    model: nn.Module,
    batches: Iterable[Any],
    points: Mapping[str, HookPoint],
    *,
    to: str | Path | None = None,
    progress: Progress = SILENT,
) -> Captured:
    """What passes hook points while a model runs over batches, in evaluation mode.

    Of a point that is passed several times in a batch the last is kept. ``hidden_states`` of
    transformers end with the normed state; the stream behind the last block is its ``resid_post``.

    Args:
        model: it is left as it is.
        batches: for each pass the model's keyword arguments, or batches of calibration data.
        points: by any name.
        to: a directory for one safetensors file a batch; memory then holds one batch. A capture
            that was stopped goes on at the first batch without a file.
        progress: told of the batches.

    Raises:
        CheckpointError: the disk cannot hold what is to come, judged by the first batch; or the
            directory holds batches of other data, points or weights.
        InvalidInputError: a point that no tensor passes, or no batch.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        >>> batches = [{"input": torch.randn(4, 2)} for _ in range(3)]
        >>> found = capture_batches(model, batches, {"hidden": HookPoint(model[0], "output")})
        >>> len(found), tuple(found["hidden"].shape)
        (3, (12, 3))
    """
    folder = None if to is None else Path(to)
    count = len(batches) if isinstance(batches, Sized) else 0
    device = next(iter(model.parameters()), torch.empty(0)).device
    weights = "" if folder is None else sha256_of(*(p for p in model.parameters()))
    held: list[Mapping[str, Tensor]] = []
    files: list[Path] = []
    lock: Any = nullcontext() if folder is None else alone_at(folder, str(to))
    with lock, eval_mode(model), torch.no_grad(), progress.phase("capture", count) as task:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        for index, batch in enumerate(batches):
            inputs = dict(batch if isinstance(batch, Mapping) else batch.tensors())
            file = None if folder is None else folder / f"batch-{index:06d}.safetensors"
            about = {} if file is None else _about(inputs, points, weights)
            if file is None or not _stands(file, about):
                with capture(points, copy=True, device=None if file is None else "cpu") as seen:
                    model(**{name: value.to(device) for name, value in inputs.items()})
                if silent := [name for name in points if name not in seen]:
                    raise InvalidInputError(f"no tensor passes {', '.join(silent)} in a pass")
                if file is None:
                    held.append(dict(seen))
                else:
                    _write(file, seen, about, max(count - index, 1))
            files += [] if file is None else [file]
            task.advance()
    if not held and not files:
        raise InvalidInputError("capture: there is no batch to look at")
    return Captured(tuple(held), tuple(files))


def _write(file: Path, seen: Mapping[str, Tensor], about: dict[str, str], left: int) -> None:
    """One batch; refused where the disk cannot hold as many more as are left."""
    from safetensors.torch import save_file

    size = sum(value.numel() * value.element_size() for value in seen.values())
    require_space(file.parent, left * size, f"capturing {left} batches")
    tensors = {name: value.contiguous() for name, value in seen.items()}
    with writing(file.parent):
        write_file(file, lambda partial: save_file(tensors, partial, about), kept_in=file.parent)


def _stands(file: Path, about: dict[str, str]) -> bool:
    """Whether a batch is there from before; one of something else is refused."""
    from safetensors import SafetensorError, safe_open

    if not file.exists():
        return False
    try:
        with safe_open(file, "pt") as stored:
            found = stored.metadata()
    except (OSError, SafetensorError):
        return False
    if found != about:
        raise CheckpointError(
            f"{str(file.parent)!r} holds batches of other data, points or weights; name another "
            "directory"
        )
    return True


def _about(inputs: Mapping[str, Tensor], points: Iterable[str], weights: str) -> dict[str, str]:
    """What a file of a batch says that it is of."""
    given = sha256_of(*(part for pair in sorted(inputs.items()) for part in pair))
    return {"inputs": given, "points": " ".join(sorted(points)), "weights": weights}
