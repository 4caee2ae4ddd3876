"""What is drawn for images that are learned from: crops, flips, erased boxes, mixed images.

Names, options and defaults are timm's. All that is random comes from a ``random.Random`` that the
caller seeds, so the same seed gives the same bits. An augmentation is a frozen dataclass in a file
of this package whose name begins with ``augment``, or in a plugin.

Axes: B images of a batch, C channels, h height, w width, K classes.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from modwright.core.errors import InvalidInputError
from modwright.core.options import make_options
from modwright.core.registry import Registry

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["AUGMENTATIONS", "Augmentations", "Interpolation", "Mixup", "RandomErasing"]
__all__ += ["RandomFlip", "RandomResizedCrop", "VerticalFlip", "augmentation", "augmentations_of"]
__all__ += ["drawn_interpolation", "require_share"]

Interpolation = Literal["bilinear", "bicubic", "random"]
T = TypeVar("T", bound=type)
_TRIES = 10

AUGMENTATIONS: Registry[type] = Registry("augmentation", "modwright.data", prefix="augment")


def augmentation(name: str) -> Callable[[T], T]:
    """Decorator that registers a frozen dataclass as an augmentation.

    Its attribute ``on`` says what it is called with: "image" an image of Pillow and the size that
    is wanted, which it may already give it; "pixels" (C, h, w), normalized; "batch" a batch with
    ``pixel_values`` (B, C, h, w) and ``labels`` (B,), and the number of classes. Each also gets a
    ``random.Random`` and returns what it was given, changed.

    Example:
        >>> sorted(AUGMENTATIONS.names())[:2]
        ['hflip', 'mixup']
    """
    return AUGMENTATIONS.register(name)


@dataclass(frozen=True)
class Augmentations:
    """Augmentations in the order in which they are done: of images, of pixels, of batches."""

    on_images: tuple[Any, ...] = ()
    on_pixels: tuple[Any, ...] = ()
    on_batches: tuple[Any, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.on_images or self.on_pixels or self.on_batches)

    def image(self, image: Image.Image, size: int, draw: random.Random) -> Image.Image:
        """An image, of whatever size the augmentations leave it."""
        for change in self.on_images:
            image = change(image, size, draw)
        return image

    def pixels(self, pixels: Tensor, draw: random.Random) -> Tensor:
        """(C, h, w), normalized."""
        for change in self.on_pixels:
            pixels = change(pixels, draw)
        return pixels

    def batch(
        self, batch: dict[str, Tensor], num_classes: int, draw: random.Random
    ) -> dict[str, Tensor]:
        """A batch, whose labels may become probabilities (B, K)."""
        for change in self.on_batches:
            batch = change(batch, num_classes, draw)
        return batch


def augmentations_of(given: Sequence[Any]) -> Augmentations:
    """Augmentations as a recipe lists them.

    Args:
        given: names, or ``{name: {option: value}}``.

    Raises:
        InvalidInputError: an unknown name or option, or an invalid value.

    Example:
        >>> augmentations_of(["hflip", {"random_erasing": {"mode": "pixel"}}]).on_pixels[0].mode
        'pixel'
    """
    if isinstance(given, str | Mapping):
        raise InvalidInputError("augment is a list, such as [random_resized_crop, hflip]")
    made: dict[str, list[Any]] = {"image": [], "pixels": [], "batch": []}
    for entry in given:
        name, options = entry, dict[str, Any]()
        if isinstance(entry, Mapping) and len(entry) == 1:
            name, options = next(iter(entry.items()))
        if not isinstance(name, str) or not isinstance(options, Mapping):
            raise InvalidInputError(
                f"augment: {entry!r} is neither a name nor {{name: {{option: value}}}}"
            )
        one = make_options(AUGMENTATIONS[name], f"augment.{name}", options)
        made[one.on].append(one)
    return Augmentations(*(tuple(group) for group in made.values()))


def require_share(name: str, value: float, least: float = 0.0) -> None:
    """Refuses what is no share."""
    if not least <= value <= 1:
        raise InvalidInputError(f"{name} lies in [{least:g}, 1], not {value:g}")


def drawn_interpolation(interpolation: str, draw: random.Random) -> Any:
    """Pillow's way to resample; "random" is one of bilinear and bicubic each time."""
    from PIL import Image

    kinds = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    return draw.choice(tuple(kinds.values())) if interpolation == "random" else kinds[interpolation]


