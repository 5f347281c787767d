"""Figures: well-formed SVG with readable text, no global state, nothing fetched."""

import io
import math
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from PIL import Image

from fusion import plots

FIGURES = {
    "loss": lambda: plots.loss_figure([0, 10, 20], [7.1, 4.0, 2.0], math.log(1024)),
    "recall": lambda: plots.recall_figure({"a R@1": ([0, 10], [0.1, 0.4])}, {"a R@1": 0.3}),
    "residual": lambda: plots.residual_figure([[0.5, 0.2, 0.01], [0.3, 0.1]], 0.9, 0.02),
    "iterations": lambda: plots.iterations_figure([3, 4, 4, 5]),
    "certainty": lambda: plots.certainty_figure([0.5, 0.01], [4.5, math.inf], 0.02),
    "energy": lambda: plots.energy_figure([3.0, 2.0, 1.5]),
    "order": lambda: plots.order_figure([[0.1, 0.2], [0.1]], [[0.3, 0.5], [0.2]]),
    "portrait": lambda: plots.portrait_figure([[(0, 0), (1, 2)]], ["7"], [plots.PALETTE[0]]),
    "ambiguity": lambda: plots.ambiguity_figure([0.2, 0.9], [3, 6], ["a", "b"]),
}
WORDS = {
    "loss": ["training step", "contrastive loss (nats)", "ln(B) = 6.93: chance"],
    "recall": ["training step", "held-out recall (%)", "a R@1", "linear baseline"],
    "residual": ["round t", "residual (largest change)", "2 samples", "tolerance 0.02"],
    "iterations": ["rounds until the stop", "samples"],
    "certainty": ["round", "largest change", "error at most", "tolerance 0.02: stop"],
    "energy": ["round (0: start)", "energy"],
    "order": ["round (0: start)", "context |C|", "phase coherence of tokens"],
    "portrait": ["real part", "imaginary part", "7"],
    "ambiguity": ["ambiguity of the slots (0 to 1)", "rounds until the stop", "a", "b"],
}


def texts(svg):
    return ["".join(node.itertext()).strip() for node in ElementTree.fromstring(svg).iter()]


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_svg_with_labelled_axes_and_the_same_each_time(name):
    svg = FIGURES[name]().svg()
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert set(WORDS[name]) <= set(texts(svg))
    assert "<!DOCTYPE" not in svg and "@import" not in svg and "<metadata" not in svg
    assert svg == FIGURES[name]().svg()


@pytest.mark.parametrize("name", FIGURES)
def test_neutral_colours_follow_the_colour_scheme(name):
    svg = FIGURES[name]().svg()
    assert "prefers-color-scheme:dark" in svg
    assert "var(--c0,#242b36)" in svg
    assert "fill: #242b36" not in svg and "stroke: #242b36" not in svg


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_png_too_and_the_same_each_time(name):
    png = FIGURES[name]().png()
    picture = Image.open(io.BytesIO(png))
    assert picture.format == "PNG" and picture.size == (800, 600)
    assert picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    assert png == FIGURES[name]().png()


def test_no_global_settings_change():
    import matplotlib

    before = dict(matplotlib.rcParams)
    for draw in FIGURES.values():
        draw().svg()
        draw().png()
    assert dict(matplotlib.rcParams) == before


def test_matplotlib_is_imported_when_drawing_and_its_global_interface_never():
    program = """if True:
        import sys
        from fusion import plots, report
        assert "matplotlib" not in sys.modules
        plots.iterations_figure([1, 2]).svg()
        assert "matplotlib" in sys.modules and "matplotlib.pyplot" not in sys.modules
    """
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", program], check=True, cwd=root)


@pytest.mark.parametrize("q", [1.0, math.inf])
def test_no_bound_is_drawn_without_a_contraction(q):
    def words(q):
        return " ".join(texts(plots.residual_figure([[0.5, 0.2]], q, 1e-3).svg()))

    assert "bound" in words(0.9) and "bound" not in words(q)


@pytest.mark.parametrize("trace", [[], [0.0], [math.inf, 0.1], [0.5, math.nan], [0.5, 0.0, 0.1]])
def test_residuals_that_a_log_axis_cannot_show_end_the_line(trace):
    assert ElementTree.fromstring(plots.residual_figure([trace], 0.5, 1e-3).svg()) is not None


def test_empty_curves_and_names_with_markup_still_draw():
    assert plots.loss_figure([], [], 1.0).svg()
    assert plots.iterations_figure([]).svg()
    assert plots.recall_figure({}, {}).svg()
    for trace in ([], [math.inf], [math.nan, 0.1]):
        assert plots.certainty_figure(trace, trace, 0.1).png() and plots.energy_figure(trace).png()
    assert plots.order_figure([], []).svg() and plots.portrait_figure([], [], []).svg()
    assert plots.ambiguity_figure([], []).svg()
    hostile = "<b>& $x^{ " + 99 * "z"
    svg = plots.recall_figure({hostile: ([0], [0.5])}, {}).svg()
    assert hostile[:47] + "…" in texts(svg)
