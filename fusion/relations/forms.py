"""What follows from a relation: its longest chain, and the forms that kernels take it in.

Shapes: B batch, N tokens, E pairs that hold.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def longest_chain(relation: Tensor) -> Tensor | None:
    """Length of the longest chain of tokens in which each reads the one before.

    Costs a product of the relation with a vector for every token of that chain.

    Args:
        relation: (B, N, N) bool.

    Returns:
        (B,) int, 0 where nobody reads; None if in any sample tokens read each other, or
        themselves, in circles.
    """
    reads = relation.float()
    ends = torch.ones_like(reads[..., :1])  # tokens at which a chain of `length` steps ends
    length = relation.new_zeros(len(relation), dtype=torch.long)
    for _ in range(relation.shape[1]):
        ends = (reads @ ends > 0).to(reads.dtype)
        grows = ends.any(dim=1).squeeze(-1)
        if not grows.any():
            return length
        length = length + grows
    return None  # N steps pass through N + 1 tokens, so through one of them twice


def edge_list(relation: Tensor) -> Tensor:
    """The pairs of a relation (B, N, N) as rows (sample, i, j): (E, 3) int, in that order."""
    return relation.nonzero()


def block_mask(relation: Tensor, block_size: int) -> Tensor:
    """Which blocks of `block_size` x `block_size` pairs hold any pair of the relation.

    A kernel that skips empty blocks saves 1 - `density` of this; far less than the relation's
    own density suggests, unless tokens that read each other stand side by side.

    Args:
        relation: (B, N, N) bool.
        block_size: at least 1.

    Returns:
        (B, n, n) bool with n = N / block_size, rounded up.

    Raises:
        ValueError: if `block_size` is below 1.
    """
    if block_size < 1:
        raise ValueError(f"Got block_size={block_size}; give 1 or more tokens.")
    missing = -relation.shape[-1] % block_size
    padded = F.pad(relation, (0, missing, 0, missing))
    blocks = padded.unflatten(2, (-1, block_size)).unflatten(1, (-1, block_size))
    return blocks.any(dim=4).any(dim=2)


def density(relation: Tensor) -> Tensor:
    """Share (B,) of all pairs (or blocks) that hold."""
    return relation.float().mean(dim=(1, 2))
