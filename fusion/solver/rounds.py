"""The rounds that all searches share: per-sample steps, freezes and failures.

Shapes: B batch, H heads, M rows of the state, d width of a head.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Step = Callable[[Tensor], Tensor]
"""One round, state (B, H, M, d) -> state; samples must not mix in it."""

# A tolerance below these is lost in rounding: in bfloat16 the state stops moving 2.5e-3 away
# from the fixed point, so a step of zero is no accuracy.
TOL_FLOOR = {
    torch.bfloat16: 1e-2,
    torch.float16: 1e-3,
    torch.float32: 1e-6,
    torch.float64: 1e-14,
}


class Progress(NamedTuple):
    """How far every sample has come.

    Attributes:
        state: (B, H, M, d).
        residual: (B,) its last step; inf if that was not finite.
        failed: (B,) bool: a round was not finite.
    """

    state: Tensor
    residual: Tensor
    failed: Tensor


def advance(step: Step, progress: Progress, real: Tensor) -> Progress:
    """One more round for all samples but those that fail in it, which stay where they were.

    Args:
        step: the round.
        progress: so far.
        real: (B, M) bool: rows that count.
    """
    state, _, failed = progress
    proposal = step(state)
    size = step_size(proposal, state, real)
    failed = failed | ~size.isfinite()
    return Progress(replace(state, proposal, ~failed), size.masked_fill(failed, torch.inf), failed)


def replace(old: Tensor, new: Tensor, samples: Tensor) -> Tensor:
    """`new` (B, H, M, d) for the samples (B,) that are True, `old` for the others."""
    if samples.all():  # the usual case; saves a pass over memory
        return new
    return torch.where(samples.view(-1, *[1] * (old.dim() - 1)), new, old)


def step_size(new: Tensor, old: Tensor, real: Tensor) -> Tensor:
    """Largest 2-norm of a real row's move, over heads and rows: (B,), without gradient."""
    size = torch.linalg.vector_norm(new.detach() - old.detach(), dim=-1)
    return size.masked_fill(~real.unsqueeze(1), 0).amax(dim=(1, 2))
