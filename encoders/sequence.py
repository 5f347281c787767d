"""A small transformer over tokens that have times, for towers trained from scratch.

Letters: P windows, N tokens, D width.
"""

import math
from typing import final

import torch
from torch import Tensor, nn

from encoders.transformer import transformer

_PERIODS = (0.1, 1_000.0)  # seconds, of the fastest and the slowest sine


def time_features(seconds: Tensor, dim: int) -> Tensor:
    """Sines and cosines of times: (...) float32 to (..., dim), `dim` even.

    Periods rise in geometric steps, as in Vaswani et al. 2017 (arXiv:1706.03762), in seconds.
    """
    shortest, longest = _PERIODS
    steps = torch.arange(dim // 2, device=seconds.device) / max(1, dim // 2 - 1)
    rates = 2 * math.pi / (shortest * (longest / shortest) ** steps)
    angles = seconds.unsqueeze(-1) * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


@final
class TimeTransformer(nn.Module):
    """Pre-norm transformer whose tokens know when they are, counted from their window's first.

    Args:
        dim: D, even.
        depth: Layers.
        num_heads: Heads of attention.
        dropout: Share of hidden units dropped in training.

    Raises:
        ValueError: If the heads do not divide the width, it is odd, or there is no layer.
    """

    def __init__(self, dim: int, depth: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        if dim % 2 or depth < 1:
            raise ValueError(f"Got a width of {dim} and {depth} layers; give an even one and some.")
        self.net = transformer(dim, depth, num_heads, dropout)

    def forward(self, hidden: Tensor, seconds: Tensor, mask: Tensor) -> Tensor:
        """Mix tokens within their window.

        Args:
            hidden: (P, N, D).
            seconds: (P, N).
            mask: (P, N) bool, True = real; at least one of each window is.

        Returns:
            (P, N, D), zero where the mask is False.
        """
        num_windows = len(hidden)
        if (
            not num_windows
        ):  # one that counts for nothing, for torch's attention takes no batch of 0
            hidden, seconds = (t.new_zeros(1, *t.shape[1:]) for t in (hidden, seconds))
            mask = mask.new_ones(1, mask.shape[1])
        hidden = hidden + time_features(seconds - seconds[:, :1], hidden.shape[-1]).to(hidden.dtype)
        hidden = self.net(hidden, src_key_padding_mask=~mask)
        return hidden.masked_fill(~mask.unsqueeze(-1), 0)[:num_windows]
