"""Accom by the delta rule: what a token reads of the past is what later tokens left of it.

Shapes: B batch, H heads, N tokens, d width of a head. There are N slots, one for each token.
"""

from typing import final

import torch
from torch import Tensor, nn

from fusion.accom.base import Accom
from fusion.accom.relational import PairWeights, RelationalMixing
from fusion.delta import solve_chunked
from fusion.relations import Earlier, Rule
from fusion.tokens import Place


@final
class DeltaAccom(Accom):
    """u_i = z_i - beta_i sum_j w_ij u_j, then c_i = sum_j r_ij u_j, over the earlier tokens j that
    token i may read; w and r are attention weights, 0 < beta < 1.

    A token may take back what earlier ones wrote, so the context can follow a state that changes,
    which no average of the past can (see `fusion.delta`). All weights are chosen once, from the
    anchors: one solve gives the matrix R (I + beta W)^{-1}, and a round is a product with it. (For
    so many right-hand sides the chunked solve was the fastest, on CPU and GPU.)

    Token i reads earlier tokens only, so with an Assim without memory the rounds end, after one
    more than the longest chain, for any coupling.

    Args:
        dim_head: d.
        num_heads: H.
        num_slots: ignored; there is one slot for each token.
        rule: which earlier token may be read.
    """

    ordered = True

    def __init__(
        self, dim_head: int, num_heads: int, num_slots: int, rule: Rule = Earlier()
    ) -> None:
        super().__init__()
        self.rule = rule
        self.write = PairWeights(dim_head, num_heads)
        self.read = PairWeights(dim_head, num_heads)
        self.beta_weight = nn.Parameter(0.5 * torch.randn(num_heads, dim_head))
        self.beta_bias = nn.Parameter(torch.zeros(num_heads))

    def beta(self, anchors: Tensor) -> Tensor:
        """How much of what it reads each token takes back: (B, H, N), in (0, 1) for any weights."""
        logits = torch.einsum("bhnd,hd->bhn", anchors, self.beta_weight)
        logits = logits + self.beta_bias.unsqueeze(-1)
        edge = torch.finfo(logits.dtype).eps  # the sigmoid alone rounds to 0 and 1
        return edge + (1 - 2 * edge) * logits.sigmoid()

    def forward(self, anchors: Tensor, mask: Tensor, place: Place) -> RelationalMixing:
        """Chooses the weights from the anchors; see `Accom.forward`."""
        relation = (self.rule & Earlier())(place, mask)
        coupling = self.beta(anchors).unsqueeze(-1) * self.write(anchors, relation)
        eye = torch.eye(mask.shape[1], dtype=coupling.dtype, device=coupling.device)
        weights = self.read(anchors, relation) @ solve_chunked(coupling, eye.expand_as(coupling))
        # For vectors, |sum_j a_ij z_j| <= sum_j |a_ij| |z_j| <= (sum_j |a_ij|) max_j |z_j|, with
        # equality for z_j = sign(a_ij) e: the largest row sum of |a| is the norm, not just a bound.
        stretch = weights.detach().abs().sum(dim=-1).amax(dim=(1, 2))
        return RelationalMixing(weights, relation, stretch)
