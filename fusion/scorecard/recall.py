"""Recall over all directions between disjoint subsets of modalities, and in mixed pools.

Shapes: S samples.
"""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from fusion.evaluation import asked
from fusion.metrics import CUTOFFS, RetrievalScores
from fusion.ranking import rank_queries
from fusion.scorecard.held_out import HeldOut, Subset
from fusion.subsets import Direction, all_directions

ALL_SUBSETS_UP_TO = 4  # modalities; beyond, targets are single and queries of one or two
DEVIATIONS = 5.0  # of a control from chance, in standard deviations
Pair = tuple[Tensor, Tensor]


class Cell(NamedTuple):
    """Recall of one direction.

    Attributes:
        direction: such as "image+audio->text"; "image->*" for a mixed pool.
        scores: of the model.
        control: the same with queries and answers paired at random, which must sit at chance. It
            shows that the evaluation does not peek; a model that has seen its targets passes it.
    """

    direction: str
    scores: RetrievalScores
    control: RetrievalScores

    @property
    def control_is_high(self) -> bool:
        """The control is above chance by more than sampling noise."""
        pairs = zip(self.control.recall, self.control.chance, strict=True)
        num = self.control.num_queries
        return any(
            recall > chance + DEVIATIONS * math.sqrt(chance * (1 - chance) / num) + 1 / num
            for recall, chance in pairs
        )


def disjoint_directions(modalities: Sequence[str]) -> list[Direction]:
    """Every ordered pair of disjoint, non-empty subsets: 3^M - 2^(M+1) + 1 of M modalities.

    With more than four modalities it is `all_directions`.
    """
    if len(modalities) > ALL_SUBSETS_UP_TO:
        return all_directions(modalities)
    subsets = proper_subsets(modalities)
    return [Direction(a, b) for a in subsets for b in subsets if not set(a) & set(b)]


def proper_subsets(modalities: Sequence[str]) -> list[Subset]:
    """Every non-empty subset but the whole, small ones first; of one modality, itself."""
    sizes = range(1, max(2, len(modalities)))
    return [subset for size in sizes for subset in combinations(modalities, size)]


def recall_matrix(
    held_out: HeldOut, directions: Sequence[Direction], generator: Generator
) -> tuple[Cell, ...]:
    """A cell for each direction that has a query and its target.

    Args:
        held_out: the samples.
        directions: whose subsets are embedded.
        generator: of the control's pairs, on the CPU.
    """
    cells = []
    for direction in directions:
        query, target = (held_out.embedded[side] for side in direction)
        here, there = asked(query, target, held_out.groups), target.present
        if here.any():
            sides = query.rows[here], target.rows[there]
            groups = held_out.groups[here], held_out.groups[there]
            cells.append(_cell(str(direction), sides, groups, generator))
    return tuple(cells)


def mixed_pools(
    held_out: HeldOut, modalities: Sequence[str], generator: Generator
) -> tuple[Cell, ...]:
    """For each modality, a search among all other single modalities in one pool.

    Every target of a query's group answers it, whatever its modality. Where modalities lie apart
    in the latent space, a wrong target of the nearest one comes before a right one of another:
    recall is then far below that of the separate pools.

    Args:
        held_out: the samples, with every single modality embedded.
        modalities: names.
        generator: of the control's pairs, on the CPU.
    """
    cells = []
    for name in modalities:
        others = [held_out.embedded[other,] for other in modalities if other != name]
        if not others:
            continue
        target = torch.cat([other.rows[other.present] for other in others])
        ids = torch.cat([held_out.groups[other.present] for other in others])
        query = held_out.embedded[name,]
        here = query.present & torch.isin(held_out.groups, ids)
        if here.any():
            sides, groups = (query.rows[here], target), (held_out.groups[here], ids)
            cells.append(_cell(f"{name}->*", sides, groups, generator))
    return tuple(cells)


def _cell(name: str, sides: Pair, groups: Pair, generator: Generator) -> Cell:
    (query, target), (wanted, offered) = sides, groups
    shuffled = wanted[torch.randperm(len(wanted), generator=generator).to(wanted.device)]
    true, control = rank_queries(query, target, wanted, offered, shuffled)
    return Cell(name, true.scores, control.scores)


def flagged(cells: Sequence[Cell]) -> list[str]:
    """A sentence for each cell whose control is above chance."""
    return [
        f"{cell.direction}: the control with shuffled pairs is above chance (R@{CUTOFFS[-1]} "
        f"{100 * cell.control.recall_at_10:.1f} %, chance {100 * cell.control.chance_at_10:.1f} %);"
        " the evaluation leaks."
        for cell in cells
        if cell.control_is_high
    ]
