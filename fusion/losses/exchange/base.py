"""Exchange: how every row meets every column, wherever the columns are.

Shapes: R local rows, C columns.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn

from fusion.losses.rows import Block


class Tally(Protocol):
    """What some columns contribute to the cost of each row; adds up over blocks of columns."""

    @property
    def num_positives(self) -> Tensor:
        """(R,) whole numbers."""
        ...

    def merge(self, other: Self) -> Self:
        """The tally of both blocks of columns."""
        ...

    def cost(self) -> Tensor:
        """(R,) the cost of each row, if these were all its columns."""
        ...

    def share(self, whole: Self) -> Tensor:
        """(R,) numbers whose gradients, summed over all blocks, are those of `whole.cost()`."""
        ...


Score = Callable[..., Tally]
"""(rows, columns, *parameters) -> the tally of the rows; parameters are scalars learned along."""


class Total(NamedTuple):
    """The cost of this rank's rows.

    Attributes:
        cost: scalar, summed over the rows of this rank.
        num_rows: scalar int64, rows with a positive, on all ranks.
        num_ranks: ranks that hold rows.
    """

    cost: Tensor
    num_rows: Tensor
    num_ranks: int = 1

    def mean(self) -> Tensor:
        """Scalar whose mean over ranks is the mean cost of all rows; 0 where none has a positive.

        Data-parallel training averages gradients over ranks, so that those of this are the
        gradients of one process with all rows.
        """
        num_rows = self.num_rows.to(self.cost.dtype)
        return self.cost * ((num_rows > 0) * self.num_ranks / num_rows.clamp(min=1))


class Exchange(nn.Module, ABC):
    """Where the columns are and how much of the matrix of logits is in memory at once."""

    @abstractmethod
    def total(
        self, score: Score, rows: Block, columns: Block, parameters: Sequence[Tensor]
    ) -> Total:
        """Sums the cost of this rank's rows against the columns of all ranks.

        Ranks must call it equally often, in one order and in one gradient mode, and multiply what
        it returns by equal factors; how many rows and columns each has is free, 0 included.

        Args:
            score: compares rows with a block of columns.
            rows: of this rank.
            columns: of this rank.
            parameters: handed on to `score`.
        """


def with_gradients(value: Tensor, inputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """A scalar of known value and known gradients."""
    pairs = zip(inputs, gradients, strict=True)
    return value.detach() + sum(((x - x.detach()) * slope).sum() for x, slope in pairs)


def leaves(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same values, cut off from what they were computed from."""
    return [tensor.detach().requires_grad_(torch.is_grad_enabled()) for tensor in tensors]
