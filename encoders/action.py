"""Actions of a policy, continuous, chosen out of some, or both; trained from scratch.

Letters: B batch, T time steps, C continuous channels, K choices of a step, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.base import Encoder, EncoderOutput
from encoders.sensor import Series, TimeSeries, compress, is_measured
from encoders.sequence import time_features


@final
@dataclass(frozen=True)
class Actions:
    """Turns actions into rows of a time, the continuous channels and the choices.

    Args:
        series: Of all columns, the choices last.
        num_options: Options of each choice.
    """

    series: TimeSeries
    num_options: tuple[int, ...]

    def __call__(self, raw: Series) -> Tensor:
        """Turn actions (T, C + K), or (T,) if there is one column, into rows of `TimeSeries`.

        Raises:
            ValueError: If they are no such series, or a choice is not one of its options.
        """
        rows = self.series(raw)
        _, values, measured = rows.split([1, self.series.num_channels, self.series.num_channels], 1)
        for number, count in enumerate(reversed(self.num_options), start=1):
            chosen = values[:, -number][measured[:, -number] > 0]
            if ((chosen < 0) | (chosen >= count) | (chosen != chosen.floor())).any():
                raise ValueError(
                    f"A choice out of {count} must be a whole number from 0 to {count - 1}, got "
                    f"{chosen.min():g} to {chosen.max():g}; check the order of the columns."
                )
        return rows


@final
class ActionEncoder(Encoder):
    """One token for each action, which knows itself and its time alone: the future stays unseen.

    Args:
        num_channels: C, continuous channels, such as joint velocities.
        num_options: Options of each of the K choices, such as (2,) for a gripper.
        dim: Width of the tokens, even.
        rate: Actions in a second, of series that come without times.
        max_steps: Actions kept, from the start.

    Raises:
        ValueError: If there is neither a channel nor a choice, `dim` is odd, or a number is not
            positive.
    """

    def __init__(
        self,
        num_channels: int = 0,
        num_options: Sequence[int] = (),
        dim: int = 128,
        rate: float = 10.0,
        max_steps: int = 1_000,
    ) -> None:
        num_columns = num_channels + len(num_options)
        smallest = min(rate, max_steps, *num_options, dim)
        if num_columns < 1 or num_channels < 0 or smallest <= 0 or dim % 2:
            raise ValueError(
                f"Got {num_channels} channels, choices out of {list(num_options)} and dim={dim}; "
                "give at least one channel or choice, an even dim, and all other numbers above 0."
            )
        series = TimeSeries(num_columns, rate, max_steps)
        super().__init__("action", dim, Actions(series, tuple(num_options)))
        self.num_channels = num_channels
        self.channels = nn.Linear(2 * num_channels, dim) if num_channels else None
        # The first option of each stands for a choice that is missing.
        self.choices = nn.ModuleList(nn.Embedding(count + 1, dim) for count in num_options)
        self.net = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, inputs: Tensor, mask: Tensor) -> EncoderOutput:
        """Encode rows (B, T, 1 + 2 (C + K)) of `Actions` into T tokens."""
        mask = mask & is_measured(inputs)
        rows = inputs.masked_fill(~mask.unsqueeze(-1), 0)
        values, measured = rows[..., 1:].chunk(2, dim=-1)
        hidden = time_features(rows[..., 0] - rows[:, :1, 0], self.dim)
        if self.channels is not None:
            continuous = [part[..., : self.num_channels] for part in (values, measured)]
            hidden = hidden + self.channels(torch.cat([compress(continuous[0]), continuous[1]], -1))
        for column, table in enumerate(self.choices, start=self.num_channels):
            chosen = torch.where(measured[..., column] > 0, values[..., column].long() + 1, 0)
            hidden = hidden + table(chosen)
        hidden = self.norm(hidden + self.net(hidden)).masked_fill(~mask.unsqueeze(-1), 0)
        return EncoderOutput(hidden, mask, F.pad(rows[..., :1], (0, 2)))
