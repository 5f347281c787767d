"""Slots drawn over a picture, along a sound, and as a table of all tokens.

Shapes: n tokens of one part, N tokens, S shown slots.
"""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fusion.explain.slots import ShownSlots
from fusion.plots import Drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH = 4.0  # inches, that of the other figures
_COLUMNS = 3
_PIXELS = 320  # side to which pictures are thinned out
_LEGIBLE = 36  # cells of a picture in which a number can still be read
_BINS = 600  # across a waveform
_SHADE = 0.78  # of the strongest cell
_UNHEARD = "#c4cad3"
Box = tuple[float, float, float, float]  # left, top, width, height


def picture_drawing(pixels: Tensor, position: Tensor, slots: ShownSlots, span: slice) -> Drawing:
    """A picture, its cells numbered by their strongest slot; then each slot's part in it.

    Args:
        pixels: (3, height, width) uint8.
        position: (n, 3) of its tokens: row and column in [0, 1].
        slots: the shown slots.
        span: the tokens of this picture among all.
    """
    step = max(1, math.ceil(max(pixels.shape[1:]) / _PIXELS))
    colored = pixels[:, ::step, ::step].permute(1, 2, 0)
    pale = (150 + 0.4 * colored.float().mean(dim=2)).byte()[..., None].expand(-1, -1, 3)
    height, width = colored.shape[:2]
    boxes = [
        (left * width, top * height, across * width, down * height)
        for left, top, across, down in _cells(position)
    ]
    makeup, owner = slots.makeup[:, span], slots.owner[span]
    largest = max(float(makeup.max()), 1e-12)
    numbered = len(boxes) <= _LEGIBLE

    def whole(axes: "Axes") -> None:
        axes.imshow(colored.numpy())
        for box, place in zip(boxes, owner, strict=True):
            _shade(axes, box, slots.color(place), 0.45, slots.name(place) if numbered else "")
        axes.set_title("strongest slot", fontsize=9)

    def single(axes: "Axes", place: int) -> None:
        axes.imshow(pale.numpy())
        for box, part in zip(boxes, makeup[place].tolist(), strict=True):
            words = f"{100 * part:.0f} %" if numbered and len(boxes) <= _LEGIBLE // 4 else ""
            _shade(axes, box, slots.color(place), _SHADE * part / largest, words)
        axes.set_title(
            f"slot {slots.name(place)}: {100 * float(makeup[place].sum()):.0f} %", fontsize=9
        )

    def paint(figure: "Figure") -> None:
        panels = _panels(figure, len(makeup) + 1)
        whole(next(panels))
        for place, axes in enumerate(panels):
            single(axes, place)

    rows = math.ceil((len(makeup) + 1) / _COLUMNS)
    aspect = min(max(height / width, 0.4), 2.0)
    return Drawing(paint, (_WIDTH, rows * (_WIDTH / _COLUMNS * aspect + 0.3)))


def sound_drawing(
    waveform: Tensor, rate: int, position: Tensor, slots: ShownSlots, span: slice
) -> Drawing:
    """A waveform in the colours of the strongest slots; below it, each slot's part in it.

    Args:
        waveform: (channels, samples).
        rate: in Hz.
        position: (n, 3) of its tokens: seconds at which they start.
        slots: the shown slots.
        span: the tokens of this sound among all.
    """
    spans = _spans(position[:, 0], waveform.shape[1] / rate)
    makeup, owner = slots.makeup[:, span], slots.owner[span]
    largest = max(float(makeup.max()), 1e-12)

    def paint(figure: "Figure") -> None:
        ratios = [2.2, max(0.22 * len(makeup), 0.4)]
        top, below = figure.subplots(2, 1, sharex=True, height_ratios=ratios)
        time, low, high = _envelope(waveform, rate)
        top.fill_between(time, low, high, color=_UNHEARD, linewidth=0)
        for (start, end), place in zip(spans, owner, strict=True):
            inside = [start - time[-1] / _BINS <= t <= end for t in time]  # no gap between two
            top.fill_between(time, low, high, where=inside, color=slots.color(place), linewidth=0)
        top.set(yticks=[], ylabel="sound")
        numbers = range(len(makeup))
        for place in numbers:
            for (start, end), part in zip(spans, makeup[place].tolist(), strict=True):
                color = (slots.color(place), part / largest)
                below.barh(place, end - start, 0.9, start, color=color, linewidth=0)
        below.set_yticks(numbers, [slots.name(place) for place in numbers], fontsize=8)
        below.set(xlabel="seconds", ylabel="slot")
        below.invert_yaxis()
        below.grid(False, axis="y")

    return Drawing(paint, (_WIDTH, 1.9 + 0.16 * len(makeup)))


