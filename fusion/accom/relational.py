"""Accom under a rule: every token has a context of its own, a mean of the tokens it may read.

Shapes: B batch, H heads, N tokens, d width of a head. There are N slots, one for each token.
"""

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from fusion.accom.base import Accom, FrozenMixing
from fusion.layers import masked_softmax
from fusion.relations import Everyone, Rule, longest_chain
from fusion.tokens import Place


@final
class PairWeights(nn.Module):
    """Attention weights softmax_j(q_i . k_j / sqrt(d)) over the tokens j that token i may read.

    Args:
        dim_head: d.
        num_heads: H.
    """

    def __init__(self, dim_head: int, num_heads: int) -> None:
        super().__init__()
        # Anchors have a norm near 1, so unit normal maps give logits of unit spread.
        self.query = nn.Parameter(torch.randn(num_heads, dim_head, dim_head))
        self.key = nn.Parameter(torch.randn(num_heads, dim_head, dim_head))

    def forward(self, anchors: Tensor, relation: Tensor) -> Tensor:
        """Weighs the pairs of a relation.

        Args:
            anchors: (B, H, N, d).
            relation: (B, N, N) bool, [i, j] = token i reads token j.

        Returns:
            (B, H, N, N); rows sum to 1, or to 0 where a token reads nobody.
        """
        query, key = anchors @ self.query, anchors @ self.key
        logits = query @ key.mT / math.sqrt(anchors.shape[-1])
        return masked_softmax(logits, relation.unsqueeze(1))


@final
@dataclass(frozen=True)
class RelationalMixing(FrozenMixing):
    """C_i = sum_j a_ij z_j, which token i alone reads.

    Attributes:
        weights: (B, H, N, N) a, 0 for tokens that are not real.
        relation: (B, N, N) bool, [i, j] = token i reads token j. What a token reads through others
            may have a weight too: no longer chain comes of it.
        stretch: largest sum of |a_ij| over j, a bound of it, or one per sample (B,).
    """

    weights: Tensor
    relation: Tensor
    stretch: float | Tensor

    @property
    def depth(self) -> Tensor | None:
        """(B,) length of the longest chain of readings; None if they run in circles."""
        return longest_chain(self.relation)

    def gather(self, latents: Tensor) -> Tensor:
        """Latents (B, H, N, d) -> context (B, H, N, d)."""
        return self.weights @ latents

    def read(self, slots: Tensor) -> Tensor:
        """Every token reads its own slot: slots (B, H, N, d) as they are."""
        return slots


@final
class RelationalAccom(Accom):
    """Attention under a rule, its weights chosen once from the anchors.

    The rounds contract by |K| as with any averages. Under a rule without circles (such as
    `Earlier`) and an Assim without memory they also end, after one round more than the longest
    chain, however strong K is. A token that may read nobody has the context 0.

    Args:
        dim_head: d.
        num_heads: H.
        num_slots: ignored; there is one slot for each token.
        rule: which token reads which.
    """

    def __init__(
        self, dim_head: int, num_heads: int, num_slots: int, rule: Rule = Everyone()
    ) -> None:
        super().__init__()
        self.rule = rule
        self.ordered = rule.ordered
        self.attention = PairWeights(dim_head, num_heads)

    def forward(self, anchors: Tensor, mask: Tensor, place: Place) -> RelationalMixing:
        """Chooses the weights from the anchors; see `Accom.forward`."""
        relation = self.rule(place, mask)
        return RelationalMixing(self.attention(anchors, relation), relation, stretch=1.0)
