"""Tokens of one or several modalities: what encoders give and fusion blocks take.

Shapes: B batch, N tokens, D width.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Place(NamedTuple):
    """Where each token is, and which modality it came from.

    Attributes:
        position: (B, N, 3) float: seconds, row, column; 0 where an axis does not apply.
        modality: (B, N) int: index of the modality.
    """

    position: Tensor
    modality: Tensor


class Tokens(NamedTuple):
    """Tokens with what is known about each of them.

    Attributes:
        values: (B, N, D) features.
        mask: (B, N) bool, True = real token.
        position: (B, N, 3) float: seconds, row, column; 0 where an axis does not apply.
        modality: (B, N) or (N,) int: index of the modality each token came from.
    """

    values: Tensor
    mask: Tensor
    position: Tensor
    modality: Tensor

    def detach(self) -> "Tokens":
        """The same tokens, through which no gradient flows."""
        return self._replace(values=self.values.detach())

    def per_sample(self, change: Callable[[Tensor], Tensor]) -> "Tokens":
        """Applies `change` to what has a row per sample; a (N,) `modality` has none."""
        own = self.modality.dim() == 2
        return Tokens(
            change(self.values),
            change(self.mask),
            change(self.position),
            change(self.modality) if own else self.modality,
        )


def concat(parts: Sequence[Tokens]) -> Tokens:
    """Joins the tokens of any subset of modalities along N.

    Args:
        parts: one `Tokens` per modality, all of one batch size B and one width D.

    Returns:
        Tokens of all parts in the given order; `modality` is (N,) if it is so in every part,
        (B, N) otherwise.

    Raises:
        ValueError: if there is no part, or the parts differ in B or D.
    """
    if not parts:
        raise ValueError("concat got no tokens; give it the tokens of at least one modality.")
    shapes = [tuple(part.values.shape) for part in parts]
    if len({(batch, dim) for batch, _, dim in shapes}) > 1:
        raise ValueError(
            f"concat got values of shapes {shapes}; all parts need one batch size and one width, "
            "project them to a shared width first."
        )
    modalities = [part.modality for part in parts]
    if any(modality.dim() == 2 for modality in modalities):
        modalities = [m.expand(p.mask.shape) for m, p in zip(modalities, parts, strict=True)]
    return Tokens(
        values=torch.cat([part.values for part in parts], dim=1),
        mask=torch.cat([part.mask for part in parts], dim=1),
        position=torch.cat([part.position for part in parts], dim=1),
        modality=torch.cat(modalities, dim=-1),
    )


def select(tokens: Tokens, rows: Tensor) -> Tokens:
    """The tokens of some samples, without the columns that none of them uses.

    Args:
        tokens: of B samples.
        rows: (B,) bool, or indices of samples.
    """
    return _trim(tokens.per_sample(lambda column: column[rows]))


def split(tokens: Tokens, num: int) -> list[Tokens]:
    """The tokens of every `num` samples in turn, without the columns that none of those uses."""
    values = tokens.values.split(num)  # one split: its backward pass is one concatenation
    parts = []
    for index, part in enumerate(values):
        rows = slice(index * num, index * num + len(part))
        others = tokens._replace(values=tokens.mask).per_sample(lambda column, r=rows: column[r])
        parts.append(_trim(others._replace(values=part)))
    return parts


def _trim(tokens: Tokens) -> Tokens:
    used = tokens.mask.any(dim=0)
    width = int(used.nonzero().max()) + 1 if used.any() else 1
    if width == len(used):
        return tokens
    trimmed = tokens.per_sample(lambda column: column[:, :width])
    return trimmed._replace(modality=tokens.modality[..., :width])
