"""Sparse updates: a token rests while what it reads has hardly moved since its last update.

Shapes: B batch, H heads, N tokens, K slots, d width of a head, A tokens of interest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, NamedTuple, final

import torch
from torch import Tensor

from fusion.accom import LocalMixing
from fusion.solver.rounds import TOL_FLOOR

if TYPE_CHECKING:
    from fusion.choice import Choice

# Where more than this share of the tokens is due, picking them costs more than it saves.
MOST = 0.5


class LazySolution(NamedTuple):
    """Where a sparse search ended, and what it cost.

    Attributes:
        latents: (B, H, N, d).
        context: (B, H, K, d) the context of these latents; with `Choice.start` a start for closing
            rounds that carry a gradient.
        residual: (B,) bound on how far one more round of all tokens would move any of them.
        converged: (B,) bool: residual < tol / 2.
        num_iters: rounds.
        num_updates: (B,) int: real tokens updated, over all rounds.
    """

    latents: Tensor
    context: Tensor
    residual: Tensor
    converged: Tensor
    num_iters: int
    num_updates: Tensor


@final
@dataclass(frozen=True)
class LazySolver:
    """Rounds in which only those tokens are updated that have something new to read.

    For memoryless updates z_i = f_i(c_i) and frozen weights. A token is due once
    gain |c_i - c_i'| >= tol / 2, with c_i' what it read at its last update: until then an update
    would move it by less, since f_i is `gain`-Lipschitz. The search ends when no token is due, so
    the residual of the whole state is below tol / 2. With q < 1 the latents are then within
    tol / (2 (1 - q)) of the fixed point: from q = 1/2 up no more than plain rounds promise, which
    is q tol / (1 - q). No gradient flows.

    This saves work where tokens read few others and settle at different times; where all read
    one context, all wait for it. It is made for one large sample: a token that is due in any
    sample or head is updated in all.

    Raises:
        ValueError: if `max_iters` (most rounds) is below 1 or `tol` is not positive.
    """

    max_iters: int = 64
    tol: float = 1e-4

    def __post_init__(self) -> None:
        if self.max_iters < 1 or not 0 < self.tol < math.inf:
            raise ValueError(
                f"Got max_iters={self.max_iters}, tol={self.tol}; give 1 or more and a positive "
                "tol such as 1e-4."
            )

    @torch.no_grad()
    def __call__(self, choice: Choice, context: Tensor | None = None) -> LazySolution:
        """Searches the fixed point of a choice.

        Args:
            choice: its update is a dataclass with `anchors`.
            context: (B, H, K, d) one to start from, as in `Choice.start`.

        Raises:
            ValueError: if latents depend on more than what tokens read, or by no finite factor, or
                `tol` is below what the dtype of the anchors can resolve.
        """
        update, dtype = choice.update, choice.anchors.dtype
        anchored = is_dataclass(update) and "anchors" in {f.name for f in fields(update)}
        if not (anchored and choice.memoryless and update.gain.isfinite().all()):
            raise ValueError(
                f"Got {type(update).__name__} with {type(choice.mixing).__name__}; sparse updates "
                "need frozen weights, memory 0, a finite gain and anchors. Use FixedPointSolver."
            )
        if self.tol < TOL_FLOOR.get(dtype, math.inf):
            raise ValueError(f"tol={self.tol} is below what {dtype} latents resolve; raise it.")
        with torch.autocast(choice.anchors.device.type, enabled=False):
            run = _Run(choice, choice.start(context), self.tol / 2)
            for _ in range(self.max_iters - 1):
                if not run.advance():
                    break
        return run.solution()


@final
class _Run:
    """One search; all that it holds is its own, and written to."""

    def __init__(self, choice: Choice, context: Tensor, slack: float) -> None:
        self._choice, self._context, self._slack = choice, context, slack
        self._weights = choice.mixing.weigh(choice.anchors, context)
        self._reads = self._weights.read(context)
        self._all = torch.arange(choice.mask.shape[1], device=choice.mask.device)
        self._num_iters, self._num_updates = 0, choice.mask.new_zeros(len(choice.mask)).long()
        self._update_all()

    def advance(self) -> bool:
        """One round, if any token is due."""
        rest = self._distance < self._slack  # NaN does not
        due = (~rest).flatten(0, 1).any(dim=0).nonzero().squeeze(1)
        if len(due) > MOST * len(self._all):
            self._update_all()
        elif len(due):
            self._update(due)
        return len(due) > 0

    def solution(self) -> LazySolution:
        """What has been found."""
        residual = self._distance.amax(dim=(1, 2)).nan_to_num(nan=math.inf)
        found = self._latents, self._context, residual, residual < self._slack
        return LazySolution(*found, self._num_iters, self._num_updates)

    def _update_all(self) -> None:
        self._count(self._choice.mask)
        choice, read = self._choice, self._weights.read
        self._latents = choice.update(choice.anchors, self._context, read)
        self._context = self._weights.gather(self._latents)
        self._seen, self._reads = self._reads, read(self._context)
        self._distance = self._far(self._all, self._reads)

    def _update(self, due: Tensor) -> None:
        self._count(self._choice.mask[:, due])
        reads = _pick(self._reads, due)
        self._latents.index_copy_(2, due, self._next(due, reads))
        self._seen.index_copy_(2, due, reads)
        self._distance.index_fill_(2, due, 0)
        readers, reads = self._refresh(due)
        self._reads.index_copy_(2, readers, reads)
        self._distance.index_copy_(2, readers, self._far(readers, reads))

    def _next(self, tokens: Tensor, reads: Tensor) -> Tensor:
        """The next latents (B, H, A, d) of the tokens (A,), which read (B, H, A, d)."""
        choice, latents = self._choice, _pick(self._latents, tokens)
        update = choice.update.of(tokens)
        if self._context.shape[2] > len(tokens):
            return update(latents, reads, lambda own: own)
        # A coupling acts on slots before they are read, so hand it these if they are fewer.
        return update(latents, self._context, lambda c: _pick(self._weights.read(c), tokens))

    def _refresh(self, moved: Tensor) -> tuple[Tensor, Tensor]:
        """See `LocalMixing.refresh`; if all tokens share slots, all read anew."""
        if isinstance(self._weights, LocalMixing):
            self._context = self._reads
            return self._weights.refresh(self._latents, moved)
        self._context = self._weights.gather(self._latents)
        return self._all, self._weights.read(self._context)

    def _far(self, tokens: Tensor, reads: Tensor) -> Tensor:
        """How far another update could move the tokens, at most: (B, H, A)."""
        distance = torch.linalg.vector_norm(reads - _pick(self._seen, tokens), dim=-1)
        real = self._choice.mask[:, None, tokens]
        return (self._choice.update.gain[:, None, None] * distance).masked_fill(~real, 0)

    def _count(self, updated: Tensor) -> None:
        self._num_iters += 1
        self._num_updates = self._num_updates + updated.sum(dim=1)


def _pick(values: Tensor, tokens: Tensor) -> Tensor:
    return values.index_select(2, tokens)
