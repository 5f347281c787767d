"""Sound through log-mel frames and a small convolutional network, trained from scratch.

Letters: B batch, F frames (20 ms), M mel bands, N tokens, D width.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.base import Encoder, EncoderOutput
from encoders.waveform import SAMPLE_RATE, cut_waveform, to_mono

HOP = 320  # samples between frames: 20 ms
_WINDOW = 400  # samples in a frame: 25 ms
_NUM_STAGES = 3
_STRIDE = 2**_NUM_STAGES  # frames between tokens
_SECONDS_PER_TOKEN = _STRIDE * HOP / SAMPLE_RATE
_REACH = 3  # tokens to either side that a convolution over time sees
_GAP = _REACH * _STRIDE  # frames


@final
@dataclass(frozen=True)
class LogMel:
    """Turns a waveform into normalised log-mel frames, the same for any loudness.

    Args:
        num_mels: Number of mel bands M.
        max_seconds: Seconds kept of a clip, from its start.
    """

    num_mels: int
    max_seconds: float

    def __call__(self, raw: tuple[Tensor, int]) -> Tensor:
        """Turn `(waveform (channels, samples) float, rate in Hz)` into (F, M) float32 frames.

        Each clip has zero mean and unit variance over all its values; a silent clip is all zero.

        Raises:
            ValueError: If the waveform is empty, not finite, or not of this form.
        """
        waveform, rate = cut_waveform(raw, self.max_seconds)
        waveform = waveform / waveform.abs().amax().clamp_min(1e-8)  # no overflow below
        mono = to_mono(waveform, rate)
        mono = mono / mono.square().mean().sqrt().clamp_min(1e-4)
        mono = F.pad(mono, (0, max(0, _WINDOW - len(mono))))
        frames = (self._mel(mono) + 1e-5).log().T
        return (frames - frames.mean()) / frames.std().clamp_min(1e-3)

    @cached_property
    def _mel(self) -> nn.Module:
        from torchaudio.transforms import MelSpectrogram

        return MelSpectrogram(
            SAMPLE_RATE,
            n_fft=512,
            win_length=_WINDOW,
            hop_length=HOP,
            f_min=20.0,
            n_mels=self.num_mels,
            pad_mode="constant",
        )


@final
class LogMelEncoder(Encoder):
    """A small convolutional sound encoder: one token for each 160 ms, trainable on few clips.

    Three strided convolutions over time, then residual depthwise blocks over time.
    Every normalisation acts on one place alone and every convolution sees zeros at padding, so a
    clip's tokens depend on the clip only. In training mode bands of time and frequency are
    blanked (SpecAugment, Park et al. 2019, arXiv:1904.08779).

    Args:
        dim: Width of the tokens.
        num_mels: Number of mel bands.
        num_blocks: Residual blocks; each adds 1 s to what a token hears.
        dropout: Share of hidden units dropped in training.
        max_seconds: Seconds kept of a clip.
    """

    def __init__(
        self,
        dim: int = 256,
        num_mels: int = 64,
        num_blocks: int = 2,
        dropout: float = 0.1,
        max_seconds: float = 10.0,
    ) -> None:
        super().__init__("audio", dim, LogMel(num_mels, max_seconds))
        widths = [num_mels, *[2 * dim // 3] * (_NUM_STAGES - 2), dim, dim]
        self.stages = nn.ModuleList(ConvStage(a, b) for a, b in pairwise(widths))
        self.blocks = nn.ModuleList(_TimeBlock(dim, dropout) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(dim)

    def forward(self, inputs: Tensor, mask: Tensor) -> EncoderOutput:
        """Encode frames (B, F, M) into ceil(F / 8) tokens; real frames come first in a row."""
        frames = inputs.masked_fill(~mask.unsqueeze(-1), 0)
        if self.training:
            frames = blank_bands(frames, mask)
        token_mask = mask[:, ::_STRIDE]
        num_tokens = token_mask.shape[1]
        # All clips run end to end in one row, so that padding costs no work. Whole strides and
        # a gap as long as a convolution reaches leave each clip as if it were alone.
        space = (0, _STRIDE + _GAP)
        lengths = token_mask.sum(dim=1, keepdim=True) * _STRIDE + _GAP
        kept = torch.arange(mask.shape[1] + sum(space), device=mask.device) < lengths
        tokens = self._encode_row(F.pad(frames, (0, 0, *space))[kept], F.pad(mask, space)[kept])
        kept = kept[:, ::_STRIDE]
        values = tokens.new_zeros(*kept.shape, self.dim)
        values[kept] = tokens
        position = torch.zeros(*token_mask.shape, 3, device=mask.device)
        position[..., 0] = torch.arange(num_tokens, device=mask.device) * _SECONDS_PER_TOKEN
        return EncoderOutput(values[:, :num_tokens], token_mask, position)

    def _encode_row(self, frames: Tensor, mask: Tensor) -> Tensor:
        """Frames (F, M) into tokens (F / 8, dim), zero where the mask (F,) is False."""
        hidden = frames[None]
        for stage in self.stages:
            mask = mask[::2]
            hidden = stage(hidden) * mask[:, None]  # (1, F, channels), F halved
        for block in self.blocks:
            hidden = block(hidden * mask[:, None])
        return self.norm(hidden[0]) * mask[:, None]


@final
class ConvStage(nn.Module):
    """Convolution of stride 2 over time; normalised over channels at each place.

    Args:
        num_in: Channels that come in.
        num_out: Channels that go out.
    """

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(num_in, num_out, kernel_size=5, stride=2, padding=2)
        self.norm = nn.LayerNorm(num_out)

    def forward(self, hidden: Tensor) -> Tensor:
        """Turn (B, F, num_in) into (B, ceil(F / 2), num_out)."""
        hidden = self.conv(hidden.transpose(1, 2)).transpose(1, 2)
        return F.gelu(self.norm(hidden))


class _TimeBlock(nn.Module):
    """Residual block: depthwise convolution over 7 tokens, then a two-layer network."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.conv = nn.Conv1d(dim, dim, kernel_size=2 * _REACH + 1, padding=_REACH, groups=dim)
        self.net = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, 2 * dim),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(2 * dim, dim),
        )

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.net(self.conv(hidden.transpose(1, 2)).transpose(1, 2))


def blank_bands(frames: Tensor, mask: Tensor) -> Tensor:
    """Zero two random bands of time and two of frequency, each at most a fifth of the clip.

    Args:
        frames: (B, F, M).
        mask: (B, F) bool, real frames first in a row.
    """
    num_bands = frames.shape[-1]
    for _ in range(2):
        in_time = _random_span(mask.sum(dim=1), frames.shape[1])
        in_frequency = _random_span(
            mask.new_full((len(mask),), num_bands, dtype=torch.long), num_bands
        )
        frames = frames * ~(in_time.unsqueeze(2) | in_frequency.unsqueeze(1))
    return frames


def _random_span(lengths: Tensor, size: int) -> Tensor:
    """(B, size) bool: a random span of up to a fifth of each length, inside that length."""
    draws = torch.rand(2, len(lengths), 1, device=lengths.device)
    width = draws[0] * lengths.unsqueeze(1) / 5
    start = draws[1] * (lengths.unsqueeze(1) - width)
    place = torch.arange(size, device=lengths.device)
    return (place >= start) & (place < start + width)
