"""What is explained, as plain data.

Shapes: n tokens of one part.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fusion.diagnostics import Trajectory


@dataclass(frozen=True)
class Piece:
    """What a token of a text stands for.

    Attributes:
        text: a word or a part of one.
        joined: it goes on with the word before it.
        mark: it is no text, but the mark of the start or the end.
    """

    text: str
    joined: bool = False
    mark: bool = False


@dataclass(frozen=True)
class Part:
    """One modality of a sample.

    Attributes:
        modality: its name.
        raw: what its tokens are drawn over: a uint8 tensor (3, height, width) for an image,
            (waveform (channels, samples), rate in Hz) for audio, n `Piece` for text; anything
            for other modalities, whose tokens are shown by their number.
        position: (n, 3) of its tokens: seconds, row, column.
    """

    modality: str
    raw: Any
    position: Tensor


@dataclass(frozen=True)
class Exhibit:
    """One sample.

    Attributes:
        title: its name.
        parts: its modalities, in the order of their tokens; all tokens are real.
        blocks: the iteration of each fusion block, first to last, each of this sample alone.
    """

    title: str
    parts: Sequence[Part]
    blocks: Sequence[Trajectory]
