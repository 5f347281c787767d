"""Ranks of targets by group, in chunks: pools whose matrix of scores no memory holds.

Shapes: Q queries, T targets, D width.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fusion.metrics import CUTOFFS, RetrievalScores, chance_recall, ranks, similarity

QUERIES_TOGETHER = 1024
"""Queries ranked at once: what is held is this many rows of scores, not the whole matrix."""


class Ranked(NamedTuple):
    """Where the queries of a direction found their targets.

    Attributes:
        rank: (Q,) int64 of the best positive of each query, 1 being the top; ties count against.
        chance: recall at `CUTOFFS` expected of a random ranking.
        pool: number of targets, T.
    """

    rank: Tensor
    chance: tuple[float, float, float]
    pool: int

    @property
    def scores(self) -> RetrievalScores:
        """Recall, median rank and what is needed to judge them."""
        rank = self.rank.double()
        recall = [float((rank <= k).double().mean()) for k in CUTOFFS]
        return RetrievalScores(
            recall[0],
            recall[1],
            recall[2],
            float(rank.quantile(0.5)),
            len(rank),
            self.pool,
            *self.chance,
        )


def rank_queries(
    query: Tensor, target: Tensor, wanted: Tensor, offered: Tensor, *others: Tensor
) -> tuple[Ranked, ...]:
    """Ranks the targets of each query, a chunk of queries at a time; equal groups are positives.

    Args:
        query: (Q, D) unit rows.
        target: (T, D) unit rows.
        wanted: (Q,) group of each query, each of them that of some target.
        offered: (T,) group of each target.
        others: more ways to pair queries with groups, such as that of a control.

    Returns:
        One for `wanted`, and one for each of `others`.

    Raises:
        ValueError: a query that no target answers, or a NaN.
    """
    ways = (wanted, *others)
    found: list[list[Tensor]] = [[] for _ in ways]
    chance = [[0.0] * len(CUTOFFS) for _ in ways]
    for start in range(0, len(query), QUERIES_TOGETHER):
        part = slice(start, start + QUERIES_TOGETHER)
        scores = similarity(query[part], target)
        for index, groups in enumerate(ways):
            positives = groups[part, None] == offered[None, :]
            found[index].append(ranks(scores, positives))
            share = len(scores) / len(query)
            for place, cutoff in enumerate(CUTOFFS):
                chance[index][place] += share * chance_recall(positives, cutoff)
    return tuple(
        Ranked(torch.cat(rank), (low, middle, high), len(target))
        for rank, (low, middle, high) in zip(found, chance, strict=True)
    )
