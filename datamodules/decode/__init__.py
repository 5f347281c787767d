"""Bytes of a file -> raw values of one modality, safely.

Data comes from strangers: the real format is sniffed from the first bytes against a short list
(a file's name proves nothing), sizes are read from headers and capped before anything is
decoded, and every failure is one `DecodeError` with one sentence. Nothing here executes content.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from datamodules.decode.audio import Audio, decode_audio
from datamodules.decode.error import DecodeError
from datamodules.decode.image import decode_image
from datamodules.decode.metadata import decode_metadata
from datamodules.decode.sensor import decode_sensor
from datamodules.decode.text import check_text, decode_text
from datamodules.decode.video import Video, decode_video

Raw = Tensor | str | Audio | Video
"""image: uint8 (3, H, W); text: str; audio: (float32 (channels, samples), rate in Hz);
video: (uint8 frames (T, 3, H, W), their times float32 (T,) in seconds); sensor: float32 (T, C)."""

DECODERS: Mapping[str, Callable[[bytes], Raw]] = {
    "image": decode_image,
    "text": decode_text,
    "audio": decode_audio,
    "video": decode_video,
    "sensor": decode_sensor,
}
"""The decoder of each modality: a fixed table, so no name in a file ever chooses code."""

__all__ = [
    "DECODERS",
    "Audio",
    "DecodeError",
    "Raw",
    "Video",
    "check_text",
    "decode_audio",
    "decode_image",
    "decode_metadata",
    "decode_sensor",
    "decode_text",
    "decode_video",
]
