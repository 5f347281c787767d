"""Tokens that attend to each other on the sphere collapse; the anchor is what prevents it.

The facts are those of Geshkovski, Letrouit, Polyanskiy and Rigollet, "A mathematical perspective
on transformers" (arXiv:2312.10794), with identity query, key and value. For points x_i on a
sphere, P_x y = y - <x, y> x, and weights e^{beta <x_i, x_j>}:

    SA:   x_i' = P_{x_i}(sum_j e^{beta <x_i, x_j>} x_j / Z_i),   Z_i = sum_j e^{beta <x_i, x_j>}
    USA:  x_i' = P_{x_i}(sum_j e^{beta <x_i, x_j>} x_j / n)

Shapes: S runs, n points, d dimensions; state of the block (B, H, M, d).
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import combinations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fusion.accom import MeanAccom
from fusion.assim.anchored import AnchoredUpdate
from fusion.choice import Choice
from fusion.tokens import Place

F64 = torch.float64
Field = Callable[[Tensor], Tensor]
both = pytest.mark.parametrize("normalised", [True, False], ids=["SA", "USA"])


def sphere(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape, dtype=F64), dim=-1)


def weights(x: Tensor, beta: float) -> Tensor:
    return (beta * x @ x.mT).exp()


def flow(x: Tensor, beta: float, normalised: bool) -> Tensor:
    """x' (S, n, d) of SA (normalised) or USA."""
    w = weights(x, beta)
    pull = w @ x / (w.sum(dim=-1, keepdim=True) if normalised else x.shape[-2])
    return pull - (x * pull).sum(dim=-1, keepdim=True) * x


def energy(x: Tensor, beta: float) -> Tensor:
    return weights(x, beta).mean(dim=(-2, -1)) / (2 * beta)


def runge_kutta(field: Field, x: Tensor, step: float) -> Tensor:
    """One step of the classical scheme of fourth order."""
    a = field(x)
    b = field(x + step / 2 * a)
    c = field(x + step / 2 * b)
    return x + step / 6 * (a + 2 * b + 2 * c + field(x + step * c))


def integrate(field: Field, x: Tensor, time: float, num_steps: int) -> Tensor:
    for _ in range(num_steps):
        x = runge_kutta(field, x, time / num_steps)
    return x


def pace(beta: float, normalised: bool) -> float:
    """A step that resolves the flow: USA is faster by e^beta."""
    return 0.05 if normalised else 0.05 * math.exp(-beta)


def gaps(x: Tensor) -> Tensor:
    """1 - <x_i, x_j> without cancellation."""
    return (x.unsqueeze(-2) - x.unsqueeze(-3)).square().sum(dim=-1) / 2


# Energy -------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("beta", [0.5, 2.0, 6.0])
def test_energy_rises_at_the_rate_of_the_dissipation_identity(beta: float, normalised) -> None:
    x = sphere(8, 3)
    n = len(x)
    field = partial(flow, beta=beta, normalised=normalised)
    for _ in range(50):
        speed = field(x)
        mass = weights(x, beta).sum(dim=-1) / n**2 if normalised else torch.full((n,), 1 / n)
        dissipated = (mass * speed.square().sum(dim=-1)).sum()
        leaf = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(energy(leaf, beta), leaf)
        assert torch.allclose((slope * speed).sum(), dissipated, 1e-10, 1e-15)
        following = F.normalize(runge_kutta(field, x, pace(beta, normalised)), dim=-1)
        assert energy(following, beta) > energy(x, beta)
        x = following


# Collapse -----------------------------------------------------------------------------------------


def test_beta_zero_collapses_to_one_point() -> None:
    x = sphere(20, 8, 3)
    assert gaps(x).amax() > 1
    x = integrate(partial(flow, beta=0.0, normalised=True), x, 40, 400)
    assert gaps(x).amax() < 1e-12


def test_almost_every_start_collapses_but_not_an_antipodal_pair() -> None:
    x = sphere(1, 3)
    assert flow(torch.cat([x, -x]), 0.0, True).abs().max() < 1e-15


@both
@pytest.mark.parametrize("beta", [0.0, 1.0, 3.0])
def test_points_of_a_cone_collapse_within_it(beta: float, normalised) -> None:
    w = sphere(3)
    x = sphere(6, 3)
    x = x * (x @ w).sign().unsqueeze(-1)  # all on the side of w
    field = partial(flow, beta=beta, normalised=normalised)
    for _ in range(1000):
        following = F.normalize(runge_kutta(field, x, pace(beta, normalised)), dim=-1)
        assert (following @ w).min() >= (x @ w).min() - 1e-12
        x = following
        if gaps(x).amax() < 1e-6:
            return
    raise AssertionError(f"still {gaps(x).amax():.1e} apart")


