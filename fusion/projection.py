"""From the tokens of one encoder to latents of the shared width.

Shapes: B batch, N tokens, E width of the encoder's tokens, D width of the latents.
"""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusion.layers import MLP, Dropout, masked_mean


@final
class Projection(nn.Module):
    """A linear alignment of every token, and a residual MLP that sees the sample's mean token.

    Tokens are scaled so that their mean has unit norm. The mean of the projected tokens is then
    `W (mean - center) + MLP(mean)`; with W from ridge regression and the MLP starting at zero, a
    new model is the closed-form linear alignment (`align`), which small data cannot beat from a
    random start. Running the MLP once a sample instead of once a token keeps it cheap.

    Args:
        dim_in: E.
        dim: D.
        hidden: width of the MLP.
        dropout: share of hidden units dropped in training; of the MLP's inputs 0.6 of that.
    """

    center: Tensor

    def __init__(self, dim_in: int, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(dim_in, dim, bias=False)
        self.register_buffer("center", torch.zeros(dim_in))
        self.mlp = nn.Sequential(
            Dropout(0.6 * dropout), MLP(dim_in, hidden, dim_out=dim, dropout=dropout)
        )

    def align(self, weight: Tensor, center: Tensor) -> None:
        """Sets the linear part: weight (D, E) acting on unit mean tokens minus center (E,)."""
        with torch.no_grad():
            self.linear.weight.copy_(weight)
            self.center.copy_(center)

    def project_means(self, means: Tensor) -> Tensor:
        """Mean of the latents of each sample from its unit mean token: (B, E) -> (B, D)."""
        centered = means - self.center
        return self.linear(centered) + self._residual(centered)

    def _residual(self, centered: Tensor) -> Tensor:
        # Unit variance per channel, whatever the width: what the MLP's first layer expects.
        return self.mlp(F.normalize(centered, dim=-1, eps=1e-6) * centered.shape[-1] ** 0.5)

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        """Projects tokens (B, N, E), zero where the mask (B, N) is False, to latents (B, N, D)."""
        real = mask.to(values.dtype)
        mean = torch.einsum("bn,bne->be", real, values) / real.sum(1, keepdim=True).clamp_min(1)
        scale = mean.norm(dim=-1, keepdim=True).clamp_min(1e-6)
        shift = self._residual(mean / scale - self.center) - self.linear(self.center)
        # linear(values / scale - center) + mlp, for real tokens only: padding costs nothing.
        place = mask.flatten().nonzero().squeeze(1)
        sample = place // mask.shape[1]
        moved = self.linear(values.flatten(0, 1).index_select(0, place))
        moved = moved * (1 / scale).index_select(0, sample) + shift.index_select(0, sample)
        latents = moved.new_zeros(mask.numel(), moved.shape[-1]).index_copy(0, place, moved)
        return latents.view(*mask.shape, -1)


def unit_means(values: Tensor, mask: Tensor) -> Tensor:
    """Mean token of each sample at unit norm: (B, N, E) -> (B, E); alignments are fitted on it."""
    return F.normalize(masked_mean(values, mask), dim=-1, eps=1e-6)
