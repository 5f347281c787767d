"""The same operators in the limits: of their parameters and of the numbers; what they declare."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from fusion import FusionBlock, SlotAccom
from fusion.accom import ResponsibilityAccom
from fusion.assim import AnchoredAssim, PhaseAssim, ProximalAssim
from fusion.choice import Choice
from fusion.tokens import Place

F64 = torch.float64
BATCH, HEADS, TOKENS, SLOTS, WIDTH = 3, 2, 7, 4, 6
both = pytest.mark.parametrize("assim", [ProximalAssim, PhaseAssim])


@torch.no_grad()
def choose(anchors: Tensor, assim: nn.Module, accom: nn.Module, mask: Tensor | None = None):
    """The choice for these anchors; all tokens are real if no mask is given."""
    if mask is None:
        mask = torch.ones(anchors.shape[0], anchors.shape[2], dtype=torch.bool)
    anchors = torch.where(mask[:, None, :, None], anchors, 0)
    place = Place(torch.zeros(*mask.shape, 3), torch.zeros(mask.shape))
    update = assim.to(anchors.dtype)(anchors, mask)
    return Choice(anchors, mask, None, update, accom.to(anchors.dtype)(anchors, mask, place))


def settle(choice: Choice, num_rounds: int) -> tuple[Tensor, Tensor]:
    state = choice.start()
    for _ in range(num_rounds):
        state = choice.step(state)
    return choice.read_out(state)


def blobs() -> tuple[Tensor, Tensor]:
    """Three blobs of 8 tokens around the unit vectors, and their means: (1, 1, 24, 6), (3, 6)."""
    torch.manual_seed(0)
    tokens = torch.eye(3, WIDTH, dtype=F64).repeat_interleave(8, 0)
    tokens = tokens + 0.1 * torch.randn_like(tokens)
    return tokens[None, None], tokens.view(3, 8, WIDTH).mean(dim=1)


def test_strong_pull_collapses_each_cluster_to_its_centre() -> None:
    """lam -> inf is mean shift: tokens of a cluster become one, and clusters stay apart."""
    anchors, centres = blobs()
    accom = ResponsibilityAccom(WIDTH, 1, 3, beta=30.0, nu=1e-5)
    accom.query.data = 40 * torch.eye(3, WIDTH)[None]
    pulls, spreads = (0.1, 1.0, 10.0, 50.0), []
    for lam in pulls:
        assim = ProximalAssim(WIDTH, 1, lam)
        nn.init.zeros_(assim.pull.weight)
        latents, context = settle(choose(anchors, assim, accom), 700)
        own = latents.view(3, 8, WIDTH)
        spreads.append((own - own.mean(dim=1, keepdim=True)).norm(dim=-1).max().item())
        assert (context.view(3, WIDTH) - centres).norm(dim=-1).max() < 0.02
    first = (anchors.view(3, 8, WIDTH) - centres[:, None]).norm(dim=-1).max().item()
    wanted = [first / (1 + lam) for lam in pulls]
    assert spreads == pytest.approx(wanted, rel=0.05)


def test_fewer_clusters_are_active_with_smaller_beta() -> None:
    """As in deterministic annealing: slots merge where beta is too small to tell tokens apart."""
    anchors, _ = blobs()
    torch.manual_seed(1)
    queries = torch.randn(1, 12, WIDTH)
    counts = []
    for beta in (1.0, 4.0, 16.0, 300.0):
        accom = ResponsibilityAccom(WIDTH, 1, 12, beta, nu=1e-3)
        accom.query.data = 5 * queries
        assim = ProximalAssim(WIDTH, 1, 0.5)
        nn.init.zeros_(assim.pull.weight)
        choice = choose(anchors, assim, accom)
        latents, context = settle(choice, 300)
        used = choice.mixing.weigh(latents, context).shares[0, 0].sum(dim=0) > 0.1
        slots = context[0, 0][used]
        distinct: list[Tensor] = []
        for slot in slots:
            if all((slot - other).norm() > 0.05 for other in distinct):
                distinct.append(slot)
        counts.append(len(distinct))
    assert counts[:3] == [1, 1, 3] and counts[3] > 6


def channels(vectors: Tensor) -> Tensor:
    """Modulus of every complex channel."""
    return torch.hypot(*vectors.chunk(2, dim=-1))


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1.0, 1e3])
def test_phase_keeps_every_magnitude_and_moves_the_phase(scale: float) -> None:
    torch.manual_seed(0)
    anchors = scale * torch.randn(BATCH, HEADS, TOKENS, WIDTH, dtype=F64)
    anchors[0, 0, 0] = 0
    choice = choose(anchors, PhaseAssim(WIDTH, HEADS), ResponsibilityAccom(WIDTH, HEADS, SLOTS))
    latents, _ = settle(choice, 30)
    assert torch.allclose(channels(latents), channels(anchors), rtol=1e-12, atol=0)
    assert (latents - anchors).abs().max() > 0.1 * scale


def test_phase_of_nothing_is_the_anchor_and_its_gradients_are_finite() -> None:
    """Where context cancels the anchor, at 0, and where it nearly cancels it."""
    magnitude = torch.logspace(-45, 3, 49, dtype=F64).float()
    anchors = torch.cat([torch.zeros(1), magnitude]).view(1, 1, -1, 1).repeat(1, 1, 1, 2)
    choice = choose(anchors, PhaseAssim(2, 1), ResponsibilityAccom(2, 1, 1))
    choice = replace(choice, update=replace(choice.update, lam=torch.ones(1, 1, 1, 1)))
    for rest in (0.0, 1e-30, 1e-7, 1e-4, 1.0):
        x = anchors.clone().requires_grad_()
        seen = ((rest - 1) * anchors).requires_grad_()
        latents = replace(choice.update, anchors=x)(x, seen, lambda slots: slots)
        latents.sum().backward()
        assert torch.allclose(channels(latents), channels(anchors), rtol=1e-6, atol=3e-45)
        for tensor in (x, seen):
            assert tensor.grad is not None and tensor.grad.isfinite().all()
            assert tensor.grad.abs().max() < 1e4
    cancelled = choice.update(anchors, -anchors, lambda slots: slots)
    assert torch.allclose(cancelled, anchors, rtol=1e-6, atol=3e-45)


MAGNITUDES = torch.cat([torch.zeros(1), torch.logspace(-45, 3, 97, dtype=F64).float()])


@both
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_any_magnitude_gives_finite_values_and_gradients(assim: type, dtype) -> None:
    torch.manual_seed(0)
    block = FusionBlock(32, 4, 4, assim=assim, accom=ResponsibilityAccom)
    nn.init.normal_(block.out.weight, std=0.2)
    values = (torch.randn(98, 4, 32) * MAGNITUDES[:, None, None]).requires_grad_()
    mask = torch.ones(98, 4, dtype=torch.bool)
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        out = block(values, mask, torch.rand(98, 4, 3))
        loss = out.values.float().square().mean() + out.context.square().mean()
    loss.backward()
    assert out.values.isfinite().all() and out.context.isfinite().all()
    for tensor in (values, *block.parameters()):
        assert tensor.grad is not None and tensor.grad.isfinite().all()


@both
@pytest.mark.parametrize("magnitude", [0.0, 1e-45, 1e-20, 1e3])
def test_anchors_of_any_magnitude_do_not_overflow_float32(assim: type, magnitude: float) -> None:
    torch.manual_seed(0)
    accom = ResponsibilityAccom(WIDTH, HEADS, SLOTS, beta=100.0, nu=0.01)
    anchors = (magnitude * torch.randn(BATCH, HEADS, TOKENS, WIDTH)).requires_grad_()
    mask = torch.ones(BATCH, TOKENS, dtype=torch.bool)
    place = Place(torch.zeros(BATCH, TOKENS, 3), torch.zeros(BATCH, TOKENS))
    module = assim(WIDTH, HEADS, 100.0)
    choice = Choice(anchors, mask, None, module(anchors, mask), accom(anchors, mask, place))
    state = choice.start()
    for _ in range(5):
        state = choice.step(state)
    assert state.isfinite().all() and choice.energy(state).isfinite().all()
    (state.sum() + choice.energy(state).sum()).backward()
    for tensor in (anchors, *module.parameters(), *accom.parameters()):
        assert tensor.grad is not None and tensor.grad.isfinite().all()


def test_a_nan_sample_changes_no_other_and_an_empty_one_is_zero() -> None:
    torch.manual_seed(0)
    mask = torch.ones(BATCH, TOKENS, dtype=torch.bool)
    mask[-1] = False
    anchors = torch.randn(BATCH, HEADS, TOKENS, WIDTH, dtype=F64)
    accom = ResponsibilityAccom(WIDTH, HEADS, SLOTS)
    choice = choose(anchors, PhaseAssim(WIDTH, HEADS), accom, mask)
    start = choice.start()
    spoiled = start.clone()
    spoiled[0, 0, 0, 0] = math.nan
    clean, dirty = choice.step(start), choice.step(spoiled)
    assert dirty[0].isnan().any() and torch.equal(clean[1:], dirty[1:])
    assert not clean[-1].any()


@both
def test_what_a_pair_declares(assim: type) -> None:
    """With averages that are frozen the proximal step contracts; only re-chosen ones have E."""
    torch.manual_seed(0)
    anchors = torch.randn(BATCH, HEADS, TOKENS, WIDTH, dtype=F64)
    frozen = choose(anchors, assim(WIDTH, HEADS), SlotAccom(WIDTH, HEADS, SLOTS))
    assert frozen.memoryless and frozen.energy(frozen.start()) is None
    lam = frozen.update.lam.amax(dim=(1, 2, 3))
    contracts = assim is ProximalAssim
    assert torch.allclose(frozen.q, lam / (1 + lam) if contracts else frozen.q.new_tensor(math.inf))
    for other in (assim, AnchoredAssim):
        chosen = choose(anchors, other(WIDTH, HEADS), ResponsibilityAccom(WIDTH, HEADS, SLOTS))
        assert not chosen.memoryless and chosen.q.isinf().all()
        assert (chosen.energy(chosen.start()) is None) == (other is AnchoredAssim)


def test_the_energy_is_known_in_low_precision() -> None:
    torch.manual_seed(0)
    anchors = torch.randn(BATCH, HEADS, TOKENS, WIDTH)
    choice = choose(anchors, ProximalAssim(WIDTH, HEADS), ResponsibilityAccom(WIDTH, HEADS, SLOTS))
    exact = choice.energy(choice.step(choice.start()))
    coarse = choice.to(torch.bfloat16)
    found = coarse.energy(coarse.step(coarse.start()))
    assert torch.allclose(found, exact, rtol=2e-2)


def test_learned_scales_are_never_zero_or_infinite() -> None:
    accom, assim = ResponsibilityAccom(WIDTH, HEADS, SLOTS, 2.0), ProximalAssim(WIDTH, HEADS, 3.0)
    anchors = torch.randn(1, HEADS, TOKENS, WIDTH)
    for extreme in (-1e30, 0.0, 1e30):
        for parameter in (accom.sharpness, accom.inertia, assim.pull.bias):
            nn.init.constant_(parameter, extreme)
        choice = choose(anchors, assim, accom)
        span = math.exp(5) * (1 + 1e-5)
        for value, middle in (
            (choice.mixing.sharpness, 2.0),
            (choice.mixing.inertia, 1.0),
            (choice.update.lam, 3.0),
        ):
            assert (value >= middle / span).all() and (value <= middle * span).all()
        assert (choice.update.gain < 1).all()


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.inf, math.nan])
def test_scales_out_of_range_are_refused(wrong: float) -> None:
    for make in (
        partial(ProximalAssim, lam=wrong),
        partial(PhaseAssim, lam=wrong),
        partial(ResponsibilityAccom, num_slots=3, beta=wrong),
        partial(ResponsibilityAccom, num_slots=3, nu=wrong),
    ):
        with pytest.raises(ValueError, match="give .*positive"):
            make(dim_head=4, num_heads=2)
    with pytest.raises(ValueError, match="even width"):
        PhaseAssim(5, 2)
