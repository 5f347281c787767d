"""Fusion blocks: encode any subset of modalities into one shared, certified context."""

from fusion.accom import Accom, SlotAccom
from fusion.assim import AnchoredAssim, Assim
from fusion.block import FusionBlock, FusionOutput
from fusion.solver import FixedPointSolver, SolverStats
from fusion.tokens import Tokens

__all__ = [
    "Accom",
    "AnchoredAssim",
    "Assim",
    "FixedPointSolver",
    "FusionBlock",
    "FusionOutput",
    "SlotAccom",
    "SolverStats",
    "Tokens",
]
