"""Held-out sets made of given embeddings."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fusion.evaluation import Embedded
from fusion.scorecard.held_out import HeldOut, Noise
from fusion.scorecard.recall import disjoint_directions, proper_subsets
from fusion.solver import SolverStats

NAMES = ("image", "text", "audio")


def embedded(
    rows: Tensor, present: Sequence[int] | None = None, rounds: Sequence[int] | None = None
) -> Embedded:
    num = len(rows)
    here = torch.tensor([1] * num if present is None else present, dtype=torch.bool)
    zeros = torch.zeros(num)
    num_iters = torch.tensor(rounds or [3] * num)
    stats = SolverStats(
        num_iters, zeros, here, zeros + 0.5, zeros, zeros.long(), zeros.unsqueeze(0)
    )
    return Embedded(rows * here.unsqueeze(1), here, stats)


def held_out(
    found: Mapping[tuple[str, ...], Embedded],
    groups: Sequence[int] | Tensor | None = None,
    noisy: Mapping[Noise, Mapping[tuple[str, ...], Embedded]] | None = None,
) -> HeldOut:
    num = len(next(iter(found.values())).rows)
    ids = torch.arange(num) if groups is None else torch.as_tensor(groups)
    keys = [f"{index:05d}" for index in range(num)]
    return HeldOut(keys, ids, [""] * num, found, noisy or {}, [])


def unit(num: int, dim: int = 16) -> Tensor:
    return F.normalize(torch.randn(num, dim), dim=1)


def everything(make, names: Sequence[str] = NAMES, **options) -> HeldOut:
    """Every proper subset of the modalities with rows from `make(subset)`."""
    subsets = proper_subsets(names)
    return held_out({subset: embedded(make(subset)) for subset in subsets}, **options)


DIRECTIONS = disjoint_directions(NAMES)
