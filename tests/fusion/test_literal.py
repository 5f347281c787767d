"""What the seed's rule does: each number is a theorem about it, none is a promise to a user."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from fusion import FixedPointSolver, FusionBlock
from fusion.accom import MeanAccom
from fusion.assim import LiteralAssim
from fusion.assim.anchored import AnchoredUpdate
from fusion.choice import Choice
from fusion.phase import multiply
from fusion.solver import Full
from fusion.tokens import Place

F64 = torch.float64
NUM_TOKENS, DIM_HEAD, ALPHA = 6, 8, 0.1


def choose(anchors: Tensor, alpha: float = ALPHA) -> Choice:
    """The literal rule with the mean as context, for anchors (B, H, N, d)."""
    batch, num_heads, num_tokens, dim_head = anchors.shape
    mask = torch.ones(batch, num_tokens, dtype=torch.bool)
    place = Place(torch.zeros(*mask.shape, 3), torch.zeros(mask.shape))
    update = LiteralAssim(dim_head, num_heads, alpha)(anchors, mask)
    return Choice(anchors, mask, None, update, MeanAccom(dim_head, num_heads)(anchors, mask, place))


def draw(batch: int = 20, num_tokens: int = NUM_TOKENS, dim_head: int = DIM_HEAD) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(batch, 1, num_tokens, dim_head, dtype=F64)


def run(choice: Choice, num_rounds: int) -> tuple[Tensor, Tensor]:
    """Latents and context after some rounds."""
    state = choice.start()
    for _ in range(num_rounds):
        state = choice.step(state)
    return choice.read_out(state)


def as_complex(pairs: Tensor) -> Tensor:
    return torch.complex(*pairs.chunk(2, dim=-1))


def differences(latents: Tensor) -> Tensor:
    pairs = as_complex(latents)
    return (pairs.unsqueeze(3) - pairs.unsqueeze(2)).abs()


def test_a_round_is_the_rule_word_for_word() -> None:
    anchors = draw()
    latents, _ = run(choose(anchors), 1)
    tokens = as_complex(anchors)
    mean = tokens.mean(dim=2, keepdim=True)
    expected = tokens * torch.exp(1j * mean.angle()) + ALPHA * mean
    assert (as_complex(latents) - expected).abs().max() < 1e-14


def test_it_declares_nothing() -> None:
    choice = choose(draw())
    assert choice.update.memory == 1 and choice.q.isposinf().all() and not choice.memoryless
    assert choice.energy(choice.start()) is None


def test_differences_between_tokens_never_change() -> None:
    """A1, S1: one rotation and one translation for all tokens. Nothing is fused."""
    choice = choose(draw())
    latents, _ = run(choice, 200)
    drift = (differences(latents) - differences(choice.anchors)).abs().max()
    assert drift < 1e-8
    assert (latents - choice.anchors).abs().max() > 1  # while the tokens themselves move


def test_an_anchored_rule_does_change_them() -> None:
    """Negative control of the invariance."""
    anchors = draw()
    eye, ones = torch.eye(DIM_HEAD, dtype=F64)[None], torch.ones(20, 1, 1, 1, dtype=F64)
    update = AnchoredUpdate(anchors, ones, eye, ones[:, 0, 0, 0])
    latents, _ = run(dataclasses.replace(choose(anchors), update=update), 20)
    assert (differences(latents) - differences(anchors)).abs().max() > 0.1


def test_it_never_stops_in_2000_rounds() -> None:
    """A2, S3: a stop would need a phase of exactly 0, and then |C| grows."""
    choice = choose(draw())
    start = choice.start()
    solver = FixedPointSolver(max_iters=2000)
    _, stats = solver(choice.step, start, choice.real(start), choice.q)
    assert (stats.num_iters == 2000).all() and not stats.converged.any()
    assert stats.error_bound.isposinf().all()
    assert stats.trace.min() > 1000 * solver.tol


def first_step_gap(eta: float, radius: float) -> float:
    """How far the first step of the family (m, g, K) = (0, 1, 1) is from the literal one."""
    anchors = draw()
    literal = choose(anchors)
    update = AnchoredUpdate(
        anchors=anchors,
        strength=torch.full((len(anchors), 1, 1, 1), ALPHA, dtype=F64),
        coupling=torch.eye(DIM_HEAD, dtype=F64)[None],
        gain=literal.update.gain,
        rotation=1.0,
        eta=eta,
        radius=radius,
    )
    context = literal.mixing.gather(anchors)
    near = update(anchors, context, literal.mixing.read)
    return (near - literal.update(anchors, context, literal.mixing.read)).abs().max().item()


def test_the_first_step_is_the_limit_of_the_family() -> None:
    """A3: eta -> 0 and E -> inf; at finite eta and E the two differ."""
    assert first_step_gap(1e-9, math.inf) < 1e-12
    gaps = [first_step_gap(eta, 1 / eta) for eta in (1e-1, 1e-2, 1e-3)]
    assert gaps[0] > 0.1 and gaps[0] > 10 * gaps[1] > 100 * gaps[2] > 0


def stretch_of_phase(alpha: float, num_rounds: int) -> Tensor:
    """(T, channels) factor by which a small difference of the phases of C grows, per round."""
    anchors = draw(1, 1, 256)
    tilt = torch.tensor(1e-6, dtype=F64)
    turn = torch.cat([tilt.cos().expand(128), tilt.sin().expand(128)])
    factors = []
    for _ in range(num_rounds):
        both = torch.cat([anchors, multiply(anchors, turn)])
        left, right = as_complex(run(choose(both, alpha), 1)[0])
        factors.append((right / left).angle().flatten() / tilt)
        anchors = torch.cat([left.real, left.imag], dim=-1)[None]
    return torch.stack(factors)


@pytest.mark.parametrize(("alpha", "exponent"), [(0.02, 0.6931), (0.1, 0.6926), (0.3, 0.6893)])
def test_the_phase_goes_through_an_expanding_map(alpha: float, exponent: float) -> None:
    """S2: every round stretches it, on average by the Lyapunov exponent, about ln 2."""
    factors = stretch_of_phase(alpha, 200)
    assert factors.min() >= 1 + 1 / (1 + alpha) - 1e-5
    assert abs(factors.log().mean().item() - exponent) < 0.005


def test_real_positive_inputs_blow_up_and_complex_ones_wander() -> None:
    """S4: the context grows by 1 + alpha a round where its phase is 0; else its logarithm has a
    standard deviation of alpha sqrt(t/2)."""
    anchors = draw(num_tokens=1, dim_head=128)
    anchors[..., 64:] = 0
    _, context = run(choose(anchors.abs()), 300)
    growth = (context[..., :64] / anchors.abs()[..., :64]).log() / 300
    assert (growth - math.log(1 + ALPHA)).abs().max() < 1e-12
    anchors = draw(num_tokens=1, dim_head=128)
    _, context = run(choose(anchors), 300)
    wandered = (as_complex(context).abs() / as_complex(anchors).abs()).log()
    assert abs(wandered.std().item() / (ALPHA * math.sqrt(150)) - 1) < 0.15
    assert wandered.abs().max() < 0.3 * 300 * math.log(1 + ALPHA)


def circling(damping: float, num_rounds: int) -> tuple[Tensor, Tensor]:
    """Distances to alpha C / (1 - e^{i arg C}) under a context from outside: first and last."""
    latents = draw()
    phase = torch.linspace(0.5, 2.6, DIM_HEAD // 2, dtype=F64)
    context = torch.cat([phase.cos(), phase.sin()]).expand(20, 1, 1, -1)
    centre = ALPHA * as_complex(context) / (1 - torch.exp(1j * phase))
    update = choose(latents).update
    first = as_complex(latents) - centre
    for _ in range(num_rounds):
        moved = update(latents, context, lambda slots: slots.expand(-1, -1, NUM_TOKENS, -1))
        latents = damping * latents + (1 - damping) * moved
    return first.abs(), (as_complex(latents) - centre).abs()


def test_under_a_fixed_context_tokens_circle_and_damping_makes_them_one() -> None:
    """S5: each keeps its distance to one centre; damped, all end in it."""
    first, last = circling(0.0, 300)
    assert (first - last).abs().max() < 1e-10 and first.min() > 0.01
    _, damped = circling(0.5, 1000)
    assert damped.max() < 1e-10


def test_damping_takes_the_mean_field_to_zero_and_an_anchored_rule_not() -> None:
    """S5: so an input term is needed. Negative control: the same damping with one."""
    anchors = draw()
    literal = choose(anchors)
    eye, ones = torch.eye(DIM_HEAD, dtype=F64)[None], torch.ones(20, 1, 1, 1, dtype=F64)
    update = AnchoredUpdate(anchors, ones / 2, eye, ones[:, 0, 0, 0])
    ends = []
    for choice in (literal, dataclasses.replace(literal, update=update)):
        latents = anchors
        for _ in range(300):
            context = choice.mixing.gather(latents)
            latents = latents / 2 + choice.update(latents, context, choice.mixing.read) / 2
        ends.append(latents)
    assert ends[0].abs().max() < 1e-6
    assert torch.cdist(ends[1], ends[1]).amax(dim=(2, 3)).min() > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, F64])
def test_any_magnitude_has_its_phase_and_finite_gradients(dtype: torch.dtype) -> None:
    """arg 0 is 0, and the smallest number has a phase like any other."""
    torch.manual_seed(0)
    magnitudes = torch.cat([torch.zeros(1, dtype=F64), torch.logspace(-45, 3, 97, dtype=F64)])
    tokens = torch.randn(98, 1, 4, DIM_HEAD, dtype=F64) * magnitudes.view(-1, 1, 1, 1)
    anchors = tokens.to(dtype).requires_grad_()
    choice = choose(anchors)
    latents, context = run(choice, 4)
    (latents.float().square().mean() + context.float().square().mean()).backward()
    assert latents.isfinite().all()
    assert anchors.grad is not None and anchors.grad.isfinite().all()
    assert not latents[0].any()


def test_the_phase_of_subnormal_numbers_is_exact() -> None:
    """Negative control: c / |c| as it stands underflows to 0 / 0."""
    small = torch.tensor([1e-45, -3e-42, 0.0, 0.0, 4e-42, 0.0])
    update = choose(torch.zeros(1, 1, 1, 6)).update
    one = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    turned = update(one.view(1, 1, 1, 6), small.view(1, 1, 1, 6), lambda slots: slots).flatten()
    assert torch.allclose(turned, torch.tensor([1, -0.6, 1, 0, 0.8, 0]), atol=1e-3)
    naive = small / torch.sqrt(small.square() + small.roll(3).square())
    assert not naive.isfinite().all()


def test_gradients_reach_the_anchors_through_all_rounds_only() -> None:
    grads = []
    for solver in (FixedPointSolver(max_iters=5, gradient=Full()), FixedPointSolver(max_iters=5)):
        torch.manual_seed(0)
        block = FusionBlock(16, 2, assim=LiteralAssim, accom=MeanAccom, solver=solver)
        torch.nn.init.normal_(block.out.weight)
        block(torch.randn(3, 4, 16), torch.ones(3, 4, dtype=torch.bool)).values.sum().backward()
        grads.append(block.anchor.weight.grad)
    assert grads[0] is not None and grads[0].isfinite().all() and grads[0].any()
    assert grads[1] is None


@pytest.mark.parametrize("wrong", [{"dim_head": 7}, {"alpha": math.nan}, {"alpha": math.inf}])
def test_settings_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="Got "):
        LiteralAssim(**{"dim_head": 8, "num_heads": 2, **wrong})
