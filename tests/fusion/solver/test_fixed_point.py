import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from fusion import FixedPointSolver, FusionBlock
from fusion.solver import TOL_FLOOR, Reason, Unrolled

F64 = torch.float64
WIDTH = 6


def linear_maps(radii: list[float], dtype=F64) -> tuple[Tensor, Tensor]:
    """Symmetric A (B, 1, d, d) of the given spectral radii and b (B, 1, N=2, d)."""
    torch.manual_seed(0)
    raw = torch.randn(len(radii), WIDTH, WIDTH, dtype=F64)
    raw = raw + raw.mT
    norm = torch.linalg.matrix_norm(raw, ord=2)
    maps = raw / norm[:, None, None] * torch.tensor(radii, dtype=F64)[:, None, None]
    return maps[:, None].to(dtype), torch.randn(len(radii), 1, 2, WIDTH, dtype=dtype)


def affine(maps: Tensor, offset: Tensor):
    return lambda latents: latents @ maps + offset


def all_real(batch: int) -> Tensor:
    return torch.ones(batch, 2, dtype=torch.bool)


def test_reaches_the_solution_of_a_linear_contraction() -> None:
    maps, offset = linear_maps([0.1, 0.5, 0.9])
    solver = FixedPointSolver(max_iters=1000, tol=1e-13)
    q = torch.tensor([0.1, 0.5, 0.9], dtype=F64)
    latents, stats = solver(affine(maps, offset), torch.zeros_like(offset), all_real(3), q)
    exact = torch.linalg.solve(torch.eye(WIDTH, dtype=F64) - maps, offset.mT).mT
    error = (latents - exact).norm(dim=-1).amax(dim=(1, 2))
    assert error.max() < 1e-11
    assert stats.converged.all() and (stats.num_iters.diff() > 0).all()
    assert (error <= stats.error_bound + 1e-14).all()


@pytest.mark.parametrize("radius", [0.5, 0.9, 0.99, 1.0, 1.1, 2.0])
def test_the_convergence_flag_is_honest(radius: float) -> None:
    """Right for the last round as checked from outside; only contractions may converge."""
    maps, offset = linear_maps([radius] * 20)
    step = affine(maps, offset)
    latents, stats = FixedPointSolver(max_iters=200)(step, torch.zeros_like(offset), all_real(20))
    assert latents.isfinite().all()
    assert (stats.num_iters <= 200).all()
    assert torch.equal(stats.converged, stats.residual < 1e-4)
    if radius > 1:
        assert not stats.converged.any()
    if radius < 0.95:
        assert stats.converged.all()
        again = (step(latents) - latents).norm(dim=-1).amax(dim=(1, 2))
        assert (again <= radius * stats.residual + 1e-14).all()


def hard_batch() -> tuple[Tensor, Tensor, Tensor]:
    """64 samples: easy, slow, diverging past overflow, and NaN ones in turn; float32."""
    radii = [(0.1, 0.6, 0.99, 30.0)[index % 4] for index in range(64)]
    maps, offset = linear_maps(radii, torch.float32)
    offset[7::8] = math.nan
    mask = all_real(64)
    mask[::5, 1] = False
    return maps, offset, mask


def test_each_of_64_samples_is_bit_equal_alone_and_in_a_hard_crowd() -> None:
    maps, offset, mask = hard_batch()
    start = torch.ones_like(offset)
    solver = FixedPointSolver(max_iters=60)
    crowd, stats = solver(affine(maps, offset), start, mask)
    assert stats.converged.any() and not stats.converged.all()
    assert stats.num_iters.unique().numel() > 4
    for index in range(64):
        only = torch.arange(64) == index
        weight = only[:, None, None, None]
        lonely_maps, lonely_offset = torch.where(weight, maps, 0), torch.where(weight, offset, 0)
        alone, own = solver(affine(lonely_maps, lonely_offset), start, mask & only[:, None])
        assert torch.equal(alone[index], crowd[index])
        for a, b in zip(own[:-1], stats[:-1], strict=True):
            assert torch.equal(a[index], b[index])


