"""Small layers that respect the mask (True = real) and never make a NaN out of an empty row.

Shapes: N tokens, D width; leading dimensions are free.
"""

from typing import final

import torch
from torch import Tensor, nn


@final
class Dropout(nn.Dropout):
    """Drops a share of the values in training and scales the others up.

    One random byte decides each value, so the share is a multiple of 1/256; on a CPU it is five
    times as fast as `torch.nn.Dropout`, whose random numbers were a sixth of a training step.

    Args:
        share: in [0, 1), rounded to the next 256th.

    Raises:
        ValueError: if it is not in that range.
    """

    def __init__(self, share: float) -> None:
        if not 0 <= share < 1:
            raise ValueError(f"Got dropout {share}; give a share in [0, 1).")
        super().__init__(share)
        self.dropped = min(round(256 * share), 255)  # of 256

    def forward(self, input: Tensor) -> Tensor:
        """Maps values of any shape to the same shape."""
        if not self.training or not self.dropped:
            return input
        words = torch.empty(-(-input.numel() // 8), dtype=torch.int64, device=input.device)
        random = words.random_(-(2**63), 2**63 - 1).view(torch.uint8)[: input.numel()]
        kept = (random >= self.dropped).to(input.dtype).view(input.shape)
        return input * (kept * (256 / (256 - self.dropped)))


@final
class MLP(nn.Module):
    """Two linear layers with a GELU between; the last starts at zero, so a residual MLP starts
    as the identity.

    Args:
        dim: width of the input.
        hidden: width between the layers.
        dim_out: width of the output; None is that of the input.
        dropout: share of hidden units dropped in training.
    """

    def __init__(
        self, dim: int, hidden: int, dim_out: int | None = None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, hidden)
        self.activation = nn.GELU()
        self.dropout = Dropout(dropout)
        self.shrink = nn.Linear(hidden, dim_out or dim)
        # Inputs are normalised, so hidden units start with unit variance: enough to bend.
        nn.init.normal_(self.expand.weight, std=dim**-0.5)
        nn.init.zeros_(self.expand.bias)
        nn.init.zeros_(self.shrink.weight)
        nn.init.zeros_(self.shrink.bias)

    def forward(self, values: Tensor) -> Tensor:
        """Maps (..., dim) to (..., dim_out)."""
        return self.shrink(self.dropout(self.activation(self.expand(values))))


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the real tokens, 0 where there is none.

    Args:
        values: (..., N, D).
        mask: (..., N) bool, broadcastable to the leading dimensions of `values`.

    Returns:
        (..., D).
    """
    real = mask.unsqueeze(-1)
    total = torch.where(real, values, 0).sum(dim=-2)
    return total / real.sum(dim=-2).clamp(min=1)


def masked_softmax(logits: Tensor, mask: Tensor, dim: int = -1) -> Tensor:
    """Softmax over the entries where `mask` is True; 0 elsewhere, also along empty lines.

    Args:
        logits: any shape; entries outside the mask may hold anything, NaN included.
        mask: bool, broadcastable to `logits`.
        dim: dimension to normalise over.

    Returns:
        Weights of the shape of `logits`, summing to 1 along `dim` wherever an entry is real.
    """
    # The lowest finite number, not -inf: an all-False line then stays free of NaN.
    lowest = torch.finfo(logits.dtype).min
    return logits.masked_fill(~mask, lowest).softmax(dim=dim).masked_fill(~mask, 0)


def bounded_factor(logits: Tensor, limit: float = 5.0) -> Tensor:
    """exp(logits), flattened to stay within e^-limit .. e^limit: never 0, never inf; 1 at 0."""
    return (limit * (logits / limit).tanh()).exp()
