"""How much memory weights take, how much is left, and a refusal when it is too little."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from modwright.core.errors import Refused
from modwright.core.formatting import format_bytes

if TYPE_CHECKING:
    import torch

__all__ = [
    "available_bytes",
    "peak_rss_bytes",
    "require_memory",
    "weights_bytes",
]

_CGROUP = Path("/sys/fs/cgroup")


def weights_bytes(model: torch.nn.Module) -> int:
    """Bytes of everything a checkpoint of ``model`` stores; a tied tensor counts once.

    Parameters and persistent buffers count, whatever device they are on, ``meta`` included.

    Example:
        >>> import torch
        >>> weights_bytes(torch.nn.Linear(3, 2))
        32
    """
    import torch

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
    import psutil

    info = psutil.Process().memory_info()
    if hasattr(info, "peak_wset"):
        return int(info.peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def available_bytes() -> int:
    """Memory that new work can have without swapping, inside a container's limit too."""
    import psutil

    free = int(psutil.virtual_memory().available)
    within = _container_bytes()
    return free if within is None else min(free, within)


def require_memory(needed: int, what: str) -> None:
    """Refuse ``what`` before it starts when fewer than ``needed`` bytes of memory are available.

    Raises:
        Refused: with both figures.
    """
    free = available_bytes()
    if needed > free:
        raise Refused(
            f"{what} needs about {format_bytes(needed)} of memory and {format_bytes(free)} are "
            "available; free some, use a smaller dtype (bfloat16, float16) or a larger machine"
        )


def _container_bytes() -> int | None:
    """What is left below the memory limit of the control group, or None without a limit."""
    try:
        limit = (_CGROUP / "memory.max").read_text(encoding="ascii").strip()
        if limit == "max":
            return None
        used = int((_CGROUP / "memory.current").read_text(encoding="ascii"))
        stat = (_CGROUP / "memory.stat").read_text(encoding="ascii")
    except OSError:
        return None
    # Pages of files are counted as used but given back on demand.
    reclaimable = {"inactive_file", "active_file"}
    cached = sum(
        int(value) for key, value in map(str.split, stat.splitlines()) if key in reclaimable
    )
    return max(0, int(limit) - used + cached)
