"""The simplest Accom: the mean of all tokens, which every token reads.

Shapes: B batch, N tokens, H heads, d width of a head.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fusion.accom.base import Accom, FrozenMixing
from fusion.layers import masked_mean
from fusion.tokens import Place


@final
@dataclass(frozen=True)
class MeanMixing(FrozenMixing):
    """C = sum_i z_i / n over the n real tokens, and c_i = C.

    Attributes:
        real: (B, 1, N) bool, True = real token.
        tie: (B, H, 1) n.
    """

    real: Tensor
    tie: Tensor

    def gather(self, latents: Tensor) -> Tensor:
        """Latents (B, H, N, d) -> context (B, H, 1, d)."""
        return masked_mean(latents, self.real).unsqueeze(2)

    def read(self, slots: Tensor) -> Tensor:
        """Slots (B, H, 1, d) -> per token (B, H, N, d); 0 where not real."""
        return torch.where(self.real.unsqueeze(-1), slots, 0)


@final
class MeanAccom(Accom):
    """One slot per head: the mean over the real tokens.

    Args:
        dim_head: d.
        num_heads: H.
        num_slots: ignored; there is one.
    """

    def __init__(self, dim_head: int, num_heads: int, num_slots: int = 1) -> None:
        super().__init__()

    def forward(self, anchors: Tensor, mask: Tensor, place: Place) -> MeanMixing:
        """The same weights for every input with these real tokens; see `Accom.forward`."""
        count = mask.sum(dim=1).to(anchors.dtype)
        return MeanMixing(mask.unsqueeze(1), count[:, None, None].expand(-1, anchors.shape[1], 1))
