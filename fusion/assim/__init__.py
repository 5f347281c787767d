"""Assim: how a token is updated, given a context."""

from fusion.assim.anchored import AnchoredAssim
from fusion.assim.base import Assim, Update

__all__ = ["AnchoredAssim", "Assim", "Update"]