def table_drawing(makeup: Tensor, names: Sequence[str], lengths: Sequence[int]) -> Drawing:
    """Every slot of every head against every token; brighter is more of the slot.

    Args:
        makeup: (H, K, N) what part of a slot comes from each token.
        names: of the modalities, in the order of their tokens.
        lengths: their numbers of tokens.
    """
    num_heads, num_slots, _ = makeup.shape
    rows = makeup.flatten(0, 1)
    shade = rows / rows.amax(dim=1, keepdim=True).clamp(min=1e-12)

    def paint(figure: "Figure") -> None:
        axes = figure.add_subplot()
        axes.imshow(shade.numpy(), cmap="cividis", aspect="auto", interpolation="nearest")
        ends = [sum(lengths[: index + 1]) for index in range(len(lengths))]
        for end in ends[:-1]:
            axes.axvline(end - 0.5, color="white", linewidth=2)
        for head in range(1, num_heads):
            axes.axhline(head * num_slots - 0.5, color="white", linewidth=2)
        middles = [end - length / 2 - 0.5 for end, length in zip(ends, lengths, strict=True)]
        axes.set_xticks(middles, names)
        heads = [(head + 0.5) * num_slots - 0.5 for head in range(num_heads)]
        axes.set_yticks(heads, [f"head {head + 1}" for head in range(num_heads)])
        axes.tick_params(length=0)
        axes.grid(False)

    return Drawing(paint)


def _panels(figure: "Figure", num: int) -> "Iterator[Axes]":
    """The first few axes of a grid, without ticks."""
    grid = figure.subplots(math.ceil(num / _COLUMNS), _COLUMNS, squeeze=False)
    for index, axes in enumerate(grid.flat):
        axes.axis("off")
        if index < num:
            yield axes


def _shade(axes: "Axes", box: Box, color: str, alpha: float, words: str) -> None:
    from matplotlib.patches import Rectangle

    left, top, width, height = box
    corner = (left - 0.5, top - 0.5)
    axes.add_patch(Rectangle(corner, width, height, color=(color, alpha), linewidth=0))
    axes.add_patch(Rectangle(corner, width, height, fill=False, color="white", linewidth=0.8))
    if words:
        middle = (left + width / 2 - 0.5, top + height / 2 - 0.5)
        around = {"boxstyle": "round,pad=0.15", "facecolor": "white", "alpha": 0.8, "linewidth": 0}
        axes.text(*middle, words, ha="center", va="center", fontsize=7.5, bbox=around)


def _cells(position: Tensor) -> list[Box]:
    """The cell around each token of a picture, in shares of its sides."""
    rows, columns = (_edges(position[:, axis]) for axis in (1, 2))
    boxes = []
    for _, row, column in position.tolist():
        (top, bottom), (left, right) = rows[row], columns[column]
        boxes.append((left, top, right - left, bottom - top))
    return boxes


def _edges(centres: Tensor) -> dict[float, tuple[float, float]]:
    """Each different centre in [0, 1] with the borders half way to its neighbours."""
    known = sorted(set(centres.tolist()))
    borders = [0.0, *((a + b) / 2 for a, b in zip(known, known[1:], strict=False)), 1.0]
    return {c: (borders[i], borders[i + 1]) for i, c in enumerate(known)}


def _spans(starts: Tensor, duration: float) -> list[tuple[float, float]]:
    """Start and end of each token of a sound; the last is as long as the one before."""
    known = sorted(set(starts.tolist()))
    step = known[-1] - known[-2] if len(known) > 1 else duration
    ends = dict(zip(known, [*known[1:], known[-1] + step], strict=True))
    return [(min(s, duration), min(ends[s], duration)) for s in starts.tolist()]


def _envelope(waveform: Tensor, rate: int) -> tuple[list[float], list[float], list[float]]:
    """Times, and the lowest and highest sample around each."""
    mono = waveform.float().mean(dim=0)
    bins = torch.tensor_split(mono, min(_BINS, len(mono)))
    time = torch.linspace(0, len(mono) / rate, len(bins)).tolist()
    return time, [float(b.min()) for b in bins], [float(b.max()) for b in bins]
