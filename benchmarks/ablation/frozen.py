"""Tokens of frozen towers, made once and brought to one width in closed form.

Pictures go through EfficientNet-Lite0 at 96 pixels, words through MiniLM. The words' principal
directions are the space; pictures (and sounds) start at the ridge regression onto it, as `align`
does for a model. Nothing here trains, so all ways of fusing get the same tokens to the bit.

Shapes: S samples, N tokens, E width of a tower, D width of the space.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from benchmarks.ablation.fusions import Part
from encoders import EfficientNetLite, MiniLM, TokenCache
from fusion.alignment import LinearMap, ridge_regression
from fusion.layers import masked_mean

SIDE, GRID, PIECES = 96, 2, 12
WINDOW = 0.15  # share of the area that an occluded picture shows
STRENGTH = 0.01  # of the ridge, for each sample


class Towers:
    """Frozen towers whose tokens are kept in a folder."""

    def __init__(self, folder: Path) -> None:
        self.image, self.text = EfficientNetLite(SIDE, GRID), MiniLM(PIECES)
        self.cache = TokenCache(folder)

    def see(self, keys: Sequence[str], load: Callable[[int], Tensor]) -> Part:
        """Tokens (S, N, E) of the pictures (3, H, W) uint8 that `load` gives by index."""
        return _part(
            self.cache.encode(self.image, keys, lambda index: self.image.transform(load(index)))
        )

    def read(self, texts: Sequence[str]) -> Part:
        """Tokens (S, N, E) of texts."""
        return _part(
            self.cache.encode(self.text, texts, lambda index: self.text.transform(texts[index]))
        )


def _part(tokens: Sequence[tuple[Tensor, Tensor]]) -> Part:
    values, positions = zip(*tokens, strict=True)
    length = torch.tensor([len(value) for value in values])
    mask = torch.arange(int(length.max())) < length[:, None]
    return Part(pad_sequence(list(values), True), mask, pad_sequence(list(positions), True))


def window(picture: Tensor, generator: Generator) -> Tensor:
    """A picture (3, H, W) uint8, white outside a window near its middle.

    What is hidden is gone before a tower sees the picture, whatever its receptive field.
    """
    height, width = (round(side * WINDOW**0.5) for side in picture.shape[1:])
    share = torch.rand(2, generator=generator) * 0.5 + 0.25
    top = int(share[0] * (picture.shape[1] - height))
    left = int(share[1] * (picture.shape[2] - width))
    seen = torch.full_like(picture, 255)
    part = slice(top, top + height), slice(left, left + width)
    seen[:, *part] = picture[:, *part]
    return seen


class Space(NamedTuple):
    """The maps into the space of width D; each is (E -> D).

    Attributes:
        text: onto the principal directions of the texts.
        other: of pictures or sounds, onto where their texts lie.
    """

    text: LinearMap
    other: dict[str, LinearMap]


def fit_space(text: Part, others: dict[str, tuple[Part, Tensor]], dim: int) -> Space:
    """Fits it to pairs that are trained on.

    Args:
        text: tokens (S, N, E) of the texts.
        others: for each other modality its tokens (T, N, E), and the index (T,) of their texts.
        dim: D.
    """
    means = masked_mean(text.values.float(), text.mask)
    center = means.mean(0)
    _, _, directions = torch.linalg.svd(means - center)
    onto = LinearMap(directions[:dim], center, torch.zeros(dim))
    where = F.normalize(onto(means), dim=-1)
    maps = {}
    for name, (part, index) in others.items():
        source = masked_mean(part.values.float(), part.mask)
        strength = STRENGTH * float(source.var(0).sum()) * len(source) / source.shape[1]
        maps[name] = ridge_regression(source, where[index], torch.ones(len(source)), strength)
    return Space(onto, maps)


def into(part: Part, onto: LinearMap) -> Part:
    """Tokens (S, N, D), such that the mean of each sample is a unit vector."""
    values = onto(part.values.float())
    length = masked_mean(values, part.mask).norm(dim=-1)[:, None, None].clamp(min=1e-6)
    values = torch.where(part.mask[..., None], values / length, 0)
    return part._replace(values=values)
