"""The delta rule u_i = v_i - sum_{j<i} A_ij u_j, solved in four ways that agree.

As a linear system u = (I + A)^{-1} v with A strictly lower triangular, so there is one solution
for every A. Each token may take back what earlier ones wrote: states can be tracked, which an
average of the past cannot do (DeltaFormer, arXiv 2505.19488).

In all functions A is `coupling` (..., N, N), of which only the part below the diagonal is read,
and v is `values` (..., N, d) with the same leading dimensions. Results and gradients agree.

Shapes: N tokens, d width; leading dimensions are free, and treated one by one.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

MAX_ROUNDS = 32  # after so many, the chain is taken to be long
CHUNK_SIZE = 128

_Solve = Callable[[Tensor, Tensor], Tensor]


class JacobiSolution(NamedTuple):
    """What the iteration found.

    Attributes:
        values: (..., N, d) u.
        num_iters: (...) rounds until u stopped moving, or all.
        converged: (...) bool: it did stop.
    """

    values: Tensor
    num_iters: Tensor
    converged: Tensor


def solve_sequential(coupling: Tensor, values: Tensor) -> Tensor:
    """u (..., N, d), one token after the other: the definition, to compare with.

    Raises:
        ValueError: if the shapes do not fit.
    """
    _check(coupling, values)
    solved = values[..., :1, :]
    for i in range(1, values.shape[-2]):
        written = coupling[..., i : i + 1, :i] @ solved
        solved = torch.cat([solved, values[..., i : i + 1, :] - written], dim=-2)
    return solved


def solve_jacobi(
    coupling: Tensor, values: Tensor, tol: float | None = None, max_rounds: int | None = None
) -> JacobiSolution:
    """u by the fixed-point iteration u <- v - A u, all tokens at once.

    A is nilpotent: from u = v the round after the longest chain of non-zero couplings moves
    nothing, for any A; where row sums of |A| are q < 1, moves also shrink by q a round.

    Args:
        coupling: A.
        values: v.
        tol: stop when no row moves by more than this share of the largest row of v (2-norms);
            None is eight units of rounding.
        max_rounds: None is N, which is always enough in exact arithmetic.

    Raises:
        ValueError: if the shapes do not fit.
    """
    _check(coupling, values)
    tol = 8 * torch.finfo(values.dtype).eps if tol is None else tol
    rounds = values.shape[-2] if max_rounds is None else max_rounds
    lower = coupling.tril(-1)
    allowed = tol * _largest_row(values)
    solved = values
    live = torch.ones_like(allowed, dtype=torch.bool)
    converged, num_iters = ~live, torch.zeros_like(live, dtype=torch.long)
    for _ in range(rounds):
        proposal = values - lower @ solved
        move = _largest_row(proposal - solved)
        solved = torch.where(live[..., None, None], proposal, solved)
        num_iters = num_iters + live
        converged = converged | (live & (move <= allowed))
        live = live & (move > allowed)  # False for NaN: more rounds would not help
        if not live.any():
            break
    return JacobiSolution(solved, num_iters, converged)


def solve_chunked(coupling: Tensor, values: Tensor, chunk_size: int = CHUNK_SIZE) -> Tensor:
    """u (..., N, d) in N / chunk_size steps: what earlier chunks wrote, then a triangular solve.

    The gradient is that of the solution: one more solve, with the transpose of A.

    Raises:
        ValueError: if the shapes do not fit, or `chunk_size` is below 1.
    """
    _check(coupling, values)
    if chunk_size < 1:
        raise ValueError(f"Got chunk_size={chunk_size}; give 1 or more tokens.")
    return _Implicit.apply(coupling, values, partial(_chunked, chunk_size=chunk_size))


def solve_delta(coupling: Tensor, values: Tensor) -> Tensor:
    """u (..., N, d) by Jacobi rounds; where `MAX_ROUNDS` are not enough, by a chunked solve.

    A round is a full product with A, so this pays for short chains among thousands of tokens on a
    GPU; `solve_chunked` by itself is faster elsewhere. The gradient is that of the solution:
    memory does not grow with the rounds.

    Raises:
        ValueError: if the shapes do not fit.
    """
    _check(coupling, values)
    return _Implicit.apply(coupling, values, _jacobi_or_chunked)


class _Implicit(torch.autograd.Function):
    """u = (I + A)^{-1} v as a function of A and v, however it is solved."""

    @staticmethod
    def forward(ctx: Any, coupling: Tensor, values: Tensor, solve: _Solve) -> Tensor:
        # Triangular solves know no 16-bit types.
        dtype = torch.promote_types(values.dtype, torch.float32)
        solved = solve(coupling.to(dtype), values.to(dtype)).to(values.dtype)
        ctx.save_for_backward(coupling, solved)
        ctx.solve = solve
        return solved

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        coupling, solved = ctx.saved_tensors
        # (I + A)^T g = grad is upper triangular; with the tokens reversed it is lower again.
        reverse = coupling.mT.flip(-2, -1)
        back = _Implicit.apply(reverse, grads[0].flip(-2), ctx.solve).flip(-2)
        return -(back @ solved.mT).tril(-1), back, None


def _chunked(coupling: Tensor, values: Tensor, chunk_size: int = CHUNK_SIZE) -> Tensor:
    solved = torch.empty_like(values, memory_format=torch.contiguous_format)
    for start in range(0, values.shape[-2], chunk_size):
        rows = slice(start, start + chunk_size)
        own = values[..., rows, :] - coupling[..., rows, :start] @ solved[..., :start, :]
        # unitriangular: ones stand on the diagonal, and nothing from it upwards is read.
        block = coupling[..., rows, rows]
        solved[..., rows, :] = torch.linalg.solve_triangular(
            block, own, upper=False, unitriangular=True
        )
    return solved


def _jacobi_or_chunked(coupling: Tensor, values: Tensor) -> Tensor:
    solved, _, converged = solve_jacobi(coupling, values, max_rounds=MAX_ROUNDS)
    if converged.all():
        return solved
    # Chosen one by one, so that no sample's result depends on another's.
    return torch.where(converged[..., None, None], solved, _chunked(coupling, values))


def _largest_row(values: Tensor) -> Tensor:
    return values.detach().norm(dim=-1).amax(dim=-1)


def _check(coupling: Tensor, values: Tensor) -> None:
    shape = tuple(values.shape)
    if values.dim() < 2 or 0 in shape[-2:] or tuple(coupling.shape) != (*shape[:-1], shape[-2]):
        raise ValueError(
            f"Got a coupling of shape {tuple(coupling.shape)} for values of shape {shape}; give "
            "(..., N, N) and (..., N, d) with the same leading dimensions and N, d >= 1."
        )
