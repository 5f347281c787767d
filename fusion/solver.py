"""Fixed-point iteration that treats every sample of a batch as if it were alone.

Shapes: B batch, H heads, N tokens, d width of a head, T rounds.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fusion.certificate import error_bound

# A tolerance below these is lost in rounding: in bfloat16 the state stops moving 2.5e-3 away
# from the fixed point, so a step of zero is no accuracy.
TOL_FLOOR = {
    torch.bfloat16: 1e-2,
    torch.float16: 1e-3,
    torch.float32: 1e-6,
    torch.float64: 1e-14,
}


class SolverStats(NamedTuple):
    """What the iteration did, per sample. No entry is NaN and none carries a gradient.

    Attributes:
        num_iters: (B,) int: rounds of the search until the sample stopped moving, failed or ran
            out of rounds; the closing rounds are not counted.
        residual: (B,) largest step of a real token in the last round; inf if a round was not
            finite.
        converged: (B,) bool: residual < tol and every round finite.
        q: (B,) contraction factor; inf where none is declared.
        error_bound: (B,) largest possible distance to the fixed point; inf where q >= 1.
        trace: (T, B) residual after each round of search and closing; a sample that has
            stopped repeats its last one.
    """

    num_iters: Tensor
    residual: Tensor
    converged: Tensor
    q: Tensor
    error_bound: Tensor
    trace: Tensor


class _State(NamedTuple):
    latents: Tensor
    residual: Tensor
    failed: Tensor


@dataclass(frozen=True)
class FixedPointSolver:
    """Plain iteration z <- step(z): a search without gradient, then a few rounds with it.

    In the search each sample stops on its own: once its step is below `tol` it does not change
    any more, so its result at a fixed padded shape never depends on its neighbours. A sample that
    turns non-finite goes back to its best iterate (the one with the smallest step) and stays
    there. The closing rounds run for all samples, with or without gradient mode; they polish the
    result and are what gradients flow through (truncated backpropagation).

    Args:
        max_iters: most rounds of the search; 0 leaves all to the closing rounds (full unroll).
        tol: stop a sample when max over heads and real tokens of |z' - z|_2 is below this.
        grad_iters: closing rounds, at least 1.

    Raises:
        ValueError: if a setting is out of range.
    """

    max_iters: int = 32
    tol: float = 1e-4
    grad_iters: int = 3

    def __post_init__(self) -> None:
        if self.max_iters < 0 or self.grad_iters < 1:
            raise ValueError(
                f"Got max_iters={self.max_iters}, grad_iters={self.grad_iters}; give "
                "max_iters >= 0 and grad_iters >= 1 (3 is the default)."
            )
        if not 0 < self.tol < math.inf:
            raise ValueError(f"Got tol={self.tol}; give a positive number such as 1e-4.")

    def __call__(
        self,
        step: Callable[[Tensor], Tensor],
        start: Tensor,
        mask: Tensor,
        q: Tensor | None = None,
    ) -> tuple[Tensor, SolverStats]:
        """Iterates `step` from `start`. Under autocast the iteration still runs in float32.

        Args:
            step: one round, latents (B, H, N, d) -> latents; samples must not mix in it.
            start: (B, H, N, d) first latents.
            mask: (B, N) bool, True = real token; the others do not count.
            q: (B,) contraction factor of `step`; None declares none.

        Returns:
            The latents after the last round, and the statistics. A sample without a real token
            has converged before the first round.

        Raises:
            ValueError: if `tol` is below what the dtype of `start` can resolve.
        """
        device = start.device.type
        if torch.is_autocast_enabled(device):
            start = start.to(torch.promote_types(start.dtype, torch.float32))
        self._check_tol(start.dtype)
        trace: list[Tensor] = []
        with torch.autocast(device, enabled=False):
            with torch.no_grad():
                state, num_iters = self._search(step, start, mask, trace)
            state = self._close(step, state, mask, trace)
        factor = torch.full_like(state.residual, math.inf) if q is None else q.detach()
        factor = factor.to(state.residual.dtype).nan_to_num(nan=math.inf, posinf=math.inf)
        stats = SolverStats(
            num_iters=num_iters,
            residual=state.residual,
            converged=(state.residual < self.tol) & ~state.failed,
            q=factor,
            error_bound=error_bound(factor, state.residual),
            trace=torch.stack(trace),
        )
        return state.latents, stats

    def _check_tol(self, dtype: torch.dtype) -> None:
        floor = TOL_FLOOR.get(dtype, math.inf)
        if self.tol < floor:
            raise ValueError(
                f"tol={self.tol} is below {floor}, what {dtype} latents can resolve; raise tol, or "
                "keep the parameters in float32 under torch.autocast, where the loop is float32."
            )

    def _search(
        self, step: Callable[[Tensor], Tensor], start: Tensor, mask: Tensor, trace: list[Tensor]
    ) -> tuple[_State, Tensor]:
        live = mask.any(dim=1)
        num_iters = torch.zeros_like(live, dtype=torch.long)
        failed = torch.zeros_like(live)
        residual = torch.zeros_like(live, dtype=start.dtype).masked_fill(live, math.inf)
        latents, best, lowest = start, start, residual
        for _ in range(self.max_iters):
            if not live.any():
                break
            proposal = step(latents)
            size = _step_size(proposal, latents, mask)
            num_iters = num_iters + live
            lost = live & ~size.isfinite()
            moved = live & ~lost
            latents = _replace(latents, proposal, moved)
            residual = torch.where(moved, size, residual).masked_fill(lost, math.inf)
            better = moved & (size < lowest)
            best = _replace(best, proposal, better)
            lowest = torch.where(better, size, lowest)
            failed = failed | lost
            live = moved & (size >= self.tol)
            trace.append(residual)
        if trace:  # else the start, with its gradient
            latents = _replace(latents, best, failed)
        return _State(latents, residual, failed), num_iters

    def _close(
        self, step: Callable[[Tensor], Tensor], state: _State, mask: Tensor, trace: list[Tensor]
    ) -> _State:
        latents, residual, failed = state
        for _ in range(self.grad_iters):
            proposal = step(latents)
            size = _step_size(proposal.detach(), latents.detach(), mask)
            failed = failed | ~size.isfinite()
            latents = _replace(latents, proposal, ~failed)
            residual = size.masked_fill(failed, math.inf)
            trace.append(residual)
        return _State(latents, residual, failed)


def _replace(old: Tensor, new: Tensor, samples: Tensor) -> Tensor:
    """`new` (B, H, N, d) for the samples (B,) that are True, `old` for the others."""
    if samples.all():  # the usual case; saves a pass over memory
        return new
    return torch.where(samples.view(-1, *[1] * (old.dim() - 1)), new, old)


def _step_size(new: Tensor, old: Tensor, mask: Tensor) -> Tensor:
    """Largest 2-norm of a real token's move, over heads and tokens: (B,)."""
    size = torch.linalg.vector_norm(new - old, dim=-1)
    return size.masked_fill(~mask.unsqueeze(1), 0).amax(dim=(1, 2))
