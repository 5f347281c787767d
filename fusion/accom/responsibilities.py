"""Slots that re-choose their tokens every round: soft clustering, with an energy that never rises.

Shapes: B batch, H heads, N tokens, K slots, d width of a head.
"""

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from fusion.accom.base import Accom, Mixing
from fusion.layers import bounded_factor, masked_softmax
from fusion.tokens import Place


@final
@dataclass(frozen=True)
class Responsibilities:
    """The weights of one round (see `fusion.accom.base.Weights`).

    Attributes:
        shares: (B, H, N, K) p, sums to 1 over the slots; 0 for tokens that are not real.
        first: (B, H, K, d) c0.
        inertia: (H, 1, 1) or (B, H, 1, 1) nu.
    """

    shares: Tensor
    first: Tensor
    inertia: Tensor

    def gather(self, latents: Tensor) -> Tensor:
        """C_k = (nu c0_k + sum_i p_ik z_i) / (nu + sum_i p_ik): a mean, in the hull of both."""
        total = self.shares.sum(dim=2).unsqueeze(-1)
        return (self.inertia * self.first + self.shares.mT @ latents) / (self.inertia + total)

    def read(self, slots: Tensor) -> Tensor:
        """Slots (B, H, K, d) -> sum_k p_ik C_k (B, H, N, d)."""
        return self.shares @ slots


@final
@dataclass(frozen=True)
class ResponsibilityMixing(Mixing):
    """p_ik = softmax_k(beta (<z_i, C_k> - |C_k|^2 / 2) + log pi_k), anew in every round.

    These are the posteriors of a mixture of Gaussians of inverse variance beta around the slots,
    and a round is a step of expectation-maximisation (Dempster, Laird and Rubin, 1977).

    Attributes:
        slots: (B, H, K, d) c0, the first slots, to which nu ties them.
        log_prior: (H, 1, K) log pi.
        sharpness: (H, 1, 1) or (B, H, 1, 1) beta.
        inertia: likewise nu, in tokens: how many of them c0 is worth.
        mask: (B, N) bool, True = real token.
        stretch: (B,) inf: the weights move with the tokens, so that none is declared; 1 for a
            sample without tokens.
    """

    slots: Tensor
    log_prior: Tensor
    sharpness: Tensor
    inertia: Tensor
    mask: Tensor
    stretch: Tensor

    frozen = False

    def weigh(self, latents: Tensor, context: Tensor) -> Responsibilities:
        """The responsibilities of the slots for the latents, both as the last round left them."""
        norm = context.square().sum(-1).unsqueeze(-2) / 2
        logits = self.sharpness * (latents @ context.mT - norm) + self.log_prior
        shares = masked_softmax(logits, self.mask[:, None, :, None])
        return Responsibilities(shares, self.slots, self.inertia)

    def first(self, anchors: Tensor) -> Tensor:
        """c0, whatever the anchors."""
        return self.slots

    def potential(self, latents: Tensor, context: Tensor) -> Tensor:
        """P (B,), summed over heads and real tokens:

            P = sum_i -(1/beta) log sum_k pi_k exp(-beta/2 |z_i - C_k|^2)
                + nu/2 sum_k |C_k - c0_k|^2

        A pair whose update minimises |z_i - x_i|^2 / 2 + lam/2 sum_k p_ik |z_i - C_k|^2 over the
        latents it allows never raises E = sum_i |z_i - x_i|^2 / 2 + lam P. Proof: by Jensen, for
        any weights p that sum to 1 over the slots,

            E <= Q_p = sum_i |z_i - x_i|^2 / 2
                 + lam sum_ik p_ik (|z_i - C_k|^2 / 2 + log(p_ik / pi_k) / beta)
                 + lam nu/2 sum_k |C_k - c0_k|^2,

        with equality at the very (z, C) whose responsibilities p are. A round takes p from the old
        z and the old C, then minimises Q_p over z with the old C (the update), then over C with
        the new z (`gather`):

            E(z', C') <= Q_p(z', C') <= Q_p(z', C) <= Q_p(z, C) = E(z, C).

        It needs one beta in weights and energy, and p to be taken from both old halves. As Q_p is
        quadratic in C, a round lowers E by at least lam/2 sum_k (nu + sum_i p_ik) |C_k' - C_k|^2.
        """
        # Distances from differences: near 0 the products of `weigh` would cancel to noise.
        wide = torch.promote_types(latents.dtype, torch.float32)  # all that cdist knows
        pair = latents.to(wide), context.to(wide)
        gap = torch.cdist(*pair, compute_mode="donot_use_mm_for_euclid_dist")
        logits = self.log_prior - self.sharpness / 2 * gap.square()
        token = -logits.logsumexp(dim=-1, keepdim=True) / self.sharpness
        token = token.masked_fill(~self.mask[:, None, :, None], 0)
        slot = self.inertia / 2 * (context - self.slots).square()
        return token.sum(dim=(1, 2, 3)) + slot.sum(dim=(1, 2, 3))


@final
class ResponsibilityAccom(Accom):
    """Slots that cluster the tokens, starting from means of the anchors.

    The first slots are pooled from the anchors by learned queries. Priors pi, sharpness beta and
    inertia nu are learned per head. Small beta lets slots merge into few clusters, large beta
    assigns each token to one; large nu keeps the slots where they began.

    Args:
        dim_head: d.
        num_heads: H.
        num_slots: K.
        beta: sharpness at the start, above 0. Anchors have a norm near 1.
        nu: inertia at the start, above 0, in tokens.

    Raises:
        ValueError: if beta or nu is not a positive number.
    """

    def __init__(
        self, dim_head: int, num_heads: int, num_slots: int, beta: float = 16.0, nu: float = 1.0
    ) -> None:
        super().__init__()
        if not (0 < beta < math.inf and 0 < nu < math.inf):
            raise ValueError(f"Got {beta=}, {nu=}; give positive numbers.")
        self.beta, self.nu = beta, nu
        self.query = nn.Parameter(torch.randn(num_heads, num_slots, dim_head))
        self.prior = nn.Parameter(torch.zeros(num_heads, num_slots))
        self.sharpness = nn.Parameter(torch.zeros(num_heads))
        self.inertia = nn.Parameter(torch.zeros(num_heads))

    def forward(self, anchors: Tensor, mask: Tensor, place: Place) -> ResponsibilityMixing:
        """Chooses the first slots from the anchors; see `Accom.forward`."""
        logits = torch.einsum("bhnd,hkd->bhkn", anchors, self.query)
        return ResponsibilityMixing(
            slots=masked_softmax(logits, mask[:, None, None, :]) @ anchors,
            log_prior=self.prior.log_softmax(dim=-1).unsqueeze(1),
            sharpness=self.beta * bounded_factor(self.sharpness)[:, None, None],
            inertia=self.nu * bounded_factor(self.inertia)[:, None, None],
            mask=mask,
            stretch=torch.where(mask.any(dim=1), math.inf, 1.0),
        )
