"""An Assim that chooses its parameter set: a context of its own kind for every input.

Shapes: B batch, H heads, N tokens, S parameter sets, d width of a head (real pairs, see
`fusion.phase`).
"""

from typing import final

import torch
from torch import Tensor, nn

from fusion.assim.anchored import AnchoredUpdate
from fusion.assim.base import Assim
from fusion.assim.coupling import Strength, bounded_coupling, start_coupling
from fusion.layers import masked_mean


@final
class ChoiceAssim(Assim):
    """Anchored update whose coupling is a convex combination of S learned ones.

    The shares are a softmax over the sets, from the mean anchor of each sample and head: choose,
    then evaluate (Topos of Transformer Networks, arXiv 2403.18415). Nothing is chosen again while
    the map iterates. Each set's norm is at most kappa, so the combination's is too, and a round
    contracts by at most

        q = alpha sum_s p_s |K_s|_2 <= kappa        (|.|_2 is convex).

    Args:
        dim_head: d, even.
        num_heads: H.
        num_sets: S, at least 1; the coupling of each sample costs S d^2 per head.
        kappa: largest spectral norm of a coupling, above 0.
        radius: E, above 0; latents stay below it in norm.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        dim_head: int,
        num_heads: int,
        num_sets: int = 4,
        kappa: float = 0.9,
        radius: float = 1.0,
    ) -> None:
        super().__init__()
        if not (num_sets >= 1 and min(kappa, radius) > 0):
            raise ValueError(
                f"Got {num_sets=}, {kappa=}, {radius=}; give at least 1 set and the others above 0."
            )
        self.kappa, self.radius = kappa, radius
        self.coupling_real, self.coupling_imag = start_coupling((num_sets, num_heads), dim_head)
        self.set_query = nn.Parameter(torch.randn(num_sets, num_heads, dim_head))
        self.strength = Strength(dim_head, num_heads)

    def forward(self, anchors: Tensor, mask: Tensor) -> AnchoredUpdate:
        """Chooses shares and strength from the mean anchor of each head; see `Assim.forward`."""
        pooled = masked_mean(anchors, mask.unsqueeze(1))
        strength = self.strength(pooled)
        share = torch.einsum("bhd,shd->bhs", pooled, self.set_query).softmax(dim=-1)
        matrices, norms = bounded_coupling(self.coupling_real, self.coupling_imag, self.kappa)
        norm = torch.einsum("bhs,sh->bh", share.to(norms.dtype), norms)
        return AnchoredUpdate(
            anchors=anchors,
            strength=strength[..., None, None],
            coupling=torch.einsum("bhs,shde->bhde", share, matrices),
            gain=(strength * norm).amax(dim=1).detach(),
            radius=self.radius,
        )
