"""Which slots are shown, and what each token has to do with them.

Shapes: N tokens, K slots, S shown slots.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fusion.diagnostics import Trajectory, ambiguity, slot_shares
from fusion.plots import PALETTE

COLORS = (*PALETTE, "#f0e442", "#3a3f4a")
"""Okabe and Ito's colours, black made lighter; a number stands beside each wherever used."""
NOBODY = "#c4cad3"
"""Colour of a token whose strongest slot is not shown."""


@dataclass(frozen=True)
class ShownSlots:
    """The slots of the head that tells its tokens apart most; at most one for each colour.

    Attributes:
        head: index of that head.
        num_heads: heads there are.
        num_slots: slots of a head.
        indices: the shown slots: those that are the strongest of most tokens.
        makeup: (S, N) what part of a slot comes from each token; sums to 1 over N.
        owner: for each token, the place in `indices` of its strongest slot; -1 if that is not
            shown.
        certainty: (N,) share of the strongest slot in the token.
    """

    head: int
    num_heads: int
    num_slots: int
    indices: list[int]
    makeup: Tensor
    owner: list[int]
    certainty: Tensor

    def name(self, place: int) -> str:
        """Number of a shown slot, counted from 1."""
        return str(self.indices[place] + 1) if place >= 0 else "–"

    def color(self, place: int) -> str:
        """Colour of a shown slot."""
        return COLORS[place] if place >= 0 else NOBODY


def shown_slots(found: Trajectory) -> ShownSlots:
    """Chooses head and slots of an iteration on a single sample."""
    head = int(ambiguity(found.weights, found.mask)[0].argmin())
    size = found.weights[0, head].abs()
    num_slots = len(size)
    certainty, strongest = slot_shares(found.weights)[0, head].max(dim=0)
    # The tokens that a slot owns decide; their certainty, a share of a token, breaks ties.
    rank = torch.bincount(strongest, weights=1 + 1e-3 * certainty, minlength=num_slots)
    indices = sorted(rank.topk(min(len(COLORS), num_slots)).indices.tolist())
    owner = [indices.index(slot) if slot in indices else -1 for slot in strongest.tolist()]
    return ShownSlots(
        head, found.weights.shape[1], num_slots, indices, per_slot(size[indices]), owner, certainty
    )


def per_slot(weights: Tensor) -> Tensor:
    """Sizes of weights (..., N), scaled to sum 1 over the tokens; 0 for a slot without any."""
    total = weights.abs().sum(dim=-1, keepdim=True)
    return weights.abs() / torch.where(total > 0, total, 1)
