"""Tokens that share a context do not merge: angles between them, as on the sphere.

Shapes: B batch, H heads, N tokens, d width of a head.
"""

import pytest
import torch
from torch import Tensor

from fusion.assim.anchored import AnchoredUpdate

F64 = torch.float64
BATCH, NUM_HEADS = 4, 2
ONES = torch.ones(BATCH, NUM_HEADS, 1, 1, dtype=F64)


def angles(vectors: Tensor) -> Tensor:
    """(..., N, N) between all vectors, accurate for small ones as well."""
    unit = vectors / vectors.norm(dim=-1, keepdim=True)
    left, right = unit.unsqueeze(-3), unit.unsqueeze(-2)
    return 2 * torch.atan2((left - right).norm(dim=-1), (left + right).norm(dim=-1))


def angle_ratio(length: float, radius: float, dim_head: int, anchors: Tensor) -> float:
    """Smallest angle after a round over angle before, for unit anchors and |alpha K C| given."""
    anchors = anchors / anchors.norm(dim=-1, keepdim=True)
    pull = torch.randn(BATCH, NUM_HEADS, 1, dim_head, dtype=F64)
    pull = length * pull / pull.norm(dim=-1, keepdim=True)
    eye = torch.eye(dim_head, dtype=F64)[None]
    update = AnchoredUpdate(anchors, ONES, eye, ONES[:, 0, 0, 0], radius=radius)
    latents = update(anchors, pull, lambda slots: slots.expand_as(anchors))
    apart = ~torch.eye(anchors.shape[2], dtype=torch.bool)
    return (angles(latents)[..., apart] / angles(anchors)[..., apart]).min().item()


@pytest.mark.parametrize("length", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("radius", [1e-3, 1.0])
def test_angles_between_tokens_do_not_close(length: float, radius: float) -> None:
    """A8: angle(z_i, z_j) >= angle(x_i, x_j) / (1 + |alpha K C|), for unit anchors and a weaker
    context; at E = 1e-3 the latents are on the sphere to 1e-4. Tight in two dimensions."""
    torch.manual_seed(0)
    bound = 1 / (1 + length)
    wide = torch.randn(BATCH, NUM_HEADS, 100, 32, dtype=F64)
    assert angle_ratio(length, radius, 32, wide) >= bound
    angle = torch.linspace(0, 6.2, 200, dtype=F64)
    circle = torch.stack([angle.cos(), angle.sin()], dim=-1).expand(BATCH, NUM_HEADS, -1, -1)
    assert bound <= angle_ratio(length, radius, 2, circle) <= bound * 1.01


def test_a_context_stronger_than_the_anchors_merges_tokens() -> None:
    """Negative control of A8."""
    torch.manual_seed(0)
    angle = torch.linspace(0, 6.2, 200, dtype=F64)
    circle = torch.stack([angle.cos(), angle.sin()], dim=-1).expand(BATCH, NUM_HEADS, -1, -1)
    assert angle_ratio(2.0, 1e-3, 2, circle) < 0.1 / (1 + 2.0)
