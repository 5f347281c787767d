"""Weights as lists of neighbours: a sparse relation in which only some readings are made anew.

Shapes: B batch, H heads, N tokens, d width of a head, L tokens that a token reads, A tokens of
interest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from fusion.accom.base import FrozenMixing


@runtime_checkable
class LocalMixing(Protocol):
    """A frozen mixing in which every token reads a slot of its own, made of few tokens."""

    def refresh(self, latents: Tensor, moved: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens (A',) that read any of `moved` (A,), and what they read of the latents
        (B, H, N, d) now: (B, H, A', d)."""
        ...


@final
@dataclass(frozen=True)
class NeighbourMixing(FrozenMixing):
    """C_i = sum_l a_il z_n(i,l), which token i alone reads: a relation as lists of neighbours.

    A round costs N L d, where a matrix of weights costs N N d.

    Attributes:
        neighbours: (N, L) int: the tokens that each token reads, in any sample or head.
        weights: (B, H, N, L) a, sums to 1 or 0 over l; 0 where a token does not read another.
        readers: (N L,) int: the tokens that read token 0, then those that read token 1, and so on.
        ends: (N,) int: where in `readers` those of each token end.
    """

    neighbours: Tensor
    weights: Tensor
    readers: Tensor
    ends: Tensor

    @classmethod
    def of(cls, neighbours: Tensor, weights: Tensor) -> NeighbourMixing:
        """From the lists and their weights, from which the rest follows."""
        readers = neighbours.flatten().argsort() // neighbours.shape[1]
        ends = neighbours.flatten().bincount(minlength=len(neighbours)).cumsum(dim=0)
        return cls(neighbours, weights, readers, ends)

    def gather(self, latents: Tensor) -> Tensor:
        """Latents (B, H, N, d) -> context (B, H, N, d)."""
        return _sums(latents, self.neighbours, self.weights)

    def read(self, slots: Tensor) -> Tensor:
        """Every token reads its own slot: slots (B, H, N, d) as they are."""
        return slots

    def refresh(self, latents: Tensor, moved: Tensor) -> tuple[Tensor, Tensor]:
        """See `LocalMixing.refresh`."""
        ends = self.ends[moved]
        count = ends - torch.where(moved > 0, self.ends[moved - 1], 0)
        total = count.cumsum(dim=0)
        place = torch.arange(int(total[-1]), device=moved.device)
        place = place + (ends - total).repeat_interleave(count)
        reads = torch.zeros_like(self.ends, dtype=torch.bool)
        reads[self.readers.index_select(0, place)] = True
        tokens = reads.nonzero().squeeze(1)
        return tokens, _sums(latents, self.neighbours[tokens], self.weights.index_select(2, tokens))


def _sums(latents: Tensor, lists: Tensor, weights: Tensor) -> Tensor:
    """sum_l w_al z_n(a,l) of lists (A, L) with weights (B, H, A, L): (B, H, A, d)."""
    num_heads, num_tokens = latents.shape[0] * latents.shape[1], latents.shape[2]
    first = torch.arange(0, num_heads * num_tokens, num_tokens, device=lists.device)
    rows = (first[:, None, None] + lists).flatten(0, 1)
    table, each = latents.flatten(0, 2), weights.flatten(0, 2)
    sums = F.embedding_bag(rows, table, per_sample_weights=each, mode="sum")
    return sums.view(*weights.shape[:3], -1)
