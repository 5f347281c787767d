"""Bytes of a file -> raw values of one modality, safely.

Data comes from strangers: the real format is sniffed from the first bytes against a short list
(a file's name proves nothing), sizes are read from headers and capped before anything is
decoded, and every failure is one `DecodeError` with one sentence. Nothing here executes content.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from datamodules.sniff import sniff, webp_size

if TYPE_CHECKING:
    from PIL.Image import Image

Audio = tuple[Tensor, int]
Raw = Tensor | str | Audio
"""image: uint8 (3, H, W); text: str; audio: (float32 (channels, samples), rate in Hz)."""

MAX_AMPLITUDE = 1e6  # full scale is 1; beyond this a power spectrum in float32 overflows
RATES = (1_000, 384_000)  # Hz

_STREAMED = 0x7FFF_0000  # WAV writers that cannot seek leave a size from here up

_IMAGES = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_AUDIO = ("WAV", "FLAC", "OGG", "MP3")
# EXIF orientation -> axes of (3, H, W) to flip; from 5 up height and width are exchanged first.
_FLIPS = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}
_ORIENTATION = 0x0112


class DecodeError(ValueError):
    """The bytes are not what the modality wants; the message is one sentence for the user."""


def _expect(data: bytes, allowed: tuple[str, ...], wanted: str) -> str:
    kind = sniff(data)
    if kind in allowed:
        return kind
    got = "text" if kind == "text" else f"{kind} data" if kind != "unknown" else "an unknown format"
    got = got if data else "empty"
    raise DecodeError(f"this file is {got}, not {wanted} ({', '.join(allowed)} are read)")


def decode_image(data: bytes, *, max_pixels: int = 64_000_000) -> Tensor:
    """Decode a JPEG, PNG, WEBP, BMP or (first frame of a) GIF picture.

    The EXIF orientation is applied, transparency is laid over white, 16 bits become 8, and
    palettes, grey and CMYK become RGB. Colour profiles are ignored.

    Args:
        data: the whole file.
        max_pixels: largest width x height that is decoded, checked in the header.

    Returns:
        uint8 (3, H, W), RGB, upright.

    Raises:
        DecodeError: not a picture, larger than `max_pixels`, or damaged.
    """
    kind = _expect(data, _IMAGES, "a picture")
    from PIL import Image

    try:
        if kind == "WEBP":  # Pillow allocates the canvas of a WEBP as it opens it
            _check_pixels(*webp_size(data), max_pixels)
        with Image.open(io.BytesIO(data), formats=[kind]) as image:
            _check_pixels(*image.size, max_pixels)
            orientation = image.getexif().get(_ORIENTATION, 1)
            pixels = _plain_rgb(data) if _is_plain(image, kind, data) else _any_to_rgb(image)
    except DecodeError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DecodeError(f"this picture claims more pixels than {max_pixels}") from error
    except Exception as error:  # damaged files raise some twenty different classes here
        raise DecodeError(f"this {kind} picture is damaged ({_one_line(error)})") from error
    return _upright(pixels, orientation).contiguous()


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise DecodeError(
            f"this picture claims {width} x {height} pixels, more than the limit of {max_pixels}"
        )


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
    import numpy as np
    from PIL import Image as images

    if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip, not scale
        grey = np.asarray(image).astype(np.float64) / 257
        image = images.fromarray(grey.round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = images.alpha_composite(images.new("RGBA", image.size, "white"), image)
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def _upright(pixels: Tensor, orientation: int) -> Tensor:
    """Undo an EXIF orientation (1 to 8; anything else is taken as 1)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 2)
    return pixels.flip(_FLIPS.get(orientation, ()))


