"""Held-out queries with their best results, for the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from fusion.cli.stages import Results, Session
from fusion.metrics import ranks, similarity
from fusion.report import Gallery, Query, Result
from fusion.subsets import Direction, parse_direction

NUM_RESULTS = 5


class Kind(NamedTuple):
    """One gallery: what asks for what, how many queries, and the words around it."""

    direction: str
    num_queries: int
    title: str
    note: str


KINDS = (
    Kind(
        "text->image",
        8,
        "Words find pictures",
        "Held-out captions, drawn at random, and the closest held-out pictures.",
    ),
    Kind(
        "audio->image",
        8,
        "Speech finds pictures",
        "French recordings of held-out captions; the sound network was trained from scratch.",
    ),
    Kind(
        "image+audio->text",
        8,
        "Picture and speech together find words",
        "Both fused into one query, which finds the closest held-out captions.",
    ),
)


class Gallerist:
    """Chooses queries at random, by the seed of the run, good or bad.

    Args:
        session: the trained session.
        results: its evaluation.
    """

    def __init__(self, session: Session, results: Results) -> None:
        self._session, self._results = session, results
        self._samples = session.data.val_samples
        self._pictures = session.pictures()
        self._recordings = session.recordings()

    def galleries(self) -> list[Gallery]:
        """All kinds of gallery."""
        return [
            Gallery(kind.title, kind.note, self._queries(parse_direction(kind.direction), kind))
            for kind in KINDS
        ]

    def _queries(self, direction: Direction, kind: Kind) -> list[Query]:
        query, target = (self._results.embedded[subset] for subset in direction)
        groups = self._results.groups
        asked = (query.present & torch.isin(groups, groups[target.present])).nonzero().flatten()
        pool = target.present.nonzero().flatten()
        if direction.target == ("text",):
            pool = self._distinct(pool)
        scores = similarity(query.rows[asked], target.rows[pool])
        positives = groups[asked][:, None] == groups[pool][None, :]
        rank = ranks(scores, positives).tolist()
        drawn = torch.randperm(
            len(asked), generator=torch.Generator().manual_seed(self._session.seed)
        )[: kind.num_queries]
        found = []
        for row in drawn.tolist():
            best = scores[row].topk(min(NUM_RESULTS, len(pool))).indices.tolist()
            answers = [
                self._result(
                    int(pool[b]), float(scores[row, b]), bool(positives[row, b]), direction
                )
                for b in best
            ]
            found.append(self._query(int(asked[row]), answers, rank[row], direction))
        return found

    def _distinct(self, pool: torch.Tensor) -> torch.Tensor:
        """One sample for each caption, so that a list of captions does not repeat itself."""
        first = {int(self._results.groups[i]): i for i in reversed(pool.tolist())}
        return torch.tensor(sorted(first.values()))

    def _result(self, index: int, similar: float, hit: bool, direction: Direction) -> Result:
        sample = self._samples[index]
        picture = self._pictures[sample["key"]] if "image" in direction.target else None
        return Result(similar, hit, sample["caption"], picture)

    def _query(
        self, index: int, answers: Sequence[Result], rank: int, direction: Direction
    ) -> Query:
        sample = self._samples[index]
        key = sample["key"]
        return Query(
            answers,
            rank,
            text=sample["caption"] if "text" in direction.query else "",
            recording=self._recordings[key] if "audio" in direction.query else None,
            picture=self._pictures[key] if "image" in direction.query else None,
        )
