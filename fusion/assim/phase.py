"""An Assim in which the context moves only the phase of a token's channels, never their magnitude.

Shapes: B batch, H heads, N tokens, K slots, d width of a head (real pairs, see `fusion.phase`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fusion.accom import Mixing
from fusion.assim.base import Assim, Update
from fusion.assim.proximal import Pull, pull_energy

# A phase is undefined where anchor and context cancel, and its gradient grows without bound
# nearby. From where this share of the anchor's magnitude is left, the gradient is held.
LEAST_SHARE = 1e-3


@final
@dataclass(frozen=True)
class PhaseUpdate(Update):
    """z_i <- |x_i| e^{i arg(x_i + lam c_i)} per channel, with c_i = read(C)_i.

    Of all latents with |z| = |x| in every channel this one minimises
    |z_i - x_i|^2 / 2 + lam/2 sum_k p_ik |z_i - C_k|^2, for on that set only the term
    -Re<z_i, x_i + lam c_i> varies. So the proof in `ResponsibilityMixing.potential` applies: from
    any latents in the set, as the anchors are, E never rises.

    Attributes:
        anchors: (B, H, N, d) x.
        lam: (B, H, 1, 1).
        gain: (B,) inf: a small context may turn a channel by any angle where it cancels the
            anchor; 1 for a sample without tokens.
        memory: 0.
    """

    anchors: Tensor
    lam: Tensor
    gain: Tensor
    memory: float = 0.0

    def __call__(
        self, latents: Tensor, context: Tensor, read: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """One round; see `fusion.assim.base.Update`."""
        return _turned(self.anchors, self.anchors + self.lam * read(context))

    def energy(self, latents: Tensor, context: Tensor, mixing: Mixing) -> Tensor | None:
        """See `pull_energy`; None if the mixing has no potential."""
        return pull_energy(latents - self.anchors, self.lam, latents, context, mixing)


@final
class PhaseAssim(Assim):
    """Magnitude is what a token means by itself and is kept; context moves the phase.

    The step of `ProximalAssim` under the constraint |z| = |x| in every complex channel. It has no
    contraction factor; with `ResponsibilityAccom` its energy never rises.

    Args:
        dim_head: d, even.
        num_heads: H.
        lam: about where lam, the weight of the context against the anchor, starts; above 0.

    Raises:
        ValueError: if dim_head is odd or lam is not a positive number.
    """

    def __init__(self, dim_head: int, num_heads: int, lam: float = 1.0) -> None:
        super().__init__()
        if dim_head % 2:
            raise ValueError(f"Got dim_head={dim_head}; complex channels need an even width.")
        self.pull = Pull(dim_head, num_heads, lam)

    def forward(self, anchors: Tensor, mask: Tensor) -> PhaseUpdate:
        """Chooses lam from the mean anchor of each head; see `Assim.forward`."""
        gain = torch.where(mask.any(dim=1), math.inf, 1.0)
        return PhaseUpdate(anchors, self.pull(anchors, mask), gain)


def _turned(values: Tensor, target: Tensor) -> Tensor:
    """`values` (..., d) turned into the phases of `target`, channel by channel.

    The value is |x| u with u = h / |h|, and x where h = 0; exact down to the smallest numbers,
    since nothing is squared before it is scaled. First derivatives only: those of |x| are u_x
    and those of u are the part of dh across u, over |h|, which `LEAST_SHARE` keeps finite.
    """
    x, h = (part.unflatten(-1, (2, -1)) for part in (values, target))
    with torch.no_grad():
        own, unit = _phasor(x), _phasor(h)
        unit = torch.where(unit.any(dim=-2, keepdim=True), unit, own)
        least = torch.finfo(x.dtype).tiny
        reach = torch.maximum(_along(h, unit), LEAST_SHARE * _along(x, own)).clamp(min=least)
        slope = _along(x, own) / reach
    across = h - _along(h, unit) * unit
    turned = _along(x, own) * unit + slope * (across - across.detach())
    return turned.flatten(-2)


def _phasor(channels: Tensor) -> Tensor:
    """(..., 2, d/2) -> numbers of modulus 1, and 0 where the channel is 0."""
    largest = channels.abs().amax(dim=-2, keepdim=True)
    scaled = channels / torch.where(largest > 0, largest, 1)
    return scaled / scaled.square().sum(dim=-2, keepdim=True).sqrt().clamp(min=1)


def _along(channels: Tensor, unit: Tensor) -> Tensor:
    """Component (..., 1, d/2) of each channel in the direction of a phasor."""
    return (channels * unit).sum(dim=-2, keepdim=True)