def decode_audio(data: bytes, *, max_seconds: float = 600.0, max_bytes: int = 256 * 2**20) -> Audio:
    """Decode a WAV, FLAC, OGG (Vorbis, Opus) or MP3 recording.

    A truncated WAV or FLAC is refused; OGG and MP3 do not say how long they are, so of a
    truncated one the part that is there is returned.

    Args:
        data: the whole file.
        max_seconds: longest recording that is decoded, checked in the header.
        max_bytes: most bytes of float32 samples that are decoded, checked in the header.

    Returns:
        (waveform float32 (channels, samples), rate in Hz); full scale is 1.

    Raises:
        DecodeError: not a recording, too long, an absurd rate, truncated or damaged, no sample,
            or samples that are not finite.
    """
    kind = _expect(data, _AUDIO, "a recording")
    claimed_bytes = 8 + int.from_bytes(data[4:8], "little")
    if kind == "WAV" and len(data) + 1 < claimed_bytes < _STREAMED:
        raise DecodeError(f"this WAV recording is truncated: {len(data)} of {claimed_bytes} bytes")
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate, channels, claimed = file.samplerate, file.channels, file.frames
            _check_audio(claimed, channels, rate, max_seconds, max_bytes)
            samples = file.read(claimed, dtype="float32", always_2d=True)
    except DecodeError:
        raise
    except Exception as error:  # libsndfile, ctypes and numpy each have their own classes
        raise DecodeError(f"this {kind} recording is damaged ({_one_line(error)})") from error
    waveform = torch.from_numpy(samples).T.contiguous()
    if not waveform.abs().max() <= MAX_AMPLITUDE:  # also true of NaN
        raise DecodeError(
            f"this {kind} recording holds NaN, infinite or absurdly large samples; full scale is 1"
        )
    return waveform, rate


def _check_audio(
    samples: int, channels: int, rate: int, max_seconds: float, max_bytes: int
) -> None:
    if not RATES[0] <= rate <= RATES[1]:
        raise DecodeError(f"this recording has {rate} samples a second, not {RATES[0]}-{RATES[1]}")
    if samples <= 0:
        raise DecodeError("this recording holds no sample")
    if samples > max_seconds * rate:
        raise DecodeError(
            f"this recording claims {samples / rate:.0f} s, more than the limit of {max_seconds:g}"
        )
    if samples * channels * 4 > max_bytes:
        raise DecodeError(
            f"this recording claims {samples} samples in {channels} channels, more than the limit "
            f"of {max_bytes} bytes once decoded"
        )


def decode_text(data: bytes, *, max_chars: int = 10_000) -> str:
    """Decode UTF-8 text (a byte order mark and surrounding white space are removed).

    Raises:
        DecodeError: not UTF-8, empty, longer than `max_chars`, or with a NUL character.
    """
    if len(data) > 4 * max_chars + 3:
        raise DecodeError(f"this text has {len(data)} bytes; the limit is {max_chars} characters")
    try:
        text = data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        kind = sniff(data)
        got = f"{kind} data" if kind not in ("unknown", "text") else f"not UTF-8 at {error.start}"
        raise DecodeError(f"this file is {got}; wanted UTF-8 text") from error
    if len(text) > max_chars:
        raise DecodeError(f"this text has {len(text)} characters; the limit is {max_chars}")
    if not text or "\0" in text:
        raise DecodeError(f"this text is {'not text: it holds NUL' if text else 'empty'}")
    return text


def decode_metadata(data: bytes, *, max_bytes: int = 2**20) -> dict[str, Any]:
    """Decode a JSON object; NaN and infinities, which JSON does not have, are refused.

    Raises:
        DecodeError: not a JSON object of finite values, or longer than `max_bytes`.
    """
    if len(data) > max_bytes:
        raise DecodeError(f"this metadata has {len(data)} bytes; the limit is {max_bytes}")
    try:
        value = json.loads(data.decode("utf-8-sig"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"this metadata is not JSON ({_one_line(error)})") from error
    if not isinstance(value, dict):
        raise DecodeError(f"this metadata is a {type(value).__name__}; wanted a JSON object")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _one_line(error: BaseException) -> str:
    text = re.sub(r"<_io\.BytesIO[^>]*>", "the file", str(error))
    return " ".join(text.split())[:120].rstrip(".") or type(error).__name__


DECODERS: Mapping[str, Callable[[bytes], Raw]] = {
    "image": decode_image,
    "text": decode_text,
    "audio": decode_audio,
}
"""The decoder of each modality: a fixed table, so no name in a file ever chooses code."""
