"""From a batch to the two sides of every direction that a step trains.

Shapes: B samples of a batch, R of them that take part in a direction, S modalities of a side.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, final

import torch
from torch import Tensor

from fusion.accumulation import embed_in_parts
from fusion.losses import Rows
from fusion.losses.exchange.ranks import sum_over_ranks
from fusion.model import Batch, FusionModel
from fusion.subsets import Direction
from fusion.tasks.sharding import is_sharded, level
from fusion.tokens import Tokens, select

Sides = tuple[Rows, Rows]


class _Part(NamedTuple):
    """Some samples of a batch.

    Attributes:
        batch: them.
        visible: for each direction, modality to (B,) bool: whether a sample shows it; all do where
            there is none.
    """

    batch: Batch
    visible: Sequence[Mapping[str, Tensor]]


@final
@dataclass(frozen=True)
class Pairing:
    """How the samples of a batch become query and target.

    Query and target are fused in separate passes, so that neither has seen the other. A sample
    that lacks a modality of a direction takes no part in it.

    Args:
        part_size: samples that go through the model at once. The loss and every gradient are those
            of the whole batch (`fusion.accumulation`), at the memory of one part; None takes the
            batch whole.
        hidden: share of the modalities of a side that a sample does not show in training, drawn
            for each sample; one is always left. With it a query of fewer modalities than its
            direction has is nothing new to the model.
        same_pattern: compare samples with those alone that have, and show, the same modalities, so
            that none can be told from another by what is absent.

    Raises:
        ValueError: if a number is out of range.
    """

    part_size: int | None = None
    hidden: float = 0.0
    same_pattern: bool = False

    def __post_init__(self) -> None:
        if (self.part_size is not None and self.part_size < 1) or not 0 <= self.hidden < 1:
            raise ValueError(
                f"Got part_size={self.part_size} and hidden={self.hidden}; give a part at least "
                "one sample, and hide a share in [0, 1)."
            )

    def __call__(
        self, model: FusionModel, batch: Batch, directions: Sequence[Direction]
    ) -> list[Sides]:
        """Query and target of each direction.

        Args:
            model: what embeds. If it trains, what is hidden is drawn from torch's generator.
            batch: see `Batch`, with `group_id` (B,).
            directions: the same on all ranks.

        Returns:
            For each direction two sides of one number of rows, 0 if no sample takes part.
        """
        if is_sharded(model):
            batch = level(batch)
        num = len(batch["group_id"])
        whole = _Part(batch, [self._draw(d, num, model.training) for d in directions])
        embed = partial(self._embed, model, directions)
        if self.part_size is None or num <= self.part_size:
            made = embed(whole)
        else:
            made = embed_in_parts(model, embed, _split(whole, self.part_size))
        return [self._sides(model, direction, made, batch["group_id"]) for direction in directions]

    def _draw(self, direction: Direction, num: int, training: bool) -> dict[str, Tensor]:
        visible: dict[str, Tensor] = {}
        for side in direction if training and self.hidden else ():
            if len(side) > 1:
                draws = torch.rand(num, len(side))
                shown = (draws >= self.hidden) | (draws == draws.amax(1, keepdim=True))
                visible |= dict(zip(side, shown.T, strict=True))
        return visible

    def _embed(
        self, model: FusionModel, directions: Sequence[Direction], part: _Part
    ) -> dict[str, Tensor]:
        """Columns of the rows that take part, by their direction and name."""
        batch, split, made = part.batch, is_sharded(model), {}
        needed = {name for direction in directions for side in direction for name in side}
        needed &= set(batch["inputs"])
        tokens = model.encode(batch, [name for name in model.modalities if name in needed])
        for direction, visible in zip(directions, part.visible, strict=True):
            present = _present(direction, tokens)
            if present is None or not (sum_over_ranks(present.sum()) if split else present.any()):
                continue
            # All ranks gather split weights together: where one fuses, all do, all samples.
            rows = torch.ones_like(present) if split else present
            learning = learners(model, direction)
            seen = {n: t if n in learning else t.detach() for n, t in tokens.items()}
            seen = {n: _show(t, visible.get(n)) for n, t in seen.items()}
            columns = {
                name: model.embed_tokens({n: select(seen[n], rows) for n in side})
                for name, side in zip(Direction._fields, direction, strict=True)
            }
            columns["group_id"] = batch["group_id"][rows]
            if split:
                columns["present"] = present
            if self.same_pattern:
                columns["pattern"] = _patterns(model.modalities, batch, visible)[rows]
            made |= {f"{direction} {name}": column for name, column in columns.items()}
        return made

    def _sides(
        self, model: FusionModel, direction: Direction, made: Mapping[str, Tensor], ids: Tensor
    ) -> Sides:
        names = ("query", "target", "group_id", "present", "pattern")
        query, target, group_id, present, pattern = (made.get(f"{direction} {n}") for n in names)
        if query is None or target is None or group_id is None:
            nothing = model.projection(direction.query[0]).center.new_zeros(0, model.dim)
            query, target, group_id = nothing, nothing, ids[:0]
            pattern = group_id if self.same_pattern else None
        rest = group_id, present, pattern
        return Rows(query, *rest), Rows(target, *rest)


def learners(model: FusionModel, direction: Direction) -> set[str]:
    """The modalities whose towers a direction trains.

    Those that train from scratch, if the direction has any: they come to meet the modalities
    that are aligned already, which would else be pulled about by the newcomers' noise.
    """
    names = set(direction.query + direction.target)
    return names.intersection(model.newcomers) or names


def _present(direction: Direction, tokens: Mapping[str, Tokens]) -> Tensor | None:
    """(B,) bool, True for samples with all modalities of both sides; None if one is not there."""
    needed = direction.query + direction.target
    if not set(needed) <= set(tokens):
        return None
    return torch.stack([tokens[name].mask.any(1) for name in needed]).all(0)


def _show(tokens: Tokens, visible: Tensor | None) -> Tokens:
    """The tokens of the samples (B,) that show them."""
    if visible is None:
        return tokens
    return tokens._replace(mask=tokens.mask & visible.to(tokens.mask.device).unsqueeze(1))


def _patterns(modalities: Sequence[str], batch: Batch, visible: Mapping[str, Tensor]) -> Tensor:
    """(B,) a number for each set of modalities that a sample has, and shows."""
    pattern = torch.zeros_like(batch["group_id"])
    for name in modalities:
        had = batch["masks"][name].any(1) if name in batch["masks"] else pattern < 0
        shown = visible[name].to(pattern.device) if name in visible else had
        pattern = 3 * pattern + had.long() + (had & shown).long()
    return pattern


def _split(whole: _Part, size: int) -> list[_Part]:
    """Every `size` samples in turn, without the modalities that none of those has."""
    parts = []
    for start in range(0, len(whole.batch["group_id"]), size):
        rows = slice(start, start + size)
        names = [n for n, mask in whole.batch["masks"].items() if mask[rows].any()]
        batch = {
            kind: {n: whole.batch[kind][n][rows] for n in names if n in whole.batch[kind]}
            for kind in ("inputs", "masks", "positions")
        }
        visible = [{n: column[rows] for n, column in one.items()} for one in whole.visible]
        parts.append(_Part({**batch, "group_id": whole.batch["group_id"][rows]}, visible))
    return parts
