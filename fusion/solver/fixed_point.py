"""Fixed-point iteration that treats every sample of a batch as if it were alone.

Shapes: B batch, H heads, M rows of the state, d width of a head, T rounds.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fusion.certificate import error_bound
from fusion.solver.anderson import Anderson
from fusion.solver.gradients import Gradient, Unrolled
from fusion.solver.rounds import TOL_FLOOR, Progress, Step, replace, step_size
from fusion.solver.stats import Reason, SolverStats

STALLED_AFTER = 8  # rounds in which no step was smaller than the smallest before


class _Search(NamedTuple):
    progress: Progress
    num_iters: Tensor  # (B,)
    idle: Tensor  # (B,) rounds since its smallest step


@dataclass(frozen=True)
class FixedPointSolver:
    """Iteration s <- step(s): a search without gradient, then closing rounds that carry it.

    In the search each sample stops on its own: once its step is below `tol` it does not change
    any more, so its result at a fixed padded shape never depends on its neighbours. A sample that
    turns non-finite goes back to its best iterate (the one with the smallest step) and stays
    there. The closing rounds run for all samples, with or without gradient mode; they polish the
    result and are what gradients flow through.

    Args:
        max_iters: most rounds of the search.
        tol: stop a sample when max over heads and real rows of |s' - s|_2 is below this.
        gradient: the closing rounds; None is `Unrolled()`.
        acceleration: how the next state is proposed; None takes the round as it is, which a
            contraction factor makes certain.
        search_dtype: precision of a first search, where the caller gives the map in it. The
            search goes on in full precision from there: a step of zero in bfloat16 is no accuracy.

    Raises:
        ValueError: if a setting is out of range, or gradients shall flow through a search that is
            accelerated or of low precision.
    """

    max_iters: int = 32
    tol: float = 1e-4
    gradient: Gradient | None = None
    acceleration: Anderson | None = None
    search_dtype: Literal["bfloat16", "float16"] | None = None

    def __post_init__(self) -> None:
        if self.max_iters < 0 or not 0 < self.tol < math.inf:
            raise ValueError(
                f"Got max_iters={self.max_iters}, tol={self.tol}; give max_iters >= 0 and a "
                "positive tol such as 1e-4."
            )
        if self.closing.through_search and (self.acceleration or self.search_dtype):
            raise ValueError(
                "Gradients through every round need plain rounds in full precision; leave out "
                "acceleration and search_dtype, or choose another gradient."
            )

    @property
    def closing(self) -> Gradient:
        """The closing rounds."""
        return self.gradient or Unrolled()

    def __call__(
        self,
        step: Step,
        start: Tensor,
        real: Tensor,
        q: Tensor | None = None,
        coarse: Step | None = None,
    ) -> tuple[Tensor, SolverStats]:
        """Iterates `step` from `start`. Under autocast the iteration still runs in float32.

        Args:
            step: one round, state (B, H, M, d) -> state; samples must not mix in it.
            start: (B, H, M, d) first state.
            real: (B, M) bool, True = a row that counts.
            q: (B,) contraction factor of `step`; None declares none.
            coarse: the same round for states of `search_dtype`; None leaves that search out.

        Returns:
            The state after the last round, and the statistics. A sample without a real row
            has converged before the first round.

        Raises:
            ValueError: if `tol` is below what the dtype of `start` can resolve.
        """
        device = start.device.type
        if torch.is_autocast_enabled(device):
            start = start.to(torch.promote_types(start.dtype, torch.float32))
        self._check_tol(start.dtype)
        trace: list[Tensor] = []
        grad = torch.is_grad_enabled() and self.closing.through_search
        with torch.autocast(device, enabled=False):
            with torch.set_grad_enabled(grad):
                first = torch.zeros_like(real[:, 0], dtype=torch.long)
                if coarse is not None and self.search_dtype is not None:
                    start, first = self._search_coarsely(coarse, start, real, trace)
                found = self._search(step, start, real, self.tol, trace)
            progress = self.closing.close(step, found.progress, real, trace)
        stats = self._stats(progress, found, first, q, trace)
        return progress.state, stats

    def _check_tol(self, dtype: torch.dtype) -> None:
        floor = TOL_FLOOR.get(dtype, math.inf)
        if self.tol < floor:
            raise ValueError(
                f"tol={self.tol} is below {floor}, what {dtype} latents can resolve; raise tol, or "
                "keep the parameters in float32 under torch.autocast, where the loop is float32."
            )

    def _search_coarsely(
        self, coarse: Step, start: Tensor, real: Tensor, trace: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Where a search in low precision ends, or the start where that failed; its rounds."""
        assert self.search_dtype is not None
        dtype = getattr(torch, self.search_dtype)
        tol = max(self.tol, TOL_FLOOR[dtype])
        found = self._search(coarse, start.to(dtype), real, tol, trace)
        failed = found.progress.failed
        return replace(start, found.progress.state.to(start.dtype), ~failed), found.num_iters

    def _search(
        self, step: Step, start: Tensor, real: Tensor, tol: float, trace: list[Tensor]
    ) -> _Search:
        live = real.any(dim=1)
        num_iters = torch.zeros_like(live, dtype=torch.long)
        idle, failed = torch.zeros_like(num_iters), torch.zeros_like(live)
        residual = torch.zeros_like(live, dtype=start.dtype).masked_fill(live, math.inf)
        state, best, lowest = start, start, residual
        run = None if self.acceleration is None else self.acceleration.begin()
        for _ in range(self.max_iters):
            if not live.any():
                break
            proposal = step(state)
            size = step_size(proposal, state, real)
            num_iters = num_iters + live
            following, counts = proposal, live
            if run is not None:
                following, back = run.next(state, proposal, size)
                counts = live & ~back
            lost = counts & ~size.isfinite()
            moved = counts & ~lost
            residual = torch.where(moved, size, residual).masked_fill(lost, math.inf)
            better = moved & (size < lowest)
            idle = torch.where(better, 0, idle + 1)
            best = replace(best, proposal, better)
            lowest = torch.where(better, size, lowest)
            failed = failed | lost
            done = moved & (size < tol)
            live = live & ~lost & ~done
            state = replace(state, following, live | done)
            if run is not None:  # what is done rests on the plain round, whose step was measured
                state = replace(state, proposal, done)
            trace.append(residual)
        if trace:  # else the start, with its gradient
            state = replace(state, best, failed)
        return _Search(Progress(state, residual, failed), num_iters, idle)

    def _stats(
        self,
        progress: Progress,
        found: _Search,
        first: Tensor,
        q: Tensor | None,
        trace: list[Tensor],
    ) -> SolverStats:
        residual = progress.residual.detach()
        converged = (residual < self.tol) & ~progress.failed
        factor = torch.full_like(residual, math.inf) if q is None else q.detach()
        factor = factor.to(residual.dtype).nan_to_num(nan=math.inf, posinf=math.inf)
        reason = torch.where(found.idle >= STALLED_AFTER, Reason.STALLED, Reason.MAX_ITERS)
        reason = torch.where(converged, Reason.CONVERGED, reason)
        reason = torch.where(progress.failed, Reason.NON_FINITE, reason)
        return SolverStats(
            num_iters=first + found.num_iters,
            residual=residual,
            converged=converged,
            q=factor,
            error_bound=error_bound(factor, residual),
            reason=reason,
            trace=torch.stack([r.to(residual.dtype) for r in trace or [residual]]),
        )
