"""Rounds of the iteration against how hard a query was.

Shapes: Q queries.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from fusion.evaluation import asked
from fusion.ranking import rank_queries
from fusion.scorecard.held_out import HeldOut
from fusion.subsets import Direction

NUM_BINS = 5


class RoundsBin(NamedTuple):
    """Queries that took like numbers of rounds.

    Attributes:
        fewest: rounds.
        most: rounds.
        num: of queries.
        recall_at_1: of them.
        median_rank: of their best positive.
    """

    fewest: int
    most: int
    num: int
    recall_at_1: float
    median_rank: float


class Iterations(NamedTuple):
    """What the first block's iteration did on the queries of one direction.

    Attributes:
        direction: such as "image->text".
        mean: rounds.
        most: rounds.
        share_converged: of queries.
        q: largest contraction factor; None where none is declared.
        residual: largest last step of a query; None if one was not finite.
        correlation: Spearman's, of rounds and the rank of the best positive: above 0 if hard
            queries take more rounds; None if either is the same for all.
        bins: recall by rounds, about a fifth of the queries each.
    """

    direction: str
    mean: float
    most: int
    share_converged: float
    q: float | None
    residual: float | None
    correlation: float | None
    bins: tuple[RoundsBin, ...]


def iterations(held_out: HeldOut, directions: Sequence[Direction]) -> tuple[Iterations, ...]:
    """One for each direction that has a query and its target."""
    found = []
    for direction in directions:
        query, target = (held_out.embedded[side] for side in direction)
        here, there = asked(query, target, held_out.groups), target.present
        if not here.any():
            continue
        groups = held_out.groups[here], held_out.groups[there]
        rank = rank_queries(query.rows[here], target.rows[there], *groups)[0].rank
        stats, rounds = query.stats, query.stats.num_iters[here]
        found.append(
            Iterations(
                str(direction),
                float(rounds.double().mean()),
                int(rounds.max()),
                float(stats.converged[here].double().mean()),
                _finite(stats.q[here].max()),
                _finite(stats.residual[here].max()),
                spearman(rounds, rank),
                binned(rounds, rank),
            )
        )
    return tuple(found)


def spearman(first: Tensor, second: Tensor) -> float | None:
    """Spearman's rank correlation of two (Q,) tensors, equal values sharing their mean place.

    Returns:
        In [-1, 1]; None if either is constant.
    """
    places = [_places(values) for values in (first, second)]
    a, b = (place - place.mean() for place in places)
    size = a.norm() * b.norm()
    return float((a @ b / size).clamp(-1, 1)) if size > 0 else None


def binned(rounds: Tensor, rank: Tensor) -> tuple[RoundsBin, ...]:
    """Recall by rounds: bins of about equally many queries; equal rounds share one bin.

    Args:
        rounds: (Q,) of each query.
        rank: (Q,) of its best positive.
    """
    counts = rounds.unique(return_counts=True)
    target, bins, start = len(rounds) / NUM_BINS, [], 0
    sizes = counts[1].tolist()
    for stop in range(1, len(sizes) + 1):
        if sum(sizes[start:stop]) >= target or stop == len(sizes):
            fewest, most = int(counts[0][start]), int(counts[0][stop - 1])
            inside = rank[(rounds >= fewest) & (rounds <= most)].double()
            recall, median = float((inside <= 1).double().mean()), float(inside.quantile(0.5))
            bins.append(RoundsBin(fewest, most, len(inside), recall, median))
            start = stop
    return tuple(bins)


def _places(values: Tensor) -> Tensor:
    """(Q,) place of each value among all, from the mean of the places of its equals."""
    _, index, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[index]


def _finite(value: Tensor) -> float | None:
    return float(value) if value.isfinite() else None
