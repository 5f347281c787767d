"""The default Assim: every token is pulled back to its anchor, so that the loop contracts.

Shapes: B batch, H heads, N tokens, K slots, d width of a head (real pairs, see `fusion.phase`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from fusion.assim.base import Assim, Update
from fusion.assim.coupling import Strength, bounded_coupling, start_coupling
from fusion.layers import masked_mean
from fusion.phase import multiply, rotor

if TYPE_CHECKING:
    from fusion.accom import Mixing


@final
@dataclass(frozen=True)
class AnchoredUpdate(Update):
    """z_i <- N_E([(1-g) + g u(c_i)] * (m z_i + (1-m) x_i) + alpha K c_i), with c_i = read(C)_i,
    u(c) = c / sqrt(eta^2 + |c|^2) per channel and N_E(h) = h / sqrt(1 + |h|^2 / E^2).

    Attributes:
        anchors: (B, H, N, d) x.
        strength: (B, H, 1, 1) alpha, in [0, 1].
        coupling: (H, d, d) or (B, H, d, d) K as a real matrix.
        gain: (B,) see `Update`.
        memory: m.
        rotation: g.
        eta: softness of the rotor.
        radius: E.
    """

    anchors: Tensor
    strength: Tensor
    coupling: Tensor
    gain: Tensor
    memory: float = 0.0
    rotation: float = 0.0
    eta: float = 1.0
    radius: float = 1.0

    def __call__(
        self, latents: Tensor, context: Tensor, read: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """One round; see `fusion.assim.base.Update`."""
        own = self.anchors
        if self.memory:
            own = self.memory * latents + (1 - self.memory) * own
        if self.rotation:
            turned = multiply(rotor(read(context), self.eta), own)
            own = (1 - self.rotation) * own + self.rotation * turned
        # K acts on the K slots before they are spread over the N tokens: K d^2, not N d^2.
        drive = self._drive(context)
        pulled = own + read(drive)
        return pulled * torch.rsqrt(1 + pulled.square().sum(-1, keepdim=True) / self.radius**2)

    def energy(self, latents: Tensor, context: Tensor, mixing: Mixing) -> Tensor | None:
        """-F summed over heads, for m = g = 0, a symmetric positive semidefinite K of any norm,
        and a mixing that reads with the weights it gathers with:

            F = sum_i <x_i, z_i> + sum_k t_k/2 <C_k, alpha K C_k> - sum_i R(z_i),
            R(z) = E^2 - E sqrt(E^2 - |z|^2)   for |z| <= E

        N_E is the gradient of the conjugate of R, and R is 1-strongly convex: a round is a step
        of the concave-convex procedure and raises F by at least half the squared step.
        """
        if self.memory or self.rotation or mixing.tie is None or not mixing.frozen:
            return None
        if not _positive(self.coupling):
            return None
        square = latents.square().sum(-1)
        # R without cancellation; it is |z|^2 / 2 where E is inf.
        own = square / (1 + (1 - square / self.radius**2).clamp(min=0).sqrt())
        own = own - (self.anchors * latents).sum(-1)
        shared = mixing.tie / 2 * (context * self._drive(context)).sum(-1)
        return own.sum(dim=(1, 2)) - shared.sum(dim=(1, 2))

    def _drive(self, context: Tensor) -> Tensor:
        """alpha K C of every slot: (B, H, K, d)."""
        return torch.einsum("...hkd,...hed->...hke", self.strength * context, self.coupling)


def _positive(matrix: Tensor) -> bool:
    """All of (..., n, n) are symmetric and positive semidefinite, up to rounding."""
    rounding = matrix.shape[-1] * torch.finfo(matrix.dtype).eps * matrix.abs().max()
    if (matrix - matrix.mT).abs().max() > rounding:
        return False
    return bool(torch.linalg.eigvalsh(matrix).min() >= -rounding)


@final
class AnchoredAssim(Assim):
    """Anchored update with a learned complex coupling per head and an input-chosen strength.

    In the norm max over heads and tokens of |.|_2 a round contracts by

        q = m + alpha |K|_2 + (g / eta) ((1-m) X + m max(E, X)),   X = largest |component| of x

    from any start within the ball of radius E or at the anchors: N_E is 1-Lipschitz,
    |(1-g) + g u| <= 1, u is 1/eta-Lipschitz, and averages do not stretch. |K|_2 <= kappa holds by
    construction, so with the defaults (m = g = 0) q <= kappa < 1 for every input.

    Args:
        dim_head: d, even.
        num_heads: H.
        kappa: largest spectral norm of the coupling.
        memory: m in [0, 1), share of the previous latents.
        rotation: g in [0, 1], share of the rotor.
        eta: softness of the rotor, above 0.
        radius: E, above 0; latents stay below it in norm.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        dim_head: int,
        num_heads: int,
        kappa: float = 0.9,
        memory: float = 0.0,
        rotation: float = 0.0,
        eta: float = 1.0,
        radius: float = 1.0,
    ) -> None:
        super().__init__()
        if not (0 <= memory < 1 and 0 <= rotation <= 1 and min(kappa, eta, radius) > 0):
            raise ValueError(
                f"Got {kappa=}, {memory=}, {rotation=}, {eta=}, {radius=}; give memory in [0, 1), "
                "rotation in [0, 1] and the others above 0."
            )
        self.kappa, self.memory, self.rotation = kappa, memory, rotation
        self.eta, self.radius = eta, radius
        self.coupling_real, self.coupling_imag = start_coupling((num_heads,), dim_head)
        self.strength = Strength(dim_head, num_heads)

    def coupling(self) -> tuple[Tensor, Tensor]:
        """K as real matrices (H, d, d) acting on real pairs, and their 2-norms (H,) <= kappa."""
        return bounded_coupling(self.coupling_real, self.coupling_imag, self.kappa)

    def forward(self, anchors: Tensor, mask: Tensor) -> AnchoredUpdate:
        """Chooses the strength from the mean anchor of each head; see `Assim.forward`."""
        strength = self.strength(masked_mean(anchors, mask.unsqueeze(1)))
        matrix, norm = self.coupling()
        gain = (strength * norm).amax(dim=1)
        if self.rotation:
            gain = gain + self.rotation / self.eta * self._reach(anchors)
        return AnchoredUpdate(
            anchors=anchors,
            strength=strength[..., None, None],
            coupling=matrix,
            gain=gain.detach(),
            memory=self.memory,
            rotation=self.rotation,
            eta=self.eta,
            radius=self.radius,
        )

    def _reach(self, anchors: Tensor) -> Tensor:
        """Largest modulus (B,) of a channel that the rotor can be multiplied with."""
        real, imag = anchors.chunk(2, dim=-1)
        largest = torch.hypot(real, imag).amax(dim=(1, 2, 3))
        if not self.memory:
            return largest
        return (1 - self.memory) * largest + self.memory * largest.clamp(min=self.radius)