@pytest.mark.parametrize(
    ("beta", "normalised", "rate"),
    [(0.0, True, 2.0), (2.0, True, 2.0), (0.5, False, 2 * math.exp(0.5))],
)
def test_the_last_of_the_collapse_is_exponential(beta, normalised, rate: float) -> None:
    """1 - <x_i, x_j> falls like e^{-2t} for SA, like e^{-2 e^beta t} for USA."""
    field = partial(flow, beta=beta, normalised=normalised)
    x = F.normalize(torch.ones(5, 4, dtype=F64) + 1e-3 * torch.randn(5, 4, dtype=F64), dim=-1)
    later = integrate(field, x, 2.0, 400)
    measured = -(gaps(later)[0, 1:] / gaps(x)[0, 1:]).log() / 2
    assert (measured / rate - 1).abs().max() < 5e-3


def test_wendel_and_how_often_random_points_share_a_hemisphere() -> None:
    """2^{1-n} sum_{k<d} C(n-1, k); half of all starts for n = 6, d = 3, all of them for d >= n."""

    def wendel(n: int, d: int) -> float:
        return sum(math.comb(n - 1, k) for k in range(d)) / 2 ** (n - 1)

    assert wendel(6, 3) == 0.5 and wendel(4, 4) == 1 == wendel(4, 7)
    runs = 40_000
    x = sphere(runs, 6, 3)
    # Points share a hemisphere if all lie on one side of a plane through two of them.
    shared = torch.zeros(runs, dtype=torch.bool)
    for i, j in combinations(range(6), 2):
        others = [k for k in range(6) if k not in (i, j)]
        side = (x[:, others] @ torch.linalg.cross(x[:, i], x[:, j]).unsqueeze(-1)).sign().sum(dim=1)
        shared |= (side.abs() == 4).flatten()
    sigma = math.sqrt(0.25 / runs)
    assert abs(shared.double().mean() - wendel(6, 3)) < 3 * sigma


def test_clusters_outlive_a_long_time_when_attention_is_sharp() -> None:
    """Metastability (arXiv:2410.06833): the share of pairs that have merged by t = 30."""
    merged = []
    for beta in (0.5, 2.0, 9.0):
        x = sphere(32, 32, 2)
        for _ in range(300):
            x = F.normalize(x + 0.1 * flow(x, beta, True), dim=-1)
        merged.append((gaps(x) < 1e-3).double().mean())
    assert merged[0] > 0.99 and merged[0] > merged[1] > merged[2] and merged[2] < 0.5


# One equation for all pairs -----------------------------------------------------------------------


def equiangular(gamma: Tensor, beta: float, n: int, normalised: bool) -> Tensor:
    """gamma' of gamma = <x_i, x_j>, equal for all pairs, as it stays from an orthonormal start."""
    kernel = (beta * gamma).exp()
    scale = math.exp(beta) + (n - 1) * kernel if normalised else n
    return 2 * kernel * (1 - gamma) * ((n - 1) * gamma + 1) / scale


@both
@pytest.mark.parametrize(("beta", "n"), [(0.0, 2), (1.0, 4), (3.0, 7)])
def test_orthonormal_points_follow_the_equiangular_equation(beta: float, n, normalised) -> None:
    x, gamma = torch.eye(n, dtype=F64), torch.zeros((), dtype=F64)
    pairs = ~torch.eye(n, dtype=torch.bool)
    for _ in range(3):
        x = integrate(partial(flow, beta=beta, normalised=normalised), x, 0.5, 120)
        law = partial(equiangular, beta=beta, n=n, normalised=normalised)
        before, gamma = gamma, integrate(law, gamma, 0.5, 120)
        assert ((x @ x.T)[pairs] - gamma).abs().max() < 1e-9
        assert before < gamma < 1
    if normalised:
        halfway = integrate(law, torch.zeros((), dtype=F64), n * math.exp(beta) / 2, 500)
        assert halfway >= 0.5


def test_two_points_without_weights_close_like_tanh() -> None:
    x = integrate(partial(flow, beta=0.0, normalised=True), torch.eye(2, dtype=F64), 1.5, 600)
    assert abs(x[0] @ x[1] - math.tanh(1.5)) < 1e-11


