"""Fusion blocks: encode any subset of modalities into one shared, certified context.

Public names are imported when they are first used, so that `fusion --help` needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusion.accom import Accom, SlotAccom
    from fusion.assim import AnchoredAssim, Assim
    from fusion.block import FusionBlock, FusionOutput
    from fusion.inference import Pipeline
    from fusion.solver import FixedPointSolver, SolverStats
    from fusion.tokens import Tokens

_HOMES = {
    "Accom": "fusion.accom",
    "AnchoredAssim": "fusion.assim",
    "Assim": "fusion.assim",
    "FixedPointSolver": "fusion.solver",
    "FusionBlock": "fusion.block",
    "FusionOutput": "fusion.block",
    "Pipeline": "fusion.inference",
    "SlotAccom": "fusion.accom",
    "SolverStats": "fusion.solver",
    "Tokens": "fusion.tokens",
}

__all__ = [
    "Accom",
    "AnchoredAssim",
    "Assim",
    "FixedPointSolver",
    "FusionBlock",
    "FusionOutput",
    "Pipeline",
    "SlotAccom",
    "SolverStats",
    "Tokens",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
