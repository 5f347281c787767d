"""The rule that the project began with, word for word. It never converges.

Shapes: B batch, H heads, N tokens, K slots, d width of a head (real pairs, see `fusion.phase`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fusion.assim.base import Assim, Update
from fusion.phase import multiply


@final
@dataclass(frozen=True)
class LiteralUpdate(Update):
    """z_i <- z_i e^{i arg c_i} + alpha c_i per complex channel, with c_i = read(C)_i.

    Attributes:
        gain: (B,) inf: an arbitrarily small move of the context can turn its phase by pi.
        alpha: share of the context that is added.
    """

    gain: Tensor
    alpha: float
    memory: float = 1.0

    def __call__(
        self, latents: Tensor, context: Tensor, read: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """One round; see `fusion.assim.base.Update`."""
        seen = read(context)
        return multiply(latents, _phasor(seen)) + self.alpha * seen


@final
class LiteralAssim(Assim):
    """Turns each token by the phase of its context and adds a share of the context.

    With `MeanAccom` this is the seed's rule. It is kept for fidelity, not for use: it declares no
    contraction and provably never converges. All tokens get the same rotation and translation,
    so their differences never change and nothing is fused; the phase of the mean goes through a
    uniformly expanding map (Lyapunov exponent about ln 2); for real positive inputs the state
    grows by 1 + alpha a round; damping makes all tokens one. The tests show each of these.
    `AnchoredAssim` is the nearest rule that converges. As the anchors enter through the first
    state alone, gradients reach them only through all rounds (`fusion.solver.Full`), and double
    in each.

    Args:
        dim_head: d, even.
        num_heads: H.
        alpha: share of the context that is added, finite.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(self, dim_head: int, num_heads: int, alpha: float = 0.1) -> None:
        super().__init__()
        if dim_head % 2 or not math.isfinite(alpha):
            raise ValueError(f"Got {dim_head=}, {alpha=}; give an even width and a finite alpha.")
        self.alpha = alpha

    def forward(self, anchors: Tensor, mask: Tensor) -> LiteralUpdate:
        """Chooses nothing; see `Assim.forward`."""
        return LiteralUpdate(gain=anchors.new_full((len(anchors),), math.inf), alpha=self.alpha)


def _phasor(values: Tensor) -> Tensor:
    """e^{i arg c} of every channel, exact down to the smallest number; 1 where c is 0.

    The slope is 1/|c|. Below the cube root of the smallest normal number it is taken as 0, so
    that the slopes of a few rounds multiply without overflow.
    """
    real, imag = values.chunk(2, dim=-1)
    largest = torch.maximum(real.abs(), imag.abs()).detach()
    held = largest < torch.finfo(values.dtype).tiny ** (1 / 3)
    still = largest == 0
    scale = largest.masked_fill(still, 1)  # divided first, so that no square underflows
    real, imag = (torch.where(held, part.detach(), part) / scale for part in (real, imag))
    real = real.masked_fill(still, 1)
    size = torch.rsqrt(real.square() + imag.square())
    return torch.cat([real * size, imag * size], dim=-1)