# On the circle ------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.0, 1.0, 5.0])
def test_on_the_circle_it_is_the_kuramoto_model(beta: float) -> None:
    """theta_i' = -(1/n) sum_j e^{beta cos(theta_i - theta_j)} sin(theta_i - theta_j)."""
    theta = 2 * math.pi * torch.rand(9, dtype=F64)
    difference = theta.unsqueeze(1) - theta
    model = -((beta * difference.cos()).exp() * difference.sin()).mean(dim=1)
    x = torch.stack([theta.cos(), theta.sin()], dim=-1)
    ahead = torch.stack([-theta.sin(), theta.cos()], dim=-1)  # the unit tangent
    speed = flow(x, beta, normalised=False)
    assert (speed - model.unsqueeze(-1) * ahead).abs().max() < 1e-15 * math.exp(beta)
    if beta:
        theta.requires_grad_()
        points = torch.stack([theta.cos(), theta.sin()], dim=-1)
        (slope,) = torch.autograd.grad(energy(points, beta), theta)
        assert (len(theta) * slope - model).abs().max() < 1e-14 * math.exp(beta)


# What it says about this block --------------------------------------------------------------------


def choose(x: Tensor, memory: float, coupling: float, anchored: bool) -> Choice:
    """z <- N_1(memory z + (1 - memory) x + coupling C) for the tokens x (n, d), C their mean."""
    x = x[None, None]
    mask = torch.ones(1, x.shape[2], dtype=torch.bool)
    anchors = x if anchored else torch.zeros_like(x)
    update = AnchoredUpdate(
        anchors=anchors,
        strength=torch.ones(1, 1, 1, 1, dtype=F64),
        coupling=coupling * torch.eye(x.shape[-1], dtype=F64)[None],
        gain=torch.tensor([coupling], dtype=F64),
        memory=memory,
        rotation=0.0,
        eta=1.0,
        radius=1.0,
    )
    place = Place(torch.zeros(*mask.shape, 3), torch.zeros(mask.shape))
    return Choice(anchors, mask, None, update, MeanAccom(x.shape[-1], 1)(x, mask, place))


def iterate(choice: Choice, x: Tensor, num_rounds: int) -> Tensor:
    """The latents (n, d) after some rounds that start at x."""
    context = choice.mixing.first(x[None, None])
    state = context if choice.memoryless else torch.cat([x[None, None], context], dim=2)
    for _ in range(num_rounds):
        state = choice.step(state)
    return choice.read_out(state)[0][0, 0]


# A factor this large on all that enters N_1 makes it z <- h / |h|.
LARGE = 1e9


def test_without_anchor_the_update_is_the_euler_scheme_of_attention_at_beta_zero() -> None:
    """z <- normalize(mu z + C) is a step of 1/mu: the error is of first order in it."""
    x = sphere(10, 4)
    exact = integrate(partial(flow, beta=0.0, normalised=True), x, 1.0, 400)
    errors = []
    for mu in (20, 200, 2000):
        update = choose(x, memory=LARGE * mu, coupling=LARGE, anchored=False)
        errors.append((iterate(update, x, mu) - exact).norm(dim=-1).max().item())
    assert errors[0] < 3e-2 and errors[1] < 3e-3 and errors[2] < 3e-4
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.2)
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.05)


def mean_angle(x: Tensor) -> float:
    distance = torch.pdist(F.normalize(x, dim=-1))
    return (2 * (distance / 2).asin()).mean().item()


def test_without_anchor_iterating_is_collapse_and_with_it_it_is_not() -> None:
    x = F.normalize(sphere(32, 6) + 0.5 * sphere(6), dim=-1)
    start = mean_angle(x)
    assert start > 1
    alone = choose(x, memory=1.0, coupling=0.9, anchored=False)
    assert mean_angle(iterate(alone, x, 100)) < 1e-3
    kept = []
    for coupling in (0.5, 0.9, 2.0):
        anchored = choose(x, memory=0.0, coupling=coupling, anchored=True)
        end, further = iterate(anchored, x, 100), iterate(anchored, x, 400)
        assert mean_angle(further) == pytest.approx(mean_angle(end), abs=1e-6)
        kept.append(mean_angle(end))
    assert start > kept[0] > kept[1] > kept[2] > 0.2 * start
    assert kept[0] > 0.6 * start
