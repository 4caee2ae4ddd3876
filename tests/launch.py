"""Several processes of one program, started as a launcher starts them, without its care for them.

``torchrun`` ends all processes when one fails. These are left to themselves, so that a test sees
whether they end on their own.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from warm_processes import start

__all__ = ["Ended", "launch"]


@dataclass(frozen=True)
class Ended:
    """How one process ended, and what it printed."""

    code: int
    out: str
    err: str


def launch(
    arguments: Sequence[str],
    size: int = 2,
    timeout: float = 300,
    cwd: Path | None = None,
    mpi: bool = False,
    **more: str,
) -> list[Ended]:
    """Runs ``python ARGUMENTS`` in ``size`` processes that find each other; how each ended.

    ``more`` goes into the environment; with ``mpi`` the processes know of each other as Open MPI
    tells them. A process that has not ended in time is killed and fails
    the test.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    world, local = ("OMPI_COMM_WORLD", "OMPI_COMM_WORLD_LOCAL") if mpi else ("WORLD", "LOCAL_WORLD")
    rank_of, local_of = ("OMPI_COMM_WORLD", "OMPI_COMM_WORLD_LOCAL") if mpi else ("", "LOCAL")
    shared = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        f"{world}_SIZE": str(size),
        f"{local}_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        **more,
    }
    started = [
        start(
            arguments,
            cwd=cwd,
            library=True,
            env={
                **shared,
                f"{rank_of}_RANK".lstrip("_"): str(rank),
                f"{local_of}_RANK": str(rank),
            },
        )
        for rank in range(size)
    ]
    try:
        printed = [process.communicate(timeout=timeout) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    return [Ended(p.returncode, out, err) for p, (out, err) in zip(started, printed)]