@augmentation("random_resized_crop")
@dataclass(frozen=True)
class RandomResizedCrop:
    """A piece of the image, of any place, area and aspect ratio, resized to what is wanted.

    Attributes:
        scale: least and largest share of the area.
        ratio: least and largest width over height.
        interpolation: "random" is bilinear or bicubic.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Interpolation = "random"
    on = "image"

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise InvalidInputError(f"scale is two shares of the area, not {list(self.scale)}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise InvalidInputError(f"ratio is two aspect ratios, not {list(self.ratio)}")

    def box(self, width: int, height: int, draw: random.Random) -> tuple[int, int, int, int]:
        """Top, left, height and width of a piece; the middle where ten draws do not fit in."""
        logs = tuple(math.log(ratio) for ratio in self.ratio)
        for _ in range(_TRIES):
            area = draw.uniform(*self.scale) * (width * height)
            ratio = math.exp(draw.uniform(*logs))
            across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if across <= width and down <= height:
                top = draw.randint(0, height - down)
                return top, draw.randint(0, width - across), down, across
        across, down = width, height
        if width / height < self.ratio[0]:
            down = round(width / self.ratio[0])
        elif width / height > self.ratio[1]:
            across = round(height * self.ratio[1])
        return (height - down) // 2, (width - across) // 2, down, across

    def __call__(self, image: Image.Image, size: int, draw: random.Random) -> Image.Image:
        top, left, down, across = self.box(*image.size, draw)
        resample = drawn_interpolation(self.interpolation, draw)
        piece = image.crop((left, top, left + across, top + down))
        return piece.resize((size, size), resample)


@augmentation("hflip")
@dataclass(frozen=True)
class RandomFlip:
    """The image mirrored, left for right.

    Attributes:
        p: share of the images that are.
    """

    p: float = 0.5
    on = "image"

    def __post_init__(self) -> None:
        require_share("p", self.p)

    def __call__(self, image: Image.Image, size: int, draw: random.Random) -> Image.Image:
        from PIL import ImageOps

        return ImageOps.mirror(image) if draw.random() < self.p else image


@augmentation("vflip")
@dataclass(frozen=True)
class VerticalFlip(RandomFlip):
    """The image mirrored, top for bottom.

    Attributes:
        p: share of the images that are.
    """

    def __call__(self, image: Image.Image, size: int, draw: random.Random) -> Image.Image:
        from PIL import ImageOps

        return ImageOps.flip(image) if draw.random() < self.p else image


@augmentation("random_erasing")
@dataclass(frozen=True)
class RandomErasing:
    """Boxes of the normalized image are lost (arXiv 1708.04896).

    Attributes:
        probability: share of the images that lose any.
        min_area: least share of the image that is lost, over all boxes.
        max_area: largest share.
        min_aspect: least height over width; the largest is one over it.
        mode: what stands there: "const" the mean, "rand" a color by chance, "pixel" noise.
        count: most boxes; how many is drawn.
    """

    probability: float = 0.5
    min_area: float = 0.02
    max_area: float = 1 / 3
    min_aspect: float = 0.3
    mode: Literal["const", "rand", "pixel"] = "const"
    count: int = 1
    on = "pixels"

    def __post_init__(self) -> None:
        require_share("probability", self.probability)
        if not 0 < self.min_area <= self.max_area <= 1 or not 0 < self.min_aspect <= 1:
            raise InvalidInputError("areas and min_aspect lie in (0, 1], min_area below max_area")
        if self.count < 1:
            raise InvalidInputError(f"count is at least 1, not {self.count}")

    def __call__(self, pixels: Tensor, draw: random.Random) -> Tensor:
        if draw.random() > self.probability:
            return pixels
        pixels = pixels.clone()
        count = draw.randint(1, self.count) if self.count > 1 else 1
        for _ in range(count):
            self._erase(pixels, count, draw)
        return pixels

    def _erase(self, pixels: Tensor, count: int, draw: random.Random) -> None:
        """One box, in place; none where ten draws are as large as the image."""
        channels, height, width = pixels.shape
        for _ in range(_TRIES):
            area = draw.uniform(self.min_area, self.max_area) * (height * width) / count
            aspect = math.exp(
                draw.uniform(math.log(self.min_aspect), math.log(1 / self.min_aspect))
            )
            down, across = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if across < width and down < height:
                top, left = draw.randint(0, height - down), draw.randint(0, width - across)
                shape = {"const": (), "rand": (channels, 1, 1), "pixel": (channels, down, across)}
                box = pixels[:, top : top + down, left : left + across]
                box.copy_(self._filling(shape[self.mode], draw))
                return

    def _filling(self, shape: tuple[int, ...], draw: random.Random) -> Tensor:
        if self.mode == "const":
            return torch.zeros(shape)
        return torch.randn(shape, generator=torch.Generator().manual_seed(draw.getrandbits(63)))


@augmentation("mixup")
@dataclass(frozen=True)
class Mixup:
    """Each image of a batch is mixed with the one that is as far from the end, and its label.

    Mixup (arXiv 1710.09412) averages them; CutMix (arXiv 1905.04899) puts a box of one into the
    other. Labels become probabilities (B, K).

    Attributes:
        mixup_alpha: of the Beta distribution of an image's share; 0 averages none.
        cutmix_alpha: of the Beta distribution of the share outside of the box; 0 cuts none.
        prob: share of the batches that are mixed.
        switch_prob: share of the mixed batches that are cut, where both are done.
        label_smoothing: share of the target that is spread over all classes.
    """

    mixup_alpha: float = 1.0
    cutmix_alpha: float = 0.0
    prob: float = 1.0
    switch_prob: float = 0.5
    label_smoothing: float = 0.0
    on = "batch"

    def __post_init__(self) -> None:
        for name in ("prob", "switch_prob", "label_smoothing"):
            require_share(name, getattr(self, name))
        if min(self.mixup_alpha, self.cutmix_alpha) < 0 or not self.mixup_alpha + self.cutmix_alpha:
            raise InvalidInputError("of mixup_alpha and cutmix_alpha one is above 0, none below")

    def __call__(
        self, batch: dict[str, Tensor], num_classes: int, draw: random.Random
    ) -> dict[str, Tensor]:
        pixels, labels = batch["pixel_values"], batch["labels"]
        share = 1.0
        if draw.random() < self.prob:
            cuts = self.mixup_alpha == 0 or (
                self.cutmix_alpha > 0 and draw.random() < self.switch_prob
            )
            alpha = self.cutmix_alpha if cuts else self.mixup_alpha
            share = draw.betavariate(alpha, alpha)
            pixels, share = self.cut(pixels, share, draw) if cuts else self.mix(pixels, share)
        return {**batch, "pixel_values": pixels, "labels": self.targets(labels, num_classes, share)}

    def mix(self, pixels: Tensor, share: float) -> tuple[Tensor, float]:
        """Averages; ``share`` is that of an image itself."""
        return share * pixels + (1 - share) * pixels.flip(0), share

    def cut(self, pixels: Tensor, share: float, draw: random.Random) -> tuple[Tensor, float]:
        """A box of 1 - share of the area around a place drawn by chance, cut at the border."""
        height, width = pixels.shape[2:]
        side = math.sqrt(1 - share)
        spans = []
        for length in (height, width):
            cut, middle = int(length * side), draw.randrange(length)
            spans.append(slice(max(middle - cut // 2, 0), min(middle + (cut + 1) // 2, length)))
        mixed = pixels.clone()
        mixed[:, :, spans[0], spans[1]] = pixels.flip(0)[:, :, spans[0], spans[1]]
        area = (spans[0].stop - spans[0].start) * (spans[1].stop - spans[1].start)
        return mixed, 1 - area / (height * width)

    def targets(self, labels: Tensor, num_classes: int, share: float) -> Tensor:
        """(B,) -> (B, K)."""
        sure = F.one_hot(labels, num_classes).float()
        sure = sure * (1 - self.label_smoothing) + self.label_smoothing / num_classes
        return share * sure + (1 - share) * sure.flip(0)
