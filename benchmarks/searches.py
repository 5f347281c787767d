"""Early exit, low precision, warm starts and Anderson against plain rounds.

Shapes: B batch, H heads, M rows of the state, N tokens, d width of a head.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.inputs import at, choose, directions, slots, spread
from benchmarks.measure import Row, Size, compared, milliseconds
from fusion.certificate import max_rounds
from fusion.choice import Choice
from fusion.solver import Anderson, FixedPointSolver, SolverStats, Unrolled

TOL, MAX_ITERS = 1e-4, 400
ONE = Unrolled(1)


def early_exit(size: Size, device: str) -> Iterator[Row]:
    """Each sample stops by itself; or all when the last does; or after a number fixed before."""
    for case, low, high in (("norms .03 to 3", 0.03, 3.0), ("norms all .3", 0.3, 0.3)):
        norms = spread(size.batch, low, high, device)[:, None, None, None]
        anchors = norms * directions(size.batch, size.tokens, device)
        choice = choose(anchors, slots(anchors), 0.95)
        start = choice.start()
        _, stats = _solve(choice, FixedPointSolver(MAX_ITERS, TOL, ONE))
        rounds = stats.num_iters.float()
        first = (choice.step(start) - start).norm(dim=-1).amax(dim=(1, 2))
        fixed = int(max_rounds(choice.q, TOL, first).max())
        forms = (
            lambda c=choice, n=fixed: _rounds(c, n + 1),
            lambda c=choice: _together(c),
            lambda c=choice: _solve(c, FixedPointSolver(MAX_ITERS, TOL, ONE)),
        )
        taken = milliseconds(forms, size.repeats, device)
        last, mean = rounds.max().item(), rounds.mean().item()
        name, note = "early exit per sample", f"mean {mean:.1f}, last {last:.0f} rounds"
        yield Row(name, f"{case}; fixed number of rounds", "rounds", fixed, mean, "as certified")
        yield Row(name, f"{case}; fixed number of rounds", "ms", taken[0], taken[2], note)
        yield Row(name, f"{case}; stopping together", "rounds", last, mean, "what a kernel saves")
        yield Row(name, f"{case}; stopping together", "ms", taken[1], taken[2], note)


def low_precision(size: Size, device: str) -> Iterator[Row]:
    """A first search in half the bits, then full precision to the same tolerance."""
    for kappa, norm in ((0.9, 1.0), (0.99, 0.1)):
        anchors = norm * directions(size.batch, size.tokens, device)
        choice = choose(anchors, slots(anchors), kappa)
        for name in ("bfloat16", "float16"):
            plain = FixedPointSolver(MAX_ITERS, TOL)
            low = FixedPointSolver(MAX_ITERS, TOL, search_dtype=name)
            case = f"{name}, kappa {kappa}, anchors of norm {norm}"
            yield from _both("low-precision search", case, choice, (plain, low), size, device)


def warm_start(size: Size, device: str) -> Iterator[Row]:
    """The solution of one frame as the start for the next."""
    solver = FixedPointSolver(MAX_ITERS, TOL)
    for kappa, norm in ((0.9, 1.0), (0.99, 0.1)):
        frame = directions(size.batch, size.tokens, device)
        first = choose(norm * frame, slots(frame), kappa)
        known, _ = _solve(first, solver)
        for name, change in (("changed by 1 %", 0.01), ("by 10 %", 0.1), ("another", 1.0)):
            other = directions(size.batch, size.tokens, device)
            now = at(first, norm * torch.lerp(frame, other, change))
            case = f"next frame {name}, kappa {kappa}, anchors of norm {norm}"
            both, starts = (solver, solver), (None, known)
            yield from _both("warm start", case, now, both, size, device, starts)


def anderson(size: Size, device: str) -> Iterator[Row]:
    """Accelerated rounds in the space of the slots, whose cost does not grow with the tokens."""
    for share in (1, 16):
        batch, num_tokens = max(1, size.batch // share), share * size.tokens
        for tol, dtype in ((TOL, torch.float32), (1e-10, torch.float64)):
            for kappa in size.kappas:
                anchors = 0.1 * directions(batch, num_tokens, device).to(dtype)
                choice = choose(anchors, slots(anchors), kappa)
                plain = FixedPointSolver(MAX_ITERS, tol, ONE)
                fast = FixedPointSolver(MAX_ITERS, tol, ONE, acceleration=Anderson())
                case = f"N {num_tokens}, tol {tol:.0e}, kappa {kappa}, anchors of norm .1"
                yield from _both("Anderson", case, choice, (plain, fast), size, device)


def _both(
    technique: str,
    case: str,
    choice: Choice,
    solvers: tuple[FixedPointSolver, FixedPointSolver],
    size: Size,
    device: str,
    starts: tuple[Tensor | None, Tensor | None] = (None, None),
) -> Iterator[Row]:
    """Rounds and, if all samples converge, times of the plain form and the technique."""
    forms = [
        lambda s=solver, c=start: _solve(choice, s, c)
        for solver, start in zip(solvers, starts, strict=True)
    ]
    (left, plain), (right, other) = (form() for form in forms)
    rounds = [stats.num_iters.float().mean().item() for stats in (plain, other)]
    share = [stats.converged.float().mean().item() for stats in (plain, other)]
    note = f"states differ by {(left - right).abs().max():.0e}"
    if min(share) < 1:
        note += f"; {share[0]:.0%} and {share[1]:.0%} of samples converged, so not timed"
    yield Row(technique, case, "rounds", rounds[0], rounds[1], note)
    if min(share) == 1:
        yield compared(technique, case, forms, size, device)


@torch.no_grad()
def _solve(
    choice: Choice, solver: FixedPointSolver, context: Tensor | None = None
) -> tuple[Tensor, SolverStats]:
    start, coarse = choice.start(context), None
    if solver.search_dtype is not None:
        coarse = choice.to(getattr(torch, solver.search_dtype)).step
    return solver(choice.step, start, choice.real(start), choice.q, coarse)


@torch.no_grad()
def _rounds(choice: Choice, num_rounds: int) -> Tensor:
    state = choice.start()
    for _ in range(num_rounds):
        state = choice.step(state)
    return state


@torch.no_grad()
def _together(choice: Choice) -> Tensor:
    """Rounds until no sample moves by more than the tolerance, and the closing one."""
    state, moved = choice.start(), torch.inf
    while moved >= TOL:
        state, previous = choice.step(state), state
        moved = (state - previous).norm(dim=-1).amax()
    return choice.step(state)
