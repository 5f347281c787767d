"""Multichannel time series, such as of motion, joints or force, trained from scratch.

Letters: B batch, T time steps, C channels, P windows, N tokens, D width.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.base import Encoder, EncoderOutput
from encoders.sequence import TimeTransformer, time_features
from encoders.windows import cut_windows, join_windows

_WINDOW_TOKENS = 128
_MAX_SECONDS = 1e5  # positions are float32: times of day or of a calendar lose their detail

Series = Tensor | tuple[Tensor, Tensor | float]
"""Values (T, C) or (T,), NaN where missing; with them times (T,) in seconds, or a rate in Hz."""


@final
@dataclass(frozen=True)
class TimeSeries:
    """Turns a series with time stamps and missing values into rows of plain numbers.

    Steps at which nothing was measured are left out. A series in which nothing was measured at
    all gives one empty row, which counts as absent.

    Args:
        num_channels: C.
        rate: Steps in a second, of series that come without times.
        max_steps: Steps kept, from the start.
    """

    num_channels: int
    rate: float
    max_steps: int

    def __call__(self, raw: Series) -> Tensor:
        """Turn a series into (T, 1 + 2 C) float32: seconds, the values (0 where missing), and
        whether each was measured (1 or 0).

        Raises:
            ValueError: If it has other channels, is empty or holds infinite values, or its times
                are not seconds that rise from 0 or later.
        """
        values, times = raw if isinstance(raw, tuple) else (raw, self.rate)
        values = (values.unsqueeze(1) if values.ndim == 1 else values)[: self.max_steps].double()
        if values.ndim != 2 or values.shape[1] != self.num_channels or not len(values):
            raise ValueError(
                f"A series must have shape (steps, {self.num_channels}) with at least one step, "
                f"got {tuple(values.shape)}; set num_channels, or drop the sample."
            )
        if values.abs().gt(torch.finfo(torch.float32).max).any():
            raise ValueError("The series holds infinite values; mark what is missing with NaN.")
        seconds = _seconds(times, len(values))
        measured = ~values.isnan()
        kept = measured.any(dim=1)
        kept[0] |= ~kept.any()
        rows = torch.cat([seconds.unsqueeze(1), values.nan_to_num(0.0), measured], dim=1)
        return rows[kept].float()


def _seconds(times: Tensor | float, num_steps: int) -> Tensor:
    if not isinstance(times, Tensor):
        if not times > 0:
            raise ValueError(f"A rate of {times} Hz is not above 0; give steps in a second.")
        return torch.arange(num_steps, dtype=torch.float64) / times
    times = times[:num_steps].double()
    if times.shape != (num_steps,) or not times.isfinite().all() or (times.diff() < 0).any():
        raise ValueError(
            f"A series of {num_steps} steps needs as many times that do not fall, got "
            f"{tuple(times.shape)}; sort the steps by time."
        )
    if times[0] < 0 or times[-1] > _MAX_SECONDS:
        raise ValueError(
            f"Got times from {times[0]:g} to {times[-1]:g}; give seconds from the start of the "
            "recording, which all modalities of a sample share."
        )
    return times


def is_measured(rows: Tensor) -> Tensor:
    """Which rows (..., 1 + 2 C) of `TimeSeries` hold any value: (...) bool."""
    return (rows[..., rows.shape[-1] // 2 + 1 :] > 0).any(dim=-1)


def compress(values: Tensor) -> Tensor:
    """sign(x) log(1 + |x|): any unit of measurement becomes numbers of a few units."""
    return values.sign() * values.abs().log1p()


@final
class SensorEncoder(Encoder):
    """A transformer over stretches of a series, which tells missing values from zeros.

    Each step is the sum of its channels, a learned vector for each that is missing, and its time;
    a strided convolution makes tokens of some steps each. Values are compressed by a logarithm and
    not normalised otherwise, so that their size is kept.

    Args:
        num_channels: C.
        dim: Width of the tokens.
        depth: Layers of the transformer.
        num_heads: Heads of attention.
        steps_per_token: Steps that one token sums up.
        rate: Steps in a second, of series that come without times.
        max_steps: Steps kept of a series; 128 tokens at a time attend to each other.
        modality: Name of the modality.

    Raises:
        ValueError: If the heads do not divide the width, or a number is not positive.
    """

    def __init__(
        self,
        num_channels: int,
        dim: int = 128,
        depth: int = 2,
        num_heads: int = 4,
        steps_per_token: int = 8,
        rate: float = 50.0,
        max_steps: int = 10_000,
        modality: str = "sensor",
    ) -> None:
        if min(num_channels, depth, num_heads, steps_per_token, rate, max_steps) <= 0:
            raise ValueError("SensorEncoder got a number that is not positive; give all above 0.")
        super().__init__(modality, dim, TimeSeries(num_channels, rate, max_steps))
        self.channels = nn.Linear(2 * num_channels, dim)
        self.tokens = nn.Conv1d(dim, dim, steps_per_token, stride=steps_per_token)
        self.transformer = TimeTransformer(dim, depth, num_heads, dropout=0.1)

    def forward(self, inputs: Tensor, mask: Tensor) -> EncoderOutput:
        """Encode rows (B, T, 1 + 2 C) of `TimeSeries`; real steps come first in a row."""
        mask = mask & is_measured(inputs)
        stride = self.tokens.stride[0]
        windows = cut_windows(inputs, mask, _WINDOW_TOKENS * stride)
        steps = int(windows.lengths.max()) if len(windows.lengths) else 1
        rows = windows.values[:, : -(-steps // stride) * stride]
        real = torch.arange(rows.shape[1], device=mask.device) < windows.lengths[:, None]
        seconds = rows[..., 0]
        times = time_features(seconds - seconds[:, :1], self.dim)
        values, measured = rows[..., 1:].chunk(2, dim=-1)
        # Beside each value stands whether it was measured: a missing one is no zero.
        hidden = self.channels(torch.cat([compress(values), measured], dim=-1)) + times
        hidden = hidden * real.unsqueeze(-1)
        hidden = F.gelu(self.tokens(hidden.transpose(1, 2)).transpose(1, 2))
        hidden = self.transformer(hidden, seconds[:, ::stride], real[:, ::stride])
        hidden = F.pad(hidden, (0, 0, 0, _WINDOW_TOKENS - hidden.shape[1]))
        token_mask = mask[:, ::stride]
        position = F.pad(inputs[:, ::stride, :1], (0, 2)).masked_fill(~token_mask.unsqueeze(-1), 0)
        return EncoderOutput(join_windows(hidden, windows.place, token_mask), token_mask, position)
