"""Retrieval metrics that a broken model cannot win.

A tie counts against the query and a NaN raises, so a collapsed model (all scores equal) is never
above chance, and negative scores (sigmoid losses) rank like any others.

Q queries, T targets, D width. `positives` (Q, T) marks every target that answers a query; a query
is ranked by the best of them, and its other positives are never counted as competitors.
"""

from typing import NamedTuple

import torch
from torch import Generator, Tensor

CUTOFFS = (1, 5, 10)


class RetrievalScores(NamedTuple):
    """Scores of one direction of retrieval, with what is needed to judge them.

    Attributes:
        recall_at_1: share of queries whose best positive is ranked first.
        recall_at_5: share of queries whose best positive is among the first 5.
        recall_at_10: share of queries whose best positive is among the first 10.
        median_rank: median over queries of the rank of the best positive (1 is perfect).
        num_queries: number of queries, Q.
        pool: number of targets each query chooses from, T.
        chance_at_1: recall at 1 expected of a random ranking of the same pool.
        chance_at_5: recall at 5 expected of a random ranking.
        chance_at_10: recall at 10 expected of a random ranking.
    """

    recall_at_1: float
    recall_at_5: float
    recall_at_10: float
    median_rank: float
    num_queries: int
    pool: int
    chance_at_1: float
    chance_at_5: float
    chance_at_10: float

    @property
    def recall(self) -> tuple[float, float, float]:
        """Recall at 1, 5 and 10."""
        return self.recall_at_1, self.recall_at_5, self.recall_at_10

    @property
    def chance(self) -> tuple[float, float, float]:
        """Chance recall at 1, 5 and 10."""
        return self.chance_at_1, self.chance_at_5, self.chance_at_10


def ranks(scores: Tensor, positives: Tensor) -> Tensor:
    """Rank of the best positive of every query, 1 being the top.

    The rank is one more than the number of other (non-positive) targets that score at least as
    high as the best positive, so ties count against the query.

    Args:
        scores: (Q, T), higher is more similar; any real dtype, any sign.
        positives: (Q, T) bool, True where the target answers the query.

    Returns:
        (Q,) int64.

    Raises:
        ValueError: on wrong shapes or dtypes, a NaN score, or a query without a positive.
    """
    _check_positives(positives)
    if scores.shape != positives.shape:
        raise ValueError(
            f"scores and positives must share one (queries, targets) shape, got "
            f"{tuple(scores.shape)} and {tuple(positives.shape)}"
        )
    if not scores.is_floating_point():
        scores = scores.double()
    num_nan = int(scores.isnan().sum())
    if num_nan:
        raise ValueError(
            f"scores hold {num_nan} NaN of {scores.numel()} values: the embeddings are not finite, "
            "look for the first non-finite loss or input"
        )
    best = scores.masked_fill(~positives, -torch.inf).amax(dim=1, keepdim=True)
    return 1 + ((scores >= best) & ~positives).sum(dim=1)


def recall_at_k(scores: Tensor, positives: Tensor, k: int) -> float:
    """Share of queries with a positive among their k best targets, ties counted against.

    This is the recall@k of image-text retrieval (a hit rate), not the share of all positives
    found: a picture with five captions is a hit as soon as one of them is in the first k.

    Args:
        scores: (Q, T), higher is more similar.
        positives: (Q, T) bool.
        k: cut-off, at least 1; a cut-off beyond the pool makes every query a hit.

    Returns:
        A share in [0, 1].

    Raises:
        ValueError: if k < 1, and as in `ranks`.
    """
    _check_cutoff(k)
    return _share_within(ranks(scores, positives), k)


def median_rank(scores: Tensor, positives: Tensor) -> float:
    """Median over queries of `ranks`; the mean of the middle two when Q is even.

    Raises:
        ValueError: as in `ranks`.
    """
    return _median(ranks(scores, positives))


