"""Assim: how a token is updated, given a context."""

from fusion.assim.anchored import AnchoredAssim
from fusion.assim.base import Assim, Update
from fusion.assim.choice import ChoiceAssim
from fusion.assim.gated import GatedAssim
from fusion.assim.literal import LiteralAssim
from fusion.assim.phase import PhaseAssim
from fusion.assim.proximal import ProximalAssim

__all__ = [
    "AnchoredAssim",
    "Assim",
    "ChoiceAssim",
    "GatedAssim",
    "LiteralAssim",
    "PhaseAssim",
    "ProximalAssim",
    "Update",
]
