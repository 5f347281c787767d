"""Reading shards: bytes -> decoded samples -> batches. `datamodules.module` needs Lightning."""

from datamodules.decode import DecodeError, decode_audio, decode_image, decode_text
from datamodules.samples import (
    MEMBERS,
    Rejected,
    Sample,
    collate,
    decode_samples,
    group_of,
)
from datamodules.shards import read_folder, read_shards

__all__ = [
    "MEMBERS",
    "DecodeError",
    "Rejected",
    "Sample",
    "collate",
    "decode_audio",
    "decode_image",
    "decode_samples",
    "decode_text",
    "group_of",
    "read_folder",
    "read_shards",
]
