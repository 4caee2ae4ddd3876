"""Checks of golden vectors, one module per paper: ``golden_checks/<slug with underscores>.py``.

A module has one function ``check(case)``. It computes every output of the case from its inputs and
its config and compares them through the methods of :class:`GoldenCase`, which keeps count: a case
with an output that nobody compared fails.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, ItemsView
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

__all__ = ["GoldenCase", "checker_of", "golden_files"]

CHECKED = ("output.", "inter.", "grad.", "fused.")
# Metadata that says where a file comes from, not what it holds.
PROVENANCE = {"source", "seed", "commit", "repo", "torch", "timm", "notes"}


class Recorded(dict[str, Any]):
    """A mapping that knows which of its keys were read; the mappings in it are such, too."""

    def __init__(self, given: dict[str, Any]) -> None:
        nested = {k: Recorded(v) if isinstance(v, dict) else v for k, v in given.items()}
        super().__init__(nested)
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return super().get(key, default)

    def items(self) -> ItemsView[str, Any]:
        self.read.update(self)
        return super().items()

    def unread(self) -> list[str]:
        """Paths of the keys that nobody read; of a mapping of which nothing was read, its own."""
        found = []
        for key, value in super().items():
            if key not in self.read:
                found.append(key)
            elif isinstance(value, Recorded):
                found += [f"{key}.{path}" for path in value.unread()]
        return found


@dataclass
class GoldenCase:
    """One file: its tensors, its metadata, and what of both was looked at.

    ``config`` is the metadata's key of that name, or all of the metadata where it has none.
    """

    path: Path
    meta: Recorded
    config: Recorded
    tensors: dict[str, Tensor]
    compared: set[str] = field(default_factory=set)

    @classmethod
    def read(cls, path: Path) -> GoldenCase:
        with safe_open(path, "pt") as stored:
            metadata = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        assert "meta" in metadata, f"{path} has no metadata key 'meta' with its config"
        told = json.loads(metadata["meta"])
        meta = Recorded({key: value for key, value in told.items() if key not in PROVENANCE})
        return cls(path, meta, meta.get("config", meta), tensors)

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def names(self, start: str) -> list[str]:
        """Names of the tensors that begin with ``start``."""
        return [name for name in self.tensors if name.startswith(start)]

    def _expected(self, name: str, found: Tensor) -> Tensor:
        expected = self.tensors[name]
        self.compared.add(name)
        assert found.shape == expected.shape, (
            f"{name}: {tuple(found.shape)} where {tuple(expected.shape)} is expected"
        )
        return expected

    def close(
        self, name: str, found: Tensor, *, rtol: float = 0.0, atol: float | Tensor = 0.0
    ) -> None:
        """Compares values; infinities must stand in the same places."""
        expected = self._expected(name, found).double()
        found = found.double()
        assert torch.equal(found.isinf(), expected.isinf()), f"{name}: other infinities"
        finite = ~expected.isinf()
        off = (found - expected)[finite].abs()
        allowed = atol + rtol * expected[finite].abs()
        assert bool((off <= allowed).all()), f"{name}: off by up to {float(off.max()):.2e}"

    def equal(self, name: str, found: Tensor) -> None:
        """Compares integers, order included."""
        expected = self._expected(name, found)
        assert torch.equal(found.long(), expected.long()), (
            f"{name}: {found.tolist()} where {expected.tolist()} is expected"
        )

    def same_sets(self, name: str, found: Tensor) -> None:
        """Compares each row as a set."""
        expected = self._expected(name, found)
        for row, (mine, theirs) in enumerate(zip(found.tolist(), expected.tolist())):
            assert len(set(mine)) == len(mine), f"{name}, row {row}: {mine} repeats an index"
            assert set(mine) == set(theirs), (
                f"{name}, row {row}: {sorted(mine)} where {sorted(theirs)} is expected"
            )

    def assert_complete(self) -> None:
        """Every output and gradient was compared, and there was one; every key was read."""
        outputs = {name for name in self.tensors if name.startswith(CHECKED)}
        assert outputs, f"{self.path} holds no output to compare with"
        left = sorted(outputs - self.compared)
        assert not left, f"nothing compares {', '.join(left)} of {self.path}"
        unread = self.meta.unread()
        assert not unread, f"nothing reads {', '.join(unread)} of the metadata of {self.path}"


def golden_files(trees: list[Path]) -> list[Path]:
    """All cases of some trees, laid out as TREE/SLUG/NAME.safetensors."""
    return [path for tree in trees for path in sorted(tree.glob("*/*.safetensors"))]


def checker_of(slug: str) -> Callable[[GoldenCase], None]:
    """The function that checks a paper's cases.

    Raises:
        AssertionError: there is none; says which file it belongs into.
    """
    name = slug.replace("-", "_")
    try:
        module = importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{name}":
            raise
        raise AssertionError(
            f"no checker for golden vectors of {slug!r}: "
            f"add tests/golden_checks/{name}.py with a function check(case)"
        ) from None
    found: Callable[[GoldenCase], None] = module.check
    return found
