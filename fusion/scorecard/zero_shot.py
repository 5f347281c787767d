"""Zero-shot classification: which of the held-out captions describes a sample.

Shapes: S samples, C classes, Q queries.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fusion.ranking import rank_queries
from fusion.scorecard.held_out import HeldOut, Subset
from fusion.subsets import SEPARATOR

TOP = (1, 5)


class ZeroShot(NamedTuple):
    """Classification of one subset of modalities into the captions of the held-out set.

    Attributes:
        query: modalities, such as "image+audio".
        top_1: share of samples whose class comes first, averaged over classes.
        top_5: share of samples whose class is among the first five, averaged over classes.
        chance_1: top 1 of a guess.
        chance_5: top 5 of a guess.
        num_classes: C.
        num_queries: Q.
    """

    query: str
    top_1: float
    top_5: float
    chance_1: float
    chance_5: float
    num_classes: int
    num_queries: int


def classify(
    held_out: HeldOut, queries: Sequence[Subset], labels: str = "text"
) -> tuple[ZeroShot, ...]:
    """Classifies subsets of modalities, each group of captions being a class.

    A class is the unit mean of the embeddings of its captions. Ties count against.

    Args:
        held_out: the samples.
        queries: subsets; those that hold the captions are left out.
        labels: modality of the captions; without it there are no classes.
    """
    if (labels,) not in held_out.embedded:
        return ()
    named = held_out.embedded[labels,]
    classes, members = held_out.groups[named.present].unique(return_inverse=True)
    if not len(classes):
        return ()
    means = named.rows.new_zeros(len(classes), named.rows.shape[1]).double()
    means = means.index_add(0, members, named.rows[named.present].double())
    found = []
    for query in queries:
        embedded = held_out.embedded[query]
        here = embedded.present & torch.isin(held_out.groups, classes)
        if labels not in query and here.any():
            groups = held_out.groups[here]
            rank = rank_queries(embedded.rows[here], _unit(means), groups, classes)[0].rank
            top = [macro_average((rank <= k).double(), groups) for k in TOP]
            chance = [min(1.0, k / len(classes)) for k in TOP]
            name = SEPARATOR.join(query)
            sizes = len(classes), len(rank)
            found.append(ZeroShot(name, top[0], top[1], chance[0], chance[1], *sizes))
    return tuple(found)


def macro_average(values: Tensor, groups: Tensor) -> float:
    """Mean over groups of the mean of (Q,) values within a group."""
    _, index, counts = groups.unique(return_inverse=True, return_counts=True)
    sums = torch.zeros_like(counts, dtype=values.dtype).index_add(0, index, values)
    return float((sums / counts).mean())


def _unit(rows: Tensor) -> Tensor:
    return F.normalize(rows, dim=1).float()
