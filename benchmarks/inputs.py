"""What is iterated in the measurements.

Shapes: B batch, H heads, N tokens, L tokens that a token reads, d width of a head.
"""

import dataclasses

import torch
from torch import Tensor
from torch.nn import functional as F

from fusion.accom import FrozenMixing, NeighbourMixing, SlotAccom
from fusion.accom.mean import MeanMixing
from fusion.assim.anchored import AnchoredUpdate
from fusion.assim.coupling import bounded_coupling, start_coupling
from fusion.choice import Choice
from fusion.tokens import Place

NUM_HEADS, NUM_SLOTS, DIM_HEAD, NUM_READ, BLOCK = 4, 16, 64, 12, 64


def directions(batch: int, num_tokens: int, device: str, num_heads: int = NUM_HEADS) -> Tensor:
    """Anchors (B, H, N, d) of norm 1 that lean to one side, in each sample to another."""
    common = torch.randn(batch, num_heads, 1, DIM_HEAD, device=device)
    own = torch.randn(batch, num_heads, num_tokens, DIM_HEAD, device=device)
    return F.normalize(common + own, dim=-1)


def spread(num: int, low: float, high: float, device: str) -> Tensor:
    """Log-uniform norms (num,)."""
    return low * (high / low) ** torch.rand(num, device=device)


def slots(anchors: Tensor) -> FrozenMixing:
    """The default Accom with new queries."""
    batch, num_heads, num_tokens, _ = anchors.shape
    accom = SlotAccom(DIM_HEAD, num_heads, NUM_SLOTS).to(anchors)
    mask = anchors.new_ones(batch, num_tokens).bool()
    place = Place(anchors.new_zeros(batch, num_tokens, 3), mask.long())
    with torch.no_grad():
        return accom(anchors, mask, place)


def mean(anchors: Tensor) -> FrozenMixing:
    """One context for all tokens."""
    batch, num_heads, num_tokens, _ = anchors.shape
    real = anchors.new_ones(batch, 1, num_tokens).bool()
    return MeanMixing(real, anchors.new_full((batch, num_heads, 1), num_tokens))


def blocks(anchors: Tensor) -> FrozenMixing:
    """Every token reads some of the `BLOCK` tokens of its block."""
    num_tokens, device = anchors.shape[2], anchors.device
    first = torch.arange(num_tokens, device=device) // BLOCK * BLOCK
    some = torch.randint(BLOCK, (num_tokens, NUM_READ), device=device)
    return _listed(first[:, None] + some, anchors)


def window(anchors: Tensor) -> FrozenMixing:
    """Every token reads some of its neighbours."""
    num_tokens, device = anchors.shape[2], anchors.device
    some = torch.randint(-NUM_READ, NUM_READ + 1, (num_tokens, NUM_READ), device=device)
    return _listed((torch.arange(num_tokens, device=device)[:, None] + some) % num_tokens, anchors)


def graph(anchors: Tensor) -> FrozenMixing:
    """Every token reads some tokens anywhere."""
    num_tokens = anchors.shape[2]
    lists = torch.randint(num_tokens, (num_tokens, NUM_READ), device=anchors.device)
    return _listed(lists, anchors)


def choose(anchors: Tensor, mixing: FrozenMixing, kappa: float) -> Choice:
    """A choice at full strength, with a coupling of norm kappa as a new `AnchoredAssim` has."""
    batch, num_heads, num_tokens, _ = anchors.shape
    with torch.no_grad():
        matrix, norm = bounded_coupling(*start_coupling((num_heads,), DIM_HEAD), kappa)
        coupling = (kappa / norm[:, None, None] * matrix).to(anchors)
    strength, gain = anchors.new_ones(batch, num_heads, 1, 1), anchors.new_full((batch,), kappa)
    update = AnchoredUpdate(anchors, strength, coupling, gain)
    return Choice(anchors, anchors.new_ones(batch, num_tokens).bool(), None, update, mixing)


def at(choice: Choice, anchors: Tensor) -> Choice:
    """The same weights and coupling with other anchors."""
    update = dataclasses.replace(choice.update, anchors=anchors)  # type: ignore
    return dataclasses.replace(choice, anchors=anchors, update=update)


def _listed(lists: Tensor, anchors: Tensor) -> FrozenMixing:
    weights = torch.rand(*anchors.shape[:3], NUM_READ, device=anchors.device)
    return NeighbourMixing.of(lists, weights / weights.sum(dim=-1, keepdim=True))
