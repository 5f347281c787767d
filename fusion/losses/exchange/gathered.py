"""All ranks: every rank has all columns."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from fusion.losses.exchange.alone import Alone
from fusion.losses.exchange.base import Exchange, Score, Total, leaves, with_gradients
from fusion.losses.exchange.ranks import (
    count_ranks,
    gather_rows,
    row_counts,
    sum_over_ranks,
    this_rank,
)
from fusion.losses.rows import Block


@final
class Gathered(Exchange):
    """Gathers the columns of all ranks, and sums what all ranks make of a column's gradient.

    With one rank it is `within`. All is sent in the forward pass, nothing in the backward pass.

    Args:
        within: how a rank's rows meet the gathered columns: `Alone` or `Chunked`.
    """

    def __init__(self, within: Exchange | None = None) -> None:
        super().__init__()
        self.within = Alone() if within is None else within

    def total(
        self, score: Score, rows: Block, columns: Block, parameters: Sequence[Tensor]
    ) -> Total:
        """See `Exchange.total`."""
        if count_ranks() == 1:
            return self.within.total(score, rows, columns, parameters)
        counts = row_counts(columns.values)
        everywhere = Block(*(gather_rows(column, counts) for column in columns))
        own = leaves([rows.values, *parameters, everywhere.values])
        local = self.within.total(
            score, rows._replace(values=own[0]), everywhere._replace(values=own[-1]), own[1:-1]
        )
        num_rows = sum_over_ranks(local.num_rows)
        if not torch.is_grad_enabled():
            return Total(local.cost, num_rows, len(counts))
        *slopes, towards_all = torch.autograd.grad(local.cost, own)
        towards = sum_over_ranks(towards_all).split(counts)[this_rank()]
        inputs = [rows.values, *parameters, columns.values]
        cost = with_gradients(local.cost, inputs, [*slopes, towards])
        return Total(cost, num_rows, len(counts))
