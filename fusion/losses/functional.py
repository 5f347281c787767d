"""The losses as functions of one process, with a temperature of the caller's.

Shapes: B batch, D width. Rows are unit vectors; `logit_scale` is the multiplier itself, not its
logarithm.
"""

import torch
from torch import Tensor

from fusion.losses.info_nce import info_nce_tally
from fusion.losses.rows import Block, Rows
from fusion.losses.sigmoid import sigmoid_tally


def contrastive_loss(
    a: Tensor, b: Tensor, logit_scale: Tensor | float, group_id: Tensor | None = None
) -> Tensor:
    """Symmetric InfoNCE with several positives; see `InfoNCE`.

    Args:
        a: (B, D) unit rows.
        b: (B, D) unit rows; row i belongs to row i of `a`.
        logit_scale: multiplier of the cosines.
        group_id: (B,) samples with equal ids are each other's positives, the target being uniform
            over them. None: only row i matches row i.

    Returns:
        Scalar; ln(B) for embeddings that know nothing, when all groups are distinct.

    Raises:
        ValueError: if the shapes do not fit.
    """
    query, target = _blocks(a, b, group_id)
    logits = (logit_scale * query.values) @ target.values.T
    _, positive = query.relate(target)
    forth = info_nce_tally(logits, None, positive).cost().mean()
    back = info_nce_tally(logits.T, None, positive.T).cost().mean()
    return (forth + back) / 2


def sigmoid_loss(
    a: Tensor,
    b: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float,
    group_id: Tensor | None = None,
) -> Tensor:
    """Pairwise sigmoid loss; see `SigmoidLoss`.

    Args:
        a: (B, D) unit rows.
        b: (B, D) unit rows; row i belongs to row i of `a`.
        logit_scale: multiplier of the cosines.
        logit_bias: added to every logit; -10 is a good start.
        group_id: (B,) samples with equal ids are each other's positives. None: only row i
            matches row i.

    Returns:
        Scalar, the sum over pairs divided by B.

    Raises:
        ValueError: if the shapes do not fit.
    """
    query, target = _blocks(a, b, group_id)
    return sigmoid_tally(query, target, logit_scale, logit_bias).cost().mean()


def _blocks(a: Tensor, b: Tensor, group_id: Tensor | None) -> tuple[Block, Block]:
    if a.dim() != 2 or a.shape != b.shape or not len(a):
        raise ValueError(
            f"Got embeddings of shapes {tuple(a.shape)} and {tuple(b.shape)}; give two of one "
            "shape (B, D) with B >= 1."
        )
    ids = torch.arange(len(a), device=a.device) if group_id is None else group_id
    if ids.shape != a.shape[:1]:
        raise ValueError(
            f"Got group_id of shape {tuple(ids.shape)} for {len(a)} samples; give one id per "
            "sample."
        )
    return Rows(a, ids).block(), Rows(b, ids).block()