def test_without_the_freeze_neighbours_would_show() -> None:
    """Negative control: one stop for the whole batch makes a result depend on its neighbours."""
    maps, offset = linear_maps([0.5, 0.99], torch.float32)

    def solve_together(maps: Tensor, offset: Tensor) -> Tensor:
        latents = torch.zeros_like(offset)
        for _ in range(60):
            previous, latents = latents, affine(maps, offset)(latents)
            if (latents - previous).norm(dim=-1).max() < 1e-4:
                break
        return latents

    only = torch.tensor([1.0, 0.0])[:, None, None, None]
    together, alone = solve_together(maps, offset), solve_together(only * maps, only * offset)
    assert not torch.equal(together[0], alone[0])
    solver = FixedPointSolver(max_iters=60)
    mask = all_real(2)
    frozen, _ = solver(affine(maps, offset), torch.zeros_like(offset), mask)
    lonely, _ = solver(affine(only * maps, only * offset), torch.zeros_like(offset), mask)
    assert torch.equal(frozen[0], lonely[0])


def test_a_sample_that_turns_nan_keeps_its_best_iterate_and_touches_no_other() -> None:
    maps, offset = linear_maps([0.5, 0.5])
    rounds = 0

    def step(latents: Tensor) -> Tensor:
        nonlocal rounds
        rounds += 1
        spoiled = affine(maps, offset)(latents)
        if rounds == 6:
            spoiled[0] = math.nan
        return spoiled

    start = torch.zeros_like(offset)
    latents, stats = FixedPointSolver()(step, start, all_real(2))
    best = start
    for _ in range(5):
        best = affine(maps, offset)(best)
    healthy, healthy_stats = FixedPointSolver()(affine(maps, offset), start, all_real(2))
    assert torch.equal(latents[0], best[0])
    assert torch.equal(latents[1], healthy[1])
    assert stats.converged.tolist() == [False, True]
    assert stats.num_iters[0] == 6 and stats.residual[0] == math.inf
    assert torch.equal(stats.num_iters[1], healthy_stats.num_iters[1])
    assert not stats.trace.isnan().any()


def test_divergence_past_overflow_returns_the_best_finite_iterate() -> None:
    maps, offset = linear_maps([1e6], torch.float32)
    latents, stats = FixedPointSolver()(affine(maps, offset), offset, all_real(1))
    assert latents.isfinite().all() and latents.norm() < 1e8
    assert not stats.converged.any() and stats.error_bound.item() == math.inf


def test_closing_rounds_alone_may_fail_and_say_so() -> None:
    solver = FixedPointSolver(max_iters=0, gradient=Unrolled(2))
    start = torch.ones(1, 1, 2, WIDTH)
    latents, stats = solver(lambda latents: latents * math.inf, start, all_real(1))
    assert torch.equal(latents, start) and not stats.converged.any()
    assert stats.trace.tolist() == [[math.inf], [math.inf]]


def test_empty_samples_have_converged_at_once_and_stopped_samples_repeat_their_residual() -> None:
    maps, offset = linear_maps([0.5, 0.1, 0.9])
    mask = all_real(3)
    mask[0] = False
    solver = FixedPointSolver()
    _, stats = solver(affine(maps, offset), torch.zeros_like(offset), mask)
    assert stats.num_iters[0] == 0 and stats.residual[0] == 0 and stats.converged[0]
    searched = len(stats.trace) - 3
    assert searched == stats.num_iters.max()
    stop = int(stats.num_iters[1])
    assert (stats.trace[stop - 1 : searched, 1] == stats.trace[stop - 1, 1]).all()
    assert torch.equal(stats.trace[-1], stats.residual)


def test_values_do_not_depend_on_gradient_mode() -> None:
    maps, offset = linear_maps([0.5, 0.9])
    solver = FixedPointSolver()
    start = torch.zeros_like(offset)
    with_grad, stats = solver(affine(maps, offset.requires_grad_()), start, all_real(2))
    with torch.no_grad():
        without, _ = solver(affine(maps, offset), start, all_real(2))
    assert torch.equal(with_grad, without) and with_grad.requires_grad
    assert not any(entry.requires_grad for entry in stats)


