"""What all picture towers share: transforms, normalisation, and tokens on a grid of places.

Letters: B batch, L pictures of a sample, P real pictures, H x W pixels, N tokens of a picture.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.base import EncoderOutput

Size = tuple[int, int]
_LONGEST = 8  # times the shorter side; beyond that a picture's ends are never seen


@final
@dataclass(frozen=True)
class FitPicture:
    """Scales a picture, then crops or pads it around its centre.

    Args:
        size: (height, width) of the result in pixels.
        scaled: (height, width) that the picture is scaled to before cropping; None is `size`.
        fit: "squash" scales to exactly `scaled`, "shortest" covers it and "longest" lies inside
            it, both keeping the aspect ratio.
        interpolation: "bicubic" or "bilinear", both antialiased.
        fill: RGB value of what is padded.
    """

    size: Size
    scaled: Size | None = None
    fit: Literal["squash", "shortest", "longest"] = "squash"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    fill: tuple[int, int, int] = (0, 0, 0)

    def __call__(self, raw: Tensor) -> Tensor:
        """Turn a picture (3, H, W) uint8 into (1, 3, height, width) uint8.

        Raises:
            ValueError: If `raw` is not such a picture.
        """
        _check_picture(raw)
        target = self.scaled or self.size
        if self.fit == "shortest":
            raw = _crop(raw, *(min(n, _LONGEST * min(raw.shape[1:])) for n in raw.shape[1:]))
        scaled = _scale(raw, self._scaled(raw.shape[1], raw.shape[2], target), self.interpolation)
        return _crop(self._pad(scaled), *self.size)[None]

    def _scaled(self, height: int, width: int, target: Size) -> Size:
        if self.fit == "squash":
            return target
        by_height = target[0] * width, target[1] * height  # compared without rounding
        if (by_height[0] >= by_height[1]) == (self.fit == "shortest"):
            other = target[0] * width / height
            return target[0], max(1, int(other) if self.fit == "shortest" else round(other))
        other = target[1] * height / width
        return max(1, int(other) if self.fit == "shortest" else round(other)), target[1]

    def _pad(self, picture: Tensor) -> Tensor:
        missing = [max(0, n - m) for n, m in zip(self.size, picture.shape[1:], strict=True)]
        if not any(missing):
            return picture
        height, width = (m + n for m, n in zip(picture.shape[1:], missing, strict=True))
        canvas = picture.new_tensor(self.fill)[:, None, None].repeat(1, height, width)
        top, left = (m // 2 for m in missing)
        canvas[:, top : top + picture.shape[1], left : left + picture.shape[2]] = picture
        return canvas


@final
@dataclass(frozen=True)
class RandomCrop:
    """Cuts a random part out of a picture and scales it (Szegedy et al. 2014, arXiv:1409.4842).

    The part is large, as in training of CLIP, so that the caption stays true; nothing is mirrored,
    since captions tell left from right.

    Args:
        size: (height, width) of the result in pixels.
        interpolation: "bicubic" or "bilinear", both antialiased.
        min_area: Smallest share of the picture's area.
    """

    size: Size
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    min_area: float = 0.9

    def __call__(self, raw: Tensor) -> Tensor:
        """Turn a picture (3, H, W) uint8 into (1, 3, height, width) uint8, at random.

        Raises:
            ValueError: If `raw` is not such a picture.
        """
        _check_picture(raw)
        draws = torch.rand(4).tolist()
        area = raw.shape[1] * raw.shape[2] * (self.min_area + (1 - self.min_area) * draws[0])
        aspect = (3 / 4) ** (1 - 2 * draws[1])  # width to height, 3:4 to 4:3, even in its log
        height = min(raw.shape[1], max(1, round((area / aspect) ** 0.5)))
        width = min(raw.shape[2], max(1, round((area * aspect) ** 0.5)))
        top = int(draws[2] * (raw.shape[1] - height + 1))
        left = int(draws[3] * (raw.shape[2] - width + 1))
        part = raw[:, top : top + height, left : left + width]
        return _scale(part, self.size, self.interpolation)[None]


def _check_picture(raw: Tensor) -> None:
    if raw.dtype != torch.uint8 or raw.ndim != 3 or raw.shape[0] != 3 or raw.numel() == 0:
        raise ValueError(
            f"An image must be uint8 RGB of shape (3, height, width), got {raw.dtype} "
            f"{tuple(raw.shape)}; decode it to RGB first."
        )


def _scale(picture: Tensor, size: Size, interpolation: str) -> Tensor:
    return F.interpolate(picture[None], size, mode=interpolation, antialias=True)[0]


def _crop(picture: Tensor, height: int, width: int) -> Tensor:
    top = round((picture.shape[1] - height) / 2)
    left = round((picture.shape[2] - width) / 2)
    return picture[:, top : top + height, left : left + width]


class Recipe(NamedTuple):
    """How pictures were made ready for some weights.

    Attributes:
        transform: For evaluation.
        augment: For training.
        mean: RGB mean, of pixels in [0, 1].
        std: RGB deviation.
    """

    transform: FitPicture
    augment: RandomCrop
    mean: tuple[float, ...]
    std: tuple[float, ...]


def recipe(transform: FitPicture, mean: tuple[float, ...], std: tuple[float, ...]) -> Recipe:
    """A recipe whose training pictures have the size and the interpolation of the others."""
    augment = RandomCrop(transform.size, transform.interpolation)
    return Recipe(transform, augment, tuple(mean), tuple(std))


@final
class Normalise(nn.Module):
    """Bytes to the numbers that weights were trained on.

    Args:
        mean: RGB mean, of pixels in [0, 1].
        std: RGB deviation.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)
        self.settings = f"mean={mean}, std={std}"

    def forward(self, pictures: Tensor) -> Tensor:
        """Turn (P, 3, H, W) uint8 into as many numbers."""
        return (pictures / 255 - self.get_buffer("mean")) / self.get_buffer("std")

    def extra_repr(self) -> str:
        """The settings."""
        return self.settings


