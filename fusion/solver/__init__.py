"""The iteration: how a fixed point is searched for and how gradients pass through it."""

from fusion.solver.anderson import Anderson
from fusion.solver.fixed_point import FixedPointSolver
from fusion.solver.gradients import Full, Gradient, Implicit, Unrolled
from fusion.solver.lazy import LazySolution, LazySolver
from fusion.solver.rounds import TOL_FLOOR, Step
from fusion.solver.stats import Reason, SolverStats

__all__ = [
    "TOL_FLOOR",
    "Anderson",
    "FixedPointSolver",
    "Full",
    "Gradient",
    "Implicit",
    "LazySolution",
    "LazySolver",
    "Reason",
    "SolverStats",
    "Step",
    "Unrolled",
]
