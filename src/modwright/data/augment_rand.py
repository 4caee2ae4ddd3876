"""RandAugment (arXiv 1909.13719) on images of Pillow, with timm's operations and ranges."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modwright.core.errors import InvalidInputError
from modwright.data.augment import (
    Interpolation,
    augmentation,
    drawn_interpolation,
    require_share,
)

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["OPERATIONS", "Operation", "RandAugment"]

_TOP = 10.0  # the magnitude at which an operation does most
_ROTATION, _SHEAR, _TRANSLATION = 30.0, 0.3, 0.45


@dataclass(frozen=True)
class Operation:
    """One change of an image.

    Attributes:
        apply: called with the image and its strength; geometric ones also with ``fill`` and
            ``resample``.
        strength: of the magnitude, from 0 to 1, and a sign; None where there is no strength.
        signed: whether the sign is drawn.
        geometric: whether pixels move.
    """

    apply: Callable[..., Image.Image]
    strength: Callable[[float, int], float] | None = None
    signed: bool = False
    geometric: bool = False


def _enhanced(name: str) -> Callable[[Image.Image, float], Image.Image]:
    def apply(image: Image.Image, factor: float) -> Image.Image:
        from PIL import ImageEnhance

        enhance: Any = getattr(ImageEnhance, name)
        changed: Image.Image = enhance(image).enhance(factor)
        return changed

    return apply


def _by_ops(name: str) -> Callable[..., Image.Image]:
    def apply(image: Image.Image, *strength: float) -> Image.Image:
        from PIL import ImageOps

        changed: Image.Image = getattr(ImageOps, name)(image, *strength)
        return changed

    return apply


def _solarize_add(image: Image.Image, more: float) -> Image.Image:
    """The dark half made lighter."""
    levels = [min(255, level + int(more)) if level < 128 else level for level in range(256)]
    return image.point(levels * len(image.getbands()))


def _posterize(image: Image.Image, bits: float) -> Image.Image:
    """So many bits of each channel are kept; none leaves black, which Pillow refuses."""
    mask = 256 - (1 << (8 - int(bits)))
    return image.point([level & mask for level in range(256)] * len(image.getbands()))


def _rotate(image: Image.Image, degrees: float, fill: Any, resample: Any) -> Image.Image:
    return image.rotate(degrees, resample=resample, fillcolor=fill)


def _affine(
    matrix: Callable[[float, int, int], tuple[float, ...]],
) -> Callable[..., Image.Image]:
    def apply(image: Image.Image, strength: float, fill: Any, resample: Any) -> Image.Image:
        from PIL import Image

        moved = matrix(strength, *image.size)
        return image.transform(
            image.size, Image.Transform.AFFINE, moved, resample=resample, fillcolor=fill
        )

    return apply


def _away_from_one(share: float, sign: int) -> float:
    return max(0.1, 1.0 + sign * share * 0.9)


def _enhancing(name: str) -> Operation:
    return Operation(_enhanced(name), _away_from_one, signed=True)


def _moving(matrix: Callable[[float, int, int], tuple[float, ...]], most: float) -> Operation:
    return Operation(
        _affine(matrix), lambda share, sign: sign * share * most, signed=True, geometric=True
    )


OPERATIONS: Mapping[str, Operation] = {
    "auto_contrast": Operation(_by_ops("autocontrast")),
    "equalize": Operation(_by_ops("equalize")),
    "invert": Operation(_by_ops("invert")),
    "rotate": Operation(
        _rotate, lambda share, sign: sign * share * _ROTATION, signed=True, geometric=True
    ),
    "posterize": Operation(_posterize, lambda share, sign: 4 - int(share * 4)),
    "solarize": Operation(_by_ops("solarize"), lambda share, sign: 256 - int(share * 256)),
    "solarize_add": Operation(_solarize_add, lambda share, sign: int(share * 110)),
    "color": _enhancing("Color"),
    "contrast": _enhancing("Contrast"),
    "brightness": _enhancing("Brightness"),
    "sharpness": _enhancing("Sharpness"),
    "shear_x": _moving(lambda s, width, height: (1, s, 0, 0, 1, 0), _SHEAR),
    "shear_y": _moving(lambda s, width, height: (1, 0, 0, s, 1, 0), _SHEAR),
    "translate_x": _moving(lambda s, width, height: (1, 0, s * width, 0, 1, 0), _TRANSLATION),
    "translate_y": _moving(lambda s, width, height: (1, 0, 0, 0, 1, s * height), _TRANSLATION),
}
"""What is drawn from. Every one does more at a higher magnitude: timm's "inc1"."""


@augmentation("rand_augment")
@dataclass(frozen=True)
class RandAugment:
    """Some operations, each drawn anew, at one magnitude; timm's ``rand-m9-mstd0.5-inc1``.

    Attributes:
        magnitude: how much each does, from 0 to 10.
        magnitude_std: of a normal distribution around it.
        num_layers: operations one after the other.
        prob: share of the operations that are done.
        fill: gray of what moves in from outside.
        interpolation: "random" is bilinear or bicubic.
    """

    magnitude: float = 9.0
    magnitude_std: float = 0.5
    num_layers: int = 2
    prob: float = 0.5
    fill: int = 128
    interpolation: Interpolation = "random"
    on = "image"

    def __post_init__(self) -> None:
        require_share("prob", self.prob)
        if not 0 <= self.magnitude <= _TOP or self.magnitude_std < 0:
            raise InvalidInputError(
                f"magnitude lies in 0..{_TOP:g}, magnitude_std is not below 0; not "
                f"{self.magnitude:g} and {self.magnitude_std:g}"
            )
        if self.num_layers < 1 or not 0 <= self.fill <= 255:
            raise InvalidInputError("num_layers is at least 1, fill lies in 0..255")

    def __call__(self, image: Image.Image, size: int, draw: random.Random) -> Image.Image:
        for name in draw.choices(list(OPERATIONS), k=self.num_layers):
            image = self.operate(name, image, draw)
        return image

    def operate(self, name: str, image: Image.Image, draw: random.Random) -> Image.Image:
        """One operation by name; it may not be done at all."""
        operation = OPERATIONS[name]
        if self.prob < 1 and draw.random() > self.prob:
            return image
        magnitude = self.magnitude
        if self.magnitude_std > 0:
            magnitude = draw.gauss(magnitude, self.magnitude_std)
        share = max(0.0, min(magnitude, _TOP)) / _TOP
        sign = -1 if operation.signed and draw.random() > 0.5 else 1
        given: list[Any] = []
        if operation.strength is not None:
            given.append(operation.strength(share, sign))
        if not operation.geometric:
            return operation.apply(image, *given)
        fill = (self.fill,) * len(image.getbands())
        resample = drawn_interpolation(self.interpolation, draw)
        return operation.apply(image, *given, fill=fill, resample=resample)
