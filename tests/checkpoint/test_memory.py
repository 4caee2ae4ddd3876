from __future__ import annotations

from pathlib import Path

import pytest
import torch

from modwright.checkpoint import (
    available_bytes,
    memory,
    peak_rss_bytes,
    require_memory,
    weights_bytes,
)
from modwright.core.errors import InvalidInputError

from .tiny import tiny_llama


def test_weights_bytes_counts_ties_once_and_meta_too() -> None:
    free, tied = tiny_llama(), tiny_llama(tie_word_embeddings=True)
    table = 64 * 32 * 4
    assert weights_bytes(free) - weights_bytes(tied) == table
    assert weights_bytes(free) == sum(p.numel() * 4 for p in free.parameters())
    assert weights_bytes(free.bfloat16()) * 2 == weights_bytes(tied) + table
    with torch.device("meta"):
        assert weights_bytes(tiny_llama(tie_word_embeddings=True)) == weights_bytes(tied)


def test_peak_grows_with_use() -> None:
    before = peak_rss_bytes()
    block = torch.ones(100_000_000, dtype=torch.uint8)
    assert peak_rss_bytes() >= before
    assert peak_rss_bytes() >= block.numel()


def test_require_memory_names_both_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    require_memory(1, "a byte")
    monkeypatch.setattr(memory, "available_bytes", lambda: 2_500_000_000)
    with pytest.raises(
        InvalidInputError, match=r"^the job needs about 3\.0 GB .* 2\.5 GB are available"
    ):
        require_memory(3_000_000_000, "the job")


def test_a_container_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    free = available_bytes()
    assert free > 1_000_000
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 400000\nactive_file 100000\ninactive_file 50000\n")
    (tmp_path / "memory.max").write_text("1000000\n")
    assert available_bytes() == 450_000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes() > 1_000_000


def control_groups(root: Path, folder: Path, limit: int, files: tuple[str, str, str]) -> None:
    for place in (folder, *folder.parents):
        place.mkdir(parents=True, exist_ok=True)
        if place == root:
            break
    limit_file, used_file, cached = files
    (folder / limit_file).write_text(f"{limit}\n")
    (folder / used_file).write_text("700000\n")
    (folder / "memory.stat").write_text(f"rss 400000\n{cached} 150000\n")


V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = ("memory.max", "memory.current", "inactive_file")


@pytest.mark.parametrize(
    ("membership", "place", "files"),
    [
        ("5:memory:/docker/abc\n0::/\n", "memory/docker/abc", V1),
        ("5:memory:/docker/abc\n", "memory/docker", V1),
        ("5:cpu,memory:/job\n4:pids:/other\n", "memory/job", V1),
        ("5:memory:/not/seen/from/inside\n", "memory", V1),
        ("0::/slice/unit\n", "slice/unit", V2),
        ("0::/slice/unit\n", "slice", V2),
        ("0::/../outside\n", "", V2),
    ],
)
def test_fault_B19_limits_of_both_versions_and_of_groups_above_count(
    membership: str,
    place: str,
    files: tuple[str, str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = tmp_path / "cgroup"
    root.mkdir()
    note = tmp_path / "membership"
    note.write_text(membership)
    monkeypatch.setattr(memory, "_CGROUP", root)
    monkeypatch.setattr(memory, "_MEMBERSHIP", note)
    assert available_bytes() > 1_000_000
    control_groups(root, root / place, 1_000_000, files)
    assert available_bytes() == 450_000
    control_groups(root, root / place, 2**63 - 4096, files)
    assert available_bytes() > 1_000_000
