"""What a rule between tokens is, and how rules are composed.

Shapes: B batch, N tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

from torch import Tensor

from fusion.tokens import Place


class Rule(ABC):
    """A condition on a pair of tokens.

    Attributes:
        ordered: the condition depends on the order of the tokens.
    """

    ordered: bool = False

    @abstractmethod
    def holds(self, place: Place, mask: Tensor) -> Tensor:
        """The condition on every pair; for tokens that are not real it may say anything.

        Args:
            place: where each token is and which modality it came from.
            mask: (B, N) bool, True = real token.

        Returns:
            Bool, broadcastable to (B, N, N).
        """

    def __call__(self, place: Place, mask: Tensor) -> Tensor:
        """The relation (B, N, N) bool; no token that is not real reads or is read."""
        return self.holds(place, mask) & mask.unsqueeze(2) & mask.unsqueeze(1)

    def __and__(self, other: Rule) -> Rule:
        """Pairs of which both rules hold."""
        return And(self, other)

    def __or__(self, other: Rule) -> Rule:
        """Pairs of which one rule or both hold."""
        return Or(self, other)

    def __invert__(self) -> Rule:
        """Pairs of real tokens of which the rule does not hold."""
        return Not(self)


@final
@dataclass(frozen=True)
class And(Rule):
    """Both rules hold."""

    left: Rule
    right: Rule

    @property
    def ordered(self) -> bool:
        """Either rule depends on the order."""
        return self.left.ordered or self.right.ordered

    def holds(self, place: Place, mask: Tensor) -> Tensor:
        """See `Rule.holds`."""
        return self.left.holds(place, mask) & self.right.holds(place, mask)


@final
@dataclass(frozen=True)
class Or(Rule):
    """One rule holds, or both."""

    left: Rule
    right: Rule

    @property
    def ordered(self) -> bool:
        """Either rule depends on the order."""
        return self.left.ordered or self.right.ordered

    def holds(self, place: Place, mask: Tensor) -> Tensor:
        """See `Rule.holds`."""
        return self.left.holds(place, mask) | self.right.holds(place, mask)


@final
@dataclass(frozen=True)
class Not(Rule):
    """The rule does not hold."""

    rule: Rule

    @property
    def ordered(self) -> bool:
        """The rule depends on the order."""
        return self.rule.ordered

    def holds(self, place: Place, mask: Tensor) -> Tensor:
        """See `Rule.holds`."""
        return ~self.rule.holds(place, mask)
