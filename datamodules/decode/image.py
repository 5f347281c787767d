"""Pictures."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from datamodules.decode.error import DecodeError, expect, one_line
from datamodules.reasons import Reason
from datamodules.sniff import webp_size

if TYPE_CHECKING:
    from PIL.Image import Image

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
# EXIF orientation -> axes of (3, H, W) to flip; from 5 up height and width are exchanged first.
_FLIPS = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}
_ORIENTATION = 0x0112
_TURNED = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")  # what may hold it in a PNG
_STRIP = 256  # rows
_MAX_SCANS = 100  # encoders write about ten; each costs a pass over all pixels


def decode_image(data: bytes, *, max_pixels: int = 64_000_000) -> Tensor:
    """Decode a JPEG, PNG, WEBP, BMP or (first frame of a) GIF picture.

    The EXIF orientation is applied, transparency is laid over white, 16 bits become 8, and
    palettes, grey and CMYK become RGB. Colour profiles are ignored. A single pixel is refused: in
    data from the web it is a tracking pixel or a stand-in for a picture that was not there.

    Args:
        data: the whole file.
        max_pixels: largest width x height that is decoded, checked in the header.

    Returns:
        uint8 (3, H, W), RGB, upright; of any strides, for decoders lay channels last.

    Raises:
        DecodeError: not a picture, a single pixel, larger than `max_pixels`, or damaged.
    """
    kind = expect(data, _FORMATS, "a picture")
    from PIL import Image

    try:
        if kind == "WEBP":  # Pillow allocates the canvas of a WEBP as it opens it
            _check_pixels(*webp_size(data), max_pixels)
        if kind == "JPEG" and data.count(b"\xff\xda") > _MAX_SCANS:
            raise DecodeError(
                f"this JPEG picture has more than {_MAX_SCANS} scans", Reason.TOO_LARGE
            )
        with Image.open(io.BytesIO(data), formats=[kind]) as image:
            _check_pixels(*image.size, max_pixels)
            orientation = _orientation(image, kind, data)
            pixels = _plain_rgb(data) if _is_plain(image, kind, data) else _any_to_rgb(image)
    except DecodeError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DecodeError(
            f"this picture claims more pixels than {max_pixels}", Reason.TOO_MANY_PIXELS
        ) from error
    except Exception as error:  # damaged files raise some twenty different classes here
        raise DecodeError(
            f"this {kind} picture is damaged ({one_line(error)})", Reason.DAMAGED
        ) from error
    return _upright(pixels, orientation)


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise DecodeError(
            f"this picture claims {width} x {height} pixels, more than the limit of {max_pixels}",
            Reason.TOO_MANY_PIXELS,
        )
    if width * height == 1:
        raise DecodeError("this picture is a single pixel", Reason.TOO_FEW_PIXELS)


def _orientation(image: Image, kind: str, data: bytes) -> int:
    if kind == "PNG" and not any(mark in data for mark in _TURNED):
        return 1  # without a look: Pillow decodes all of a PNG to give it
    return image.getexif().get(_ORIENTATION, 1)


def _is_plain(image: Image, kind: str, data: bytes) -> bool:
    """Whether torchvision, the faster decoder, gives the right RGB of this picture."""
    if image.mode not in ("RGB", "L") or image.has_transparency_data:
        return False
    still = not getattr(image, "is_animated", False)
    return kind == "JPEG" or (kind == "WEBP" and still) or (kind == "PNG" and data[24] == 8)


def _plain_rgb(data: bytes) -> Tensor:
    from torchvision.io import ImageReadMode, decode_image

    return decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)


def _any_to_rgb(image: Image) -> Tensor:
    """By strips, so that what is made on the way does not cost many times the memory."""
    import numpy as np

    image.load()
    pixels = torch.empty(3, image.height, image.width, dtype=torch.uint8)
    for top in range(0, image.height, _STRIP):
        strip = image.crop((0, top, image.width, min(top + _STRIP, image.height)))
        rgb = torch.from_numpy(np.array(_strip_to_rgb(strip)))
        pixels[:, top : top + _STRIP] = rgb.permute(2, 0, 1)
    return pixels


def _strip_to_rgb(image: Image) -> Image:
    import numpy as np
    from PIL import Image as images

    if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip, not scale
        grey = np.asarray(image).astype(np.float64) / 257
        image = images.fromarray(grey.round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = images.alpha_composite(images.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _upright(pixels: Tensor, orientation: int) -> Tensor:
    """Undo an EXIF orientation (1 to 8; anything else is taken as 1), copying only if it must."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 2)
    return pixels.flip(_FLIPS[orientation]) if orientation in _FLIPS else pixels
