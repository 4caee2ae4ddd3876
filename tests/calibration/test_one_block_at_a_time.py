"""Only one block's statistics are in memory, blocks may come from elsewhere, and the estimate."""

from __future__ import annotations

import copy
import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from layerwise_cases import Everything, Interrupted, StopsAfter, equal_statistics, three_rows, walk

from modwright.anatomy import Anatomy, Block
from modwright.calibration import BlockDistance, LiveBlocks, SecondMoments, Similarity
from modwright.calibration.collectors import Collector
from modwright.recipes.estimate import estimate_bytes


class Alone:
    """Wraps a collector: no watch, no tensor of an earlier block may live when one starts."""

    history = 1

    def __init__(self, inner: Collector) -> None:
        self.inner = inner
        self.living: list[weakref.ref[Any]] = []
        self.started = 0

    def start(self, block: Block) -> Any:
        gc.collect()
        assert [ref for ref in self.living if ref() is not None] == []
        self.started += 1
        start = self.inner.start(block)
        result = start.result

        def watched() -> dict[str, torch.Tensor]:
            values = result()
            self.living += [weakref.ref(value) for value in values.values()]
            return values

        start.result = watched  # type: ignore[method-assign]
        self.living.append(weakref.ref(start))
        return start

    def describe(self) -> dict[str, Any]:
        return {"collector": "alone"}

    def bytes(self, block: Block) -> int:
        return self.inner.bytes(block)


@pytest.mark.contract("G4")
@pytest.mark.parametrize("collector", [SecondMoments(), Similarity(), Everything("mlp")])
def test_what_was_seen_of_a_block_is_gone_before_the_next(tiny: Any, collector: Collector) -> None:
    alone = Alone(collector)
    walk(tiny("tiny-llama"), alone)
    assert alone.started == 4
    assert len(alone.living) > 4


# Blocks from elsewhere


class Shelf:
    """Blocks on a shelf: each is fetched for its turn; the model's own have no weights."""

    def __init__(self, anatomy: Anatomy) -> None:
        self.blocks = LiveBlocks(anatomy)
        self.events: list[str] = []

    def __len__(self) -> int:
        return len(self.blocks)

    @contextmanager
    def block(self, index: int) -> Iterator[Block]:
        self.events.append(f"open {index}")
        try:
            with self.blocks.block(index) as block:
                yield block
        finally:
            self.events.append(f"close {index}")


def in_turn(*indices: int) -> list[str]:
    return [f"{what} {index}" for index in indices for what in ("open", "close")]


def test_blocks_may_come_from_elsewhere_one_at_a_time(tiny: Any, preset: str) -> None:
    model = tiny(preset)
    shelf = Shelf(Anatomy.of(model))
    hollow = Anatomy.of(copy.deepcopy(model))
    for block in hollow.blocks:
        block.module.to("meta")
    found = walk(hollow, SecondMoments(), blocks=shelf)
    # The first time for the digest of their weights, then for the statistics.
    assert shelf.events == in_turn(0, 1, 2, 3, 0, 1, 2, 3)
    assert equal_statistics(found, walk(model, SecondMoments()))


def test_a_block_is_given_back_when_the_walk_stops(tiny: Any, tmp_path: Path) -> None:
    model = tiny("tiny-llama")
    shelf = Shelf(Anatomy.of(model))
    with pytest.raises(Interrupted):
        walk(model, SecondMoments(), blocks=shelf, directory=tmp_path, progress=StopsAfter(3))
    assert shelf.events == in_turn(0, 1)
    walk(model, SecondMoments(), blocks=shelf, directory=tmp_path)
    assert shelf.events == in_turn(0, 1, 1, 2, 3)


# The estimate


class StreamSizes(StopsAfter):
    """Remembers the most bytes that streams took on disk."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.directory, self.most = directory, 0

    def advance(self, steps: int = 1) -> None:
        sizes = [path.stat().st_size for path in self.directory.glob("stream*")]
        self.most = max(self.most, sum(sizes))
        super().advance(steps)


@pytest.mark.parametrize(
    "collector",
    [
        Similarity(),
        BlockDistance(3),
        SecondMoments(),
        SecondMoments(mlp=False),
        SecondMoments(attention=False),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_forecast_is_what_is_written(
    tiny: Any, preset: str, tmp_path: Path, collector: Collector, dtype: torch.dtype
) -> None:
    anatomy = Anatomy.of(tiny(preset, dtype=dtype))
    data = three_rows(anatomy.model)
    tokens = 3 * anatomy.family.inputs().positions(10)
    estimate = estimate_bytes(anatomy, tokens, [collector])
    sizes = StreamSizes(tmp_path)
    statistics = walk(anatomy, collector, data=data, directory=tmp_path, progress=sizes)
    stored = [sum(v.numel() * v.element_size() for v in values.values()) for values in statistics]
    assert [collector.bytes(block) for block in anatomy.blocks] == stored
    assert estimate["statistics"] == max(stored) * 3 // 2
    assert estimate["streams"] == sizes.most
    assert estimate["disk"] == sum(stored) + sizes.most


MEASURE = """
import sys
import threading
from pathlib import Path
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from modwright.anatomy import Anatomy
from modwright.calibration import SecondMoments, calibrate
from modwright.data.text import from_sequences
from modwright.recipes.estimate import estimate_bytes

torch.set_num_threads(1)
WIDE = 1280


class Kept:
    '''SecondMoments of all blocks, held until the end.'''

    history = 1

    def __init__(self):
        self.held, self.inner = [], SecondMoments(attention=False)

    def start(self, block):
        self.held.append(self.inner.start(block))
        return self.held[-1]

    def describe(self):
        return {}

    def bytes(self, block):
        return self.inner.bytes(block)


def anonymous():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024


def watch_peak():
    while running:
        peak.append(max(peak.pop(), anonymous()))


model = LlamaForCausalLM(LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=WIDE, num_hidden_layers=8,
    num_attention_heads=2, num_key_value_heads=1)).eval()
anatomy = Anatomy.of(model)
data = from_sequences([torch.arange(i, i + 24) for i in range(4)], 0, batch_size=2)
collector = {"one": SecondMoments(attention=False), "all": Kept()}[sys.argv[1]]
calibrate(anatomy, from_sequences([torch.arange(8)], 0), [SecondMoments(mlp=False)])
peak, start, running = [0], anonymous(), True
thread = threading.Thread(target=watch_peak)
thread.start()
calibrate(anatomy, data, [collector])
running = False
thread.join()
print(peak[0] - start, estimate_bytes(anatomy, data.num_tokens, [collector])["statistics"])
"""


@pytest.mark.slow
@pytest.mark.contract("G1")
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's process status")
def test_peak_memory_is_one_blocks_and_as_forecast() -> None:
    """Eight blocks with a Gram of 13 MB each."""

    def peak(how: str) -> tuple[int, int]:
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, how],
            capture_output=True,
            text=True,
            check=True,
            # Large tensors then go back to the system as soon as they are freed.
            env={"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )
        most, estimate = map(int, done.stdout.split())
        return most, estimate

    one, estimate = peak("one")
    everything, _ = peak("all")
    gram = 8 * 1280**2
    assert everything > 8 * gram
    assert one < everything / 3
    assert one < estimate
