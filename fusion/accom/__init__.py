"""Accom: how all tokens are gathered into one context, and how a token reads it."""

from fusion.accom.base import Accom, FrozenMixing, Mixing, Weights
from fusion.accom.slots import SlotAccom

__all__ = ["Accom", "FrozenMixing", "Mixing", "SlotAccom", "Weights"]