def chance_recall(positives: Tensor, k: int) -> float:
    """Exact recall@k expected of a uniformly random ranking of the targets, without ties.

    A query with P positives among T targets misses with the hypergeometric probability
    C(T - P, k) / C(T, k); the hits are averaged over queries.

    Args:
        positives: (Q, T) bool.
        k: cut-off, at least 1.

    Raises:
        ValueError: on wrong shapes or dtypes, a query without a positive, or k < 1.
    """
    _check_positives(positives)
    _check_cutoff(k)
    pool = positives.shape[1]
    drawn = torch.arange(min(k, pool), dtype=torch.float64, device=positives.device)
    negatives = pool - positives.sum(dim=1, keepdim=True).double()
    # C(T-P, k) / C(T, k) as a product over the k draws: no overflow, exactly 0 when k > T - P.
    miss = ((negatives - drawn).clamp(min=0) / (pool - drawn)).prod(dim=1)
    return float(1 - miss.mean())


def retrieval_scores(query: Tensor, target: Tensor, positives: Tensor) -> RetrievalScores:
    """Scores of retrieving `target` with `query` by dot product.

    Args:
        query: (Q, D) embeddings, unit rows for cosine similarity.
        target: (T, D) embeddings.
        positives: (Q, T) bool.

    Raises:
        ValueError: on wrong shapes or dtypes, NaN embeddings, or a query without a positive.
    """
    scores = similarity(query, target)
    rank = ranks(scores, positives)
    num_queries, pool = scores.shape
    at_1, at_5, at_10 = (_share_within(rank, k) for k in CUTOFFS)
    chance = (chance_recall(positives, k) for k in CUTOFFS)
    return RetrievalScores(at_1, at_5, at_10, _median(rank), num_queries, pool, *chance)


def shuffled_scores(
    query: Tensor, target: Tensor, positives: Tensor, generator: Generator
) -> RetrievalScores:
    """The control: the same embeddings, with the rows of `positives` permuted over the queries.

    Whatever the model, its expectation is chance, with the sampling noise of Q queries: a control
    well above chance means that the evaluation itself leaks.

    Args:
        query: (Q, D) embeddings.
        target: (T, D) embeddings.
        positives: (Q, T) bool of the true pairs.
        generator: source of the permutation, on the CPU.

    Raises:
        ValueError: as in `retrieval_scores`.
    """
    order = torch.randperm(len(positives), generator=generator).to(positives.device)
    return retrieval_scores(query, target, positives[order])


def similarity(query: Tensor, target: Tensor) -> Tensor:
    """Dot products (Q, T) float32 of (Q, D) and (T, D) embeddings.

    Summed in float64 and rounded to float32, so that equal targets get equal scores (a tie) on
    every machine rather than differ by the order in which a matrix product was summed.

    Raises:
        ValueError: if the two are not matrices of one width.
    """
    if query.ndim != 2 or target.ndim != 2 or query.shape[1] != target.shape[1]:
        raise ValueError(
            f"query (Q, D) and target (T, D) must be matrices of one width, got "
            f"{tuple(query.shape)} and {tuple(target.shape)}"
        )
    return (query.double() @ target.double().T).float()


def _share_within(rank: Tensor, k: int) -> float:
    return float((rank <= k).double().mean())


def _median(rank: Tensor) -> float:
    return float(rank.double().quantile(0.5))


def _check_cutoff(k: int) -> None:
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")


def _check_positives(positives: Tensor) -> None:
    if positives.dtype != torch.bool or positives.ndim != 2 or 0 in positives.shape:
        raise ValueError(
            "positives must be a non-empty (queries, targets) bool matrix, got "
            f"shape {tuple(positives.shape)} of {positives.dtype}"
        )
    orphans = (~positives.any(dim=1)).nonzero().flatten().tolist()
    if orphans:
        raise ValueError(
            f"{len(orphans)} of {len(positives)} queries have no positive target (first: query "
            f"{orphans[0]}): drop them or add their targets to the pool"
        )
