"""Encoders: raw inputs of one modality in, tokens out. Importing this needs torch only."""

from encoders.action import ActionEncoder
from encoders.audio import LogMelEncoder
from encoders.audio_transformer import AudioTransformer
from encoders.base import Encoder, EncoderOutput
from encoders.cache import TokenCache
from encoders.hugging_face import HuggingFaceText
from encoders.image import EfficientNetLite
from encoders.open_clip_tower import OpenClipImage, OpenClipText
from encoders.sensor import SensorEncoder
from encoders.text import MiniLM
from encoders.text_transformer import TextTransformer
from encoders.timm_backbone import TimmImage
from encoders.torchvision_backbone import TorchvisionImage
from encoders.video import FrameEncoder
from encoders.video_tower import TorchvisionVideo
from encoders.vit import ViT
from encoders.wav2vec2 import Wav2Vec2
from encoders.whisper import Whisper

__all__ = [
    "ActionEncoder",
    "AudioTransformer",
    "EfficientNetLite",
    "Encoder",
    "EncoderOutput",
    "FrameEncoder",
    "HuggingFaceText",
    "LogMelEncoder",
    "MiniLM",
    "OpenClipImage",
    "OpenClipText",
    "SensorEncoder",
    "TextTransformer",
    "TimmImage",
    "TokenCache",
    "TorchvisionImage",
    "TorchvisionVideo",
    "ViT",
    "Wav2Vec2",
    "Whisper",
]
