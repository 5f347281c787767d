"""Directions between disjoint subsets of modalities, such as "image+audio->text"."""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

SEPARATOR, ARROW = "+", "->"


class Direction(NamedTuple):
    """A query subset and a target subset that share no modality.

    Attributes:
        query: modalities of the query.
        target: modalities of the target.
    """

    query: tuple[str, ...]
    target: tuple[str, ...]

    def __str__(self) -> str:
        return SEPARATOR.join(self.query) + ARROW + SEPARATOR.join(self.target)


def parse_direction(text: str) -> Direction:
    """Reads "image+audio->text".

    Raises:
        ValueError: if it is not of that form, or a modality stands on both sides: a query that
            contains its target would find it by leakage.
    """
    sides = text.split(ARROW)
    names = [tuple(name.strip() for name in side.split(SEPARATOR)) for side in sides]
    flat = [name for side in names for name in side]
    if len(names) != 2 or not all(flat) or len(set(flat)) < len(flat):
        raise ValueError(
            f"Got direction {text!r}; write two disjoint sets of modalities such as "
            "'image->text' or 'image+audio->text'."
        )
    return Direction(*names)


def all_directions(modalities: Sequence[str]) -> list[Direction]:
    """Every single modality to every other, and every pair to each remaining one."""
    found = []
    for size in (1, 2):
        for query in combinations(modalities, size):
            found += [Direction(query, (other,)) for other in modalities if other not in query]
    return found
