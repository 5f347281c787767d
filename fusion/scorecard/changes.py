"""Whether one score fell while another rose."""

import math
from collections.abc import Mapping

from fusion.metrics import RetrievalScores

DEVIATIONS = 3.0  # standard deviations that a change must have to be no noise
WATCHED = {1: "R@1", 10: "R@10"}


def tradeoff(
    before: Mapping[str, RetrievalScores], after: Mapping[str, RetrievalScores]
) -> str | None:
    """Says which recall fell while which rose, beyond sampling noise; None if none did.

    A change counts from three standard deviations of the difference of two binomial shares on.
    The queries being the same both times, that is on the careful side.

    Args:
        before: direction to its scores.
        after: the same later.
    """
    fell, rose = [], []
    for direction in before.keys() & after.keys():
        for cutoff, name in WATCHED.items():
            old, new = (getattr(s[direction], f"recall_at_{cutoff}") for s in (before, after))
            num = min(before[direction].num_queries, after[direction].num_queries)
            change = (new - old) / _deviation(old, new, num)
            said = f"{direction} {name} {100 * old:.1f} -> {100 * new:.1f} %"
            if abs(change) > DEVIATIONS:
                (rose if change > 0 else fell).append((-abs(change), said))
    if not (fell and rose):
        return None
    lost, won = (", ".join(said for _, said in sorted(found)) for found in (fell, rose))
    return f"Some recall fell while other rose: {lost}; against {won}."


def _deviation(old: float, new: float, num: int) -> float:
    """Of the difference of two shares of `num`; Laplace's rule keeps it above 0 at the ends."""
    share = (num * (old + new) / 2 + 1) / (num + 2)
    return math.sqrt(2 * share * (1 - share) / num)
