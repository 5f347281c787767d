"""Accom: the gathering of all tokens of all modalities into one context, and reading it back.

Shapes: B batch, H heads, N tokens, K slots, d width of a head (real pairs, see `fusion.phase`).
"""

from abc import ABC, abstractmethod
from typing import Protocol

from torch import Tensor, nn

from fusion.tokens import Place


class Weights(Protocol):
    """The weights of one round: two affine maps that never raise the largest token norm, unless
    the mixing declares a `stretch` above 1."""

    def gather(self, latents: Tensor) -> Tensor:
        """Latents (B, H, N, d) -> context (B, H, K, d); 0 for samples without a real token."""
        ...

    def read(self, slots: Tensor) -> Tensor:
        """Slots (B, H, K, d) -> what each token sees of them (B, H, N, d)."""
        ...


class Mixing(ABC):
    """What an Accom chose for one input; leaves are dataclasses.

    Attributes:
        frozen: the weights are the same in every round.
        stretch: largest factor of `read` after `gather` in the norm max over tokens of the
            Euclidean norm, one number or one per sample (B,); inf if it is not bounded.
        depth: (B,) length of the longest chain of tokens in which each reads the one before;
            None if tokens read each other in circles.
        tie: (B, H, K) t with `read` = t times the transpose of `gather`, slot by slot; None if
            they are no such pair.
    """

    frozen: bool = True
    stretch: float | Tensor = 1.0
    depth: Tensor | None = None
    tie: Tensor | None = None

    @abstractmethod
    def weigh(self, latents: Tensor, context: Tensor) -> Weights:
        """The weights of one round, from what the round before left (ignored when `frozen`).

        Args:
            latents: (B, H, N, d).
            context: (B, H, K, d).
        """

    @abstractmethod
    def first(self, anchors: Tensor) -> Tensor:
        """The context (B, H, K, d) that the first round reads."""

    def potential(self, latents: Tensor, context: Tensor) -> Tensor | None:
        """P (B,) such that no proximal round raises sum_i |z_i - x_i|^2 / 2 + lam P; None if these
        weights come from no such potential."""
        return None


class FrozenMixing(Mixing):
    """Weights that are chosen once; a leaf has `gather` and `read` of `Weights`."""

    @abstractmethod
    def gather(self, latents: Tensor) -> Tensor:
        """See `Weights.gather`."""

    @abstractmethod
    def read(self, slots: Tensor) -> Tensor:
        """See `Weights.read`."""

    def weigh(self, latents: Tensor, context: Tensor) -> Weights:
        """These weights."""
        return self

    def first(self, anchors: Tensor) -> Tensor:
        """The context of the anchors."""
        return self.gather(anchors)


class Accom(nn.Module, ABC):
    """Chooses the mixing from the anchors, once per input, before the iteration.

    Every subclass is built as `subclass(dim_head, num_heads, num_slots)`; one that makes another
    number of slots ignores the last.

    Attributes:
        ordered: what a token reads depends on the order of the tokens.
    """

    ordered: bool = False

    @abstractmethod
    def forward(self, anchors: Tensor, mask: Tensor, place: Place) -> Mixing:
        """Chooses.

        Args:
            anchors: (B, H, N, d) projected tokens, 0 where not real.
            mask: (B, N) bool, True = real token.
            place: where each token is and which modality it came from; it holds zeros where the
                caller gave nothing, and anything where the mask is False.

        Returns:
            What the iteration mixes with.
        """
