"""Figures of a training run."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fusion.plots.drawing import INK, PALETTE, Drawing, legend_above, plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def loss_figure(steps: Sequence[int], losses: Sequence[float], chance_loss: float) -> Drawing:
    """Contrastive loss over training steps, with the loss of a model that knows nothing.

    Args:
        steps: training steps.
        losses: loss at each of them.
        chance_loss: ln(batch size).

    Returns:
        The drawing.
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
        legend_above(axes)

    return plot(paint)


def recall_figure(
    curves: Mapping[str, tuple[Sequence[int], Sequence[float]]], baseline: Mapping[str, float]
) -> Drawing:
    """Held-out recall over training steps, the linear baseline dashed in the same colour.

    Args:
        curves: label to (steps, recalls in [0, 1]).
        baseline: label to the baseline's recall; labels without one have no dashed line.

    Returns:
        The drawing.
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
            axes.plot([], [], color=INK, linestyle="--", linewidth=1.2, label="linear baseline")
        legend_above(axes)

    return plot(paint)
