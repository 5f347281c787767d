"""Decoded pictures, recordings and captions as members of a shard, without any loss.

Letters: C channels, H height, W width, T samples.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
_WAVE_SUBTYPES = {torch.float32: "FLOAT", torch.float64: "DOUBLE"}


class EncodeError(ValueError):
    """There is no lossless file of this value; the message is a clause."""


def encode_picture(picture: Image | Tensor) -> dict[str, bytes]:
    """A picture as a PNG.

    Args:
        picture: a PIL image; or (H, W), or (C, H, W) with 1, 3 or 4 channels: uint8, or floats
            that are whole 255ths, as `ToTensor` gives them.

    Returns:
        {"png": bytes}

    Raises:
        EncodeError: a PNG cannot hold it as it is.
    """
    from PIL import Image

    image = Image.fromarray(_pixels(picture)) if isinstance(picture, Tensor) else picture
    if image.mode not in _PNG_MODES:
        raise EncodeError(f"a PNG holds no picture of mode {image.mode}; convert it to RGB")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return {"png": buffer.getvalue()}


def encode_recording(waveform: Tensor, sample_rate: int) -> dict[str, bytes]:
    """A recording as FLAC where its samples are 16- or 24-bit integers, otherwise as WAV of floats.

    Args:
        waveform: (T,) or (C, T) floats, full scale 1, or int16.
        sample_rate: in Hz.

    Returns:
        {"flac": bytes} or {"wav": bytes}

    Raises:
        EncodeError: it has another shape or type, or neither format takes it.
    """
    if waveform.ndim not in (1, 2) or not waveform.numel():
        raise EncodeError(f"a waveform of shape {tuple(waveform.shape)}; wanted (C, T)")
    if waveform.dtype == torch.int16:
        waveform = waveform.float() / 2**15
    if waveform.dtype not in _WAVE_SUBTYPES:
        raise EncodeError(f"a waveform of {waveform.dtype}; wanted floats or int16")
    for bits in (16, 24):
        scale = 2 ** (bits - 1)
        levels = waveform.double() * scale
        if torch.equal(levels, levels.round()) and -scale <= levels.min() <= levels.max() < scale:
            # soundfile takes integers as they are, left-aligned; floats it would round once more
            whole = (levels * 2 ** (32 - bits)).to(torch.int32)
            return {"flac": _sound(whole, sample_rate, "FLAC", f"PCM_{bits}")}
    return {"wav": _sound(waveform, sample_rate, "WAV", _WAVE_SUBTYPES[waveform.dtype])}


def encode_captions(captions: Sequence[str]) -> dict[str, bytes]:
    """Captions: the first as text; if there are several, all of them as metadata.

    Returns:
        {}, {"txt": bytes}, or {"txt": bytes, "json": bytes}
    """
    members = {"txt": captions[0].encode()} if captions else {}
    if len(captions) > 1:
        members["json"] = json.dumps({"captions": list(captions)}).encode()
    return members


def _pixels(picture: Tensor) -> np.ndarray:
    """(H, W) or (H, W, C) uint8."""

    if picture.is_floating_point():
        levels = picture.double() * 255
        if not torch.allclose(levels, levels.round(), rtol=0, atol=1e-4):
            raise EncodeError("its floats are not whole 255ths; give uint8 or a PIL image")
        if levels.min() < -0.5 or levels.max() > 255.5:
            raise EncodeError("its floats are not between 0 and 1; give uint8 or a PIL image")
        picture = levels.round().to(torch.uint8)
    channels = picture.shape[0] if picture.ndim == 3 else 1
    if picture.dtype != torch.uint8 or picture.ndim not in (2, 3) or channels not in (1, 3, 4):
        raise EncodeError(
            f"a tensor of shape {tuple(picture.shape)} and {picture.dtype} is no picture; wanted "
            "(C, H, W) uint8 with 1, 3 or 4 channels"
        )
    pixels = picture.movedim(0, -1) if picture.ndim == 3 else picture
    return (pixels.squeeze(-1) if channels == 1 and picture.ndim == 3 else pixels).numpy()


def _sound(waveform: Tensor, sample_rate: int, form: str, subtype: str) -> bytes:
    import soundfile

    buffer = io.BytesIO()
    try:
        soundfile.write(buffer, waveform.T.numpy(), sample_rate, format=form, subtype=subtype)
    except (RuntimeError, TypeError) as error:
        raise EncodeError(f"{form} takes no such recording ({error})") from error
    return buffer.getvalue()
