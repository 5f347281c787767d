"""One process, the matrix of logits a block of columns at a time."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from fusion.losses.exchange.base import Exchange, Score, Total
from fusion.losses.exchange.blocks import Work, cost_in_blocks
from fusion.losses.rows import Block


@final
class Chunked(Exchange):
    """As `Alone`, with R x num_columns logits in memory instead of R x C, each computed twice.

    Args:
        num_columns: of a block.

    Raises:
        ValueError: if it is below 1.
    """

    def __init__(self, num_columns: int = 1024) -> None:
        super().__init__()
        if num_columns < 1:
            raise ValueError(f"Got num_columns={num_columns}; give at least 1.")
        self.num_columns = num_columns

    def total(
        self, score: Score, rows: Block, columns: Block, parameters: Sequence[Tensor]
    ) -> Total:
        """See `Exchange.total`; columns of other ranks are not seen."""

        def visit(work: Work) -> Tensor | None:
            parts = (column.split(self.num_columns) for column in columns)
            found = [work(Block(*part)) for part in zip(*parts, strict=True)]
            gradients = [gradient for gradient in found if gradient is not None]
            return torch.cat(gradients) if gradients else None

        return Total(*cost_in_blocks(score, rows, columns, parameters, visit))
