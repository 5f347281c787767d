"""Contrastive losses over pairs of embeddings.

Shapes: B batch, D width. Rows are unit vectors; `logit_scale` is the multiplier itself, not its
logarithm.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def contrastive_loss(
    a: Tensor, b: Tensor, logit_scale: Tensor | float, group_id: Tensor | None = None
) -> Tensor:
    """Symmetric InfoNCE with several positives (van den Oord et al. 2018, arXiv:1807.03748, eq. 4,
    in both directions as Radford et al. 2021, arXiv:2103.00020, figure 3).

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
    target = _positives(a, b, group_id).to(a.dtype)
    target = target / target.sum(dim=1, keepdim=True)
    logits = logit_scale * a @ b.T
    forth = -(target * logits.log_softmax(dim=1)).sum(dim=1).mean()
    back = -(target * logits.T.log_softmax(dim=1)).sum(dim=1).mean()
    return (forth + back) / 2


def sigmoid_loss(
    a: Tensor,
    b: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float,
    group_id: Tensor | None = None,
) -> Tensor:
    """Pairwise sigmoid loss (SigLIP: Zhai et al. 2023, arXiv:2303.15343, algorithm 1).

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
    positive = _positives(a, b, group_id)
    logits = logit_scale * a @ b.T + logit_bias
    sign = torch.where(positive, 1.0, -1.0).to(logits.dtype)
    return -F.logsigmoid(sign * logits).sum() / len(a)


def _positives(a: Tensor, b: Tensor, group_id: Tensor | None) -> Tensor:
    if a.dim() != 2 or a.shape != b.shape or not len(a):
        raise ValueError(
            f"Got embeddings of shapes {tuple(a.shape)} and {tuple(b.shape)}; give two of one "
            "shape (B, D) with B >= 1."
        )
    if group_id is None:
        return torch.eye(len(a), dtype=torch.bool, device=a.device)
    if group_id.shape != a.shape[:1]:
        raise ValueError(
            f"Got group_id of shape {tuple(group_id.shape)} for {len(a)} samples; give one id "
            "per sample."
        )
    return group_id[:, None] == group_id[None, :]
