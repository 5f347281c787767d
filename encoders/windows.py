"""Long sequences as windows, which towers take one by one.

Letters: B batch, T time steps, P windows, N tokens, D width.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from encoders.base import EncoderOutput


class Windows(NamedTuple):
    """Windows of a batch of sequences.

    Attributes:
        values: (P, size, ...); zero past the end of a sequence.
        lengths: (P,) real steps of each.
        place: (B, windows) bool, where each comes from: the P True entries, row by row.
    """

    values: Tensor
    lengths: Tensor
    place: Tensor


def cut_windows(
    inputs: Tensor, mask: Tensor, size: int, overlap: int = 0, shortest: int = 1
) -> Windows:
    """Cuts sequences into windows that start every `size` steps.

    Args:
        inputs: (B, T, ...) with real steps first in a row.
        mask: (B, T) bool, True = real.
        size: Steps from the start of one window to the next.
        overlap: Steps that a window goes on into the next.
        shortest: Windows with fewer real steps than this are left out.

    Returns:
        Windows of `size + overlap` steps.
    """
    num_windows = -(-mask.shape[1] // size)
    padding = num_windows * size + overlap - mask.shape[1]
    real = mask.view(*mask.shape, *[1] * (inputs.ndim - 2))
    padded = torch.cat(
        [inputs.masked_fill(~real, 0), inputs.new_zeros(len(inputs), padding, *inputs.shape[2:])], 1
    )
    starts = torch.arange(num_windows, device=mask.device) * size
    lengths = (mask.sum(dim=1, keepdim=True) - starts).clamp(0, size + overlap)
    place = lengths >= shortest
    values = padded.unfold(1, size + overlap, size).movedim(-1, 2)[place]
    return Windows(values, lengths[place], place)


def join_windows(tokens: Tensor, place: Tensor, mask: Tensor) -> Tensor:
    """Tokens (P, tokens of a window, D) end to end: (B, N, D), zero where the mask is False.

    Args:
        tokens: Of each window; a window's last may be too many.
        place: (B, windows) bool, as `cut_windows` gave it.
        mask: (B, N) bool, the tokens that are real.
    """
    values = tokens.new_zeros(*place.shape, *tokens.shape[1:])
    values[place] = tokens
    return values.flatten(1, 2)[:, : mask.shape[1]].masked_fill(~mask.unsqueeze(-1), 0)


def timed_output(values: Tensor, mask: Tensor, seconds: float, pool: int = 1) -> EncoderOutput:
    """Evenly spaced tokens with their times, each the mean of `pool` neighbours.

    Args:
        values: (B, N, D), zero where the mask is False.
        mask: (B, N) bool, real tokens first in a row.
        seconds: From one token to the next.
        pool: Tokens averaged into one; the last of a row may have fewer.
    """
    if pool > 1:
        spare = -mask.shape[1] % pool
        counts = F.pad(mask, (0, spare)).unflatten(1, (-1, pool)).sum(dim=2)
        sums = F.pad(values, (0, 0, 0, spare)).unflatten(1, (-1, pool)).sum(dim=2)
        values = sums / counts.clamp_min(1).unsqueeze(-1)
        mask = counts > 0
    position = torch.zeros(*mask.shape, 3, device=mask.device)
    position[..., 0] = torch.arange(mask.shape[1], device=mask.device) * (seconds * pool)
    return EncoderOutput(values, mask, position)
