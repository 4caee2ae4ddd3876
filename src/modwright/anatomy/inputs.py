"""What a model reads: tokens (b, t) or images (b, C, h, w). Probes are made of these."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from modwright.core.errors import InvalidInputError

__all__ = ["Images", "Inputs", "Tokens", "pair"]


class Inputs(ABC):
    """One kind of input.

    Attributes:
        is_text: tokenizers and texts go with it.
        noun: what one position of a sequence is called.
    """

    is_text: ClassVar[bool]
    noun: ClassVar[str]

    @abstractmethod
    def random(self, rows: int, length: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Keyword arguments of a forward pass over ``rows`` sequences of ``length`` positions."""

    @abstractmethod
    def check(self, given: Mapping[str, Tensor]) -> None:
        """Refuses the arguments of a forward pass that the model cannot read."""

    def positions(self, length: int) -> int:
        """Positions of a sequence for which ``length`` were asked; images fix their own."""
        return length

    def describe(self) -> str:
        """One sequence in words, where the model fixes it; empty where it does not."""
        return ""


@dataclass(frozen=True)
class Tokens(Inputs):
    """Token ids (b, t), any number of them.

    Example:
        >>> Tokens(128).random(2, 5, torch.Generator())["input_ids"].shape
        torch.Size([2, 5])
    """

    vocab_size: int
    is_text = True
    noun = "tokens"

    def random(self, rows: int, length: int, generator: torch.Generator) -> dict[str, Tensor]:
        ids = torch.randint(0, self.vocab_size, (rows, length), generator=generator)
        return {"input_ids": ids}

    def check(self, given: Mapping[str, Tensor]) -> None:
        ids = given.get("input_ids")
        if ids is None and "inputs_embeds" not in given:
            raise InvalidInputError(f"the model reads input_ids; the data gives {', '.join(given)}")
        if ids is not None and ids.numel() and not 0 <= int(ids.max()) < self.vocab_size:
            raise InvalidInputError(
                f"the data has token id {int(ids.max())} and the model a vocabulary of "
                f"{self.vocab_size}; give the model's own tokenizer"
            )


@dataclass(frozen=True)
class Images(Inputs):
    """Images (b, C, h, w) of one size, cut into patches; one that is whole becomes maps instead.

    Attributes:
        patch: height and width of a patch.
        extra: tokens beside the patches, such as a class token.

    Example:
        >>> images = Images(channels=3, size=(224, 224), patch=(16, 16), extra=1)
        >>> images.patches, images.positions(512)
        (196, 197)
    """

    channels: int
    size: tuple[int, int]
    patch: tuple[int, int]
    extra: int = 0
    is_text = False
    noun = "positions"

    @property
    def patches(self) -> int:
        return (self.size[0] // self.patch[0]) * (self.size[1] // self.patch[1])

    def random(self, rows: int, length: int, generator: torch.Generator) -> dict[str, Tensor]:
        shape = (rows, self.channels, *self.size)
        return {"pixel_values": torch.randn(shape, generator=generator)}

    def positions(self, length: int) -> int:
        return self.patches + self.extra

    def check(self, given: Mapping[str, Tensor]) -> None:
        images = given.get("pixel_values")
        if images is None:
            raise InvalidInputError(
                f"the model reads pixel_values; the data gives {', '.join(given)}"
            )
        wanted = (self.channels, *self.size)
        if images.shape[1:] != wanted:
            raise InvalidInputError(
                f"the model reads images of shape {wanted} (channels, height, width); the data "
                f"gives {tuple(images.shape[1:])}"
            )

    def describe(self) -> str:
        height, width = self.size
        told = f"an image of {height} x {width} pixels and {self.channels} channels"
        if self.patch == self.size and not self.extra:
            return told
        beside = f" and {self.extra} token{'s' * (self.extra > 1)} beside them" * bool(self.extra)
        return f"{told} is {self.patches} patches{beside}"


def pair(size: Any) -> tuple[int, int]:
    """Height and width, where a config may give one number for both.

    Example:
        >>> pair(16), pair([16, 8])
        ((16, 16), (16, 8))
    """
    height, width = (size, size) if isinstance(size, int) else size
    return height, width
