"""What a contraction factor promises about a fixed-point iteration (Banach's theorem).

For z <- G(z) with |G(z) - G(y)| <= q |z - y| and q < 1 there is one fixed point z*, reached from
any start. All functions are elementwise over samples and return inf where q promises nothing.
"""

import math

import torch
from torch import Tensor

_SQUARINGS = 9


def spectral_norm_bound(matrix: Tensor) -> Tensor:
    """Bound of the largest factor by which each matrix can stretch a vector, its 2-norm.

    With P = (A^T A)^(2^k), |A|_2 <= |P|_F ^ (1 / 2^(k+1)) <= n^(1 / 2^(k+2)) |A|_2 (Gelfand's
    formula; at most 0.3 % above for n = 512 with k = 9). Products alone: no decomposition, which
    takes milliseconds and waits for the host on a GPU.

    Args:
        matrix: (..., n, n).

    Returns:
        (...) bounds, in float32 or better; differentiable. The norm itself up to rounding where
        one direction stands out.
    """
    matrix = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    size = _frobenius(matrix)
    log, matrix = size.log(), matrix / size
    power = matrix.mT @ matrix
    for k in range(_SQUARINGS):
        size = _frobenius(power)
        log = log + size.log() / 2 ** (k + 1)
        power = power / size
        power = power @ power
    log = log + _frobenius(power).log() / 2 ** (_SQUARINGS + 1)
    return log.exp()[..., 0, 0]


def _frobenius(matrix: Tensor) -> Tensor:
    """(..., 1, 1), never 0."""
    norm = torch.linalg.matrix_norm(matrix, keepdim=True)
    return norm.clamp(min=torch.finfo(matrix.dtype).tiny)


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
