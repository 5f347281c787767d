"""Assim: the local update of every token, given a context.

Shapes: B batch, H heads, N tokens, K slots, d width of a head (real pairs, see `fusion.phase`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from fusion.accom import Mixing


class Update(ABC):
    """A map chosen for one input and frozen during the iteration; leaves are dataclasses.

    What it declares is in the norm max over heads and tokens of the Euclidean norm, and is tested.

    Attributes:
        memory: how far a move of a token's latent is passed on, the context held; 0 if the next
            latents do not depend on the present ones.
        gain: (B,) how far a move of what the token reads of the context is passed on; inf if that
            is not bounded.
    """

    memory: float
    gain: Tensor

    @abstractmethod
    def __call__(
        self, latents: Tensor, context: Tensor, read: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """One round.

        Args:
            latents: (B, H, N, d).
            context: (B, H, K, d) slots.
            read: linear; spreads slots (B, H, K, d) over the tokens (B, H, N, d).

        Returns:
            The next latents (B, H, N, d).
        """

    def of(self, tokens: Tensor) -> Update:
        """The update of some tokens alone; here of one whose only entry per token is `anchors`.

        Args:
            tokens: (S,) indices, in every sample.
        """
        return replace(self, anchors=self.anchors.index_select(2, tokens))  # type: ignore

    def energy(self, latents: Tensor, context: Tensor, mixing: Mixing) -> Tensor | None:
        """A quantity (B,) that no round with this mixing raises; None if none is known.

        Args:
            latents: (B, H, N, d).
            context: (B, H, K, d), as it was gathered beside these latents.
            mixing: the chosen Accom.
        """
        return None


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
