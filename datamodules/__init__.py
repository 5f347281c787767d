"""Reading shards: bytes -> decoded samples -> batches. `datamodules.module` needs Lightning."""

from datamodules.decode import (
    DecodeError,
    decode_audio,
    decode_image,
    decode_sensor,
    decode_text,
    decode_video,
)
from datamodules.decoding import decode_samples
from datamodules.reasons import Reason
from datamodules.samples import (
    MEMBERS,
    Rejected,
    Sample,
    collate,
    group_of,
)
from datamodules.shards import read_folder, read_shards

__all__ = [
    "MEMBERS",
    "DecodeError",
    "Reason",
    "Rejected",
    "Sample",
    "collate",
    "decode_audio",
    "decode_image",
    "decode_samples",
    "decode_sensor",
    "decode_text",
    "decode_video",
    "group_of",
    "read_folder",
    "read_shards",
]
