"""Accom: how all tokens are gathered into one context, and how a token reads it."""

from fusion.accom.base import Accom, FrozenMixing, Mixing, Weights
from fusion.accom.delta import DeltaAccom
from fusion.accom.mean import MeanAccom
from fusion.accom.neighbours import LocalMixing, NeighbourMixing
from fusion.accom.relational import RelationalAccom, RelationalMixing
from fusion.accom.responsibilities import ResponsibilityAccom
from fusion.accom.slots import SlotAccom

__all__ = [
    "Accom",
    "DeltaAccom",
    "FrozenMixing",
    "LocalMixing",
    "MeanAccom",
    "Mixing",
    "NeighbourMixing",
    "RelationalAccom",
    "RelationalMixing",
    "ResponsibilityAccom",
    "SlotAccom",
    "Weights",
]
