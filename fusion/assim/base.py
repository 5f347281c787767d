"""Assim: the local update of every token, given a context.

Shapes: B batch, H heads, N tokens, K slots, d width of a head (real pairs, see `fusion.phase`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

from torch import Tensor, nn


class Update(Protocol):
    """A map chosen for one input and frozen during the iteration."""

    @property
    def q(self) -> Tensor:
        """(B,) contraction factor in the norm max over heads and tokens of |.|_2, for any
        mixing whose weights are non-negative and sum to at most 1; inf if none is declared."""
        ...

    def __call__(
        self, latents: Tensor, context: Tensor, read: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """One round.

        Args:
            latents: (B, H, N, d).
            context: (B, H, K, d) slots gathered from `latents`.
            read: spreads slots (B, H, K, d) over the tokens (B, H, N, d).

        Returns:
            The next latents (B, H, N, d).
        """
        ...


class Assim(nn.Module, ABC):
    """Chooses the update from the anchors, once per input, before the iteration.

    Every subclass is built as `subclass(dim_head, num_heads)`.
    """

    @abstractmethod
    def forward(self, anchors: Tensor, mask: Tensor) -> Update:
        """Chooses.

        Args:
            anchors: (B, H, N, d) projected tokens, 0 where not real.
            mask: (B, N) bool, True = real token.

        Returns:
            The frozen update.
        """
