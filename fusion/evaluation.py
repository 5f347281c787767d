"""Retrieval of a model in every direction, with the linear baseline and a shuffled control.

Shapes: S samples, D width.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fusion.alignment import paired_means, ridge_regression
from fusion.metrics import RetrievalScores, retrieval_scores
from fusion.model import FusionModel
from fusion.ranking import rank_queries
from fusion.solver import SolverStats
from fusion.subsets import Direction
from fusion.tokens import Tokens


class Embedded(NamedTuple):
    """Embeddings of one subset of modalities for a whole set of samples.

    Attributes:
        rows: (S, D) unit rows.
        present: (S,) bool: the sample has every modality of the subset.
        stats: of the first fusion block, per sample.
    """

    rows: Tensor
    present: Tensor
    stats: SolverStats


@torch.no_grad()
def embed_subsets(
    model: FusionModel, batches: Iterable[Mapping[str, Any]], subsets: Sequence[tuple[str, ...]]
) -> tuple[dict[tuple[str, ...], Embedded], Tensor]:
    """Embeds samples by several subsets of their modalities, in eval mode.

    Args:
        model: the model.
        batches: see `fusion.model.Batch`, with `group_id` (B,).
        subsets: the subsets.

    Returns:
        Subset to its embeddings, and the group_id (S,) of the samples.
    """
    training = model.training
    model.eval()
    parts, groups = [], []
    for batch in batches:
        groups.append(batch["group_id"])
        tokens = model.encode(batch, [m for m in model.modalities if m in batch["inputs"]])
        parts.append(fuse_subsets(model, tokens, subsets, batch["group_id"]))
    model.train(training)
    joined = {subset: join_embedded([part[subset] for part in parts]) for subset in subsets}
    return joined, torch.cat(groups)


def fuse_subsets(
    model: FusionModel,
    tokens: Mapping[str, Tokens],
    subsets: Sequence[tuple[str, ...]],
    group_id: Tensor,
) -> dict[tuple[str, ...], Embedded]:
    """Embeds one batch of encoded samples by several subsets of their modalities.

    Args:
        model: the model, in eval mode.
        tokens: modality to its tokens; one that no sample has may be missing.
        subsets: the subsets.
        group_id: (B,) of the samples.
    """
    found = {}
    for subset in subsets:
        if not set(subset) <= set(tokens):
            found[subset] = absent(group_id, model.dim)
            continue
        fused = model.fuse({name: tokens[name] for name in subset})
        present = torch.stack([tokens[name].mask.any(1) for name in subset]).all(0)
        found[subset] = Embedded(model.pool(fused), present, fused.stats[0])
    return found


def absent(group_id: Tensor, dim: int) -> Embedded:
    """The embeddings of samples that all lack a subset: zeros.

    Args:
        group_id: (B,) of the samples.
        dim: D.
    """
    zeros = torch.zeros_like(group_id, dtype=torch.float32)
    none = zeros.long()
    stats = SolverStats(none, zeros, zeros == 0, zeros, zeros, none, zeros.unsqueeze(0))
    return Embedded(zeros.new_zeros(len(zeros), dim), zeros != 0, stats)


def join_embedded(parts: Sequence[Embedded]) -> Embedded:
    """The embeddings of several batches as those of one."""
    longest = max(len(part.stats.trace) for part in parts)
    stats = [part.stats._replace(trace=_lengthen(part.stats.trace, longest)) for part in parts]
    return Embedded(
        torch.cat([part.rows for part in parts]),
        torch.cat([part.present for part in parts]),
        SolverStats(*(torch.cat(columns, dim=-1) for columns in zip(*stats, strict=True))),
    )


def asked(query: Embedded, target: Embedded, groups: Tensor) -> Tensor:
    """(S,) bool: samples that are queries.

    A query whose group no target carries cannot be answered: it is not one.
    """
    return query.present & torch.isin(groups, groups[target.present])


def score_directions(
    embedded: Mapping[tuple[str, ...], Embedded],
    groups: Tensor,
    directions: Sequence[Direction],
    generator: torch.Generator | None = None,
) -> dict[str, RetrievalScores]:
    """Recall of each direction; every sample that has the modalities is one query or target.

    Args:
        embedded: from `embed_subsets`.
        groups: (S,) equal ids are positives.
        directions: those to score; one without a single query and target is left out.
        generator: given, pairs are shuffled with it: the control that must sit at chance.
    """
    scores = {}
    for direction in directions:
        query, target = embedded[direction.query], embedded[direction.target]
        here, there = asked(query, target, groups), target.present
        if not here.any():
            continue
        wanted = groups[here]
        if generator is not None:
            wanted = wanted[torch.randperm(len(wanted), generator=generator).to(wanted.device)]
        ranked = rank_queries(query.rows[here], target.rows[there], wanted, groups[there])
        scores[str(direction)] = ranked[0].scores
    return scores


class LinearBaseline:
    """Ridge regression from the unit mean tokens of one modality to those of another.

    Both frozen encoders' outputs are used as they are, so nothing is learned but the closed-form
    map: what a trained model has to beat.

    Args:
        source: modality that is mapped, such as "image".
        target: modality it is mapped to, such as "text".
        strength: of the ridge penalty.
    """

    def __init__(self, source: str, target: str, strength: float = 1.0) -> None:
        self.source, self.target, self.strength = source, target, strength

    def score(
        self, train: Iterable[Mapping[str, Any]], held_out: Iterable[Mapping[str, Any]]
    ) -> dict[str, RetrievalScores]:
        """Fits on training batches of cached tokens, scores both directions on held-out ones."""
        source, target, weight, _ = paired_means(train, self.source, self.target)
        fitted = ridge_regression(source, target, weight / weight.max(), self.strength)
        source, target, _, groups = paired_means(held_out, self.source, self.target)
        mapped = F.normalize(fitted(source), dim=-1)
        wanted = F.normalize(target - fitted.target_mean, dim=-1)
        positives = groups[:, None] == groups[None, :]
        return {
            f"{self.source}->{self.target}": retrieval_scores(mapped, wanted, positives),
            f"{self.target}->{self.source}": retrieval_scores(wanted, mapped, positives),
        }


def needed_subsets(directions: Sequence[Direction]) -> list[tuple[str, ...]]:
    """The distinct subsets that the directions ask for, in order."""
    return list(dict.fromkeys(subset for direction in directions for subset in direction))


def _lengthen(trace: Tensor, length: int) -> Tensor:
    """Repeats the last residuals, as a sample that stopped early does within a batch."""
    return torch.cat([trace, trace[-1:].expand(length - len(trace), -1)])
