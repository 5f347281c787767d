"""What stands between the gradients of a contrastive loss and the optimizer."""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.utils import clip_grad_norm_

from fusion.losses import ContrastiveLoss
from fusion.losses.exchange.ranks import count_ranks


class GradientNorms(NamedTuple):
    """Norms before clipping, scalars.

    Attributes:
        towers: of all parameters but those of contrastive losses.
        losses: of the temperatures and biases of contrastive losses.
    """

    towers: Tensor
    losses: Tensor


def clip_apart(module: nn.Module, max_norm: float) -> GradientNorms:
    """Clips the gradients of towers and of contrastive losses, each to a norm of their own.

    Under one norm a temperature with a large gradient would shorten the step of every tower, and
    the larger the batch in which it is summed, the more.

    Args:
        module: what is trained.
        max_norm: largest Euclidean norm of either group.

    Raises:
        ValueError: if the norm is not positive.
    """
    if not max_norm > 0:
        raise ValueError(f"Got max_norm={max_norm}; give a positive norm.")
    losses = [m for m in module.modules() if isinstance(m, ContrastiveLoss)]
    apart = {id(p): p for loss in losses for p in loss.parameters()}
    towers = [p for p in module.parameters() if id(p) not in apart]
    groups = towers, list(apart.values())
    norms = (clip_grad_norm_(group, max_norm) for group in groups)
    # Of weights that are split over ranks, torch gives the norm of all of them in a DTensor.
    return GradientNorms(*(getattr(norm, "full_tensor", lambda n=norm: n)() for norm in norms))


@torch.no_grad()
def all_finite(module: nn.Module, loss: Tensor) -> bool:
    """Whether the loss and all gradients are finite on every rank; the same answer on all.

    To be asked before the optimizer steps: one such step makes every weight NaN, for good.

    Args:
        module: what is trained.
        loss: scalar of this rank.
    """
    gradients = [_of_this_rank(p.grad) for p in module.parameters() if p.grad is not None]
    finite = torch.stack([value.isfinite().all() for value in (loss, *gradients)]).all().float()
    if count_ranks() > 1:
        dist.all_reduce(finite, dist.ReduceOp.MIN)
    return bool(finite)


def _of_this_rank(gradient: Tensor) -> Tensor:
    """The part that this rank holds, where a tensor is split over ranks."""
    return cast(Any, gradient).to_local() if hasattr(gradient, "to_local") else gradient
