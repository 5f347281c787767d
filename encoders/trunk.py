"""Any network of pictures as a trunk: its features as tokens, and which weights make them.

Letters: P pictures, N tokens, C channels, H x W cells.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from encoders.picture import Size, cell_positions


class Layout(NamedTuple):
    """How the features of a trunk lie in memory.

    Attributes:
        dim: Channels C, the width of the tokens.
        grid: (H, W).
        num_whole: Tokens of the whole picture before those of the cells.
        axes: Of the features: "NC" is (P, N, C), "CHW" (P, C, H, W), "HWC" (P, H, W, C).
    """

    dim: int
    grid: Size
    num_whole: int
    axes: str

    @property
    def places(self) -> Tensor:
        """Position (N, 3) of each token."""
        return cell_positions(*self.grid, num_whole=self.num_whole)

    def tokens(self, features: Tensor) -> Tensor:
        """Features as tokens (P, N, C)."""
        if self.axes == "CHW":
            return features.flatten(2).transpose(1, 2)
        return features.flatten(1, -2)

    def features(self, tokens: Tensor) -> Tensor:
        """Tokens (P, N, C) as the features they were."""
        if self.axes == "CHW":
            return tokens.transpose(1, 2).unflatten(2, self.grid)
        return tokens.unflatten(1, self.grid) if self.axes == "HWC" else tokens


def survey(trunk: nn.Module, size: Size, dim: int | None = None, num_whole: int = 0) -> Layout:
    """Find how a trunk lays out its features, and hold the weights that they do not depend on.

    The trunk runs on tensors without content, which costs nothing. Weights of pooling and heads
    stop requiring grad: nothing would train them.

    Args:
        trunk: Turns pictures (P, 3, height, width) into features; changed in place.
        size: (height, width) of the pictures.
        dim: Channels of the features; None where those on a grid have their channels first.
        num_whole: Tokens of the whole picture that come first, such as a class token.

    Raises:
        ValueError: If the features are no tokens on a grid.
    """
    weights = {n: torch.empty_like(p, device="meta") for n, p in trunk.named_parameters()}
    buffers = {n: torch.empty_like(b, device="meta") for n, b in trunk.named_buffers()}
    mode = trunk.training
    with torch.enable_grad():
        for weight in weights.values():
            weight.requires_grad_()
        pictures = torch.empty(2, 3, *size, device="meta")
        features = functional_call(trunk.eval(), {**weights, **buffers}, (pictures,))
        if not isinstance(features, Tensor):
            raise ValueError("Got a backbone with features of several sizes; choose another.")
        grads = torch.autograd.grad(features.sum(), list(weights.values()), allow_unused=True)
    trunk.train(mode)
    for parameter, grad in zip(trunk.parameters(), grads, strict=True):
        parameter.requires_grad_(grad is not None)
    shape = tuple(features.shape[1:])
    return _layout(shape, size, dim or shape[0 if len(shape) == 3 else -1], num_whole)


def _layout(shape: tuple[int, ...], size: Size, dim: int, num_whole: int) -> Layout:
    if len(shape) == 3 and dim in (shape[0], shape[2]):
        axes = "CHW" if shape[0] == dim else "HWC"
        height, width = (shape[axes.index(axis)] for axis in "HW")
        return Layout(dim, (height, width), 0, axes)
    if len(shape) == 2 and shape[1] == dim and shape[0] > num_whole:
        num_cells = shape[0] - num_whole
        rows = max(1, round((num_cells * size[0] / size[1]) ** 0.5))
        if num_cells % rows == 0:
            return Layout(dim, (rows, num_cells // rows), num_whole, "NC")
    raise ValueError(
        f"Got a backbone with features {shape} for pictures of {size} pixels, which are no grid "
        f"of width {dim}; choose another."
    )
