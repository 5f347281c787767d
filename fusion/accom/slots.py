"""The default Accom: a few slots per head, each a weighted mean of the tokens.

Shapes: B batch, H heads, N tokens, K slots, d width of a head.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from fusion.accom.base import Accom, FrozenMixing
from fusion.layers import masked_softmax
from fusion.tokens import Place


@final
@dataclass(frozen=True)
class SlotMixing(FrozenMixing):
    """C_k = sum_i a_ik z_i and c_i = sum_k b_ik C_k.

    Attributes:
        pool: (B, H, K, N) a, sums to 1 over the real tokens.
        feed: (B, H, N, K) b, sums to 1 over the slots; 0 for tokens that are not real.
    """

    pool: Tensor
    feed: Tensor

    def gather(self, latents: Tensor) -> Tensor:
        """Latents (B, H, N, d) -> context (B, H, K, d)."""
        return self.pool @ latents

    def read(self, slots: Tensor) -> Tensor:
        """Slots (B, H, K, d) -> per token (B, H, N, d)."""
        return self.feed @ slots


@final
class SlotAccom(Accom):
    """Softmax pooling into slots and softmax feedback, both scored by learned queries.

    Args:
        dim_head: d.
        num_heads: H.
        num_slots: K.
    """

    def __init__(self, dim_head: int, num_heads: int, num_slots: int) -> None:
        super().__init__()
        # Anchors have a norm near 1, so unit normal queries give logits of unit spread.
        self.pool_query = nn.Parameter(torch.randn(num_heads, num_slots, dim_head))
        self.feed_query = nn.Parameter(torch.randn(num_heads, num_slots, dim_head))

    def forward(self, anchors: Tensor, mask: Tensor, place: Place) -> SlotMixing:
        """Chooses both sets of weights from the anchors; see `Accom.forward`."""
        pool = torch.einsum("bhnd,hkd->bhkn", anchors, self.pool_query)
        feed = torch.einsum("bhnd,hkd->bhnk", anchors, self.feed_query)
        return SlotMixing(
            pool=masked_softmax(pool, mask[:, None, None, :]),
            feed=masked_softmax(feed, mask[:, None, :, None]),
        )