def real_pictures(inputs: Tensor, mask: Tensor) -> Tensor:
    """The pictures (P, 3, H, W) that are real, or one black picture if none is."""
    return inputs[mask] if mask.any() else torch.zeros_like(inputs[:1, 0])


def place_tokens(tokens: Tensor, mask: Tensor, places: Tensor) -> EncoderOutput:
    """Tokens of the real pictures, each sample's one after the other.

    Args:
        tokens: (P, N, dim), or of one picture that counts for nothing if none is real.
        mask: (B, L) bool.
        places: (N, 3) position of the tokens of a picture.
    """
    values = tokens.new_zeros(*mask.shape, *tokens.shape[1:])
    values = values.index_put((mask,), tokens[: int(mask.sum())])
    return EncoderOutput(
        values.flatten(1, 2),
        mask.repeat_interleave(len(places), dim=1),
        places.float().repeat(*mask.shape, 1),
    )


def cell_positions(num_rows: int, num_columns: int, num_whole: int = 0) -> Tensor:
    """Centres of a grid of cells, row by row, as (0, row, column).

    Args:
        num_rows: Rows of the grid.
        num_columns: Columns of the grid.
        num_whole: Tokens of the whole picture, before those of the cells; on row 0, where no cell
            has its centre.

    Returns:
        (num_whole + rows * columns, 3).
    """
    row = ((torch.arange(num_rows) + 0.5) / num_rows).repeat_interleave(num_columns)
    column = ((torch.arange(num_columns) + 0.5) / num_columns).repeat(num_rows)
    whole = torch.arange(num_whole) / max(1, num_whole)
    row, column = torch.cat([torch.zeros(num_whole), row]), torch.cat([whole, column])
    return torch.stack([torch.zeros_like(row), row, column], dim=1)
