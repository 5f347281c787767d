"""The figures of a scorecard, each with the sentence under it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

from fusion.plots.drawing import PALETTE, Drawing
from fusion.plots.scorecard import (
    Curve,
    curves_figure,
    matrix_figure,
    reliability_figure,
    rounds_figure,
)
from fusion.report.markup import Html
from fusion.report.parts import arrow, figure
from fusion.scorecard.card import Scorecard
from fusion.subsets import ARROW

Point = TypeVar("Point")


def matrix_figures(card: Scorecard) -> Iterator[Html]:
    """Recall of all directions as one table of colours."""
    values = {}
    for cell in card.recall:
        query, target = cell.direction.split(ARROW)
        values[query, target] = cell.scores.recall_at_10
    if values:
        yield figure(matrix_figure(values), "Recall at 10, in %.")


def robustness_figures(card: Scorecard) -> Iterator[Html]:
    """Recall over missing inputs, and over noise on each modality."""
    if card.missing:
        chance = _mean(point.scores.chance_at_10 for point in card.missing)
        curves = {
            arrow(name): ([p.absent for p in points], [p.scores.recall_at_10 for p in points])
            for name, points in _by(card.missing, lambda point: point.direction).items()
        }

        def missing(part: Mapping[str, Curve]) -> Drawing:
            return curves_figure(part, chance, "share of inputs absent", "recall at 10 (%)")

        yield from _drawn(curves, missing, "Queries that lack some of their inputs, at random.")
    for modality, noisy in _by(card.noisy, lambda point: point.modality).items():
        chance = _mean(point.scores.chance_at_10 for point in noisy)
        curves = {
            arrow(name): ([p.level for p in points], [p.scores.recall_at_10 for p in points])
            for name, points in _by(noisy, lambda point: point.direction).items()
        }

        def noise(
            part: Mapping[str, Curve], modality: str = modality, chance: float = chance
        ) -> Drawing:
            return curves_figure(part, chance, f"noise on {modality}", "recall at 10 (%)")

        words = f"Queries with noise on their {modality} tokens, in units of a token's own size."
        yield from _drawn(curves, noise, words)


def calibration_figures(card: Scorecard) -> Iterator[Html]:
    """Reliability diagrams."""
    curves = {
        arrow(c.direction): ([b.predicted for b in c.bins], [b.observed for b in c.bins])
        for c in card.calibration
    }
    words = "Match probabilities, fitted on half of the groups and judged on the other half."
    yield from _drawn(curves, reliability_figure, words)


def iteration_figures(card: Scorecard) -> Iterator[Html]:
    """Recall by rounds, for directions whose queries differ in them."""
    curves = {
        arrow(i.direction): (
            [(b.fewest + b.most) / 2 for b in i.bins],
            [b.recall_at_1 for b in i.bins],
        )
        for i in card.iterations
        if len(i.bins) > 1
    }
    yield from _drawn(curves, rounds_figure, "Recall of queries by the rounds they took.")


def _drawn(
    curves: Mapping[str, Curve], paint: Callable[[Mapping[str, Curve]], Drawing], words: str
) -> Iterator[Html]:
    """Figures of at most as many curves as there are colours."""
    names = list(curves)
    for start in range(0, len(names), len(PALETTE)):
        part = {name: curves[name] for name in names[start : start + len(PALETTE)]}
        yield figure(paint(part), words)


def _by(points: Iterable[Point], key: Callable[[Point], str]) -> dict[str, list[Point]]:
    found: dict[str, list[Point]] = {}
    for point in points:
        found.setdefault(key(point), []).append(point)
    return found


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)
