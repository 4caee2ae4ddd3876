"""Image files of every kind that Pillow writes are read as they are meant to be seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from modwright.core.errors import CheckpointError, InvalidInputError, ModwrightError
from modwright.data.image_files import is_image, read_image

RAMP = np.linspace(0, 65535, 64).round().reshape(8, 8)
EIGHT = np.round(RAMP / 257).astype(np.uint8)


def read(path: Path, **options: Any) -> np.ndarray:
    found = read_image(path, **options)
    assert found.mode == "RGB"
    return np.asarray(found)


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [("png", "<u2"), ("tif", "<u2"), ("tif", ">u2"), ("pgm", "<u2")],
)
def test_fault_A11_sixteen_bits_are_scaled(tmp_path: Path, suffix: str, kind: str) -> None:
    path = tmp_path / f"ramp.{suffix}"
    Image.fromarray(RAMP.astype(kind)).save(path)
    assert (read(path) == EIGHT[:, :, None]).all()


def test_fault_A11_32_bit_integers_are_refused_where_white_is_not_known(tmp_path: Path) -> None:
    path = tmp_path / "counts.tif"
    Image.fromarray(RAMP.astype(np.int32)).save(path)
    with pytest.raises(InvalidInputError, match=r"counts\.tif holds 32-bit pixels \(0 to 65535\)"):
        read_image(path)


def test_fault_A11_floating_point_is_scaled_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "depth.tif"
    Image.fromarray((RAMP / 65535).astype(np.float32)).save(path)
    assert np.abs(read(path).astype(int) - EIGHT[:, :, None]).max() <= 1
    for numbers, told in ((RAMP, "0 to 65535"), (RAMP * np.nan, "NaN"), (RAMP - 1, "-1 to")):
        Image.fromarray(numbers.astype(np.float32)).save(path)
        with pytest.raises(
            InvalidInputError, match=rf"depth\.tif holds floating-point pixels of {told}"
        ):
            read_image(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_fault_A11_exif_orientation_is_applied(
    tmp_path: Path, orientation: int, suffix: str
) -> None:
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :, 0] = upright[:, :16, 1] = 250
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"photo.{suffix}"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, quality=95)
    found = read(path)
    assert found.shape == upright.shape
    assert np.abs(found.astype(int) - upright)[4::8, 4::8].max() <= 12


def test_fault_A11_every_other_mode_becomes_rgb(tmp_path: Path) -> None:
    color = Image.new("RGB", (6, 4), (200, 30, 90))
    for mode, suffix in (("P", "png"), ("P", "gif"), ("CMYK", "tif"), ("YCbCr", "tif")):
        path = tmp_path / f"{mode}.{suffix}"
        color.convert(mode, palette=Image.Palette.ADAPTIVE).save(path)
        assert np.abs(read(path).astype(int) - (200, 30, 90)).max() <= 3, mode
    for mode, shade in (("L", 77), ("1", 255)):
        Image.new(mode, (6, 4), shade).save(tmp_path / "gray.png")
        assert (read(tmp_path / "gray.png") == shade).all()


def test_fault_A11_transparency_is_laid_over_white(tmp_path: Path) -> None:
    path = tmp_path / "sticker.png"
    for mode, clear, opaque in (("RGBA", (9, 9, 9, 0), (9, 9, 9, 255)), ("LA", (9, 0), (9, 255))):
        sticker = Image.new(mode, (4, 4), clear)
        sticker.putpixel((1, 2), opaque)
        sticker.save(path)
        found = read(path)
        assert (found[2, 1] == 9).all() and (found[0] == 255).all()
        with pytest.raises(InvalidInputError, match=r"sticker\.png is partly transparent"):
            read_image(path, single=True)
        Image.new(mode, (4, 4), opaque).save(path)
        assert (read(path, single=True) == 9).all()
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 9, 9, 9])
    palette.save(path, transparency=1)
    assert (read(path) == 255).all()


def test_of_several_frames_the_first_is_read_or_none(tmp_path: Path) -> None:
    frames = [Image.new("L", (4, 4), shade) for shade in (10, 200)]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    assert (read(tmp_path / "a.tif") == 10).all()
    with pytest.raises(InvalidInputError, match=r"a\.tif has several frames"):
        read_image(tmp_path / "a.tif", single=True)
    # A phone's photo with a second image of its own, as a JPEG file
    frames[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=frames[1:])
    assert np.abs(read(tmp_path / "a.jpg", single=True).astype(int) - 10).max() <= 1


def test_what_is_no_image_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (40, 40)).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    for name, data in (("empty.png", b""), ("cut.png", whole[:50]), ("text.jpg", b"no image")):
        (tmp_path / name).write_bytes(data)
        assert is_image(tmp_path / name)
        with pytest.raises(CheckpointError, match=rf"{name} is no image that can be read"):
            read_image(tmp_path / name)
    with pytest.raises(CheckpointError, match=r"gone\.png: no such file"):
        read_image(tmp_path / "gone.png")
    for name in ("notes.txt", "pages.pdf", "film.mpg", "photo.heic"):
        (tmp_path / name).write_bytes(b"something else")
        assert not is_image(tmp_path / name)
        with pytest.raises(ModwrightError, match=name):
            read_image(tmp_path / name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert is_image(tmp_path / "a.png")
    with pytest.raises(InvalidInputError, match=r"a\.png has more than 200 pixels"):
        read_image(tmp_path / "a.png")
