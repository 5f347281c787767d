"""Drawings: matplotlib through its object interface, as SVG or PNG.

No window and no global figure list. In SVG text stays text, so it can be read aloud and searched,
and its colours follow the reader's light or dark scheme.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Okabe and Ito's colours: told apart with any colour vision, visible on white and on near black.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
INK, GRID = "#242b36", "#d3d8df"
_IN_THE_DARK = {INK: "#d6dce5", GRID: "#3a4350", PALETTE[0]: "#4ba3e3"}
SIZE = (4.0, 3.0)  # inches: small enough that text stays readable at phone width
DOTS_PER_INCH = 200
_LABEL_LENGTH = 48  # characters that fit the width, two columns of half as many
_STYLE: dict[Any, str | float | bool] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "assim",  # the same figure gives the same bytes
    "font.family": "sans-serif",
    "font.size": 10.0,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 9.0,
    "lines.linewidth": 1.8,
}


@final
@dataclass(frozen=True)
class Drawing:
    """A figure that is drawn when it is asked for.

    Attributes:
        paint: draws on an empty figure.
        size: width and height in inches.
    """

    paint: Callable[["Figure"], None]
    size: tuple[float, float] = SIZE

    def svg(self) -> str:
        """An SVG document without background."""
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        svg = self._save(format="svg", transparent=True, metadata=nothing).decode()
        return _follow_colour_scheme(svg)

    def png(self) -> bytes:
        """A PNG file on white."""
        return self._save(format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})

    def _save(self, **how: Any) -> bytes:
        import matplotlib
        from matplotlib.figure import Figure

        with matplotlib.rc_context(_STYLE):
            figure = Figure(figsize=self.size, layout="constrained")
            self.paint(figure)
            buffer = io.BytesIO()
            figure.savefig(buffer, **how)
        return buffer.getvalue()


def plot(paint: Callable[["Axes"], None], size: tuple[float, float] = SIZE) -> Drawing:
    """A drawing of one pair of axes."""
    return Drawing(lambda figure: paint(figure.add_subplot()), size)


def count_in_integers(axis: "Axis") -> None:
    """Whole numbers along an axis."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))


def legend_above(axes: "Axes") -> None:
    """The legend over the axes, where it hides nothing."""
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


def _follow_colour_scheme(svg: str) -> str:
    """Makes variables of the colours that are hard to see on a dark page, and sets them there."""
    head, body = svg[svg.index("<svg") :].split(">", 1)
    dark = ""
    for index, (light, darker) in enumerate(_IN_THE_DARK.items()):
        body = body.replace(light, f"var(--c{index},{light})")
        dark += f"--c{index}:{darker};"
    return f"{head}><style>@media (prefers-color-scheme:dark){{svg{{{dark}}}}}</style>{body}"
