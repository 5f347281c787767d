"""Encoders: raw inputs of one modality in, tokens out. Importing this needs torch only."""

from encoders.audio import LogMelEncoder
from encoders.base import Encoder, EncoderOutput
from encoders.cache import TokenCache
from encoders.image import EfficientNetLite
from encoders.open_clip_tower import OpenClipImage, OpenClipText
from encoders.text import MiniLM

__all__ = [
    "EfficientNetLite",
    "Encoder",
    "EncoderOutput",
    "LogMelEncoder",
    "MiniLM",
    "OpenClipImage",
    "OpenClipText",
    "TokenCache",
]