def test_three_closing_rounds_give_nearly_the_gradient_of_the_full_unroll() -> None:
    torch.manual_seed(0)
    values, mask = torch.randn(8, 10, 32, dtype=F64), torch.rand(8, 10) > 0.2
    target = torch.randn_like(values)
    gradients = []
    for solver in (FixedPointSolver(), FixedPointSolver(max_iters=0, gradient=Unrolled(60))):
        torch.manual_seed(1)
        block = FusionBlock(32, 4, 4, solver=solver).double()
        torch.nn.init.normal_(block.out.weight, std=0.2)
        ((block(values, mask).values - target) ** 2).mean().backward()
        wanted = [block.anchor, block.assim, block.accom]
        gradients.append([p.grad.flatten() for part in wanted for p in part.parameters()])
    for short, full in zip(*gradients, strict=True):
        assert cosine_similarity(short, full, dim=0) >= 0.99


@pytest.mark.parametrize("dtype", TOL_FLOOR)
def test_tolerance_below_the_dtype_is_refused_with_advice(dtype: torch.dtype) -> None:
    start = torch.zeros(1, 1, 2, WIDTH, dtype=dtype)
    floor = TOL_FLOOR[dtype]
    FixedPointSolver(tol=floor)(torch.zeros_like, start, all_real(1))
    with pytest.raises(ValueError, match="raise tol, or keep the parameters in float32"):
        FixedPointSolver(tol=floor / 2)(torch.zeros_like, start, all_real(1))


def test_autocast_iterates_in_float32() -> None:
    seen = set()

    def step(latents: Tensor) -> Tensor:
        halved = latents @ (0.5 * torch.eye(WIDTH))
        seen.add(halved.dtype)
        return halved

    start = torch.ones(1, 1, 2, WIDTH, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        latents, stats = FixedPointSolver()(step, start, all_real(1))
    assert seen == {torch.float32} and latents.dtype == torch.float32
    assert stats.converged.all()


@pytest.mark.parametrize("settings", [{"max_iters": -1}, {"tol": 0.0}, {"tol": math.nan}])
def test_settings_out_of_range_are_refused(settings: dict) -> None:
    with pytest.raises(ValueError, match="Got .*; give"):
        FixedPointSolver(**settings)


def test_the_reason_says_why_a_sample_ended() -> None:
    maps, offset = linear_maps([0.5, 0.999, 1.0, 0.5], torch.float64)
    maps[2] = torch.eye(WIDTH)[None]  # walks on for ever in equal steps
    offset[3] = math.nan
    _, stats = FixedPointSolver(max_iters=40)(
        affine(maps, offset), torch.zeros_like(offset), all_real(4)
    )
    assert [Reason(int(reason)) for reason in stats.reason] == [
        Reason.CONVERGED,
        Reason.MAX_ITERS,
        Reason.STALLED,
        Reason.NON_FINITE,
    ]


@pytest.mark.parametrize("search_dtype", ["bfloat16", "float16"])
def test_a_search_in_low_precision_ends_where_full_precision_does(search_dtype) -> None:
    """Two rounds in float32 after a bfloat16 loop are within 2e-4 of the fixed point."""
    torch.manual_seed(0)
    values, mask = torch.randn(8, 12, 32), torch.rand(8, 12) > 0.2
    mask[:, 0] = True
    found = {}
    for name, solver in {
        "coarse": FixedPointSolver(max_iters=20, tol=1e-2, gradient=Unrolled(2)),
        "then full": FixedPointSolver(max_iters=50, tol=1e-6),
        "full": FixedPointSolver(max_iters=200, tol=1e-6),
    }.items():
        low = search_dtype if name != "full" else None
        solver = dataclasses.replace(solver, search_dtype=low)
        torch.manual_seed(1)
        block = FusionBlock(32, 4, 4, solver=solver)
        nn.init.constant_(block.gain, 0.3)
        with torch.no_grad():
            found[name] = block(values, mask)
        assert found[name].stats.converged.all()
    error = {name: (out.slots - found["full"].slots).abs().max() for name, out in found.items()}
    assert error["coarse"] < 2e-4 and error["then full"] < 2e-6


def test_a_low_precision_search_that_overflows_starts_anew_in_full_precision() -> None:
    solver = FixedPointSolver(max_iters=60, search_dtype="float16")
    step = affine(*linear_maps([0.5], torch.float32))
    start = torch.zeros(1, 1, 2, WIDTH)
    state, stats = solver(step, start, all_real(1), None, lambda low: low * math.inf + 1)
    plain, _ = FixedPointSolver(max_iters=60)(step, start, all_real(1))
    assert stats.converged.all() and torch.equal(state, plain)
