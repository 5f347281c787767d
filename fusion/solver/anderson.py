"""Anderson acceleration with a safeguard, sample by sample.

Shapes: B batch, H heads, M rows of the state, d width of a head, m steps remembered, S = H M d.
"""

from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor


@final
@dataclass(frozen=True)
class Anderson:
    """Takes the combination of the last states whose combined step is smallest (Anderson 1965;
    Walker and Ni 2011, algorithm AA).

    It pays for tight tolerances or contraction factors near 1; at 1e-3 plain rounds are as good.
    An accelerated state is kept only if its step is smaller than the one before; else the sample
    goes back and takes the plain round, which costs it one evaluation.

    Args:
        memory: m, steps remembered.
        ridge: of the least squares, relative to the mean square of the step differences.

    Raises:
        ValueError: if a setting is out of range.
    """

    memory: int = 5
    ridge: float = 1e-10

    def __post_init__(self) -> None:
        if self.memory < 1 or not self.ridge > 0:
            raise ValueError(
                f"Got memory={self.memory}, ridge={self.ridge}; give memory >= 1 and ridge > 0."
            )

    def begin(self) -> "AndersonRun":
        """The bookkeeping of one search."""
        return AndersonRun(self)


class _Remembered(NamedTuple):
    states: Tensor  # (B, S)
    moves: Tensor  # (B, S)
    valid: Tensor  # (B,)


class _Good(NamedTuple):
    """The last states that counted."""

    proposal: Tensor  # (B, H, M, d) what the plain round makes of them
    size: Tensor  # (B,) its step
    accelerated: Tensor  # (B,) the state evaluated next is not that proposal


@final
class AndersonRun:
    """One search; see `Anderson`.

    Args:
        settings: its settings.
    """

    def __init__(self, settings: Anderson) -> None:
        self._settings = settings
        self._past: list[_Remembered] = []
        self._good: _Good | None = None

    def next(self, state: Tensor, proposal: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """Where to evaluate next.

        Args:
            state: (B, H, M, d) evaluated states.
            proposal: (B, H, M, d) what the round made of them.
            size: (B,) its step; not finite where the round failed.

        Returns:
            The next states, and (B,) bool, True for samples that were sent back: their
            `proposal` does not count.
        """
        back, plain = torch.zeros_like(size, dtype=torch.bool), proposal
        if self._good is not None:
            back = self._good.accelerated & ~(size < self._good.size)
            plain = torch.where(_wide(back, state), self._good.proposal, proposal)
            self._past = [past._replace(valid=past.valid & ~back) for past in self._past]
            size = torch.where(back, self._good.size, size)
        new = _Remembered(state.flatten(1), (proposal - state).flatten(1), ~back)
        accelerated, use = self._combine(new)
        self._past = [*self._past, new][-self._settings.memory :]
        self._good = _Good(plain, size, use)
        return torch.where(_wide(use, state), accelerated.view_as(state), plain), back

    def _combine(self, new: _Remembered) -> tuple[Tensor, Tensor]:
        """(B, S) state + move + sum_j gamma_j (differences); for which samples (B,) it is that."""
        plain = new.states + new.moves
        if not self._past:
            return plain, torch.zeros_like(new.valid)
        valid = torch.stack([past.valid for past in self._past], dim=1)
        moves = torch.stack([past.moves - new.moves for past in self._past], dim=1)
        states = torch.stack([past.states - new.states for past in self._past], dim=1)
        moves = torch.where(valid[..., None], moves, 0)
        states = torch.where(valid[..., None], states, 0)
        gamma = self._least_squares(moves.double(), new.moves.double(), valid).to(moves.dtype)
        combined = plain + ((states + moves).mT @ gamma).squeeze(-1)
        return combined, new.valid & valid.any(dim=1) & combined.isfinite().all(dim=1)

    def _least_squares(self, moves: Tensor, last: Tensor, valid: Tensor) -> Tensor:
        """gamma (B, m, 1) that minimises |last + sum_j gamma_j moves_j|^2 + ridge |gamma|^2."""
        gram = moves @ moves.mT
        scale = gram.diagonal(dim1=1, dim2=2).mean(dim=1, keepdim=True)
        ridge = self._settings.ridge * scale + torch.finfo(gram.dtype).tiny
        # A step that is not valid is a zero row: a one on the diagonal makes its gamma zero.
        gram = gram + (ridge + (~valid).to(gram.dtype)).diag_embed()
        return torch.linalg.solve_ex(gram, -(moves @ last.unsqueeze(-1)))[0]


def _wide(samples: Tensor, like: Tensor) -> Tensor:
    return samples.view(-1, *[1] * (like.dim() - 1))
