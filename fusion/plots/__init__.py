"""Figures of reports: of training, and of an iteration. Each is drawn when its format is asked."""

from fusion.plots.drawing import PALETTE, Drawing
from fusion.plots.iteration import (
    ambiguity_figure,
    certainty_figure,
    energy_figure,
    iterations_figure,
    order_figure,
    portrait_figure,
    residual_figure,
)
from fusion.plots.training import loss_figure, recall_figure

__all__ = [
    "PALETTE",
    "Drawing",
    "ambiguity_figure",
    "certainty_figure",
    "energy_figure",
    "iterations_figure",
    "loss_figure",
    "order_figure",
    "portrait_figure",
    "recall_figure",
    "residual_figure",
]
