"""Figures of the scorecard."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fusion.plots.drawing import INK, PALETTE, SIZE, Drawing, count_in_integers, legend_above, plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHAPES = "os^Dv*PX"
_CELL = 0.62  # inches
_LONG = 16  # characters of a name from which on two columns of names need more width
_DARK, _LIGHT = "#10151c", "#ffffff"  # on the cells, whose colours follow no scheme

Curve = tuple[Sequence[float], Sequence[float]]


def matrix_figure(values: Mapping[tuple[str, str], float]) -> Drawing:
    """Recall of every direction as a table of colours.

    Args:
        values: (query, target) to recall in [0, 1].

    Returns:
        The drawing; combinations without a value stay empty.
    """
    rows, targets = (dict.fromkeys(pair[i] for pair in values) for i in (0, 1))
    rows, columns = list(rows), sorted(targets, key=[*rows, *targets].index)  # in one order

    def paint(axes: "Axes") -> None:
        import numpy as np

        grid = np.full((len(rows), len(columns)), np.nan)
        for (query, target), value in values.items():
            grid[rows.index(query), columns.index(target)] = 100 * value
        axes.pcolormesh(grid, cmap="Blues", vmin=0, vmax=100, edgecolors="none")
        for (row, column), value in np.ndenumerate(grid):
            if value == value:
                color = _LIGHT if value > 55 else _DARK
                place = column + 0.5, row + 0.5
                axes.text(*place, f"{value:.0f}", ha="center", va="center", color=color)
        axes.set_xticks(np.arange(len(columns)) + 0.5, columns, rotation=40, ha="right")
        axes.set_yticks(np.arange(len(rows)) + 0.5, rows)
        axes.set(xlabel="target", ylabel="query")
        axes.invert_yaxis()
        axes.grid(False)
        axes.tick_params(length=0)

    # Room for the names beside the cells, by their lengths.
    widest = 0.075 * max(map(len, (*rows, *columns)), default=0)
    width = max(SIZE[0], _CELL * len(columns) + widest + 0.8)
    return plot(paint, (width, max(SIZE[1], 0.7 * _CELL * len(rows) + widest + 0.8)))


def curves_figure(
    curves: Mapping[str, Curve], chance: float, xlabel: str, ylabel: str = "recall (%)"
) -> Drawing:
    """Recall over something that makes it harder.

    Args:
        curves: label to (places, recalls in [0, 1]).
        chance: recall of a guess.
        xlabel: what the places are.
        ylabel: which recall it is.

    Returns:
        The drawing.
    """

    def paint(axes: "Axes") -> None:
        _plot(axes, curves)
        axes.axhline(100 * chance, color=INK, linestyle=":", linewidth=1.2, label="chance")
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.set_ylim(bottom=0)
        legend_above(axes)

    return plot(paint, _size(curves))


def reliability_figure(curves: Mapping[str, Curve]) -> Drawing:
    """Share of pairs that match against the probability that was given to them.

    Args:
        curves: label to (predicted, observed) of its bins.

    Returns:
        The drawing.
    """

    def paint(axes: "Axes") -> None:
        axes.plot([0, 1], [0, 1], color=INK, linestyle=":", linewidth=1.2, label="calibrated")
        for index, (label, (predicted, observed)) in enumerate(curves.items()):
            color, shape = PALETTE[index % len(PALETTE)], _SHAPES[index % len(_SHAPES)]
            axes.plot(predicted, observed, color=color, marker=shape, markersize=4, label=label)
        axes.set(xlabel="probability of a match", ylabel="share that match")
        axes.set(xlim=(0, 1), ylim=(0, 1))
        legend_above(axes)

    return plot(paint, _size(curves))


def rounds_figure(curves: Mapping[str, Curve]) -> Drawing:
    """Recall of queries that took like numbers of rounds.

    Args:
        curves: label to (rounds, recalls in [0, 1]) of its bins.

    Returns:
        The drawing.
    """

    def paint(axes: "Axes") -> None:
        _plot(axes, curves)
        axes.set(xlabel="rounds until the stop", ylabel="recall at 1 (%)")
        axes.set_ylim(bottom=0)
        count_in_integers(axes.xaxis)
        legend_above(axes)

    return plot(paint, _size(curves))


def _size(curves: Mapping[str, Curve]) -> tuple[float, float]:
    """Width and height that leave room for the names above."""
    wide = max(map(len, curves), default=0) > _LONG
    return SIZE[0] + 0.8 * wide, SIZE[1] + 0.12 * len(curves)


def _plot(axes: "Axes", curves: Mapping[str, Curve]) -> None:
    """Recall in % over places, a colour and a mark for each curve."""
    for index, (label, (places, recalls)) in enumerate(curves.items()):
        color, shape = PALETTE[index % len(PALETTE)], _SHAPES[index % len(_SHAPES)]
        percent = [100 * recall for recall in recalls]
        axes.plot(places, percent, color=color, marker=shape, markersize=4, label=label)
