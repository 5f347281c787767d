"""One process, the whole matrix of logits at once."""

from collections.abc import Sequence
from typing import final

from torch import Tensor

from fusion.losses.exchange.base import Exchange, Score, Total
from fusion.losses.rows import Block


@final
class Alone(Exchange):
    """Every row against every column of this process; the reference for all others.

    Of several ranks each would see its own batch only, which is another loss: see `Gathered`.
    """

    def total(
        self, score: Score, rows: Block, columns: Block, parameters: Sequence[Tensor]
    ) -> Total:
        """See `Exchange.total`; columns of other ranks are not seen."""
        tally = score(rows, columns, *parameters)
        return Total(tally.cost().sum(), (tally.num_positives > 0).sum())
