"""A recipe of two kinds of steps on the tiny model with words, and a run of it for all to read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from modwright.recipes.load import parse_recipe
from modwright.recipes.run import RunResult, run
from modwright.recipes.schema import Recipe

MakeRecipe = Callable[..., Recipe]


@pytest.fixture(scope="session")
def recipe(wordy_model: Path, wordy_text: Path) -> MakeRecipe:
    """Makes recipes: the two-step one, with keys in place of its own."""

    def make(**changed: Any) -> Recipe:
        text = str(wordy_text)
        tree: dict[str, Any] = {
            "model": str(wordy_model),
            "title": "two kinds of steps",
            "threads": 1,
            "calibration": {"data": text, "windows": 6, "length": 32, "batch_size": 2},
            "steps": [
                {"method": "llm_drop", "target": "attention", "n": 1},
                {"method": "modegpt", "sparsity": 0.2},
            ],
            "evaluate": {
                "perplexity": {"data": text, "windows": 3, "length": 24},
                "generate": {"prompt": "w7 w8", "max_new_tokens": 3},
                "speed": {"prompt": 4, "new_tokens": 2, "repeats": 1, "max_seconds": 0},
                "length": 32,
            },
        }
        return parse_recipe({**tree, **changed})

    return make


@pytest.fixture(scope="session")
def finished(recipe: MakeRecipe, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """The two-step recipe, run once; do not change its output."""
    return run(recipe(), tmp_path_factory.mktemp("finished") / "out", check=False)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Torch has two threads for one test, and its own number again afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)
