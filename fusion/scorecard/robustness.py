"""What recall is left when inputs are missing or noisy.

Shapes: S samples.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from fusion.evaluation import Embedded, asked
from fusion.metrics import RetrievalScores
from fusion.ranking import rank_queries
from fusion.scorecard.held_out import HeldOut
from fusion.subsets import Direction

SHARES = (0.0, 0.25, 0.5, 0.75)
LEVELS = (0.5, 1.0, 2.0)


class MissingPoint(NamedTuple):
    """Recall of a direction whose queries lack some of their inputs.

    Attributes:
        direction: with a query of two or more modalities.
        absent: share of the queries' inputs that were taken away.
        scores: against the same pool at every share.
    """

    direction: str
    absent: float
    scores: RetrievalScores


class NoisePoint(NamedTuple):
    """Recall of a direction with noise on one modality of its queries.

    Attributes:
        direction: its query holds the modality.
        modality: whose tokens got noise before they were fused.
        level: size of the noise over that of a token.
        scores: against the same pool at every level.
    """

    direction: str
    modality: str
    level: float
    scores: RetrievalScores


def missing_curve(
    held_out: HeldOut,
    directions: Sequence[Direction],
    generator: Generator,
    shares: Sequence[float] = SHARES,
) -> tuple[MissingPoint, ...]:
    """Recall of what remains when inputs of queries are absent at random.

    A query is embedded by what is left of it, which is what the model makes of a sample that never
    had the rest. One input of each query stays: of two modalities no more than half can be absent,
    and larger shares are left out, as are queries of one modality.

    Args:
        held_out: the samples, with every part of a query embedded too.
        directions: some of them with queries of several modalities.
        generator: of what is taken away, on the CPU.
        shares: of inputs to be taken away.
    """
    points = []
    for direction in directions:
        size = len(direction.query)
        if size < 2:
            continue
        query, target = (held_out.embedded[side] for side in direction)
        here = asked(query, target, held_out.groups)
        if not here.any():
            continue
        for share in (share for share in shares if share <= 1 - 1 / size):
            kept = torch.ones(len(here), size, dtype=torch.bool, device=here.device)
            kept[here] = draw_kept(int(here.sum()), size, share, generator).to(here.device)
            rows = remaining_rows(held_out, direction.query, kept)
            scores = _score(rows, here, target, held_out.groups)
            points.append(MissingPoint(str(direction), share, scores))
    return tuple(points)


def draw_kept(num: int, size: int, share: float, generator: Generator) -> Tensor:
    """(num, size) bool: inputs that stay, all but `share` of them, and one or more of each row."""
    draws = torch.rand(num, size, generator=generator)
    draws.scatter_(1, draws.argmax(dim=1, keepdim=True), torch.inf)
    taken = draws.flatten().argsort()[: round(share * num * size)]
    kept = torch.ones(num * size, dtype=torch.bool)
    kept[taken] = False
    return kept.view(num, size)


def remaining_rows(held_out: HeldOut, query: tuple[str, ...], kept: Tensor) -> Tensor:
    """(S, D) embeddings of each sample by the modalities it keeps.

    Args:
        held_out: the samples.
        query: modalities.
        kept: (S, modalities) bool, at least one of each row.
    """
    rows = torch.zeros_like(held_out.embedded[query].rows)
    for pattern in kept.unique(dim=0):
        subset = tuple(name for name, keep in zip(query, pattern.tolist(), strict=True) if keep)
        chosen = (kept == pattern).all(dim=1)
        rows[chosen] = held_out.embedded[subset].rows[chosen]
    return rows


def noise_curve(held_out: HeldOut, directions: Sequence[Direction]) -> tuple[NoisePoint, ...]:
    """Recall with noise on the tokens of one modality of the query; targets stay clean.

    The level 0 comes first, for every modality.

    Args:
        held_out: the samples, embedded with noise.
        directions: to score.
    """
    levels: dict[str, list[float]] = {}
    for noise in held_out.noisy:
        levels.setdefault(noise.modality, [0.0]).append(noise.level)
    by_noise = {tuple(noise): found for noise, found in held_out.noisy.items()}
    points = []
    for direction in directions:
        target = held_out.embedded[direction.target]
        here = asked(held_out.embedded[direction.query], target, held_out.groups)
        if not here.any():
            continue
        for name in (name for name in direction.query if name in levels):
            for level in levels[name]:
                found = by_noise.get((name, level), held_out.embedded)
                scores = _score(found[direction.query].rows, here, target, held_out.groups)
                points.append(NoisePoint(str(direction), name, level, scores))
    return tuple(points)


def _score(rows: Tensor, here: Tensor, target: Embedded, groups: Tensor) -> RetrievalScores:
    there = target.present
    return rank_queries(rows[here], target.rows[there], groups[here], groups[there])[0].scores
