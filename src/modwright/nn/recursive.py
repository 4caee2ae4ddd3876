"""Blocks that run several times with the same weights (arXiv 2111.05297)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from modwright.nn.block import BlockSequence
from modwright.nn.layouts import SpatialShape

__all__ = ["RecursiveStage", "looping"]


class RecursiveStage(nn.Module):
    """Each block runs ``loops`` times before the next one, a projection behind every pass.

    (B, N, C) with its grid (H, W) -> the same. Projections are one per pass, block by block, or one
    per block that all of its passes share, or none. Parts that set ``takes_loop`` are told which
    pass of their block it is, as ``loop``.

    Example:
        >>> from modwright.nn.block import Block
        >>> from modwright.nn.channel_mixers.mlp import Mlp
        >>> def layer(): return Block(8, None, Mlp(8, 16), lambda: nn.LayerNorm(8), scaled=True)
        >>> stage = RecursiveStage([layer()], [layer(), layer()], loops=2)
        >>> stage(torch.zeros(1, 6, 8), (2, 3), loops=1).shape
        torch.Size([1, 6, 8])
    """

    def __init__(
        self, blocks: Sequence[nn.Module], projections: Sequence[nn.Module] = (), loops: int = 2
    ) -> None:
        super().__init__()
        valid = (0, len(blocks), len(blocks) * loops)
        if len(projections) not in valid:
            raise ValueError(
                f"{len(projections)} projections for {len(blocks)} blocks and {loops} loops: there "
                f"are {valid[0]}, {valid[1]} or {valid[2]}"
            )
        self.shared, self.projections = BlockSequence(list(blocks)), nn.ModuleList(projections)
        self.loops = loops
        self.most_loops = loops if len(blocks) < len(projections) else None
        self.loops_now: int | None = None
        self._told = [
            any(getattr(part, "takes_loop", False) for part in block.modules()) for block in blocks
        ]
        self.check_loops(loops)

    def check_loops(self, loops: int) -> None:
        """Refuses a number of passes that the stage cannot run."""
        if loops < 1:
            raise ValueError(f"a block runs at least once, not {loops} times")
        if self.most_loops is not None and loops > self.most_loops:
            raise ValueError(
                f"{loops} loops need projections for as many passes, "
                f"but there are those of {self.most_loops}"
            )

    def forward(self, x: Tensor, spatial_shape: SpatialShape, loops: int | None = None) -> Tensor:
        """All passes, ``loops`` of each block in this call, each with its projection."""
        given = (number for number in (loops, self.loops_now) if number is not None)
        count = next(given, self.loops)
        self.check_loops(count)
        for index, block in enumerate(self.shared):
            for loop in range(count):
                told = {"loop": loop} if self._told[index] else {}
                x = self.shared.run(block, x, spatial_shape, **told)
                if len(self.projections):
                    place = index if self.most_loops is None else index * self.loops + loop
                    x = self.shared.run(self.projections[place], x, spatial_shape)
        return x

    def extra_repr(self) -> str:
        return f"loops={self.loops}"


@contextmanager
def looping(model: nn.Module, loops: int | None) -> Iterator[None]:
    """Recursive stages of a model run so many loops while the context lasts; None changes nothing.

    Example:
        >>> stage = RecursiveStage([nn.Identity()], loops=3)
        >>> with looping(stage, 1):
        ...     stage.loops_now
        1
    """
    stages = [part for part in model.modules() if isinstance(part, RecursiveStage)]
    if loops is not None:
        for stage in stages:
            stage.check_loops(loops)
    before = [stage.loops_now for stage in stages]
    try:
        for stage in stages:
            stage.loops_now = loops
        yield
    finally:
        for stage, value in zip(stages, before):
            stage.loops_now = value
