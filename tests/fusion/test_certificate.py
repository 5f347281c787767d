"""The promises of the contraction factor, held against what the iteration does."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from fusion import AnchoredAssim, FixedPointSolver, SlotAccom
from fusion.certificate import error_bound, max_rounds, spectral_norm_bound
from fusion.choice import Choice
from fusion.tokens import Place

F64 = torch.float64
BATCH, NUM_HEADS, NUM_TOKENS, DIM_HEAD = 4, 2, 5, 8
MASK = torch.ones(BATCH, NUM_TOKENS, dtype=torch.bool)


@torch.no_grad()
def choose(assim: AnchoredAssim, num_slots: int = 3, scale: float = 1.0) -> Choice:
    """A choice for anchors of norm about `scale`, with a random coupling of norm kappa."""
    anchors = torch.randn(BATCH, NUM_HEADS, NUM_TOKENS, DIM_HEAD, dtype=F64)
    anchors = scale * anchors / DIM_HEAD**0.5
    for part in (assim.coupling_real, assim.coupling_imag):
        torch.nn.init.normal_(part)
    accom = SlotAccom(DIM_HEAD, NUM_HEADS, num_slots).double()
    place = Place(torch.zeros(*MASK.shape, 3), torch.zeros(MASK.shape))
    update, mixing = assim.double()(anchors, MASK), accom(anchors, MASK, place)
    return Choice(anchors, MASK, None, update, mixing)


def size(vectors: Tensor) -> Tensor:
    return vectors.norm(dim=-1).amax(dim=(1, 2))


def in_ball(choice: Choice, radius: float) -> Tensor:
    """A state in which every row has a norm below the radius."""
    raw = torch.randn_like(choice.start())
    length = radius * torch.rand_like(raw[..., :1])
    return raw / raw.norm(dim=-1, keepdim=True) * length


def worst_ratio(choice: Choice, radius: float) -> Tensor:
    """Largest observed stretch over far, near and successive pairs: (B,)."""
    ratios = []
    left = choice.start()
    pairs = [(in_ball(choice, radius), in_ball(choice, radius)) for _ in range(2)]
    near = 0.9 * in_ball(choice, radius)
    pairs.append((near, near + 1e-4 * torch.randn_like(near)))
    for _ in range(3):
        pairs.append((left, choice.step(left)))
        left = choice.step(left)
    for left, right in pairs:
        ratios.append(size(choice.step(left) - choice.step(right)) / size(left - right))
    return torch.stack(ratios).amax(dim=0)


def test_observed_contraction_never_exceeds_q_in_200_random_cases() -> None:
    tightest = 0.0
    for seed in range(200):
        torch.manual_seed(seed)
        kappa, memory, rotation, eta, radius = torch.rand(5).tolist()
        memory, rotation = memory * (seed % 2), rotation * (seed % 3 > 0)
        radius = 0.3 + 2 * radius
        assim = AnchoredAssim(
            DIM_HEAD, NUM_HEADS, 0.05 + kappa, memory, rotation, 0.05 + eta, radius
        )
        choice = choose(assim, num_slots=1 + seed % 4, scale=10 ** (seed % 5 - 3))
        ratio = worst_ratio(choice, radius)
        assert (ratio <= choice.q * (1 + 1e-9)).all(), seed
        tightest = max(tightest, (ratio / choice.q).max().item())
    assert tightest > 0.5  # the bound says something


def test_without_the_spectral_bound_the_contraction_is_exceeded() -> None:
    """Negative control: the same round with a coupling that was not held back."""
    exceeded = False
    for seed in range(20):
        torch.manual_seed(seed)
        choice = choose(AnchoredAssim(DIM_HEAD, NUM_HEADS), num_slots=1, scale=1e-3)
        loose = dataclasses.replace(choice.update, coupling=6 * choice.update.coupling)
        ratio = worst_ratio(dataclasses.replace(choice, update=loose), 1.0)
        exceeded |= bool((ratio > choice.q).any())
    assert exceeded


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_coupling_norm_is_a_close_bound_and_at_most_kappa(scale: float) -> None:
    torch.manual_seed(0)
    assim = AnchoredAssim(DIM_HEAD, NUM_HEADS, kappa=0.7)
    for part in (assim.coupling_real, assim.coupling_imag):
        torch.nn.init.normal_(part, std=scale)
    matrix, norm = assim.coupling()
    half = DIM_HEAD // 2
    as_complex = torch.complex(matrix[:, :half, :half], matrix[:, half:, :half])
    exact = torch.linalg.svdvals(as_complex)[:, 0]
    for bound in (norm, spectral_norm_bound(matrix)):
        assert (bound > exact * (1 - 1e-5)).all() and (bound < exact * 1.003).all()
    assert (norm <= 0.7 * (1 + 1e-6)).all() and (exact <= 0.7 * (1 + 1e-5)).all()
    vector = torch.randn(NUM_HEADS, DIM_HEAD, 1)
    product = as_complex @ torch.complex(*vector.chunk(2, dim=1))
    assert torch.allclose(matrix @ vector, torch.cat([product.real, product.imag], 1), atol=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e15])
def test_spectral_norm_bound_is_one_and_is_close(scale: float) -> None:
    torch.manual_seed(0)
    random = torch.randn(20, 24, 24).double() * scale
    flat = torch.linalg.qr(random)[0] * scale  # the worst case: all directions stretch alike
    for matrix in (random, flat):
        exact = torch.linalg.matrix_norm(matrix, ord=2)
        ratio = spectral_norm_bound(matrix) / exact
        assert (ratio > 1 - 1e-12).all() and (ratio < 24 ** (1 / 2**11) + 1e-12).all()
    assert spectral_norm_bound(torch.zeros(1, 3, 3)) == 0


def test_spectral_norm_bound_has_the_gradient_of_the_norm() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(3, 5, 5).double().requires_grad_()
    assert torch.autograd.gradcheck(spectral_norm_bound, matrix)
    (slope,) = torch.autograd.grad(spectral_norm_bound(matrix).sum(), matrix)
    (wanted,) = torch.autograd.grad(torch.linalg.matrix_norm(matrix, ord=2).sum(), matrix)
    assert (slope - wanted).abs().max() < 1e-3
    zero = torch.zeros(1, 3, 3, requires_grad=True)
    spectral_norm_bound(zero).sum().backward()
    assert zero.grad is not None and not zero.grad.any()


def test_a_new_coupling_is_about_half_of_kappa_and_strength_differs_by_sample() -> None:
    torch.manual_seed(0)
    anchors = torch.randn(16, 4, 8, 32) / 32**0.5
    update = AnchoredAssim(32, 4)(anchors, torch.ones(16, 8, dtype=torch.bool))
    assert (update.gain > 0.45).all() and (update.gain < 0.75).all()
    assert update.gain.unique().numel() == 16


def test_one_fixed_point_from_five_starts() -> None:
    torch.manual_seed(0)
    assim = AnchoredAssim(DIM_HEAD, NUM_HEADS, 0.5, memory=0.2, rotation=0.05)
    choice = choose(assim)
    assert (choice.q < 1).all()
    solver = FixedPointSolver(max_iters=500, tol=1e-12)
    starts = [in_ball(choice, 1.0) for _ in range(5)]
    ends = [solver(choice.step, s, choice.real(s), choice.q)[0] for s in starts]
    assert all((end - ends[0]).abs().max() < 1e-8 for end in ends)


@pytest.mark.parametrize("kappa", [0.3, 0.6, 0.9, 0.99])
def test_error_bound_holds_at_every_round_and_rounds_stay_within_their_bound(kappa) -> None:
    torch.manual_seed(0)
    choice = choose(AnchoredAssim(DIM_HEAD, NUM_HEADS, kappa), scale=0.1)
    q = choice.q
    start = choice.start()
    real = choice.real(start)
    exact, _ = FixedPointSolver(max_iters=3000, tol=1e-14)(choice.step, start, real)
    state = start
    for _ in range(30):
        previous, state = state, choice.step(state)
        bound = error_bound(q, size(state - previous))
        assert (size(state - exact) <= bound + 1e-12).all()
        latents, _ = choice.read_out(state)
        assert (size(latents - choice.read_out(exact)[0]) <= bound + 1e-12).all()
    solver = FixedPointSolver(max_iters=3000, tol=1e-8)
    state, stats = solver(choice.step, start, real, q)
    assert (stats.num_iters <= max_rounds(q, solver.tol, stats.trace[0])).all()
    assert (size(state - exact) <= stats.error_bound + 1e-14).all()


def test_rounds_of_the_worst_case_are_met_with_equality() -> None:
    """z <- q z has steps of exactly q^(t-1) D: the bound counts it to within ln(1-q)/ln q."""
    q, first = torch.tensor([0.0, 0.25, 0.5]), torch.ones(3)
    assert max_rounds(q, 1e-3, first).tolist() == [2, 7, 12]
    assert max_rounds(q, 10.0, first).tolist() == [1, 1, 1]
    for factor, bound in zip(q.tolist(), max_rounds(q, 1e-3, first).tolist(), strict=True):
        stop = next(t for t in range(1, 99) if factor ** (t - 1) < 1e-3)
        assert stop <= bound <= stop + 1


def test_nothing_is_promised_without_contraction() -> None:
    q = torch.tensor([1.0, 2.0, math.inf, math.nan, 0.0, 0.5])
    residual = torch.tensor([1.0, 1.0, 0.0, 1.0, math.inf, 1.0])
    assert error_bound(q, residual).tolist() == [math.inf] * 5 + [1.0]
    assert max_rounds(q, 1e-3, torch.ones(6))[:4].tolist() == [math.inf] * 4


@pytest.mark.parametrize("kappa", [0.5, 5.0, 50.0])
@pytest.mark.parametrize("rotation", [0.0, 0.3])
def test_tokens_that_share_a_context_do_not_merge(kappa: float, rotation: float) -> None:
    """|z_i - z_j| >= (1-2g) (1+U^2/E^2)^(-3/2) |x_i - x_j|, U = max |h|, for any coupling."""
    for seed in range(20):
        torch.manual_seed(seed)
        assim = AnchoredAssim(DIM_HEAD, NUM_HEADS, kappa, rotation=rotation)
        choice = choose(assim, num_slots=1)
        state = choice.start()
        for _ in range(50):
            state = choice.step(state)
        latents, _ = choice.read_out(state)
        square = latents.square().sum(-1)
        reach = (square / (1 - square)).amax(dim=-1)[..., None, None]  # |h|^2 from |N(h)|^2
        bound = (1 - 2 * rotation) * (1 + reach) ** -1.5
        gap, start = torch.cdist(latents, latents), torch.cdist(choice.anchors, choice.anchors)
        assert (gap >= bound * start * (1 - 1e-9)).all()


def test_without_anchors_all_tokens_merge() -> None:
    """Negative control: averaging alone is a contraction to one point."""
    torch.manual_seed(0)
    choice = choose(AnchoredAssim(DIM_HEAD, NUM_HEADS, 0.5), num_slots=1)
    update = dataclasses.replace(choice.update, anchors=torch.zeros_like(choice.anchors))
    loose = dataclasses.replace(choice, update=update)
    state = loose.start()
    for _ in range(50):
        state = loose.step(state)
    latents, _ = loose.read_out(state)
    assert torch.cdist(latents, latents).max() < 1e-6


@pytest.mark.parametrize(
    "wrong",
    [{"dim_head": 7}, {"kappa": 0.0}, {"memory": 1.0}, {"rotation": 1.5}, {"eta": 0.0}],
)
def test_settings_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="Got "):
        AnchoredAssim(**{"dim_head": 8, "num_heads": 2, **wrong})
