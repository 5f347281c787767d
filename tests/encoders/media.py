"""Tiny towers of sound and video with weights in files, and raw samples, for the tests of both."""

import math
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from encoders import TorchvisionVideo, Wav2Vec2, Whisper

TINY_HUBERT: dict[str, Any] = {
    "extractor_mode": "group_norm",
    "extractor_conv_layer_config": [(8, 10, 5), *[(8, 3, 2)] * 4, *[(8, 2, 2)] * 2],
    "extractor_conv_bias": False,
    "encoder_embed_dim": 16,
    "encoder_projection_dropout": 0.1,
    "encoder_pos_conv_kernel": 16,
    "encoder_pos_conv_groups": 2,
    "encoder_num_layers": 3,
    "encoder_num_heads": 2,
    "encoder_attention_dropout": 0.1,
    "encoder_ff_interm_features": 32,
    "encoder_ff_interm_dropout": 0.1,
    "encoder_dropout": 0.1,
    "encoder_layer_norm_first": False,
    "encoder_layer_drop": 0.5,
    "aux_num_out": None,
}
TINY_WHISPER = (16, 2, 2, 80)  # width, layers, heads, mel bands


@cache
def _folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="media-")


def _saved(name: str, state: dict[str, Tensor]) -> str:
    path = Path(_folder().name) / f"{name}.pt"
    torch.save(state, path)
    return str(path)


@cache
def _hubert_file() -> str:
    return _saved("hubert", Wav2Vec2(TINY_HUBERT, train="scratch").net.state_dict())


@cache
def _whisper_file() -> str:
    state = Whisper(TINY_WHISPER, train="scratch").net.state_dict()
    return _saved("whisper", {f"encoder.{name}": value for name, value in state.items()})


@cache
def _video_file() -> str:
    from torchvision.models import get_model

    return _saved("s3d", get_model("s3d", weights=None).state_dict())


def tiny_hubert(**settings: Any) -> Wav2Vec2:
    return Wav2Vec2(TINY_HUBERT, _hubert_file(), **settings)


def tiny_whisper(**settings: Any) -> Whisper:
    return Whisper(TINY_WHISPER, _whisper_file(), **{"window_seconds": 0.5, **settings})


def tiny_video(**settings: Any) -> TorchvisionVideo:
    return TorchvisionVideo("s3d", _video_file(), **{"size": 32, "clip_frames": 8, **settings})


def clip(seed: int, num_frames: int, start: float = 0.0) -> tuple[Tensor, Tensor]:
    """A video of 8 frames a second."""
    draw = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (num_frames, 3, 40, 60), dtype=torch.uint8, generator=draw)
    return frames, start + torch.arange(num_frames) / 8


def series(seed: int, num_steps: int, num_columns: int) -> Tensor:
    """Values of which every third or so is missing."""
    draw = torch.Generator().manual_seed(seed)
    values = torch.randn(num_steps, num_columns, generator=draw)
    return values.masked_fill(torch.rand(values.shape, generator=draw) < 0.3, math.nan)


VIDEOS = [clip(0, 3), clip(1, 21, start=0.5), clip(2, 1)]
UNEVEN = torch.rand(300, generator=torch.Generator().manual_seed(0)).cumsum(0)
SERIES = [series(0, 40, 3), (series(1, 300, 3), UNEVEN), (series(2, 5, 3).nan_to_num(1e6), 0.5)]
CHOICES = torch.arange(30).remainder(4).unsqueeze(1)
ACTIONS = [torch.cat([series(n, n, 2), CHOICES[:n]], dim=1) for n in (4, 30, 1)]
