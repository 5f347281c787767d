"""Whether a cosine can be read as the probability that two things match.

Shapes: P pairs, S samples.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from fusion.scorecard.held_out import HeldOut
from fusion.subsets import Direction

NUM_BINS = 10
PENALTY = 1e-4  # on the standardised slope: keeps it finite where matches are told without error
MAX_STEPS = 100


class Bin(NamedTuple):
    """Pairs of like probability.

    Attributes:
        predicted: mean probability.
        observed: share of pairs that match.
        num: of pairs.
    """

    predicted: float
    observed: float
    num: int


class Calibration(NamedTuple):
    """The match probability sigmoid(slope * cosine + bias) of one direction.

    Fitted on half of the groups and judged on the other half. A pair is a sample's query with its
    own target, or with one of another group drawn at random: as many of the one as of the other.

    Attributes:
        direction: such as "image->text".
        slope: inverse temperature.
        bias: of the logit.
        error: expected calibration error, the mean over pairs of |predicted - observed| of their
            bin (Naeini et al. 2015), ten bins of equal width.
        brier: mean square of predicted - observed; 0.25 for a model that knows nothing.
        num_pairs: judged.
        bins: the reliability diagram, without empty bins.
    """

    direction: str
    slope: float
    bias: float
    error: float
    brier: float
    num_pairs: int
    bins: tuple[Bin, ...]


def calibrate(
    held_out: HeldOut, directions: Sequence[Direction], generator: Generator
) -> tuple[Calibration, ...]:
    """A match probability for each direction that has two groups or more in either half.

    Args:
        held_out: the samples.
        directions: whose subsets are embedded.
        generator: of the halves and of the pairs that do not match, on the CPU.
    """
    groups = held_out.groups.cpu()
    ids = groups.unique()
    first = ids[torch.randperm(len(ids), generator=generator)][: len(ids) // 2]
    found = []
    for direction in directions:
        query, target = (held_out.embedded[side] for side in direction)
        both = (query.present & target.present).cpu()
        halves = []
        for members in (torch.isin(groups, first), ~torch.isin(groups, first)):
            rows = (both & members).nonzero().flatten()
            chosen, matched = draw_pairs(groups[rows], generator)
            left, right = query.rows.cpu()[rows[chosen[0]]], target.rows.cpu()[rows[chosen[1]]]
            halves.append(((left.double() * right.double()).sum(dim=1), matched))
        if all(len(matched.unique()) == 2 for _, matched in halves):
            slope, bias = fit_logistic(*halves[0])
            found.append(_judged(str(direction), slope, bias, *halves[1]))
    return tuple(found)


def draw_pairs(groups: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Each sample with itself, and with a random one of another group.

    Args:
        groups: (S,).
        generator: on the CPU.

    Returns:
        (2, P) indices of queries and targets, and (P,) bool, which pairs match.
    """
    num = len(groups)
    order = groups.argsort(stable=True)
    _, counts = groups.unique(return_counts=True)
    others = num - counts.repeat_interleave(counts)  # of each sample in order
    # From the end of its own group on, round the circle: any sample of another group, evenly.
    ends = counts.cumsum(0).repeat_interleave(counts)
    steps = (torch.rand(num, generator=generator, dtype=torch.float64) * others).long()
    places = (ends + steps) % max(num, 1)
    known = others > 0
    own = torch.arange(num)
    unlike = torch.stack([order, order[places]])[:, known]
    pairs = torch.cat([torch.stack([own, own]), unlike], dim=1)
    return pairs, torch.arange(pairs.shape[1]) < num


def fit_logistic(cosine: Tensor, matched: Tensor) -> tuple[float, float]:
    """Slope and bias of the logistic regression of (P,) matches on cosines.

    Newton's method in float64 with a slight penalty on the slope, which separable data need.
    """
    mean, scale = cosine.mean(), cosine.std(correction=0).clamp(min=1e-12)
    x = torch.stack([(cosine - mean) / scale, torch.ones_like(cosine)], dim=1)
    y, penalty = matched.double(), torch.tensor([PENALTY, 1e-12], dtype=torch.float64)
    weight = torch.zeros(2, dtype=torch.float64)
    loss = _loss(x, y, weight, penalty)
    for _ in range(MAX_STEPS):
        p = torch.sigmoid(x @ weight)
        slope = x.T @ (p - y) / len(y) + penalty * weight
        curve = (x * (p * (1 - p)).unsqueeze(1)).T @ x / len(y) + torch.diag(penalty)
        step = torch.linalg.solve(curve, slope)
        while (lower := _loss(x, y, weight - step, penalty)) > loss and step.abs().max() > 1e-12:
            step = step / 2
        weight, loss = weight - step, lower
        if step.abs().max() < 1e-10:
            break
    return float(weight[0] / scale), float(weight[1] - weight[0] * mean / scale)


def _loss(x: Tensor, y: Tensor, weight: Tensor, penalty: Tensor) -> Tensor:
    logits = x @ weight
    fit = torch.nn.functional.binary_cross_entropy_with_logits(logits, y)
    return fit + (penalty * weight.square()).sum() / 2


def reliability(probability: Tensor, matched: Tensor) -> tuple[Bin, ...]:
    """The bins of (P,) probabilities that hold any pair."""
    index = (probability * NUM_BINS).long().clamp(max=NUM_BINS - 1)
    found = []
    for number in index.unique().tolist():
        inside = index == number
        observed = float(matched[inside].double().mean())
        found.append(Bin(float(probability[inside].mean()), observed, int(inside.sum())))
    return tuple(found)


def _judged(
    direction: str, slope: float, bias: float, cosine: Tensor, matched: Tensor
) -> Calibration:
    probability = torch.sigmoid(slope * cosine + bias)
    bins, num = reliability(probability, matched), len(matched)
    error = sum(b.num * abs(b.predicted - b.observed) for b in bins) / num
    brier = float((probability - matched.double()).square().mean())
    return Calibration(direction, slope, bias, error, brier, num, bins)
