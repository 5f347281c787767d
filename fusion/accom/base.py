"""Accom: the gathering of all tokens of all modalities into one context, and reading it back.

Shapes: B batch, H heads, N tokens, K slots, d width of a head (real pairs, see `fusion.phase`).
"""

from abc import ABC, abstractmethod
from typing import Protocol

from torch import Tensor, nn


class Mixing(Protocol):
    """Weights chosen for one input and frozen during the iteration.

    They are non-negative and sum to at most 1 per slot and per token, so that neither map
    stretches the norm max |.|_2: what the contraction factor of an `Update` relies on.
    """

    def gather(self, latents: Tensor) -> Tensor:
        """Latents (B, H, N, d) -> context (B, H, K, d); 0 for samples without a real token."""
        ...

    def read(self, slots: Tensor) -> Tensor:
        """Slots (B, H, K, d) -> what each token sees of them (B, H, N, d)."""
        ...


class Accom(nn.Module, ABC):
    """Chooses the mixing from the anchors, once per input, before the iteration.

    Every subclass is built as `subclass(dim_head, num_heads, num_slots)`.
    """

    @abstractmethod
    def forward(self, anchors: Tensor, mask: Tensor) -> Mixing:
        """Chooses.

        Args:
            anchors: (B, H, N, d) projected tokens, 0 where not real.
            mask: (B, N) bool, True = real token.

        Returns:
            The frozen mixing.
        """
