"""What an iteration did, per sample.

Shapes: B batch, T rounds.
"""

from enum import IntEnum
from typing import NamedTuple

from torch import Tensor


class Reason(IntEnum):
    """Why a sample's search ended."""

    CONVERGED = 0
    """Its last step was below tol."""
    MAX_ITERS = 1
    """It ran out of rounds while its steps were still shrinking."""
    STALLED = 2
    """It ran out of rounds, and its steps had long ceased to shrink: more rounds will not help."""
    NON_FINITE = 3
    """A round gave NaN or infinity; the state is the best one before that."""


class SolverStats(NamedTuple):
    """What the iteration did, per sample. No entry is NaN and none carries a gradient.

    Attributes:
        num_iters: (B,) int: rounds of the search until the sample stopped moving, failed or ran
            out of rounds; the closing rounds are not counted.
        residual: (B,) largest step of a real row of the state in the last round; inf if a round
            was not finite.
        converged: (B,) bool: residual < tol and every round finite.
        q: (B,) contraction factor; inf where none is declared.
        error_bound: (B,) largest possible distance to the fixed point; inf where q >= 1.
        reason: (B,) int: a `Reason`.
        trace: (T, B) residual after each round of search and closing; a sample that has
            stopped repeats its last one.
    """

    num_iters: Tensor
    residual: Tensor
    converged: Tensor
    q: Tensor
    error_bound: Tensor
    reason: Tensor
    trace: Tensor
