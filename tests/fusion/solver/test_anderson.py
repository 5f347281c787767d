import math

import pytest
import torch
from torch import Tensor

from fusion.solver import Anderson, FixedPointSolver, Reason

F64 = torch.float64
REAL = torch.ones(4, 3, dtype=torch.bool)


def soft_maps(radius: float) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    raw = torch.randn(4, 1, 6, 6, dtype=F64)
    return radius * raw / torch.linalg.matrix_norm(raw, ord=2)[..., None, None], torch.randn(
        4, 1, 3, 6, dtype=F64
    )


def solve(radius: float, tol: float, acceleration: Anderson | None):
    maps, offset = soft_maps(radius)
    solver = FixedPointSolver(2000, tol, acceleration=acceleration)
    return solver(lambda s: torch.tanh(s @ maps + offset), torch.zeros_like(offset), REAL)


@pytest.mark.parametrize("radius", [0.5, 0.9, 0.99])
def test_it_finds_the_same_fixed_point_in_no_more_rounds(radius: float) -> None:
    plain, plain_stats = solve(radius, 1e-10, None)
    fast, stats = solve(radius, 1e-10, Anderson())
    assert stats.converged.all()
    assert (fast - plain).abs().max() < 1e-7
    assert (stats.num_iters <= plain_stats.num_iters).all()


def test_it_solves_a_linear_map_in_about_as_many_rounds_as_it_has_dimensions() -> None:
    maps, offset = soft_maps(0.999)
    solver = FixedPointSolver(500, 1e-9, acceleration=Anderson(memory=8))
    one = torch.ones(4, 1, dtype=torch.bool)
    _, stats = solver(
        lambda s: s @ maps + offset[:, :, :1], torch.zeros_like(offset[:, :, :1]), one
    )
    assert stats.converged.all() and stats.num_iters.max() <= 12


def kinked(state: Tensor) -> Tensor:
    """A contraction by 0.9 whose kinks fool the extrapolation."""
    return 0.3 * torch.sin(3 * state).abs() + 0.2 * torch.arange(3.0, dtype=F64)[:, None]


def test_a_bad_proposal_is_taken_back() -> None:
    start = torch.linspace(-9, 9, 12, dtype=F64).view(4, 1, 3, 1)
    run, state, sent_back = Anderson().begin(), start, 0
    for _ in range(30):
        proposal = kinked(state)
        state, back = run.next(state, proposal, (proposal - state).abs().amax((1, 2, 3)))
        sent_back += int(back.sum())
    assert sent_back > 0
    solver = FixedPointSolver(200, 1e-10, acceleration=Anderson())
    fast, stats = solver(kinked, start, REAL)
    plain, _ = FixedPointSolver(500, 1e-12)(kinked, start, REAL)
    assert stats.converged.all() and (fast - plain).abs().max() < 1e-8


def test_divergence_stays_divergence_and_touches_no_neighbour() -> None:
    maps, offset = soft_maps(0.9)
    maps[1], offset[2] = 40 * maps[1], math.nan
    solver = FixedPointSolver(60, 1e-8, acceleration=Anderson())
    crowd, stats = solver(lambda s: s @ maps + offset, torch.zeros_like(offset), REAL)
    assert stats.converged.tolist() == [True, False, False, True]
    assert crowd.isfinite().all()
    assert stats.reason[2] == Reason.NON_FINITE
    for index in (0, 3):
        only = (torch.arange(4) == index).view(4, 1, 1, 1)
        some, others = torch.where(only, maps, 0), torch.where(only, offset, 0)
        alone, own = solver(
            lambda s, a=some, b=others: s @ a + b, torch.zeros_like(offset), REAL & only[:, :, 0, 0]
        )
        assert torch.equal(alone[index], crowd[index])
        assert torch.equal(own.num_iters[index], stats.num_iters[index])


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="memory >= 1 and ridge > 0"):
        Anderson(memory=0)
