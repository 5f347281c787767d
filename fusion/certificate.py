"""What a contraction factor promises about a fixed-point iteration (Banach's theorem).

For z <- G(z) with |G(z) - G(y)| <= q |z - y| and q < 1 there is one fixed point z*, reached from
any start. All functions are elementwise over samples and return inf where q promises nothing.
"""

import math

import torch
from torch import Tensor


def spectral_norm_bound(matrix: Tensor) -> Tensor:
    """Largest factor by which each matrix can stretch a vector: its exact 2-norm.

    Args:
        matrix: (..., n, n).

    Returns:
        (...) norms, in float32 or better; differentiable.
    """
    precise = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    return torch.linalg.matrix_norm(precise, ord=2)


def error_bound(q: Tensor, residual: Tensor) -> Tensor:
    """A-posteriori distance to the fixed point: |z_t - z*| <= q/(1-q) |z_t - z_{t-1}|.

    Args:
        q: contraction factors.
        residual: sizes of the last step, of the same shape.

    Returns:
        Bounds of that shape; inf where q >= 1 or the residual is not finite.
    """
    known = (q < 1) & residual.isfinite()
    return torch.where(known, q / (1 - q) * residual, math.inf)


def max_rounds(q: Tensor, tol: float, first_step: Tensor) -> Tensor:
    """Round by which the stop test has fired and the error is below `tol`.

    From |z_t - z*| <= q^t/(1-q) D and |z_t - z_{t-1}| <= q^(t-1) D with D the first step: one
    round more than ln(tol (1-q) / D) / ln q.

    Args:
        q: contraction factors.
        tol: tolerance of the stop test, above 0.
        first_step: D, of the shape of `q`.

    Returns:
        Numbers of rounds (float, whole) of that shape; inf where q >= 1.
    """
    tiny = torch.finfo(q.dtype).tiny  # q = 0 still takes a second round to see that it stands
    rounds = torch.log(tol * (1 - q) / first_step) / torch.log(q.clamp(min=tiny))
    return torch.where(q < 1, rounds.floor().clamp(min=-1) + 2, math.inf)
