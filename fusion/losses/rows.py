"""The two sides of a contrastive loss, and which pairs of their rows are compared.

Shapes: R rows of one side, C of the other, D width.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Rows(NamedTuple):
    """Embeddings of one side, query or target, and what decides whom they are compared with.

    Two rows are compared if both are present and of one pattern. They are positives of each other
    if their ids are equal and neither is a hard negative; all other compared rows are negatives.
    The two sides need not have equally many rows, nor need any rank have as many as another.

    Attributes:
        values: (R, D) unit rows; those of rows that are not present may hold anything, NaN too.
        group_id: (R,) integers, the same on every rank for what belongs together.
        present: (R,) bool; None is all. A row that is not is neither compared nor counted.
        pattern: (R,) integers that name which modalities the sample has; None compares rows
            whatever they have. With it no row is told from another by what is absent. Given on
            both sides and all ranks, or on none.
        hard: (R,) bool, True for rows that are nobody's positive whatever their id; None is none.
    """

    values: Tensor
    group_id: Tensor
    present: Tensor | None = None
    pattern: Tensor | None = None
    hard: Tensor | None = None

    def with_negatives(self, values: Tensor, pattern: Tensor | None = None) -> "Rows":
        """These rows and hard negatives after them, rows that are nobody's positive.

        Args:
            values: (H, D) unit rows.
            pattern: (H,) integers, given if and only if these rows have patterns.

        Raises:
            ValueError: if one of the two has patterns and the other has none.
        """
        if (pattern is None) != (self.pattern is None):
            raise ValueError(
                "Got patterns for the rows or for their hard negatives only; give both or neither."
            )

        def grown(column: Tensor | None, before: bool, after: bool) -> Tensor:
            shape = self.values.shape[:1]
            start = self.group_id.new_full(shape, before).bool() if column is None else column
            return torch.cat([start, start.new_full(values.shape[:1], after)])

        return Rows(
            torch.cat([self.values, values]),
            grown(self.group_id, False, False),
            grown(self.present, True, True),
            None if self.pattern is None or pattern is None else torch.cat([self.pattern, pattern]),
            grown(self.hard, False, True),
        )

    def block(self) -> "Block":
        """The present rows alone, in float32 if they came in half precision.

        Raises:
            ValueError: if the shapes do not fit.
        """
        if self.values.dim() != 2:
            raise ValueError(
                f"Got embeddings of shape {tuple(self.values.shape)}; give rows (R, D)."
            )
        for name, column in zip(self._fields[1:], self[1:], strict=True):
            if column is not None and column.shape != self.values.shape[:1]:
                raise ValueError(
                    f"Got {name} of shape {tuple(column.shape)} for {len(self.values)} rows; give "
                    "one value per row."
                )
        hard = torch.zeros_like(self.group_id) if self.hard is None else self.hard
        columns = (
            (self.group_id, hard) if self.pattern is None else (self.group_id, hard, self.pattern)
        )
        labels = torch.stack([column.long() for column in columns], dim=1)
        values = self.values.float() if self.values.dtype.itemsize < 4 else self.values
        if self.present is not None:
            values, labels = values[self.present], labels[self.present]
        return Block(values, labels)


class Block(NamedTuple):
    """Rows that all take part.

    Attributes:
        values: (R, D).
        labels: (R, 2) or (R, 3) int64: group, 1 for a hard negative, and pattern if rows have any.
    """

    values: Tensor
    labels: Tensor

    def cut(self, width: int) -> "Block":
        """The first components alone, of unit length again."""
        return self._replace(values=F.normalize(self.values[:, :width], dim=1, eps=1e-6))

    def relate(self, columns: "Block") -> tuple[Tensor | None, Tensor]:
        """(compared, positive), both (R, C) bool; None if all are compared."""
        (group, hard, *pattern), (groups, hards, *patterns) = self.labels.T, columns.labels.T
        positive = (group[:, None] == groups[None]) & ((hard[:, None] + hards[None]) == 0)
        if not pattern:
            return None, positive
        compared = pattern[0][:, None] == patterns[0][None]
        return compared, compared & positive
