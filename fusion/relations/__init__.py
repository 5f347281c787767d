"""Rules that say which token reads which: composable with `&`, `|` and `~`.

`rule(place, mask)` is a relation (B, N, N) bool, [i, j] True where token i reads token j. What
order means to a rule is a token's index among the real tokens of its sample, so that padding
between modalities moves nothing.
"""

from fusion.relations.base import And, Not, Or, Rule
from fusion.relations.forms import block_mask, density, edge_list, longest_chain
from fusion.relations.rules import (
    Causal,
    CrossModality,
    Earlier,
    Edges,
    Everyone,
    Fixed,
    SameModality,
    Strided,
    TimeWindow,
    Window,
)

__all__ = [
    "And",
    "Causal",
    "CrossModality",
    "Earlier",
    "Edges",
    "Everyone",
    "Fixed",
    "Not",
    "Or",
    "Rule",
    "SameModality",
    "Strided",
    "TimeWindow",
    "Window",
    "block_mask",
    "density",
    "edge_list",
    "longest_chain",
]
