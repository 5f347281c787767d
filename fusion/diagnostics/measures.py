"""Measures of latents, context and weights that a person can read.

Shapes: B batch, N tokens, H heads, K slots, d width of a head (real pairs, see `fusion.phase`),
T rounds. Rows that are not real or not finite count nowhere; a sample without any other has zeros.
"""

import math

import torch
from torch import Tensor

from fusion.accom import Weights

CLUSTER_DEGREES = 30.0
"""Two tokens at most this far apart in direction are linked."""


def slot_weights(weights: Weights, like: Tensor, mask: Tensor) -> Tensor:
    """How much each token adds to each slot: what `gather` makes of one-hot tokens.

    Holds for any gathering that is linear in the tokens, up to a constant.

    Args:
        weights: of one round.
        like: (B, H, N, d) tokens that give shape, dtype and device.
        mask: (B, N) bool, True = real token.

    Returns:
        (B, H, K, N), 0 for tokens that are not real.
    """
    num_tokens, width = like.shape[2:]
    constant = weights.gather(torch.zeros_like(like))
    columns = []
    for start in range(0, num_tokens, width):
        index = torch.arange(start, min(start + width, num_tokens), device=like.device)
        one_hot = torch.zeros_like(like)
        one_hot[:, :, index, index - start] = 1
        columns.append((weights.gather(one_hot) - constant)[..., : len(index)])
    found = torch.cat(columns, dim=-1)
    return torch.where(mask[:, None, None] & found.isfinite(), found, 0)


def slot_shares(weights: Tensor) -> Tensor:
    """Which slots a token belongs to: its absolute weights, sum 1 over the slots of a head.

    Args:
        weights: (B, H, K, N) `slot_weights`.

    Returns:
        (B, H, K, N); 0 for a token without weight.
    """
    size = weights.abs()
    return size / _or_one(size.sum(dim=2, keepdim=True))


def ambiguity(weights: Tensor, mask: Tensor) -> Tensor:
    """How undecided tokens are between slots: entropy of `slot_shares` over its largest, ln K.

    Args:
        weights: (B, H, K, N) `slot_weights`.
        mask: (B, N) bool, True = real token.

    Returns:
        (B, H) in [0, 1], a mean over the real tokens: 0 if each has one slot, or there is only
        one, and 1 if each is spread evenly.
    """
    shares = slot_shares(weights)
    entropy = torch.special.entr(shares).sum(dim=2) / math.log(max(shares.shape[2], 2))
    real = mask.unsqueeze(1)
    return torch.where(real, entropy, 0).sum(-1) / real.sum(-1).clamp(min=1)


def order_parameter(context: Tensor) -> Tensor:
    """|C|: mean modulus of the complex channels of all slots, (..., H, K, d) -> (...)."""
    return _modulus(_finite(context)).mean(dim=(-3, -2, -1))


def phase_coherence(latents: Tensor, mask: Tensor) -> Tensor:
    """Kuramoto's order parameter, weighted by modulus: sum_c |sum_i z_ic| / sum_c sum_i |z_ic|.

    1 if, channel by channel, all tokens have one phase; about 1/sqrt(N) at random ones.

    Args:
        latents: (B, H, N, d).
        mask: (B, N) bool, True = real token.

    Returns:
        (B,) in [0, 1].
    """
    tokens = torch.where(mask[:, None, :, None], _finite(latents), 0)
    together = _modulus(tokens.sum(dim=2)).sum(dim=(1, 2))
    return together / _or_one(_modulus(tokens).sum(dim=(1, 2, 3)))


def effective_rank(latents: Tensor, mask: Tensor) -> Tensor:
    """exp of the entropy of the singular values over their sum (Roy and Vetterli, 2007).

    Args:
        latents: (B, H, N, d); a token is one real row of H d numbers.
        mask: (B, N) bool, True = real token.

    Returns:
        (B,) from 1, all tokens along one line, to min(N, H d); 0 if all are zero.
    """
    values = torch.linalg.svdvals(_rows(latents, mask))
    total = values.sum(dim=-1, keepdim=True)
    entropy = torch.special.entr(values / _or_one(total)).sum(dim=-1)
    return torch.where(total[:, 0] > 0, entropy.exp(), 0).to(latents.dtype)


def num_clusters(latents: Tensor, mask: Tensor, degrees: float = CLUSTER_DEGREES) -> Tensor:
    """Number of groups of tokens, linked where their directions differ by at most some degrees.

    Groups are connected components: a chain of links makes one group.

    Args:
        latents: (B, H, N, d); a token is one real row of H d numbers.
        mask: (B, N) bool, True = real token.
        degrees: largest angle of a link.

    Returns:
        (B,) int; zero tokens have no direction and no group.
    """
    rows = _rows(latents, mask)
    length = rows.norm(dim=-1, keepdim=True)
    unit = rows / _or_one(length)
    linked = unit @ unit.mT >= math.cos(math.radians(degrees))
    own = torch.arange(rows.shape[1], device=rows.device).expand(linked.shape[:2])
    label = own
    while True:  # every token takes the lowest label among its links until none changes
        lowest = torch.where(linked, label[:, None, :], rows.shape[1]).amin(dim=-1)
        lowest = torch.minimum(lowest, label)
        if torch.equal(lowest, label):
            break
        label = lowest
    return ((label == own) & (length[..., 0] > 0)).sum(dim=-1)


def strongest_channel(context: Tensor) -> Tensor:
    """The path of every slot in the complex channel that is strongest in its last round.

    Args:
        context: (T + 1, B, H, K, d).

    Returns:
        (T + 1, B, H, K, 2) real and imaginary part.
    """
    context = _finite(context)
    real, imag = context.chunk(2, dim=-1)
    channel = _modulus(context[-1]).argmax(dim=-1, keepdim=True).expand(*real.shape[:-1], 1)
    return torch.cat([real.gather(-1, channel), imag.gather(-1, channel)], dim=-1)


def _modulus(values: Tensor) -> Tensor:
    """(..., d) real pairs -> (..., d/2)."""
    return torch.hypot(*values.chunk(2, dim=-1))


def _finite(values: Tensor) -> Tensor:
    return torch.where(values.isfinite(), values, 0)


def _or_one(total: Tensor) -> Tensor:
    """What to divide by: 1 where the total is 0."""
    return torch.where(total > 0, total, 1)


def _rows(latents: Tensor, mask: Tensor) -> Tensor:
    """(B, H, N, d) -> (B, N, H d) float64, scaled to a largest entry of 1; 0 where not counted."""
    rows = latents.transpose(1, 2).flatten(2).double()
    counted = mask & rows.isfinite().all(dim=-1)
    rows = torch.where(counted.unsqueeze(-1), rows, 0)
    return rows / _or_one(rows.abs().amax(dim=(1, 2), keepdim=True))
