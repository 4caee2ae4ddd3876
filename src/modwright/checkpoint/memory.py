"""How much memory weights take, how much is left, and a refusal when it is too little."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import torch

from modwright.core.errors import InvalidInputError
from modwright.core.formatting import format_bytes

__all__ = ["available_bytes", "peak_rss_bytes", "require_memory", "weights_bytes"]

_CGROUP = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
# Of control groups in version 2, and in version 1: limit, use, and what of it is given back.
_FILES = (
    ("memory.max", "memory.current", "inactive_file active_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file total_active_file"),
)
_NO_LIMIT = 2**60


def weights_bytes(model: torch.nn.Module) -> int:
    """Bytes of everything a checkpoint of ``model`` stores; a tied tensor counts once.

    Parameters and persistent buffers count, whatever device they are on, ``meta`` included.

    Example:
        >>> import torch
        >>> weights_bytes(torch.nn.Linear(3, 2))
        32
    """
    tensors = {
        id(tensor) if tensor.is_meta else (tensor.data_ptr(), tensor.shape, tensor.dtype): tensor
        for tensor in model.state_dict(keep_vars=True).values()
        if isinstance(tensor, torch.Tensor)
    }
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def peak_rss_bytes() -> int:
    """The most memory this process has held so far, mapped file pages included."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    info = psutil.Process().memory_info()
    if hasattr(info, "peak_wset"):
        return int(info.peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def available_bytes() -> int:
    """Memory that new work can have without swapping, inside a container's limit too."""
    free = int(psutil.virtual_memory().available)
    return min([free, *(room for folder in _groups() if (room := _left(folder)) is not None)])


def require_memory(needed: int, what: str) -> None:
    """Refuse ``what`` before it starts when fewer than ``needed`` bytes of memory are available.

    Raises:
        InvalidInputError: with both figures.
    """
    free = available_bytes()
    if needed > free:
        raise InvalidInputError(
            f"{what} needs about {format_bytes(needed)} of memory and {format_bytes(free)} are "
            "available; free some, use a smaller dtype (bfloat16, float16) or a larger machine"
        )


def _groups() -> list[Path]:
    """The control groups that limit memory: the process's own and all above it."""
    try:
        lines = _MEMBERSHIP.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    found = [_CGROUP, _CGROUP / "memory"]
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers and "memory" not in controllers.split(","):
            continue
        root = _CGROUP / "memory" if controllers else _CGROUP
        inside = [part for part in path.split("/") if part not in ("", "..")]
        found += [root.joinpath(*inside[:depth]) for depth in range(1, len(inside) + 1)]
    return found


def _left(folder: Path) -> int | None:
    """What is left below the limit of a control group, or None without a limit."""
    for limit_file, used_file, reclaimable in _FILES:
        try:
            told = (folder / limit_file).read_text(encoding="ascii").strip()
            limit = _NO_LIMIT if told == "max" else int(told)
            if limit >= _NO_LIMIT:
                return None
            used = int((folder / used_file).read_text(encoding="ascii"))
            stat = (folder / "memory.stat").read_text(encoding="ascii")
        except (OSError, ValueError):
            continue
        # Pages of files are counted as used but given back on demand.
        pairs = (line.split() for line in stat.splitlines())
        cached = sum(int(pair[1]) for pair in pairs if pair and pair[0] in reclaimable.split())
        return max(0, limit - used + cached)
    return None
