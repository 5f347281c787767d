"""An Assim that weighs each token's anchor against what it reads: a proximal step.

Shapes: B batch, H heads, N tokens, K slots, d width of a head (real pairs, see `fusion.phase`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from fusion.accom import Mixing
from fusion.assim.base import Assim, Update
from fusion.layers import bounded_factor, masked_mean


@final
class Pull(nn.Module):
    """Chooses lam, the weight of the context against the anchor, from the mean anchor.

    It stays within a factor of 150 of where it started, for every input: never 0, never inf.

    Args:
        dim_head: d.
        num_heads: H.
        lam: about where it starts, above 0.

    Raises:
        ValueError: if lam is not a positive number.
    """

    def __init__(self, dim_head: int, num_heads: int, lam: float) -> None:
        super().__init__()
        if not 0 < lam < math.inf:
            raise ValueError(f"Got {lam=}; give a positive number.")
        self.lam = lam
        self.weight = nn.Parameter(0.5 * torch.randn(num_heads, dim_head))
        self.bias = nn.Parameter(torch.zeros(num_heads))

    def forward(self, anchors: Tensor, mask: Tensor) -> Tensor:
        """lam (B, H, 1, 1) of every sample and head."""
        pooled = masked_mean(anchors, mask.unsqueeze(1))
        logits = (pooled * self.weight).sum(-1) + self.bias
        return self.lam * bounded_factor(logits)[..., None, None]


def pull_energy(
    distance: Tensor, lam: Tensor, latents: Tensor, context: Tensor, mixing: Mixing
) -> Tensor | None:
    """Sum over heads of E / lam, with E = sum_i |z_i - x_i|^2 / 2 + lam P; P is `Mixing.potential`.

    Heads do not see each other, so with each E each E / lam falls, and their sum.

    Args:
        distance: (B, H, N, d) z - x.
        lam: (B, H, 1, 1).
        latents: (B, H, N, d) z.
        context: (B, H, K, d).
        mixing: the chosen Accom.

    Returns:
        (B,), or None if the mixing has no potential.
    """
    potential = mixing.potential(latents, context)
    if potential is None:
        return None
    return (distance.square() / (2 * lam)).sum(dim=(1, 2, 3)) + potential


@final
@dataclass(frozen=True)
class ProximalUpdate(Update):
    """z_i <- (x_i + lam c_i) / (1 + lam), with c_i = read(C)_i.

    Of all latents this one minimises |z_i - x_i|^2 / 2 + lam/2 sum_k p_ik |z_i - C_k|^2 for the
    weights p of the round. That makes it a half step of `ResponsibilityMixing.potential`, whose
    proof that E never rises applies; here Q_p is quadratic in z too, and a round lowers E by at
    least (1 + lam)/2 sum_i |z_i' - z_i|^2 beside what the slots lower it by. Thus the squared
    moves have a finite sum and the iteration comes to rest, for any lam > 0. Latents and slots
    stay in the convex hull of the anchors.

    Attributes:
        anchors: (B, H, N, d) x.
        lam: (B, H, 1, 1).
        gain: (B,) largest lam / (1 + lam), see `Update`.
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
        return torch.lerp(self.anchors, read(context), self.lam / (1 + self.lam))

    def energy(self, latents: Tensor, context: Tensor, mixing: Mixing) -> Tensor | None:
        """See `pull_energy`; None if the mixing has no potential."""
        return pull_energy(latents - self.anchors, self.lam, latents, context, mixing)


@final
class ProximalAssim(Assim):
    """Every token becomes a mean of its anchor and what it reads, in the ratio 1 to lam.

    With averages that are chosen once a round contracts by lam / (1 + lam), which stays below 1
    for every input; with `ResponsibilityAccom` an energy falls instead, however large lam.
    lam -> inf is mean-shift clustering, in which the tokens of a cluster become one.

    Args:
        dim_head: d.
        num_heads: H.
        lam: about where lam starts, above 0.

    Raises:
        ValueError: if lam is not a positive number.
    """

    def __init__(self, dim_head: int, num_heads: int, lam: float = 1.0) -> None:
        super().__init__()
        self.pull = Pull(dim_head, num_heads, lam)

    def forward(self, anchors: Tensor, mask: Tensor) -> ProximalUpdate:
        """Chooses lam from the mean anchor of each head; see `Assim.forward`."""
        lam = self.pull(anchors, mask)
        gain = (lam / (1 + lam)).amax(dim=(1, 2, 3))
        return ProximalUpdate(anchors, lam, gain.detach())
