"""Contexts of contexts: long inputs are fused window by window, and their contexts in turn.

Shapes: B batch, N tokens, D width, W windows of a level, S tokens in a window, K context slots of
a window.
"""

from collections.abc import Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusion.block import FusionBlock
from fusion.layers import masked_mean
from fusion.solver import SolverStats
from fusion.tokens import Tokens


class Level(NamedTuple):
    """What one level of a pyramid did.

    Attributes:
        tokens: its tokens, refined: those that were given at the first level, above it the
            contexts of the level below, window by window and slot by slot.
        stats: per sample, that of its worst window: the most rounds, the largest residual, q and
            error bound; `converged` if all windows are. The error bound is the distance to the
            fixed point for the contexts that this level was given.
    """

    tokens: Tokens
    stats: SolverStats


class PyramidOutput(NamedTuple):
    """What a pyramid returns.

    Attributes:
        values: (B, N, D) tokens, each refined within its window; those that are not real are the
            input.
        context: (B, K, D) the one context at the top; 0 for a sample without tokens.
        levels: what each level did, from the tokens to the top.
    """

    values: Tensor
    context: Tensor
    levels: tuple[Level, ...]


@final
class ContextPyramid(nn.Module):
    """Fuses windows of consecutive tokens; their contexts are the tokens of the next level.

    Every window is fused as a sample of its own and stops on its own. Its context slots, placed
    at the mean position of its real tokens, become tokens of the level above, where a window
    takes whole contexts. The last block fuses all that is left into one context. A window without
    real tokens gives tokens that are not real, so padding at the end changes nothing.

    The cost is that of the windows: linear in N while the last level is short, even with an Accom
    of quadratic cost. A sample with NaN spoils no other.

    Args:
        blocks: one for each level, of one width D, each with a fixed number of context slots.
        windows: what one window takes: tokens at the first level, contexts of the level below
            at the others; one number less than blocks.

    Raises:
        ValueError: if blocks and windows do not fit, the widths differ, or a window is below 1.
    """

    def __init__(self, blocks: Sequence[FusionBlock], windows: Sequence[int]) -> None:
        super().__init__()
        if len(blocks) != len(windows) + 1 or min(windows, default=1) < 1:
            raise ValueError(
                f"Got {len(blocks)} blocks and windows {list(windows)}; give one block more than "
                "windows, which must be positive: the last block fuses all that is left."
            )
        widths = [block.dim for block in blocks]
        if len(set(widths)) > 1:
            raise ValueError(f"Got blocks of widths {widths}; give blocks of one width.")
        self.blocks = nn.ModuleList(blocks)
        self.windows = tuple(windows)

    def forward(
        self,
        values: Tensor,
        mask: Tensor,
        position: Tensor | None = None,
        modality: Tensor | None = None,
    ) -> PyramidOutput:
        """Fuses the tokens of each sample; arguments as in `FusionBlock.forward`.

        Args:
            values: (B, N, D) tokens, in the order in which windows shall cut them.
            mask: (B, N) bool, True = real token.
            position: (B, N, 3): seconds, row, column. None is the same as all zero.
            modality: (B, N) or (N,) int. None is the same as all zero, which contexts have too.

        Returns:
            Refined tokens, the context at the top, and each level with its statistics.

        Raises:
            ValueError: as `FusionBlock.forward`.
        """
        tokens = _gather(values, mask, position, modality)
        levels, slots, context = [], 1, values
        for block, window in zip(self.blocks, (*self.windows, None), strict=True):
            num_tokens = tokens.mask.shape[1]
            size = num_tokens if window is None else min(window * slots, num_tokens)
            windows = Tokens(*(_cut(part, size) for part in tokens))
            fused = block(*windows)
            refined = fused.values.reshape(len(values), -1, block.dim)[:, :num_tokens]
            real = windows.mask.any(dim=1).view(len(values), -(-num_tokens // size))
            levels.append(Level(tokens._replace(values=refined), _worst(fused.stats, real)))
            context, slots = fused.context, fused.context.shape[1]
            tokens = _above(windows, context, real)
        return PyramidOutput(levels[0].tokens.values, context, tuple(levels))


def _gather(
    values: Tensor, mask: Tensor, position: Tensor | None, modality: Tensor | None
) -> Tokens:
    """All of (B, N, ...), so that all can be cut alike."""
    shape = values.shape[:2]
    if position is None:
        position = mask.new_zeros(*shape, 3, dtype=torch.float32)
    if modality is None:
        modality = mask.new_zeros(shape[1:], dtype=torch.long)
    shapes = [tuple(part.shape) for part in (values, mask, position, modality)]
    if (
        values.dim() != 3
        or shape[1] == 0
        or shapes[1:3] != [shape, (*shape, 3)]
        or shapes[3] not in (shape, shape[1:])
    ):
        raise ValueError(
            f"Got values, mask, position and modality of shapes {shapes}; give (B, N, D), (B, N), "
            "(B, N, 3) and (B, N) or (N,), with N >= 1."
        )
    return Tokens(values, mask, position, modality.expand(shape))


def _cut(part: Tensor, size: int) -> Tensor:
    """(B, N, ...) -> (B W, S, ...), the last window filled up with zeros, which are not real."""
    missing = -part.shape[1] % size
    padded = F.pad(part, (*[0, 0] * (part.dim() - 2), 0, missing))
    return padded.reshape(-1, size, *part.shape[2:])


def _above(windows: Tokens, context: Tensor, real: Tensor) -> Tokens:
    """The contexts (B W, K, D) of windows as the tokens (B, W K, ...) of the next level."""
    slots = context.shape[1]
    mask = real.repeat_interleave(slots, dim=1)
    centre = masked_mean(windows.position, windows.mask).view(*real.shape, 3)
    return Tokens(
        values=context.reshape(*mask.shape, -1),
        mask=mask,
        position=centre.repeat_interleave(slots, dim=1),
        modality=mask.new_zeros(mask.shape, dtype=torch.long),
    )


def _worst(stats: SolverStats, real: Tensor) -> SolverStats:
    """The statistics (..., B W) of windows, as those of the worst real one (B, W) of a sample."""

    def worst(entry: Tensor) -> Tensor:
        entry = entry.unflatten(-1, real.shape)
        if entry.dtype == torch.bool:
            return (entry | ~real).all(dim=-1)
        return entry.masked_fill(~real, 0).amax(dim=-1)

    return SolverStats(*map(worst, stats))
