"""An Assim that lets each token keep what it has or take over what it reads.

Shapes: B batch, H heads, N tokens, K slots, d width of a head (real pairs, see `fusion.phase`).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor, nn

from fusion.assim.base import Assim, Update

_LOW, _HIGH = -0.1, 1.1  # the sigmoid is stretched to this range, then clamped


@final
@dataclass(frozen=True)
class GatedUpdate(Update):
    """z_i <- (1 - g_i) x_i + kappa g_i c_i, with c_i = read(C)_i.

    For kappa <= 1 latents stay as small as the largest anchor. Where all gates of a chain of
    readings are 1 and kappa is 1, what its first token holds arrives at its last unchanged, after
    as many rounds as the chain is long.

    Attributes:
        anchors: (B, H, N, d) x.
        gate: (B, H, N, 1) g in [0, 1].
        kappa: largest gain.
        gain: (B,) largest kappa g_i, see `Update`.
        memory: 0.
    """

    anchors: Tensor
    gate: Tensor
    kappa: float
    gain: Tensor
    memory: float = 0.0

    def __call__(
        self, latents: Tensor, context: Tensor, read: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """One round; see `fusion.assim.base.Update`."""
        return (1 - self.gate) * self.anchors + self.kappa * self.gate * read(context)

    def of(self, tokens: Tensor) -> "GatedUpdate":
        """See `Update.of`."""
        anchors, gate = (own.index_select(2, tokens) for own in (self.anchors, self.gate))
        return replace(self, anchors=anchors, gate=gate)


@final
class GatedAssim(Assim):
    """Every token keeps its anchor or takes over what it reads, as a gate of its own decides.

    The gates are chosen from the anchors and reach 0 and 1 exactly (a stretched and clamped
    sigmoid: the mean of the hard concrete distribution, Louizos et al. 2018, arXiv:1712.01312,
    section 2.3). With averages that are chosen once a round contracts by at most kappa; under a
    rule without cycles kappa = 1 is right, for the iteration ends by itself then, and only so does
    information travel any distance.

    Args:
        dim_head: d.
        num_heads: H.
        kappa: largest gain, above 0.

    Raises:
        ValueError: if kappa is not positive.
    """

    def __init__(self, dim_head: int, num_heads: int, kappa: float = 0.9) -> None:
        super().__init__()
        if not kappa > 0:
            raise ValueError(f"Got {kappa=}; give a number above 0.")
        self.kappa = kappa
        self.weight = nn.Parameter(0.5 * torch.randn(num_heads, dim_head))
        self.bias = nn.Parameter(torch.zeros(num_heads, 1))

    def forward(self, anchors: Tensor, mask: Tensor) -> GatedUpdate:
        """Chooses the gates; see `Assim.forward`."""
        logits = torch.einsum("bhnd,hd->bhn", anchors, self.weight) + self.bias
        gate = (logits.sigmoid() * (_HIGH - _LOW) + _LOW).clamp(0, 1).unsqueeze(-1)
        largest = gate.detach().masked_fill(~mask[:, None, :, None], 0).amax(dim=(1, 2, 3))
        return GatedUpdate(anchors, gate, self.kappa, self.kappa * largest)
