"""Where the embeddings of modalities lie: how far apart, how spread, in how many directions.

Shapes: R rows, D width.
"""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from fusion.scorecard.held_out import HeldOut

ROWS_TOGETHER = 1024
MAX_ROWS = 4096  # pairs of more cost more than they tell
SHARPNESS = 2.0  # t of Wang and Isola


class Spread(NamedTuple):
    """How the embeddings of one modality use the space.

    Attributes:
        modality: its name.
        num: of samples that have it.
        effective_rank: exp of the entropy of the singular values over their sum (Roy and Vetterli
            2007): 1 when all lie on a line.
        uniformity: ln of the mean of exp(-2 |x - y|^2) over pairs of samples (Wang and Isola 2020,
            arXiv 2005.10242), of every n-th sample where there are thousands: 0 when all are one
            point, about -4 when spread over a sphere of many dimensions; None for a single sample.
    """

    modality: str
    num: int
    effective_rank: float
    uniformity: float | None


class Gap(NamedTuple):
    """How far two modalities lie apart, over the samples that have both.

    Attributes:
        first: a modality.
        second: another one.
        num: of samples.
        centroid_distance: between the mean embeddings (Liang et al. 2022, arXiv 2203.02053).
        alignment: mean |x - y|^2 of the pairs (Wang and Isola 2020); 0 when they are equal.
        paired_cosine: mean cosine of the pairs.
        unpaired_cosine: mean cosine of an embedding with those of other samples' other modality.
        separability: share of embeddings whose modality is told by which mean is nearer, the means
            being those of other samples; 0.5 is a guess, 1 a gap that no pair bridges.
    """

    first: str
    second: str
    num: int
    centroid_distance: float
    alignment: float
    paired_cosine: float
    unpaired_cosine: float | None
    separability: float | None


def spreads(held_out: HeldOut, modalities: Sequence[str]) -> tuple[Spread, ...]:
    """One for each modality that a sample has."""
    found = []
    for name in modalities:
        embedded = held_out.embedded[name,]
        rows = embedded.rows[embedded.present]
        if len(rows):
            found.append(Spread(name, len(rows), effective_rank(rows), uniformity(rows)))
    return tuple(found)


def gaps(held_out: HeldOut, modalities: Sequence[str]) -> tuple[Gap, ...]:
    """One for each pair of modalities that a sample has."""
    found = []
    for first, second in combinations(modalities, 2):
        sides = held_out.embedded[first,], held_out.embedded[second,]
        both = sides[0].present & sides[1].present
        if both.any():
            found.append(gap_between(first, second, *(side.rows[both] for side in sides)))
    return tuple(found)


def effective_rank(rows: Tensor) -> float:
    """exp of the entropy of the singular values of (R, D) rows over their sum; 0 if all are zero.

    From the eigenvalues of the Gram matrix, in float64.
    """
    rows = rows.double()
    gram = rows.mT @ rows if len(rows) > rows.shape[1] else rows @ rows.mT
    values = torch.linalg.eigvalsh(gram).clamp(min=0)
    values = values.masked_fill(values < 1e-13 * values.max(), 0).sqrt()  # rounding of zeros
    if not values.any():
        return 0.0
    return float(torch.special.entr(values / values.sum()).sum().exp())


def uniformity(rows: Tensor) -> float | None:
    """ln of the mean of exp(-2 |x - y|^2) over pairs of different (R, D) rows; None for one row."""
    rows = rows[:: math.ceil(len(rows) / MAX_ROWS) or 1].double()
    num = len(rows)
    if num < 2:
        return None
    total = 0.0
    square = rows.square().sum(dim=1)
    for start in range(0, num, ROWS_TOGETHER):
        part = slice(start, start + ROWS_TOGETHER)
        distance = square[part, None] + square[None] - 2 * rows[part] @ rows.mT
        total += float(torch.exp(-SHARPNESS * distance.clamp(min=0)).sum())
    own = num  # each row with itself, exp(0)
    return math.log((total - own) / (num * (num - 1)))


def gap_between(first: str, second: str, a: Tensor, b: Tensor) -> Gap:
    """The gap of two modalities.

    Args:
        first: name of one.
        second: name of the other.
        a: (R, D) unit rows of the first.
        b: (R, D) unit rows of the second, of the same samples.
    """
    num, a, b = len(a), a.double(), b.double()
    means, paired = (a.mean(dim=0), b.mean(dim=0)), (a * b).sum(dim=1)
    unpaired = None
    if num > 1:
        total = float(num * means[0] @ means[1]) * num - float(paired.sum())
        unpaired = total / (num * (num - 1))
    return Gap(
        first,
        second,
        num,
        float((means[0] - means[1]).norm()),
        float((a - b).square().sum(dim=1).mean()),
        float(paired.mean()),
        unpaired,
        _separability(a, b),
    )


def _separability(a: Tensor, b: Tensor) -> float | None:
    """Even samples tell the means, odd ones are judged, and the other way round."""
    if len(a) < 2:
        return None
    right = 0.0
    for known, judged in ((0, 1), (1, 0)):
        mean_a, mean_b = a[known::2].mean(dim=0), b[known::2].mean(dim=0)
        axis, middle = mean_a - mean_b, (mean_a + mean_b) / 2
        for rows, sign in ((a[judged::2], 1), (b[judged::2], -1)):
            side = sign * ((rows - middle) @ axis)
            # A row on the border is a guess; rounding must not decide for it.
            right += float((side > 1e-12).sum()) + 0.5 * float((side.abs() <= 1e-12).sum())
    return right / (2 * len(a))
