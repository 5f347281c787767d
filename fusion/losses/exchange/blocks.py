"""The cost of rows whose columns come block by block, in two passes.

The first pass tallies the blocks (an online log-sum-exp: Milakov and Gimelshein 2018,
arXiv:1805.02867), the second computes every block's logits again for their gradients. Both are
made in the forward pass, so that nothing but the embeddings is kept for the backward pass and no
rank sends anything in it.

Shapes: R rows, D width.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fusion.losses.exchange.base import Score, Tally, leaves, with_gradients
from fusion.losses.rows import Block

Work = Callable[[Block], Tensor | None]
"""What is done with a block of columns; it may return the gradient of the block's values."""

Visit = Callable[[Work], Tensor | None]
"""Does a piece of work with every block; returns the gradient of the local columns' values."""


def cost_in_blocks(
    score: Score, rows: Block, columns: Block, parameters: Sequence[Tensor], visit: Visit
) -> tuple[Tensor, Tensor]:
    """Sums the cost of the rows against all blocks.

    Args:
        score: compares rows with a block of columns.
        rows: the rows.
        columns: those columns whose gradient `visit` returns.
        parameters: handed on to `score`.
        visit: visits every block.

    Returns:
        Scalar cost with its gradients; scalar int64, the number of rows with a positive.
    """
    tallies: list[Tally] = []

    def count(block: Block) -> None:
        tally = score(rows, block, *parameters)
        tallies[:] = [tallies[0].merge(tally)] if tallies else [tally]

    with torch.no_grad():
        visit(count)
        (whole,) = tallies
        cost, num_rows = whole.cost().sum(), (whole.num_positives > 0).sum()
    if not torch.is_grad_enabled():
        return cost, num_rows
    own = leaves([rows.values, *parameters])
    slopes = [torch.zeros_like(x) for x in own]

    def differentiate(block: Block) -> Tensor:
        (values,) = leaves([block.values])
        tally = score(rows._replace(values=own[0]), block._replace(values=values), *own[1:])
        found, *others = torch.autograd.grad(tally.share(whole).sum(), [values, *own])
        for slope, more in zip(slopes, others, strict=True):
            slope += more
        return found

    towards = visit(differentiate)
    assert towards is not None
    inputs = [rows.values, *parameters, columns.values]
    return with_gradients(cost, inputs, [*slopes, towards]), num_rows
