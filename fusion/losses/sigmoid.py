"""The pairwise sigmoid loss.

Shapes: R rows, C columns, D width.
"""

from collections.abc import Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusion.losses.base import ContrastiveLoss
from fusion.losses.exchange import Exchange
from fusion.losses.rows import Block


class SigmoidTally(NamedTuple):
    """What some columns contribute to the cost of each row, all (R,).

    Attributes:
        cost_sum: sum over pairs.
        num_positives: number of positives.
    """

    cost_sum: Tensor
    num_positives: Tensor

    def merge(self, other: "SigmoidTally") -> "SigmoidTally":
        """See `Tally.merge`."""
        return SigmoidTally(*(x + y for x, y in zip(self, other, strict=True)))

    def cost(self) -> Tensor:
        """See `Tally.cost`."""
        return self.cost_sum

    def share(self, whole: "SigmoidTally") -> Tensor:
        """See `Tally.share`."""
        return self.cost_sum


def sigmoid_tally(
    rows: Block, columns: Block, logit_scale: Tensor | float, logit_bias: Tensor | float
) -> SigmoidTally:
    """Compares rows with a block of columns; see `SigmoidLoss`."""
    compared, positive = rows.relate(columns)
    logits = (logit_scale * rows.values) @ columns.values.T + logit_bias
    costs = -F.logsigmoid(torch.where(positive, logits, -logits))
    if compared is not None:
        costs = costs.masked_fill(~compared, 0)
    return SigmoidTally(costs.sum(1), positive.sum(1))


@final
class SigmoidLoss(ContrastiveLoss):
    """Each pair judged for itself, positive or not (SigLIP: Zhai et al. 2023, arXiv:2303.15343,
    algorithm 1): the sum over all pairs compared, divided by the number of queries that have a
    positive.

    Args:
        logit_scale: first multiplier of the cosines; it is learned, up to 100.
        logit_bias: first summand of every logit; it is learned.
        num_temperatures: temperatures and biases: 1 for all directions, or one for each.
        widths: prefixes of the embedding over which the loss is averaged; empty takes it whole.
        exchange: how rows meet columns.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(
        self,
        logit_scale: float = 10.0,
        logit_bias: float = -10.0,
        num_temperatures: int = 1,
        widths: Sequence[int] = (),
        exchange: Exchange | None = None,
    ) -> None:
        super().__init__(logit_scale, num_temperatures, widths, exchange)
        self.logit_bias = nn.Parameter(torch.full((num_temperatures,), float(logit_bias)))

    def compare(self, query: Block, target: Block, direction: int) -> Tensor:
        """See `ContrastiveLoss.compare`."""
        learned = [self.logit_scale(direction), self.of_direction(self.logit_bias, direction)]
        return self.exchange.total(sigmoid_tally, query, target, learned).mean()
