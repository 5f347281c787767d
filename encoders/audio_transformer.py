"""Sound through log-mel frames, strided convolutions and a transformer, trained from scratch.

Letters: B batch, F frames (20 ms), M mel bands, P windows, N tokens, D width.
"""

from typing import final

import torch
from torch import Tensor, nn

from encoders.audio import HOP, ConvStage, LogMel, blank_bands
from encoders.base import Encoder, EncoderOutput
from encoders.sequence import TimeTransformer
from encoders.waveform import SAMPLE_RATE
from encoders.windows import cut_windows, join_windows, timed_output

_NUM_STAGES = 2
_STRIDE = 2**_NUM_STAGES  # frames between tokens


@final
class AudioTransformer(Encoder):
    """A token for each 80 ms, which knows all of its window: for more clips than LogMelEncoder.

    In training mode bands of time and frequency are blanked (SpecAugment, Park et al. 2019,
    arXiv:1904.08779).

    Args:
        dim: Width of the tokens.
        depth: Layers of the transformer.
        num_heads: Heads of attention.
        num_mels: Number of mel bands.
        window_seconds: Longest stretch that attends to itself.
        max_seconds: Seconds kept of a clip.
        dropout: Share of hidden units dropped in training.

    Raises:
        ValueError: If the heads do not divide the width, or a window holds no token.
    """

    def __init__(
        self,
        dim: int = 256,
        depth: int = 4,
        num_heads: int = 4,
        num_mels: int = 64,
        window_seconds: float = 10.0,
        max_seconds: float = 30.0,
        dropout: float = 0.1,
    ) -> None:
        super().__init__("audio", dim, LogMel(num_mels, max_seconds))
        self.window = round(window_seconds * SAMPLE_RATE / HOP / _STRIDE) * _STRIDE
        if self.window < _STRIDE:
            raise ValueError(f"Got window_seconds={window_seconds}; a token alone has 0.08 s.")
        widths = [num_mels, dim, dim]
        self.stages = nn.ModuleList(
            ConvStage(*pair) for pair in zip(widths[:-1], widths[1:], strict=True)
        )
        self.transformer = TimeTransformer(dim, depth, num_heads, dropout)

    def forward(self, inputs: Tensor, mask: Tensor) -> EncoderOutput:
        """Encode frames (B, F, M) into ceil(F / 4) tokens; real frames come first in a row."""
        frames = inputs.masked_fill(~mask.unsqueeze(-1), 0)
        if self.training:
            frames = blank_bands(frames, mask)
        windows = cut_windows(frames, mask, self.window)
        hidden = windows.values
        real = torch.arange(self.window, device=mask.device) < windows.lengths[:, None]
        for stage in self.stages:
            real = real[:, ::2]
            hidden = stage(hidden) * real.unsqueeze(-1)
        seconds = _STRIDE * HOP / SAMPLE_RATE
        times = torch.arange(real.shape[1], device=mask.device).expand(real.shape) * seconds
        hidden = self.transformer(hidden, times, real)
        token_mask = mask[:, ::_STRIDE]
        return timed_output(join_windows(hidden, windows.place, token_mask), token_mask, seconds)

    def extra_repr(self) -> str:
        """The settings."""
        return f"window={self.window}"
