"""All ranks: the columns go around."""

from collections.abc import Sequence
from typing import final

from torch import Tensor

from fusion.losses.exchange.base import Exchange, Score, Total
from fusion.losses.exchange.blocks import Work, cost_in_blocks
from fusion.losses.exchange.ranks import (
    count_ranks,
    pass_on,
    row_counts,
    sum_over_ranks,
    this_rank,
)
from fusion.losses.rows import Block


@final
class Ring(Exchange):
    """Passes the columns from rank to rank, so that memory does not grow with their number.

    A rank holds one other rank's columns at a time. They go around twice, the second time with
    their gradient, which is complete when they are home; all in the forward pass.
    """

    def total(
        self, score: Score, rows: Block, columns: Block, parameters: Sequence[Tensor]
    ) -> Total:
        """See `Exchange.total`."""
        counts, rank = row_counts(columns.values), this_rank()

        def visit(work: Work) -> Tensor | None:
            block, towards = Block(*(column.detach() for column in columns)), None
            for hop in range(1, len(counts) + 1):
                found = work(block)
                if found is not None:
                    towards = found if towards is None else towards + found
                last = hop == len(counts)
                luggage = [] if towards is None else [towards]
                received = pass_on(
                    luggage if last else [*block, *luggage], counts[(rank - hop) % len(counts)]
                )
                towards = received.pop() if luggage else None
                block = block if last else Block(*received)
            return towards

        cost, num_rows = cost_in_blocks(score, rows, columns, parameters, visit)
        return Total(cost, sum_over_ranks(num_rows), count_ranks())
