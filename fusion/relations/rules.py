"""The rules: each is a condition on a pair of tokens.

Shapes: B batch, N tokens, E pairs of a graph.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fusion.relations.base import Rule
from fusion.tokens import Place


@final
@dataclass(frozen=True)
class Everyone(Rule):
    """Every token reads every token, itself included."""

    def holds(self, place: Place, mask: Tensor) -> Tensor:
        """See `Rule.holds`."""
        return torch.ones_like(mask).unsqueeze(1)


@final
@dataclass(frozen=True)
class Causal(Rule):
    """j <= i: a token reads itself and those before it."""

    ordered = True

    def holds(self, place: Place, mask: Tensor) -> Tensor:
        """See `Rule.holds`."""
        return _distance(mask) >= 0


@final
@dataclass(frozen=True)
class Earlier(Rule):
    """j < i: a token reads those before it. No chain of such readings comes back."""

    ordered = True

    def holds(self, place: Place, mask: Tensor) -> Tensor:
        """See `Rule.holds`."""
        return _distance(mask) > 0


@final
@dataclass(frozen=True)
class Window(Rule):
    """|i - j| <= size: a token reads itself and `size` tokens on either side.

    Raises:
        ValueError: if `size` is negative.
    """

    size: int
    ordered = True

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(f"Got size={self.size}; give the tokens on either side, 0 or more.")

    def holds(self, place: Place, mask: Tensor) -> Tensor:
        """See `Rule.holds`."""
        return _distance(mask).abs() <= self.size


@final
@dataclass(frozen=True)
class Strided(Rule):
    """j <= i and (i - j < stride or stride divides i - j).

    The strided pattern of Child et al., "Generating Long Sequences with Sparse Transformers".

    Raises:
        ValueError: if `stride` is below 1.
    """

    stride: int
    ordered = True

    def __post_init__(self) -> None:
        _check_stride(self.stride)

    def holds(self, place: Place, mask: Tensor) -> Tensor:
        """See `Rule.holds`."""
        distance = _distance(mask)
        near = distance < self.stride
        return (distance >= 0) & (near | (distance % self.stride == 0))


@final
@dataclass(frozen=True)
class Fixed(Rule):
    """j <= i and (i, j in one block of `stride` tokens or j the last of its block).

    The fixed pattern of Child et al., "Generating Long Sequences with Sparse Transformers".

    Raises:
        ValueError: if `stride` is below 1.
    """

    stride: int
    ordered = True

    def __post_init__(self) -> None:
        _check_stride(self.stride)

    def holds(self, place: Place, mask: Tensor) -> Tensor:
        """See `Rule.holds`."""
        index = _index(mask)
        block = index // self.stride
        same = block.unsqueeze(2) == block.unsqueeze(1)
        last = (index % self.stride == self.stride - 1).unsqueeze(1)
        return (_distance(mask) >= 0) & (same | last)


@final
@dataclass(frozen=True, init=False)
class Edges(Rule):
    """A given graph: the pairs (i, j) of which token i reads token j, the same in every sample.

    Here i and j are columns of the input, padding counted; pairs beyond the last column are of
    tokens that this batch lacks.

    Args:
        pairs: (E, 2) whole numbers, as a list of pairs or a tensor.

    Raises:
        ValueError: if they are not pairs of whole numbers of 0 or more.
    """

    pairs: tuple[tuple[int, int], ...]
    ordered = True

    def __init__(self, pairs: Sequence[Sequence[int]] | Tensor) -> None:
        rows = pairs.tolist() if isinstance(pairs, Tensor) else pairs
        known = tuple(tuple(row) for row in rows)
        whole = all(isinstance(column, int) and column >= 0 for row in known for column in row)
        if not whole or any(len(row) != 2 for row in known):
            raise ValueError("Edges got rows that are no pairs; give (reader, read) columns >= 0.")
        object.__setattr__(self, "pairs", known)

    def holds(self, place: Place, mask: Tensor) -> Tensor:
        """See `Rule.holds`."""
        num_tokens = mask.shape[1]
        inside = [pair for pair in self.pairs if max(pair) < num_tokens]
        readers, read = torch.tensor(inside, dtype=torch.long, device=mask.device).view(-1, 2).T
        graph = mask.new_zeros(1, num_tokens, num_tokens)
        graph[0, readers, read] = True
        return graph


@final
@dataclass(frozen=True)
class SameModality(Rule):
    """Both tokens came from one modality."""

    def holds(self, place: Place, mask: Tensor) -> Tensor:
        """See `Rule.holds`."""
        return place.modality.unsqueeze(2) == place.modality.unsqueeze(1)


@final
@dataclass(frozen=True)
class CrossModality(Rule):
    """The tokens came from different modalities."""

    def holds(self, place: Place, mask: Tensor) -> Tensor:
        """See `Rule.holds`."""
        return place.modality.unsqueeze(2) != place.modality.unsqueeze(1)


@final
@dataclass(frozen=True)
class TimeWindow(Rule):
    """|t_i - t_j| <= seconds, by the first axis of the position.

    Raises:
        ValueError: if `seconds` is negative or NaN.
    """

    seconds: float

    def __post_init__(self) -> None:
        if not self.seconds >= 0:
            raise ValueError(f"Got seconds={self.seconds}; give a time of 0 or more.")

    def holds(self, place: Place, mask: Tensor) -> Tensor:
        """See `Rule.holds`."""
        time = place.position[..., 0]
        return (time.unsqueeze(2) - time.unsqueeze(1)).abs() <= self.seconds


def _index(mask: Tensor) -> Tensor:
    """(B, N) index of each real token among the real tokens of its sample."""
    return mask.long().cumsum(dim=1) - 1


def _distance(mask: Tensor) -> Tensor:
    """(B, N, N) i - j."""
    index = _index(mask)
    return index.unsqueeze(2) - index.unsqueeze(1)


def _check_stride(stride: int) -> None:
    if stride < 1:
        raise ValueError(f"Got stride={stride}; give 1 or more tokens.")
