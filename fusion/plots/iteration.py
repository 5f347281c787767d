"""Figures of an iteration."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fusion.plots.drawing import INK, PALETTE, Drawing, count_in_integers, legend_above, plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHAPES = "os^Dv*PX"


def residual_figure(residuals: Sequence[Sequence[float]], q: float, tol: float) -> Drawing:
    """Residual per round of a few samples on a log axis, with the certified rate and the tolerance.

    A contraction with factor q shrinks the residual at least to q^(t-1) times the first; that line
    starts at the largest first residual. It is left out when q is not below 1.

    Args:
        residuals: one sequence of residuals per sample, first round first.
        q: contraction factor.
        tol: residual at which a sample stops.

    Returns:
        The drawing.
    """
    traces = [_positive_head(trace) for trace in residuals]
    num_rounds = max((len(trace) for trace in traces), default=0)

    def paint(axes: "Axes") -> None:
        for index, trace in enumerate(traces):
            label = f"{len(traces)} samples" if index == 0 else None
            axes.plot(
                range(1, len(trace) + 1),
                trace,
                color=PALETTE[0],
                alpha=0.45,
                linewidth=1.1,
                marker="o",
                markersize=2.2,
                label=label,
            )
        if q < 1 and num_rounds:
            first = max(trace[0] for trace in traces if trace)
            bound = [first * q**t for t in range(num_rounds)]
            axes.plot(
                range(1, num_rounds + 1),
                bound,
                color=PALETTE[1],
                linestyle="--",
                label=f"bound: q = {q:.2f}",
            )
        axes.axhline(tol, color=PALETTE[2], linestyle=":", label=f"tolerance {tol:g}")
        axes.set(xlabel="round t", ylabel="residual (largest change)", yscale="log")
        count_in_integers(axes.xaxis)
        legend_above(axes)

    return plot(paint)


def iterations_figure(num_iters: Sequence[int]) -> Drawing:
    """Histogram of the rounds that samples took.

    Args:
        num_iters: rounds per sample.

    Returns:
        The drawing.
    """

    def paint(axes: "Axes") -> None:
        counts = Counter(num_iters)
        axes.bar(list(counts), list(counts.values()), color=PALETTE[0], width=0.8)
        axes.set(xlabel="rounds until the stop", ylabel="samples")
        axes.grid(False, axis="x")
        count_in_integers(axes.xaxis)
        count_in_integers(axes.yaxis)
        axes.set_xlim(min(counts, default=0) - 1.5, max(counts, default=0) + 1.5)

    return plot(paint)


def certainty_figure(
    residual: Sequence[float], error_bound: Sequence[float], tol: float
) -> Drawing:
    """Residual per round of one sample on a log axis, with how far its result may be off.

    Args:
        residual: of each round, first round first.
        error_bound: largest distance to the fixed point after each round; one that is not finite
            is left out.
        tol: residual at which the sample stops.

    Returns:
        The drawing.
    """

    def paint(axes: "Axes") -> None:
        for values, color, style, label in (
            (residual, PALETTE[0], "o-", "largest change"),
            (error_bound, PALETTE[1], "s--", "error at most"),
        ):
            head = _positive_head(values)
            if head:
                axes.plot(range(1, len(head) + 1), head, style, color=color, ms=4, label=label)
        axes.axhline(tol, color=PALETTE[2], linestyle=":", label=f"tolerance {tol:g}: stop")
        axes.set(xlabel="round", yscale="log")
        count_in_integers(axes.xaxis)
        legend_above(axes)

    return plot(paint)


def energy_figure(energy: Sequence[float]) -> Drawing:
    """Energy at the start and after each round.

    Args:
        energy: start first.

    Returns:
        The drawing.
    """

    def paint(axes: "Axes") -> None:
        axes.plot(range(len(energy)), energy, "o-", color=PALETTE[0], ms=4)
        axes.set(xlabel="round (0: start)", ylabel="energy")
        count_in_integers(axes.xaxis)

    return plot(paint)


def order_figure(order: Sequence[Sequence[float]], coherence: Sequence[Sequence[float]]) -> Drawing:
    """Strength of the context, and how far the tokens are in phase, at the start and per round.

    Args:
        order: |C| of each sample, start first.
        coherence: phase coherence of each sample, start first.

    Returns:
        The drawing.
    """

    def paint(axes: "Axes") -> None:
        for curves, color, style, label in (
            (coherence, PALETTE[1], "s--", "phase coherence of tokens"),
            (order, PALETTE[0], "o-", "context |C|"),
        ):
            for index, curve in enumerate(curves):
                axes.plot(
                    range(len(curve)),
                    curve,
                    style,
                    color=color,
                    ms=4 if len(curves) == 1 else 2.2,
                    linewidth=1.8 if len(curves) == 1 else 1.1,
                    alpha=1 if len(curves) == 1 else 0.5,
                    label=None if index else label,
                )
        axes.set(xlabel="round (0: start)")
        axes.set_ylim(bottom=0)
        count_in_integers(axes.xaxis)
        legend_above(axes)

    return plot(paint)


def portrait_figure(
    paths: Sequence[Sequence[tuple[float, float]]], names: Sequence[str], colors: Sequence[str]
) -> Drawing:
    """Phase portrait: the way of complex numbers through the plane, round by round.

    Args:
        paths: (real, imaginary) at the start and after each round, for each number; the start is
            drawn hollow, the end filled.
        names: of each, for the legend.
        colors: of each; a shape beside it tells them apart too.

    Returns:
        The drawing.
    """

    def paint(axes: "Axes") -> None:
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.axvline(0, color=INK, linewidth=0.8)
        for index, path in enumerate(paths):
            real, imaginary = zip(*path, strict=True)
            color, shape = colors[index], _SHAPES[index % len(_SHAPES)]
            axes.plot(real, imaginary, ".-", color=color, linewidth=1.2, ms=4)
            axes.plot(real[0], imaginary[0], shape, color=color, mfc="white", ms=6)
            axes.plot(real[-1], imaginary[-1], shape, color=color, ms=7, label=names[index])
        axes.set(xlabel="real part", ylabel="imaginary part")
        axes.set_aspect("equal", adjustable="datalim")
        axes.margins(0.12)
        if paths:
            axes.legend(loc="upper left", bbox_to_anchor=(1, 1), handletextpad=0.3)

    return plot(paint)


def ambiguity_figure(
    ambiguity: Sequence[float], num_iters: Sequence[int], names: Sequence[str] = ()
) -> Drawing:
    """Rounds of samples against how undecided their tokens are between slots.

    Args:
        ambiguity: of each sample, in [0, 1].
        num_iters: rounds of each sample.
        names: short name of each, written beside it; none are written if there are none.

    Returns:
        The drawing.
    """

    def paint(axes: "Axes") -> None:
        axes.plot(ambiguity, num_iters, "o", color=PALETTE[0], ms=6, alpha=0.6)
        for name, across, up in zip(names, ambiguity, num_iters, strict=False):
            axes.annotate(name, (across, up), xytext=(6, 4), textcoords="offset points")
        axes.set(xlabel="ambiguity of the slots (0 to 1)", ylabel="rounds until the stop")
        axes.margins(0.15)
        count_in_integers(axes.yaxis)

    return plot(paint)


def _positive_head(trace: Sequence[float]) -> list[float]:
    """The residuals up to the first that a log axis cannot show (zero, or not finite)."""
    head: list[float] = []
    for value in trace:
        if not (math.isfinite(value) and value > 0):
            break
        head.append(value)
    return head
