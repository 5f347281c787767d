"""Figures of a report, as SVG that follows the reader's light or dark colour scheme.

Drawn through matplotlib's object interface: no window, no global figure list. Text stays text, so
it can be read aloud and searched.
"""

import io
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

# Okabe and Ito's colours: told apart with any colour vision, visible on white and on near black.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_INK, _GRID = "#242b36", "#d3d8df"
_IN_THE_DARK = {_INK: "#d6dce5", _GRID: "#3a4350", PALETTE[0]: "#4ba3e3"}
_SIZE = (4.0, 3.0)  # inches: small enough that text stays readable at phone width
_LABEL_LENGTH = 48  # characters that fit the width, two columns of half as many
_STYLE: dict[Any, str | float | bool] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "assim",  # the same figure gives the same bytes
    "font.family": "sans-serif",
    "font.size": 10.0,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.grid": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 9.0,
    "lines.linewidth": 1.8,
}


def loss_figure(steps: Sequence[int], losses: Sequence[float], chance_loss: float) -> str:
    """Contrastive loss over training steps, with the loss of a model that knows nothing.

    Args:
        steps: training steps.
        losses: loss at each of them.
        chance_loss: ln(batch size).

    Returns:
        An SVG document.
    """

    def paint(axes: "Axes") -> None:
        axes.plot(steps, losses, color=PALETTE[0], label="loss")
        axes.axhline(
            chance_loss,
            color=PALETTE[1],
            linestyle="--",
            label=f"ln(B) = {chance_loss:.2f}: chance",
        )
        axes.set(xlabel="training step", ylabel="contrastive loss (nats)")
        axes.set_ylim(bottom=0)
        _legend_above(axes)

    return _draw(paint)


def recall_figure(
    curves: Mapping[str, tuple[Sequence[int], Sequence[float]]], baseline: Mapping[str, float]
) -> str:
    """Held-out recall over training steps, the linear baseline dashed in the same colour.

    Args:
        curves: label to (steps, recalls in [0, 1]).
        baseline: label to the baseline's recall; labels without one have no dashed line.

    Returns:
        An SVG document.
    """

    def paint(axes: "Axes") -> None:
        for index, (label, (steps, values)) in enumerate(curves.items()):
            color = PALETTE[index % len(PALETTE)]
            percent = [100 * value for value in values]
            axes.plot(steps, percent, color=color, marker="o", markersize=3.5, label=label)
            if label in baseline:
                axes.axhline(100 * baseline[label], color=color, linestyle="--", linewidth=1.2)
        axes.set(xlabel="training step", ylabel="held-out recall (%)")
        axes.set_ylim(bottom=0)
        if set(curves) & set(baseline):
            axes.plot([], [], color=_INK, linestyle="--", linewidth=1.2, label="linear baseline")
        _legend_above(axes)

    return _draw(paint)


def residual_figure(residuals: Sequence[Sequence[float]], q: float, tol: float) -> str:
    """Residual per round of a few samples on a log axis, with the certified rate and the tolerance.

    A contraction with factor q shrinks the residual at least to q^(t-1) times the first; that line
    starts at the largest first residual. It is left out when q is not below 1.

    Args:
        residuals: one sequence of residuals per sample, first round first.
        q: contraction factor.
        tol: residual at which a sample stops.

    Returns:
        An SVG document.
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
        _count_in_integers(axes.xaxis)
        _legend_above(axes)

    return _draw(paint)


def iterations_figure(num_iters: Sequence[int]) -> str:
    """Histogram of the rounds that samples took.

    Args:
        num_iters: rounds per sample.

    Returns:
        An SVG document.
    """

    def paint(axes: "Axes") -> None:
        counts = Counter(num_iters)
        axes.bar(list(counts), list(counts.values()), color=PALETTE[0], width=0.8)
        axes.set(xlabel="rounds until the stop", ylabel="samples")
        axes.grid(False, axis="x")
        _count_in_integers(axes.xaxis)
        _count_in_integers(axes.yaxis)
        axes.set_xlim(min(counts, default=0) - 1.5, max(counts, default=0) + 1.5)

    return _draw(paint)


def _positive_head(trace: Sequence[float]) -> list[float]:
    """The residuals up to the first that a log axis cannot show (zero, or not finite)."""
    head: list[float] = []
    for value in trace:
        if not (math.isfinite(value) and value > 0):
            break
        head.append(value)
    return head


def _count_in_integers(axis: "Axis") -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))


def _legend_above(axes: "Axes") -> None:
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        return
    axes.legend(
        handles,
        [_plain(label) for label in labels],
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=1 if max(map(len, labels)) > _LABEL_LENGTH // 2 else 2,
        borderaxespad=0.2,
        columnspacing=1.0,
        handlelength=1.6,
    )


def _plain(label: str) -> str:
    """A label cut to what fits the figure, its dollar signs kept from being read as formulas."""
    cut = label if len(label) <= _LABEL_LENGTH else label[: _LABEL_LENGTH - 1] + "…"
    return cut.replace("$", r"\$")


def _draw(paint: Callable[["Axes"], None]) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=_SIZE, layout="constrained")
        paint(figure.add_subplot())
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return _follow_colour_scheme(buffer.getvalue())


def _follow_colour_scheme(svg: str) -> str:
    """Makes variables of the colours that are hard to see on a dark page, and sets them there."""
    head, body = svg[svg.index("<svg") :].split(">", 1)
    dark = ""
    for index, (light, darker) in enumerate(_IN_THE_DARK.items()):
        body = body.replace(light, f"var(--c{index},{light})")
        dark += f"--c{index}:{darker};"
    return f"{head}><style>@media (prefers-color-scheme:dark){{svg{{{dark}}}}}</style>{body}"
