"""What a walk needs, reckoned before it begins.

Axes: b rows of a batch, t tokens of a row, d hidden_size, I neurons, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from modwright.anatomy import Anatomy, Block
from modwright.calibration.collectors import Collector
from modwright.core.compat.transformers import attention_implementation

__all__ = ["block_activations", "forecast_bytes", "largest_block"]


def forecast_bytes(
    anatomy: Anatomy,
    tokens: int,
    collectors: Sequence[Collector],
    *,
    batch: int = 0,
    length: int = 0,
) -> Mapping[str, int]:
    """What a walk will need beside the weights: memory for one block, and disk.

    Args:
        anatomy: of the model to walk.
        tokens: of all calibration data.
        collectors: what is measured.
        batch: rows of a batch, with ``length`` tokens each; 0 leaves the activations out.

    Returns:
        "statistics" (memory, largest block), "streams" (mapped from disk), "activations" (memory,
        one batch in one block), "entry" (memory, the streams that enter block 0 before they are
        written), "disk" (all files).
    """
    stored = [sum(c.bytes(block) for c in collectors) for block in anatomy.blocks]
    history = max((c.history for c in collectors), default=1)
    item = next(anatomy.model.parameters()).element_size()
    stream = tokens * anatomy.hidden_size * item
    streams = stream * (history + 1)
    # Beside the sums stand pieces of one batch's products, and what the block passes on.
    gathering = max(stored, default=0) * 3 // 2
    active = max(block_activations(anatomy, block, batch, length) for block in anatomy.blocks)
    return {
        "statistics": gathering,
        "streams": streams,
        "activations": active,
        "entry": stream,
        "disk": sum(stored) + streams,
    }


def block_activations(anatomy: Anatomy, block: Block, batch: int, length: int) -> int:
    """Bytes that one batch (b, t) takes while a block runs and its hook points are read.

    Per token: the stream before and after, its copies for the norm, the sublayers and the cosines
    (8 d, in float32 where they are compared), queries, keys, values and the mix, three times I in
    the MLP and once more in float32; with eager attention H t scores, twice.
    """
    item = next(anatomy.model.parameters()).element_size()
    numbers, singles = 8 * anatomy.hidden_size, 4 * anatomy.hidden_size
    if block.attention is not None:
        shape = block.attention.shape
        heads = shape.num_heads + shape.num_kv_heads
        numbers += heads * (shape.qk_head_dim + shape.v_head_dim)
        if attention_implementation(anatomy.config) == "eager":
            singles += 2 * shape.num_heads * length
    if block.mlp is not None:
        numbers += 3 * block.mlp.intermediate_size
        singles += block.mlp.intermediate_size
    return batch * length * (numbers * item + singles * 4)


def largest_block(anatomy: Anatomy, collectors: Sequence[Collector]) -> Block:
    """The block that needs most memory while its statistics are collected.

    Example:
        >>> import modwright
        >>> from modwright.calibration import SecondMoments
        >>> anatomy = modwright.open("preset:tiny-llama").anatomy
        >>> largest_block(anatomy, [SecondMoments()]).index
        0
    """

    def needs(block: Block) -> tuple[int, int]:
        return sum(c.bytes(block) for c in collectors), block.num_parameters

    return max(anatomy.blocks, key=needs)
