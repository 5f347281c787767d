"""What couples a token to its context: a matrix of bounded norm, and a strength.

Shapes: B batch, H heads, d width of a head (real pairs, see `fusion.phase`), ... any number of
couplings.
"""

import math
from typing import final

import torch
from torch import Tensor, nn

from fusion.certificate import spectral_norm_bound

# At the start strength times coupling is about half of kappa: 2/3 of 3/4.
START_STRENGTH = 2 / 3
START_COUPLING = 3 / 4


def start_coupling(num: tuple[int, ...], dim_head: int) -> tuple[nn.Parameter, nn.Parameter]:
    """Real and imaginary parts (*num, d/2, d/2) of new couplings: near START_COUPLING times 1.

    Raises:
        ValueError: if `dim_head` is odd.
    """
    if dim_head % 2:
        raise ValueError(f"Got dim_head={dim_head}; complex channels need an even width.")
    half = dim_head // 2
    noise = 0.1 / math.sqrt(dim_head) * torch.randn(2, *num, half, half)
    return nn.Parameter(START_COUPLING * torch.eye(half) + noise[0]), nn.Parameter(noise[1])


def bounded_coupling(real: Tensor, imag: Tensor, kappa: float) -> tuple[Tensor, Tensor]:
    """A complex matrix whose 2-norm is at most kappa, whatever the parameters are.

    Args:
        real: (..., d/2, d/2).
        imag: (..., d/2, d/2).
        kappa: the bound, met where the parameters' own norm is 1 or above.

    Returns:
        Real matrices (..., d, d) acting on real pairs, and their exact 2-norms (...).
    """
    top = torch.cat([real, -imag], dim=-1)
    bottom = torch.cat([imag, real], dim=-1)
    matrix = torch.cat([top, bottom], dim=-2)
    norm = spectral_norm_bound(matrix)
    scale = kappa / norm.clamp(min=1)
    return matrix * scale[..., None, None].to(matrix.dtype), norm * scale


@final
class Strength(nn.Module):
    """How strongly the context acts, chosen for each sample and head from its mean anchor.

    Args:
        dim_head: d.
        num_heads: H.
    """

    def __init__(self, dim_head: int, num_heads: int) -> None:
        super().__init__()
        logit = math.log(START_STRENGTH / (1 - START_STRENGTH))
        self.weight = nn.Parameter(0.5 * torch.randn(num_heads, dim_head))
        self.bias = nn.Parameter(torch.full((num_heads,), logit))

    def forward(self, pooled: Tensor) -> Tensor:
        """Mean anchors (B, H, d) -> strengths (B, H) in (0, 1)."""
        return ((pooled * self.weight).sum(-1) + self.bias).sigmoid()
