"""Operators whose weights are re-chosen every round: their energy never rises."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fusion import FixedPointSolver, FusionBlock
from fusion.accom import ResponsibilityAccom
from fusion.accom.responsibilities import Responsibilities
from fusion.assim import PhaseAssim, ProximalAssim
from fusion.choice import Choice
from fusion.tokens import Place

F64 = torch.float64
BATCH, HEADS, TOKENS, SLOTS, WIDTH = 40, 2, 7, 4, 6
ASSIMS = [ProximalAssim, PhaseAssim]
both = pytest.mark.parametrize("assim", ASSIMS)


@torch.no_grad()
def choose(anchors: Tensor, assim: nn.Module, accom: nn.Module, mask: Tensor | None = None):
    """The choice for these anchors; all tokens are real if no mask is given."""
    if mask is None:
        mask = torch.ones(anchors.shape[0], anchors.shape[2], dtype=torch.bool)
    anchors = torch.where(mask[:, None, :, None], anchors, 0)
    place = Place(torch.zeros(*mask.shape, 3), torch.zeros(mask.shape))
    update = assim.to(anchors.dtype)(anchors, mask)
    return Choice(anchors, mask, None, update, accom.to(anchors.dtype)(anchors, mask, place))


def log_uniform() -> Tensor:
    """One number in 0.01..100 for every case."""
    return 10 ** (4 * torch.rand(BATCH, 1, 1, 1, dtype=F64) - 2)


def random_choice(assim: type, seed: int) -> Choice:
    """40 cases: random lam, beta, nu, priors, masks and scales of the anchors."""
    torch.manual_seed(seed)
    accom = ResponsibilityAccom(WIDTH, 1, 1 + seed % 5)
    nn.init.normal_(accom.prior)
    scale = 10 ** (2 * torch.rand(BATCH, 1, 1, 1, dtype=F64) - 1)
    mask = torch.rand(BATCH, TOKENS) > 0.3
    mask[:, :2] = True
    mask[-1] = False
    anchors = scale * torch.randn(BATCH, 1, TOKENS, WIDTH, dtype=F64)
    choice = choose(anchors, assim(WIDTH, 1), accom, mask)
    mixing = replace(choice.mixing, sharpness=log_uniform(), inertia=log_uniform())
    return replace(choice, update=replace(choice.update, lam=log_uniform()), mixing=mixing)


def energy(choice: Choice, state: Tensor) -> Tensor:
    value = choice.energy(state)
    assert value is not None
    return value


def largest_rise(choice: Choice, state: Tensor, num_rounds: int = 25, step=None) -> float:
    """Largest rise of the energy in a round, relative to the energy."""
    step = step or choice.step
    worst, before = -math.inf, energy(choice, state)
    for _ in range(num_rounds):
        state = step(state)
        after = energy(choice, state)
        worst = max(worst, ((after - before) / before.abs().clamp(min=1e-12)).max().item())
        before = after
    return worst


@both
def test_energy_never_rises_in_1000_random_cases(assim: type) -> None:
    for seed in range(25):
        choice = random_choice(assim, seed)
        assert largest_rise(choice, choice.start()) <= 1e-10, seed
        assert (energy(choice, choice.start())[-1] == 0).all()  # no tokens, no energy


@both
def test_energy_never_rises_from_a_foreign_context(assim: type) -> None:
    for seed in range(5):
        choice = random_choice(assim, seed)
        start = choice.start(3 * torch.randn_like(choice.mixing.first(choice.anchors)))
        assert largest_rise(choice, start) <= 1e-10, seed


@both
def test_energy_never_rises_through_a_block_while_it_learns(assim: type) -> None:
    torch.manual_seed(0)
    block = FusionBlock(16, 2, 3, assim=assim, accom=ResponsibilityAccom).double()
    nn.init.normal_(block.out.weight)
    parameters = list(block.parameters())
    values, mask = torch.randn(4, 9, 16, dtype=F64), torch.rand(4, 9) > 0.2
    for _ in range(3):
        choice = block.choose(values, mask, 5 * torch.rand(4, 9, 3))
        assert largest_rise(choice, choice.start(), 10) <= 1e-10
        grads = torch.autograd.grad(block(values, mask).values.square().sum(), parameters)
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.data -= 0.1 * grad


def test_every_round_lowers_the_energy_by_what_the_proof_says() -> None:
    """Per head E / lam falls by (1 + lam)/(2 lam) |dz|^2 + sum_k (nu + sum_i p_ik)/2 |dC_k|^2."""
    for seed in range(5):
        choice = random_choice(ProximalAssim, seed)
        lam, state = choice.update.lam, choice.start()
        for _ in range(10):
            latents, context = choice.read_out(state)
            shares = choice.mixing.weigh(latents, context).shares
            following = choice.step(state)
            moved, shifted = choice.read_out(following - state)
            weight = choice.mixing.inertia + shares.sum(dim=2).unsqueeze(-1)
            owed = ((1 + lam) / (2 * lam) * moved.square()).sum(dim=(1, 2, 3))
            owed = owed + (weight / 2 * shifted.square()).sum(dim=(1, 2, 3))
            before = energy(choice, state)
            assert (before - energy(choice, following) >= owed - 1e-10 * before.abs()).all()
            state = following


def test_the_energy_is_the_written_formula() -> None:
    choice = random_choice(ProximalAssim, 4)
    mixing, lam = choice.mixing, choice.update.lam.flatten()
    beta, nu = mixing.sharpness.flatten(), mixing.inertia.flatten()
    prior = mixing.log_prior.flatten().exp()
    latents, context = (torch.randn_like(part) for part in choice.read_out(choice.start()))
    latents = torch.where(choice.mask[:, None, :, None], latents, 0)
    found = energy(choice, torch.cat([latents, context], dim=2))
    for b in range(BATCH):
        real = choice.mask[b]
        wanted = lam[b] * nu[b] / 2 * (context[b, 0] - mixing.slots[b, 0]).square().sum()
        for z, x in zip(latents[b, 0, real], choice.anchors[b, 0, real], strict=True):
            density = (prior * (-beta[b] / 2 * (z - context[b, 0]).square().sum(-1)).exp()).sum()
            wanted += (z - x).square().sum() / 2 - lam[b] / beta[b] * density.log()
        assert found[b] == pytest.approx(wanted.item() / lam[b].item(), rel=1e-12)


def rises(assim: type, change) -> bool:
    """Whether the energy rises in any of 200 cases under the steps that `change` makes."""
    for seed in range(5):
        choice = random_choice(assim, seed)
        if largest_rise(choice, choice.start(), 10, change(choice)) > 1e-6:
            return True
    return False


def over_relaxed(choice: Choice):
    return lambda state: state + 2.5 * (choice.step(state) - state)


def with_stale_weights(choice: Choice):
    """Tokens read with the weights of the round before."""
    known: list[Responsibilities] = []

    def step(state: Tensor) -> Tensor:
        latents, context = choice.read_out(state)
        known.append(choice.mixing.weigh(latents, context))
        latents = choice.update(latents, context, known[max(len(known) - 2, 0)].read)
        return torch.cat([latents, known[-1].gather(latents)], dim=2)

    return step


def in_another_order(choice: Choice):
    """Slots gathered from the latents of the round before."""

    def step(state: Tensor) -> Tensor:
        latents, context = choice.read_out(state)
        weights = choice.mixing.weigh(latents, context)
        moved = choice.update(latents, context, weights.read)
        return torch.cat([moved, weights.gather(latents)], dim=2)

    return step


def with_another_beta(choice: Choice):
    """Weights of a beta that is not that of the energy."""

    def step(state: Tensor) -> Tensor:
        latents, context = choice.read_out(state)
        shares = choice.mixing.weigh(9 * latents, 9 * context).shares
        weights = Responsibilities(shares, choice.mixing.slots, choice.mixing.inertia)
        latents = choice.update(latents, context, weights.read)
        return torch.cat([latents, weights.gather(latents)], dim=2)

    return step


@both
@pytest.mark.parametrize("change", [over_relaxed, with_stale_weights, with_another_beta])
def test_wrong_steps_raise_the_energy(assim: type, change) -> None:
    """Negative control; the right step passes the same search."""
    assert rises(assim, change)
    assert not rises(assim, lambda choice: choice.step)


def test_the_order_of_the_half_steps_matters() -> None:
    """Negative control. Two halves of one quadratic may move at once; the constrained may not."""
    assert rises(PhaseAssim, in_another_order)
    assert not rises(ProximalAssim, in_another_order)


def test_latents_and_context_stay_in_the_hull_of_the_anchors() -> None:
    """No direction in which they reach further than the anchors do."""
    direction = torch.randn(WIDTH, 64, dtype=F64)
    for seed in range(5):
        choice = random_choice(ProximalAssim, seed)
        padding = ~choice.mask[:-1, None, :, None]
        reach = (choice.anchors[:-1] @ direction).masked_fill(padding, -math.inf).amax(dim=2)
        state = choice.start()
        for _ in range(10):
            state = choice.step(state)
            latents, context = choice.read_out(state)
            inside = (latents[:-1] @ direction).masked_fill(padding, -math.inf)
            for part in (inside, context[:-1] @ direction):
                assert (part <= reach.unsqueeze(2) + 1e-9).all(), seed


@both
def test_the_iteration_comes_to_rest(assim: type) -> None:
    """Squared moves are summable, so moves vanish; the solver sees it and says so."""
    torch.manual_seed(0)
    anchors = torch.randn(16, HEADS, 12, WIDTH, dtype=F64)
    choice = choose(anchors, assim(WIDTH, HEADS, 2.0), ResponsibilityAccom(WIDTH, HEADS, SLOTS, 4))
    start = choice.start()
    solver = FixedPointSolver(max_iters=3000, tol=1e-9)
    state, stats = solver(choice.step, start, choice.real(start), choice.q)
    assert stats.converged.all() and stats.q.isinf().all() and stats.error_bound.isinf().all()
    assert (choice.step(state) - state).abs().max() < 1e-8
    assert (energy(choice, state) < energy(choice, start)).all()
